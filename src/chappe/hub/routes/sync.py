"""The pilots' long poll. A sync that has nothing to say waits until it has, or until its time is up."""

from __future__ import annotations

import asyncio
import hashlib

import msgspec

from chappe.core import limits
from chappe.hub.call import Call
from chappe.hub.polls import Poll
from chappe.hub.state import Hub
from chappe.link.results import ResultProblem, check_bytes
from chappe.store import sync as store
from chappe.wire.sync import Report, SyncReply, SyncRequest


async def sync(call: Call[SyncRequest, None]) -> SyncReply:
    """A pilot's reports, heartbeat and free capacity; verdicts, renewals and new work.

    Answered at once when there is anything to say, else after at most `wait_s` (up to 30 s).
    """
    hub, p, req = call.hub, call.principal, with_good_results(call.body)
    key = ("session", p.session_n)
    groups: list[tuple[str, str | int | None]] = [("session", p.session_id)]
    has_room = req.capacity is not None and (req.capacity.cores > 0 or req.capacity.prefetch > 0)
    if has_room:
        groups.append(("work", p.site_n))
    _heard(hub, p.session_n)
    if p.session_n is not None:
        hub.liveness.ends(p.session_n, req.hard_end_in_s)
    with hub.polls.poll(key, req.request_no, tuple(groups)) as poll:
        reply, repeated = await hub.write(store.answer, p, req)
        _heard(hub, p.session_n)
        hub.metrics.sync(reply)
        reply = _with_wishes(call, reply)
        if req.wait_s > 0 and _says_nothing(reply):
            if has_room and repeated:
                # A repeated request was answered from the rows; what came after it is granted now.
                poll.hint()
            reply = await _wait(call, poll, reply)
    return reply


def with_good_results(req: SyncRequest) -> SyncRequest:
    """The request without the results that are not what their reports say: such an end is then refused."""
    if not any(report.body for report in req.reports):
        return req
    reports = [r if not r.body or _is_good(r) else _without(r) for r in req.reports]
    return msgspec.structs.replace(req, reports=reports)


def _is_good(report: Report) -> bool:
    sha256 = None if report.outcome is None else report.outcome.result_sha256
    if (
        len(report.body) > limits.REPORT_RESULT_BYTES
        or hashlib.sha256(report.body).hexdigest() != sha256
    ):
        return False
    try:
        check_bytes(report.media, report.body)
    except ResultProblem:
        return False
    return True


def _without(report: Report) -> Report:
    return msgspec.structs.replace(report, media="", body=b"")


def _heard(hub: Hub, session: int | None) -> None:
    if session is not None:
        hub.liveness.heard(session)


async def _wait(call: Call[SyncRequest, None], poll: Poll, reply: SyncReply) -> SyncReply:
    """Look again at every hint, until there is something to say or nobody listens any more."""
    hub, req = call.hub, call.body
    deadline = asyncio.get_running_loop().time() + min(req.wait_s, limits.WAIT_MAX_S)
    leaving = asyncio.ensure_future(call.left())
    leaving.add_done_callback(lambda _left: poll.end())
    try:
        while _says_nothing(reply) and await poll.wait(deadline):
            reply = await hub.write(store.acquire, call.principal, req)
            hub.metrics.sync(reply)
            reply = _with_wishes(call, reply)
    finally:
        leaving.cancel()
    return reply


def _with_wishes(call: Call[SyncRequest, None], reply: SyncReply) -> SyncReply:
    """The reply, and what somebody wishes to read of this pilot's Jobs."""
    logs = call.hub.wishes.of(("session", call.principal.session_id), call.body.logs_seen)
    return msgspec.structs.replace(reply, logs=logs) if logs else reply


def _says_nothing(reply: SyncReply) -> bool:
    return not (
        reply.verdicts or reply.grants or reply.kill or reply.unknown or reply.drain or reply.logs
    )


async def wake(call: Call[None, None]) -> None:
    """Have this Session's waiting sync answered at once, because a report became due."""
    call.hub.polls.wake(("session", call.principal.session_n))
