"""The hub goes on with what a command, or a hub before it, has left undecided."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest

from chappe.core.jobs import JobSpec
from chappe.hub import loops
from chappe.hub.state import Hub
from chappe.link.clock import boottime
from chappe.store import changes
from chappe.store.why import why
from chappe.testing.cluster import until
from chappe.testing.store import StoreRig


def is_decided(rig: StoreRig, chain: Sequence[JobSpec]) -> bool:
    return set(rig.states(*chain[1:])) == {"FAILED"}


def test_a_chain_is_decided_by_a_hub_that_starts_and_by_one_that_runs(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "GENERATIONS", 3)
    site = rig.add_site("paris")
    chains = []
    for _ in range(2):
        ids = [rig.new_id() for _ in range(30)]
        parents = [(), *((id,) for id in ids[:-1])]
        chains.append([rig.spec(site, id=i, parents=q) for i, q in zip(ids, parents, strict=True)])
        rig.submit(*chains[-1])
    first, second = chains
    rig.cancel(first[0])
    assert set(rig.states(*first[4:])) == {"AWAITING_PARENTS"}
    (reason,) = rig.ask(why, rig.user, first[4].id, rig.clock()).reasons
    assert "about to decide" in reason
    rig.restart()

    async def run() -> None:
        hub = Hub(rig.store, rig.clock, boottime)
        hub.start()
        settling = asyncio.create_task(loops.supervised(hub, loops.settle))
        try:
            for chain in (first, second):
                if chain is second:
                    await asyncio.to_thread(rig.cancel, second[0])
                await asyncio.to_thread(until, partial(is_decided, rig, chain), "it is decided")
        finally:
            hub.stop()
            await settling
            hub.close()

    asyncio.run(run())
