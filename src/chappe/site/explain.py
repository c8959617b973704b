"""What a Site would do with its scheduler, without doing it: the policy in words, and the exact script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from chappe.core import policy as rules
from chappe.core.batchjobs import BatchJobIntent, check_intent
from chappe.core.policy import check_allowed
from chappe.site import schedulers, sessions
from chappe.site.calls import CallRecord, read_record
from chappe.site.config import load
from chappe.site.paths import SitePaths

EXAMPLE = "00000000-0000-7000-8000-000000000000"
"""In the place of ids that a real BatchJob gets."""


class PolicyWords(msgspec.Struct, frozen=True):
    """The policy of a Site in sentences, and how often its scheduler was called so far."""

    scheduler: str
    words: list[str]
    calls: CallRecord | None


class Preview(msgspec.Struct, frozen=True):
    """A batch script, and the command that would submit it."""

    script: str
    command: list[str]


def explain_policy(directory: Path | str) -> PolicyWords:
    """The policy of the Site in `directory`. Raises SiteProblem, Invalid."""
    paths = SitePaths.of(Path(directory))
    config = load(paths.root)
    scheduler = schedulers.make(config.scheduler.kind, str(paths.scheduler_records))
    pace = config.scheduler
    words = rules.words(config.policy, pace.status_interval_s, pace.status_fast_s)
    if not scheduler.quirks.shared:
        words.insert(0, "This scheduler is ours alone: of what follows, only the limits are kept.")
    return PolicyWords(config.scheduler.kind, words, read_record(paths.calls))


def preview(directory: Path | str, **wishes: Any) -> Preview:
    """What would be submitted for a BatchJobIntent of `wishes`. Raises SiteProblem, Invalid, NotAllowed."""
    intent = BatchJobIntent(**wishes)
    paths = SitePaths.of(Path(directory))
    config = load(paths.root)
    wanted = sessions.with_defaults(config, intent)
    check_intent(wanted)
    check_allowed(config.policy, wanted)
    scheduler = schedulers.make(config.scheduler.kind, str(paths.scheduler_records))
    name = f"chappe-{EXAMPLE}"
    batch = sessions.batch_of(paths, config, intent, name, EXAMPLE)
    script = str(paths.session(EXAMPLE) / sessions.SCRIPT)
    return Preview(scheduler.render_script(batch), scheduler.submit_command(script, name))


def told(calls: CallRecord) -> list[str]:
    """Counts of calls in sentences."""
    return [
        f"{kind}: {c.calls} ({c.failed} failed), {c.seconds / c.calls:.2g} s each, "
        f"{c.slowest_s:.2g} s at most"
        for kind, c in sorted(calls.counts.items())
    ]
