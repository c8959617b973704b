"""What becomes of a run that has hooks, counts or leftovers: looked at on the disk thread, after its end.

The launcher says how command and hook ended; here the hook's verdict is read and judged (core.hooks), the
files are counted, and what is to be removed once the Hub has the end is written into it. Whatever a hook did
or wrote, there is an outcome: no verdict can lose a Job.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from chappe.core import hooks
from chappe.core.errors import ChappeError, Invalid
from chappe.core.hooks import HookName, HookReport
from chappe.core.jobs import JobSpec
from chappe.core.leases import IoUsage, again, finished, with_hook
from chappe.core.parameters import Validator
from chappe.link.appdef import Files
from chappe.link.changed import ChangedParameters, read_small
from chappe.link.cleanup import Cleanup
from chappe.link.journal import End
from chappe.pilot.ends import end_of
from chappe.pilot.holding import Holding
from chappe.pilot.launch_wire import Ended, IoCount

_COUNT_MOST = 100_000
_ATTEMPTS_MOST = 100
"""Earlier attempts whose directories are cleaned as well: `[files] cleanup` wants one for each."""


class After(NamedTuple):
    """What must be known of a started Job to judge its end."""

    spec: JobSpec
    max_attempts: int
    files: Files
    directory: str
    verdict: str
    scratch: str
    validate: Validator


class Judged(NamedTuple):
    """A run's end, or None: its preprocess hook is content, and the command is to run with `parameters`."""

    holding: Holding
    end: End | None
    parameters: Mapping[str, Any]


def judge(h: Holding, ended: Ended, after: After, changed: ChangedParameters) -> Judged:
    """What the end of a run means. Reads the verdict, and counts files: for the disk thread."""
    end = end_of(h, ended)
    outcome = end.outcome
    hook = _hook(ended)
    if hook is not None:
        report = _report(h, hook, ended.hook.problem if ended.hook else "", after, changed)
        if hook is HookName.PREPROCESS and not report.problem and report.state is None:
            return Judged(h, None, report.parameters)
        outcome = with_hook(outcome, report)
    if ended.reason == "hook" and after.scratch:
        # Kept by the launcher for the command that will not run.
        shutil.rmtree(after.scratch, ignore_errors=True)
    if ended.io is not None and outcome.usage is not None:
        usage = msgspec.structs.replace(outcome.usage, io=_io(ended.io, after.directory))
        outcome = msgspec.structs.replace(outcome, usage=usage)
    done = finished(outcome)
    last = done or not again(after.spec.retries, h.attempt, after.max_attempts, outcome)
    cleanup = None
    if last and after.files.cleanup:
        above, _, own = after.directory.rpartition("/")
        names = [f"attempt-{k}" for k in range(max(1, h.attempt - _ATTEMPTS_MOST), h.attempt)]
        directories = [*(f"{above}/{name}" for name in names), f"{above}/{own}"]
        patterns = list(after.files.cleanup)
        cleanup = Cleanup(directories, patterns, after.files.result or "")
    # A Job that only its hook calls finished need not have its result.
    result = h.result if outcome.ok or (done and os.path.lexists(h.result)) else ""
    return Judged(
        h, msgspec.structs.replace(end, outcome=outcome, result=result, cleanup=cleanup), {}
    )


def _hook(ended: Ended) -> HookName | None:
    """The hook that may decide: the one that followed the command, or took its place. A run that was ended
    from outside is not for hooks to decide about."""
    if ended.hook is None:
        return None
    name = HookName(ended.hook.name)
    decides = ("hook",) if name is HookName.PREPROCESS else ("exit", "signal", "timeout")
    return name if ended.reason in decides else None


def _report(
    h: Holding, name: HookName, problem: str, after: After, changed: ChangedParameters
) -> HookReport:
    """What the hook did. A verdict that changes parameters takes effect here, or counts for nothing."""
    if problem:
        return hooks.useless(name, problem)
    try:
        verdict = hooks.parse(name, read_small(after.verdict, hooks.VERDICT_BYTES))
        if verdict.parameters:
            _check_parameters(h, verdict.parameters, after, changed)
            if name is not HookName.PREPROCESS:
                changed.put(h.job, h.attempt, verdict.parameters)
    except ChappeError as e:
        where = f"{e.field}: " if e.field else ""
        return hooks.useless(name, f"left a verdict that cannot be: {where}{e.message}")
    except (OSError, msgspec.MsgspecError) as e:
        return hooks.useless(name, f"left a verdict that cannot be used: {e}")
    return hooks.report(name, verdict)


def _check_parameters(
    h: Holding, wanted: Mapping[str, Any], after: After, changed: ChangedParameters
) -> None:
    """Raise Invalid unless the Job may have these parameters."""
    if len(after.spec.sites) > 1:
        raise Invalid(
            "a job that may run at several sites keeps its parameters: what one site's hook makes of "
            "them, the others would not know",
            field="parameters",
        )
    before = changed.get(h.job, h.attempt + 1)
    after.validate({**after.spec.parameters, **before, **wanted})


def _io(io: IoCount, directory: str) -> IoUsage:
    return IoUsage(
        io.read_bytes,
        io.written_bytes,
        io.read_calls,
        io.write_calls,
        io.storage_read_bytes,
        io.storage_written_bytes,
        _count(directory),
        io.source,
    )


def _count(directory: str) -> int:
    """The files below a Job's own directory, its logs left out; links are counted and not followed."""
    logs = {f"{directory}/stdout.log", f"{directory}/stderr.log"}
    found, todo = 0, [directory]
    while todo and found < _COUNT_MOST:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    elif entry.path not in logs:
                        found += 1
        except OSError:
            continue  # removed meanwhile, or closed to us: what can be seen counts
    return min(found, _COUNT_MOST)
