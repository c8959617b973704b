"""What the Hub does on its own timers. Each loop is supervised: one that fails is logged and begun again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from chappe.core import limits
from chappe.core.errors import ChappeError
from chappe.hub.retention import Retention, retain
from chappe.hub.state import Hub
from chappe.store import bulk, changes, queue_views, simulations, tokens, upkeep
from chappe.store.tx import Tx

#: Sessions are looked over at least this often, and back-offs looked up anew.
LOOK_S = 5.0
DUE_LOOK_S = 30.0
#: Deadlines that messages brought are seen at the latest after this; they are hours away.
JUDGE_S = 15.0
PURGE_FIRST_S = 60.0
PURGE_S = 3_600.0
CUT_FIRST_S = 120.0
CUT_S = 6 * 3_600.0
RESTART_FIRST_S = 1.0
RESTART_MOST_S = 60.0

log = structlog.get_logger("chappe.hub.loops")


async def run(
    hub: Hub, keep: Retention | None = None, more: Sequence[Callable[[Hub], Awaitable[None]]] = ()
) -> None:
    """Run all loops, and `more`, until the Hub stops. `keep` says what of the past to cut, None nothing."""
    hub.liveness.open(await hub.read(upkeep.open_sessions))

    async def cut(hub: Hub) -> None:
        await _sleep(hub, CUT_FIRST_S)
        while keep is not None and not hub.stopping.is_set():
            await retain(hub, keep)
            await _sleep(hub, CUT_S)

    async with asyncio.TaskGroup() as group:
        cutting = [cut] if keep else []
        for loop in (sessions, due, settle, acts, deadlines, purge, *cutting, *more):
            group.create_task(supervised(hub, loop))


async def supervised(hub: Hub, loop: Callable[[Hub], Awaitable[None]]) -> None:
    """Run `loop` until the Hub stops, again after every failure, later and later."""
    wait_s = RESTART_FIRST_S
    while not hub.stopping.is_set():
        try:
            await loop(hub)
            wait_s = RESTART_FIRST_S
        except Exception:
            log.exception("upkeep failed, and is begun again", loop=loop.__name__)
            await _sleep(hub, wait_s)
            wait_s = min(2 * wait_s, RESTART_MOST_S)


async def _sleep(hub: Hub, seconds: float) -> None:
    """Sleep, but not beyond the Hub's stop."""
    try:
        async with asyncio.timeout(seconds):
            await hub.stopping.wait()
    except TimeoutError:
        return


async def sessions(hub: Hub) -> None:
    """Once: mark Sessions silent that were not heard for the TTL, take over what asked for it, and end those
    whose allocation is over."""
    hub.liveness.open(await hub.read(upkeep.open_sessions))
    if hub.liveness.over():
        await hub.write(_over, hub)
    if hub.liveness.late(limits.SESSION_TTL_S):
        hub.liveness.mark(await hub.write(_silence, hub))
    ago = hub.liveness.ago_s().values()
    if any(s > limits.SESSION_TTL_S for s in ago):
        await hub.write(_takeovers, hub)
    to_come = [limits.SESSION_TTL_S - s for s in ago if s <= limits.SESSION_TTL_S]
    await _sleep(hub, max(0.01, min([LOOK_S, *to_come])))


def _silence(tx: Tx, hub: Hub) -> dict[int, float]:
    """Decided here, on the writer's thread, so that a sync that came meanwhile counts."""
    late = hub.liveness.late(limits.SESSION_TTL_S)
    upkeep.silence(tx, list(late))
    return late


def _takeovers(tx: Tx, hub: Hub) -> None:
    """Decided here, on the writer's thread, so that a sync that came meanwhile counts."""
    upkeep.takeovers(tx, hub.liveness.ago_s())


def _over(tx: Tx, hub: Hub) -> None:
    """Decided here, on the writer's thread, so that an extension that came meanwhile counts."""
    upkeep.allocations_over(tx, hub.liveness.over())


async def due(hub: Hub) -> None:
    """Once: release the Jobs whose time has come, sleep to the next."""
    hub.due.clear()
    at = await hub.read(upkeep.next_due)
    now = hub.clock()
    if at is not None and at <= now:
        await hub.write(upkeep.release_due)
        return
    seconds = DUE_LOOK_S if at is None else min(at - now, DUE_LOOK_S)
    await _event(hub, hub.due, seconds)


async def _event(hub: Hub, event: asyncio.Event, seconds: float | None) -> None:
    """Wait for an event, but not beyond the Hub's stop nor for longer than `seconds`."""
    waits = [asyncio.ensure_future(e.wait()) for e in (event, hub.stopping)]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def settle(hub: Hub) -> None:
    """Once: decide the Jobs that were left undecided, some at a time; then wait for the next. So a starting
    Hub goes on where a killed one was."""
    hub.unsettled.clear()
    more = await hub.read(changes.unsettled)
    while more and not hub.stopping.is_set():
        more = await hub.write(changes.settle_more, bulk=True)
    if not more:
        await _event(hub, hub.unsettled, None)


async def acts(hub: Hub) -> None:
    """Once: do acts on selections, a chunk of each in turn, until none is left; then wait for the next."""
    hub.acts.clear()
    while (todo := await hub.read(bulk.open_acts)) and not hub.stopping.is_set():
        for n in todo:
            await _step(hub, n)
    if not todo:
        await _event(hub, hub.acts, None)


async def _step(hub: Hub, n: int) -> None:
    """One chunk. An act that fails is ended, so that it stands in no other's way."""
    try:
        await hub.write(bulk.step, n, bulk=True)
    except ChappeError:
        raise  # a full disk or a busy writer: all acts wait, and go on later
    except Exception as error:
        log.exception("an act failed", act=n)
        await hub.write(bulk.fail, n, f"the hub could not go on: {type(error).__name__}")


async def deadlines(hub: Hub) -> None:
    """Once: judge the simulations' jobs whose time has come, some at a time; then sleep to the next."""
    at = await hub.read(simulations.next_look)
    now = hub.clock()
    if at is not None and at <= now:
        await hub.write(simulations.look_again, bulk=True)
        return
    await _sleep(hub, JUDGE_S if at is None else min(at - now, JUDGE_S))


async def purge(hub: Hub) -> None:
    """Every hour: forget tombstones and ended tokens past their term, in small commands. Not while the Hub
    starts."""
    await _sleep(hub, PURGE_FIRST_S)
    while not hub.stopping.is_set():
        await _purge(hub)
        await _sleep(hub, PURGE_S)


async def _purge(hub: Hub) -> None:
    await hub.write(bulk.forget_expired, bulk=True)
    place: int | None = 0
    while place is not None and not hub.stopping.is_set():
        place = await hub.write(queue_views.cut, place, bulk=True)
    for forget in (upkeep.purge, tokens.purge, queue_views.forget):
        gone = 1
        while gone and not hub.stopping.is_set():
            gone = await hub.write(forget, bulk=True)
