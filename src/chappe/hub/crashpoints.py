"""Every named moment at which a test may kill the Hub (link.faults): its own and the store's."""

from __future__ import annotations

from chappe.bus import amqp_config, workers
from chappe.hub import bootstrap, http, mail
from chappe.store import journal, writer

CRASH_POINTS: tuple[str, ...] = (
    *writer.CRASH_POINTS,
    *journal.CRASH_POINTS,
    *http.CRASH_POINTS,
    *mail.CRASH_POINTS,
    *amqp_config.CRASH_POINTS,
    *workers.CRASH_POINTS,
    *bootstrap.CRASH_POINTS,
)
