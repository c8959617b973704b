"""Lists, counts and selections of random Jobs against a model that looks at every one of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chappe.core.jobs import AppRef, Envelope
from chappe.core.states import FINAL, State
from chappe.store import acts, edits, listing, queries, sources
from chappe.testing.clock import BEGIN
from chappe.testing.store import TRUE, SiteRig, StoreRig, cores
from chappe.wire.jobs import ActOnJobs, EnvelopeChange, JobFilter, JobView
from chappe.wire.sites import AppView

OTHER = AppView("other", "1", "0" * 64, unsigned=True)
NAMES = ["run", "run-1", "run-2", "ru", "été", "\U0001f409", "\ud7a3", ""]
TAGS = [{}, {"a": "1"}, {"a": "2"}, {"a": "1", "b": "x"}, {"b": "x"}]


@dataclass
class Model:
    """What the listing is compared with: all Jobs, read one by one."""

    rig: StoreRig
    sites: list[SiteRig]
    ids: list[str] = field(default_factory=list)
    parents: dict[str, list[str]] = field(default_factory=dict)
    sessions: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    @cached_property
    def views(self) -> list[JobView]:
        """Newest first."""
        return [self.rig.job(id) for id in reversed(self.ids) if id not in self.gone]

    def passing(self, f: JobFilter) -> list[str]:
        found = [v for v in self.views if self._passes(v, f)]
        if f.ended_since is not None or f.ended_until is not None:
            found.sort(key=lambda v: v.changed_at, reverse=True)  # stable: then by number
        return [v.id for v in found]

    def _passes(self, v: JobView, f: JobFilter) -> bool:
        site = {s.name: s.id for s in self.sites}.get(f.site or "", f.site)
        final = State(v.state) in FINAL
        ended = v.changed_at
        checks = (
            f.ids is None or v.id in f.ids,
            f.id_prefix is None or v.id.startswith(f.id_prefix),
            f.phase is None or v.phase == f.phase or (f.phase == "open" and not final),
            f.state is None or v.state == f.state,
            f.site is None or v.site == site,
            f.app is None or v.app == f.app,
            f.name is None or v.name == f.name,
            f.name_prefix is None or v.name.startswith(f.name_prefix),
            f.parent is None or f.parent in self.parents[v.id],
            f.held is None or f.held is (v.held_at is not None and not final),
            f.created_since is None or v.created_at >= f.created_since,
            f.created_until is None or v.created_at < f.created_until,
            f.ended_since is None or (final and ended >= f.ended_since),
            f.ended_until is None or (final and ended < f.ended_until),
            f.session is None or v.session == f.session,
            f.batch_job is None or v.session == self.sessions.get(f.batch_job, ""),
            all(v.tags.get(k) == value for k, value in f.tags.items()),
        )
        return all(checks)


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    """Jobs of all kinds, made once: what is drawn is the filter."""
    with (
        tempfile.TemporaryDirectory() as directory,
        StoreRig(Path(directory) / "hub.db") as rig,
    ):
        made = Model(rig, [rig.add_site("paris", [TRUE, OTHER]), rig.add_site("rome", [TRUE])])
        _fill(made)
        yield made


def _fill(made: Model) -> None:
    """180 Jobs over 60 seconds, of which some run, end, are held, changed, cancelled or deleted."""
    rig, (paris, rome) = made.rig, made.sites
    pilot, keeper = paris.add_pilot(), paris.add_pilot()
    made.sessions = {p.batch_job: p.id for p in (pilot, keeper)}
    for i in range(60):
        rig.clock.now += 1.0 if i % 7 else -3.0  # now and then the clock is set back
        where = [(paris,), (rome,), (paris, rome)][i % 3]
        app = "other" if where == (paris,) and i % 2 else "true"
        parents = tuple(made.ids[-1:-3:-1]) if i % 5 == 4 else ()
        fields: dict[str, Any] = {"app": AppRef(app), "name": NAMES[i % len(NAMES)]}
        first = rig.spec(*where, parents=parents, **fields)
        raw = rig.spec(*where, name="run-raw")
        late = rig.spec(*where, not_before=rig.clock() + 1e6, name="run-late")
        specs = [first, raw, late]
        rig.submit(*specs, envelopes=[Envelope(TAGS[(i + j) % 5]) for j in range(3)])
        made.ids += [s.id for s in specs]
        made.parents |= {first.id: list(parents), raw.id: [], late.id: []}
        one = ActOnJobs(JobFilter(ids=[specs[i % 3].id]))
        if i % 4 == 0:
            rig.do(edits.hold, rig.user, one)
        if i % 6 == 1:
            rig.do(acts.cancel, rig.user, one)
        if i % 12 == 1:
            made.gone |= set(one.filter.ids or ())
            rig.do(acts.delete, rig.user, one)
        if i % 9 == 2:
            change = EnvelopeChange(tags={"b": "x"}, untag=["a"])
            rig.do(edits.update, rig.user, ActOnJobs(one.filter, change=change))
        if i % 8 == 3:
            grants = pilot.sync(capacity=cores(3)).grants
            ends = [pilot.end(g, exit=int(g.job > first.id), overtakes=True) for g in grants]
            pilot.sync(reports=ends)
    keeper.sync(capacity=cores(5))
    pilot.sync(capacity=cores(2))


def _filters(m: Model) -> st.SearchStrategy[JobFilter]:
    times = st.floats(-5, 65).map(lambda s: BEGIN + s)
    prefixes = st.sampled_from(m.ids).flatmap(lambda id: st.integers(4, 36).map(lambda n: id[:n]))
    known: dict[str, st.SearchStrategy[Any]] = {
        "ids": st.lists(st.sampled_from(m.ids), max_size=20),
        "id_prefix": prefixes,
        "phase": st.sampled_from(["open", "waiting", "runnable", "running", "finished", "failed"]),
        "state": st.sampled_from([str(s) for s in State]),
        "site": st.sampled_from(["paris", "rome", m.sites[0].id]),
        "app": st.sampled_from(["true", "other", "none", ""]),
        "name": st.sampled_from([*NAMES, "true", "run-raw"]),
        "name_prefix": st.sampled_from(["r", "run", "run-", "x", *NAMES[:-1]]),
        "parent": st.sampled_from(m.ids),
        "held": st.booleans(),
        "created_since": times,
        "created_until": times,
        "ended_since": times,
        "ended_until": times,
        "tags": st.sampled_from(TAGS),
        "session": st.sampled_from([*m.sessions.values(), m.ids[0]]),
        "batch_job": st.sampled_from([*m.sessions, m.ids[0]]),
    }
    chosen = st.lists(st.sampled_from(sorted(known)), unique=True, max_size=4)
    return chosen.flatmap(
        lambda names: st.builds(JobFilter, **{name: known[name] for name in names})
    )


@pytest.mark.parametrize("tight", [False, True], ids=["as shipped", "tight bounds"])
def test_pages_counts_and_selections_are_those_of_a_model(
    model: Model, tight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tight:
        # So small that every source is compared, cut and gone on with.
        monkeypatch.setattr(listing, "SCAN_PAGE", 7)
        monkeypatch.setattr(listing, "CHUNK", 5)
        monkeypatch.setattr(sources, "FEW", 2)
        monkeypatch.setattr(sources, "MANY", 12)

    id_of = dict(model.rig.sql("SELECT n, id FROM job"))

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(f=_filters(model), limit=st.integers(1, 40))
    def compare(f: JobFilter, limit: int) -> None:
        rig, wanted = model.rig, model.passing(f)
        got: list[str] = []
        cursor: str | None = None
        for _ in range(500):
            page = rig.ask(queries.list_jobs, rig.user, f, limit, cursor)
            assert len(page.jobs) <= limit
            got += [job.id for job in page.jobs]
            cursor = page.next
            if cursor is None:
                break
        assert got == wanted
        count = rig.ask(listing.count_jobs, rig.user, f)
        assert (count.count, count.exact) == (len(wanted), True)
        selected = rig.ask(listing.matching, rig.user, f)
        assert selected == sorted(selected)
        assert {id_of[n] for n in selected} == set(wanted)

    compare()
