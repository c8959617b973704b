"""However Jobs come and go: ordinary ones never hold what is kept, and nobody waits with the node empty."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chappe.pilot.nodes import Need
from chappe.pilot.placement import Placement, Slot, Urgent
from chappe.testing.nodes import plain

CORES = 6
NEEDS = st.builds(
    lambda cores, urgent: Need(cores, urgent=urgent), st.integers(1, CORES), st.booleans()
)


@given(st.integers(1, 8), st.lists(NEEDS | st.integers(0, 9), max_size=40))
def test_what_is_kept(kept: int, steps: list[Need | int]) -> None:
    placed = Placement([plain(range(CORES))], urgent=Urgent(kept, 1))
    node = placed.nodes[0]
    others = CORES - node.reserve
    running: list[Slot] = []
    for step in steps:
        if isinstance(step, int):
            if running:
                placed.leave(running.pop(step % len(running)))
            continue
        slot = placed.take(step, first=True)
        if slot is not None:
            running.append(slot)
        else:
            # Refused for a reason: it is too much, or what is left is kept.
            assert step.cores > node.open_cores(step)
            assert running
        small = [s.need.cores for s in running if not s.need.urgent and s.need.cores <= others]
        assert sum(small) <= others
        assert 0 <= node.kept <= node.free_cores == CORES - sum(s.need.cores for s in running)
    for slot in running:
        placed.leave(slot)
    assert (node.free_cores, node.kept) == (CORES, node.reserve)
