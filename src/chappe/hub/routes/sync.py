"""The pilots' long poll. A sync that has nothing to say waits until it has, or until its time is up."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

import msgspec

from chappe.core import limits
from chappe.hub.call import Call
from chappe.hub.polls import Poll
from chappe.hub.state import Hub
from chappe.link.results import ResultProblem, check_bytes
from chappe.store import sync as store
from chappe.store.standing import Stay
from chappe.wire.logs import LogWish
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
        if req.wait_s > 0:
            return await _wait(call, req, poll, p.site_n if has_room else None)
        reply = await hub.write(store.sync, p, req)
        _heard(hub, p.session_n)
        hub.metrics.sync(reply)
        return _with_wishes(call, reply)


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


async def _wait(
    call: Call[SyncRequest, None], req: SyncRequest, poll: Poll, site: int | None
) -> SyncReply:
    """The answer, when there is something to say or nobody listens any more. It stays with the writer, which
    looks again when there is work for `site`; at every hint of something else we have it look anew."""
    hub, p, writer = call.hub, call.principal, call.hub.store.writer
    stay = Stay(site, store.acquire, says_something)
    deadline = asyncio.get_running_loop().time() + min(req.wait_s, limits.WAIT_MAX_S)
    leaving = asyncio.ensure_future(call.left())
    leaving.add_done_callback(lambda _left: poll.end())
    look: Callable[..., SyncReply] = store.sync
    patient = not (req.reports or req.returned)

    def hint(_answered: object) -> None:
        poll.hint()

    if _wishes(call):
        poll.hint()
    try:
        while True:
            command = writer.stand(stay, look, p, req, patient=patient)
            answered = asyncio.wrap_future(command.future)
            answered.add_done_callback(hint)
            try:
                waits = await poll.wait(deadline)
            finally:
                # What we ask for ourselves now is no hint: it would have us look again, without end.
                answered.remove_done_callback(hint)
                writer.leave(command)
            reply = await hub.answer(answered)
            hub.metrics.sync(reply)
            reply = _with_wishes(call, reply)
            if says_something(reply) or not waits:
                return reply
            look, patient = store.acquire, False
    finally:
        leaving.cancel()


def _with_wishes(call: Call[SyncRequest, None], reply: SyncReply) -> SyncReply:
    """The reply, and what somebody wishes to read of this pilot's Jobs."""
    logs = _wishes(call)
    return msgspec.structs.replace(reply, logs=logs) if logs else reply


def _wishes(call: Call[SyncRequest, None]) -> list[LogWish]:
    return call.hub.wishes.of(("session", call.principal.session_id), call.body.logs_seen)


def says_something(reply: SyncReply) -> bool:
    """Whether a pilot that waits is to have this reply at once."""
    return bool(
        reply.verdicts or reply.grants or reply.kill or reply.unknown or reply.drain or reply.logs
    )


async def wake(call: Call[None, None]) -> None:
    """Have this Session's waiting sync answered at once, because a report became due."""
    call.hub.polls.wake(("session", call.principal.session_n))
