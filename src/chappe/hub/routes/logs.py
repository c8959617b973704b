"""Logs of Jobs: readers ask, pilots and agents answer (see wire.logs and hub.wishes)."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec

from chappe.core import limits
from chappe.core.errors import Busy, ChappeError, Conflict, Invalid, NotFound, Unavailable
from chappe.core.states import FINAL, State
from chappe.hub.call import Call
from chappe.hub.wishes import Holder
from chappe.store import queries
from chappe.wire.jobs import JobView
from chappe.wire.logs import LogPage, LogPiece, LogStream

#: How long the Site may take beyond the time that the reader gives it.
ANSWER_S = 10.0


class LogsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which output, and which part of it: from byte `start`, or the last `tail` lines (0: what comes from now
    on). `attempt`: not the last one. `wait_s`: wait so long for something to be there."""

    stream: LogStream = LogStream.STDOUT
    start: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None
    tail: Annotated[int, msgspec.Meta(ge=0, le=limits.LOG_TAIL_LINES)] | None = None
    attempt: Annotated[int, msgspec.Meta(ge=1, le=limits.ATTEMPTS_MAX)] | None = None
    wait_s: Annotated[int, msgspec.Meta(ge=0, le=30)] = 0


async def read(call: Call[None, LogsQuery]) -> LogPage:
    """Read a piece of a Job's output, while it runs or afterwards.

    The bytes come from the file at the Site, at most 128 KiB a time; go on with `start` = `next`. The hub
    keeps no logs: when the file is out of reach, it has the last lines that came with a failure.
    """
    hub, q = call.hub, call.query
    if (q.start is None) == (q.tail is None):
        raise Invalid("give either `start` or `tail`", field="start")
    view = await hub.read(queries.get_job, call.principal, call.path["id"])
    attempt = view.attempt if q.attempt is None else q.attempt
    if view.attempt == 0 or attempt > view.attempt:
        code = "never_started" if State(view.state) in FINAL else "not_started"
        raise Conflict(f"attempt {max(attempt, 1)} of the job has not started", code=code)
    try:
        piece = await _fetch(call, view, attempt)
    except ChappeError as e:
        if isinstance(e, Busy):
            raise
        kept = _kept(view, attempt, q, e)
        if kept is None:
            raise
        return kept
    return LogPage(
        view.id,
        attempt,
        q.stream,
        piece.start,
        piece.start + len(piece.data),
        piece.size,
        piece.data,
        piece.over,
        piece.note,
    )


async def _fetch(call: Call[None, LogsQuery], view: JobView, attempt: int) -> LogPiece:
    """Ask whoever has the file. Raises what there is to say when nobody has it, or nobody answers."""
    hub, q = call.hub, call.query
    runs = view.state == State.RUNNING and attempt == view.attempt
    holders = await _holders(call, view, runs)
    function = None if view.spec is None else view.spec.function
    wish = {
        "job": view.id,
        "attempt": attempt,
        "workdir": view.workdir,
        "app": view.app,
        "environment": None if function is None else function.environment,
        "stream": q.stream,
        "start": q.start,
        "tail": q.tail,
        "wait_s": float(q.wait_s) if runs else 0.0,
    }
    with hub.wishes.ask(holders, wish) as piece:
        leaving = asyncio.ensure_future(call.left())
        stopping = asyncio.ensure_future(hub.stopping.wait())
        try:
            await asyncio.wait(
                (piece, leaving, stopping),
                timeout=q.wait_s + ANSWER_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            leaving.cancel()
            stopping.cancel()
        if not piece.done():
            raise Unavailable(
                "the site did not answer in time, though it was heard of lately; try again",
                code="log_unanswered",
            )
        found = piece.result()
    if found.problem == "busy":
        raise Busy(found.note)
    if found.problem:
        raise NotFound(found.note, code=found.problem)
    return found


async def _holders(call: Call[None, LogsQuery], view: JobView, runs: bool) -> list[Holder]:
    """Who can read the file: the pilot while the Job runs, else the agent and any pilot of that Site.

    Who was heard a minute ago need not be there now, so both are asked.
    """
    hub = call.hub
    if runs and view.session is not None:
        if not view.unreachable:
            return [("session", view.session)]
        raise Conflict(
            "the job's pilot is not heard at the moment, so its log cannot be read; the job goes on",
            code="site_offline",
        )
    able: list[Holder] = []
    if view.site is not None:
        able = await hub.read(queries.log_holders, call.principal, view.site, hub.clock())
    if not able:
        raise Conflict(
            "nobody at the job's site is heard at the moment, so its log cannot be read from here; at "
            f"the site it is below data/{view.workdir}",
            code="site_offline",
        )
    return able


def _kept(view: JobView, attempt: int, q: LogsQuery, error: ChappeError) -> LogPage | None:
    """The end of the output that came with a failure, for a reader who begins; None if there is none."""
    outcome = view.outcome
    if outcome is None or not outcome.tail or attempt != view.attempt or q.start:
        return None
    data = outcome.tail.encode()
    note = f"{error.message} – this is the end of its error output, kept with the failure"
    return LogPage(view.id, attempt, q.stream, 0, len(data), len(data), data, True, note)


async def bring(call: Call[LogPiece, None]) -> None:
    """Bring a piece of a log that somebody wished to read."""
    p, piece = call.principal, call.body
    if len(piece.data) > limits.LOG_BYTES:
        raise Invalid(f"a piece is at most {limits.LOG_BYTES} bytes", field="data")
    holder: Holder = ("session", p.session_id) if p.scope == "session" else ("agent", p.site_n)
    call.hub.wishes.bring(holder, piece)
