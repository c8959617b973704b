"""Follows which nodes are free, for the policy `backfill`; the scheduler is asked only while Jobs wait."""

from __future__ import annotations

import asyncio

import structlog

from chappe.core.errors import ChappeError
from chappe.link.clock import now
from chappe.site.calls import Calls
from chappe.site.elastic import Elastic
from chappe.site.schedulers.base import succeeded
from chappe.site.schedulers.windows import WindowReader
from chappe.site.wakeup import Wakeups, wait_for

log = structlog.get_logger()


async def follow_windows(
    elastic: Elastic, reader: WindowReader, calls: Calls, wakeups: Wakeups, interval_s: float
) -> None:
    """Ask when Jobs begin to wait, and then at the interval; for ever."""
    while True:
        if not elastic.wants_windows:
            await wait_for(wakeups.windows)
            continue
        try:
            outputs = [await _ask(calls, command) for command in reader.commands()]
            windows = reader.parse(outputs, elastic.queues, now())
        except (ChappeError, OSError) as e:
            log.warning("the scheduler did not say which nodes are free", error=str(e))
            windows = []
        elastic.see_windows(windows)
        await asyncio.sleep(interval_s)


async def _ask(calls: Calls, command: list[str]) -> str:
    return await calls.ask(
        "windows", command, lambda out, err, code: succeeded(out, err, code, command[0])
    )
