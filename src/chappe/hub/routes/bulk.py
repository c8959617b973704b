"""Selections of Jobs, and acts on them."""

from __future__ import annotations

import asyncio

import msgspec

from chappe.core import limits
from chappe.core.errors import Invalid
from chappe.hub.call import Call
from chappe.store import bulk as store
from chappe.store.listing import matching
from chappe.wire.bulk import ActList, ActView, NewAct, NewSelection, SelectionView


class ActQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Answer once more than `beyond` Jobs are done or the act has ended, at the latest after `wait_s` (up to
    30) seconds."""

    wait_s: float = 0.0
    beyond: int = 0


async def select(call: Call[NewSelection, None]) -> SelectionView:
    """Freeze the Jobs that match now, and count them. Repeating it is harmless."""
    hub, p, new = call.hub, call.principal, call.body
    found = await hub.read(store.find_selection, p, new.id)
    jobs = [] if found else await hub.read(matching, p, new.filter)
    return await hub.write(store.store_selection, p, new, jobs, bulk=len(jobs) > limits.ACT_CHUNK)


async def show_selection(call: Call[None, None]) -> SelectionView:
    """Show a selection that has not expired."""
    return await call.hub.read(store.get_selection, call.principal, call.path["id"])


async def drop_selection(call: Call[None, None]) -> None:
    """Forget a selection; the Jobs are not touched."""
    await call.hub.write(store.drop_selection, call.principal, call.path["id"])


async def begin(call: Call[NewAct, None]) -> ActView:
    """Begin an act on a selection. It goes on by itself, also after a restart of the Hub."""
    return await call.hub.write(store.begin_act, call.principal, call.body)


async def index(call: Call[None, None]) -> ActList:
    """List the newest 100 acts, newest first."""
    return ActList(await call.hub.read(store.list_acts, call.principal))


async def show(call: Call[None, ActQuery]) -> ActView:
    """Show how far an act has come."""
    hub, p, id = call.hub, call.principal, call.path["id"]
    if not 0 <= call.query.wait_s <= limits.WAIT_MAX_S:
        raise Invalid(f"wait_s must be 0 to {limits.WAIT_MAX_S:g}", field="wait_s")
    deadline = asyncio.get_running_loop().time() + call.query.wait_s
    n, view = await hub.read(store.get_act, p, id)
    with hub.polls.poll(object(), 0, (("act", n),)) as poll:
        _, view = await hub.read(store.get_act, p, id)
        while _waits(view, call.query) and await poll.wait(deadline):
            _, view = await hub.read(store.get_act, p, id)
    return view


def _waits(view: ActView, query: ActQuery) -> bool:
    return view.ended_at is None and view.done <= query.beyond


async def stop(call: Call[None, None]) -> ActView:
    """Go no further with an act; what it has done stays done."""
    return await call.hub.write(store.stop_act, call.principal, call.path["id"])
