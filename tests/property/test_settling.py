"""Settling children a little at a time comes to what settling them at once comes to (promise I10)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chappe.core.jobs import JobSpec, ParentPolicy, Retries
from chappe.store import changes
from chappe.testing.place import SqlitePlace
from chappe.testing.store import PilotRig, SiteRig, StoreRig, cores
from tests.property.machine_check import Checker

#: For each Job the Jobs before it that are its parents, and what it makes of their failure.
Graph = list[tuple[list[int], ParentPolicy]]


def directory_in_memory() -> tempfile.TemporaryDirectory[str]:
    """Where writing costs nothing, if there is such a place."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
    return tempfile.TemporaryDirectory(prefix="chappe-test-", dir=memory)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Chains, fans and what lies between."""
    graph: Graph = []
    for n in range(draw(st.integers(2, 14))):
        before = st.lists(st.integers(max(0, n - 4), n - 1), max_size=3, unique=True)
        parents = draw(before) if n else []
        graph.append((parents, draw(st.sampled_from(ParentPolicy))))
    return graph


@contextmanager
def at_most(generations: int, children: int) -> Iterator[None]:
    """So much in one transaction."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes, "GENERATIONS", generations)
        patch.setattr(changes, "CHILDREN_MOST", children)
        yield


class Hub:
    """A store with the Jobs of a graph, and one pilot."""

    def __init__(self, directory: str, graph: Graph) -> None:
        self.rig = StoreRig(SqlitePlace(Path(directory) / "hub.db"))
        self.site: SiteRig = self.rig.add_site("paris")
        self.pilot: PilotRig = self.site.add_pilot()
        self.jobs: list[JobSpec] = []
        for parents, policy in graph:
            ids = tuple(self.jobs[q].id for q in parents)
            fields = {"parents": ids, "retries": Retries(0), "on_parent_failure": policy}
            self.jobs.append(self.rig.spec(self.site, **fields))
        self.rig.submit(*self.jobs)

    def end(self, n: int, ok: bool) -> None:
        """End a Job if it runs or may run; else cancel it."""
        grants = self.pilot.sync(capacity=cores(20)).grants
        mine = [g for g in grants if g.job == self.jobs[n].id]
        self.pilot.sync(
            reports=[self.pilot.end(g, exit=0 if ok else 1, overtakes=True) for g in mine]
        )
        if not mine and not ok:
            self.rig.cancel(self.jobs[n])

    def states(self) -> list[str]:
        return self.rig.states(*self.jobs)


@given(graphs(), st.data())
@settings(max_examples=25)
def test_in_small_steps_and_over_crashes_it_ends_alike(graph: Graph, data: st.DataObject) -> None:
    acts = data.draw(
        st.lists(st.tuples(st.integers(0, len(graph) - 1), st.booleans()), min_size=1, max_size=8)
    )
    with directory_in_memory() as one, directory_in_memory() as other:
        whole, pieces = Hub(one, graph), Hub(other, graph)
        with whole.rig, pieces.rig:
            for n, ok in acts:
                whole.end(n, ok)
                with at_most(data.draw(st.integers(0, 2)), data.draw(st.integers(1, 2))):
                    pieces.end(n, ok)
                    for _ in range(data.draw(st.integers(0, 2))):
                        pieces.rig.do(changes.settle_more)
                    if data.draw(st.booleans()):
                        pieces.rig.restart()
                    pieces.rig.settle()
            assert pieces.states() == whole.states()
            Checker(pieces.rig).check()


@given(graphs(), st.data())
@settings(max_examples=25)
def test_what_happens_before_it_is_settled_finds_it_true(graph: Graph, data: st.DataObject) -> None:
    """Cancels, retries, deletions and new children, while children are still undecided."""
    with directory_in_memory() as directory:
        hub = Hub(directory, graph)
        rig = hub.rig
        with rig, at_most(0, 1):
            for _ in range(data.draw(st.integers(1, 10))):
                job = hub.jobs[data.draw(st.integers(0, len(graph) - 1))]
                match data.draw(
                    st.sampled_from(["end", "fail", "cancel", "retry", "child", "delete"])
                ):
                    case "end" | "fail" as how:
                        hub.end(hub.jobs.index(job), how == "end")
                    case "cancel":
                        rig.cancel(job)
                    case "retry":
                        rig.retry(job)
                    case "child":
                        hub.jobs.append(rig.spec(hub.site, parents=(job.id,)))
                        rig.submit(hub.jobs[-1])
                    case _:
                        rig.delete(job)
                if data.draw(st.booleans()):
                    rig.do(changes.settle_more)
            rig.settle()
            Checker(rig).check()
