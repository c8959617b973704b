"""Selections are frozen; acts on them go on where they were, and touch nothing twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from chappe.core import limits
from chappe.core.errors import Busy, Conflict, Invalid, NotFound, TooLarge
from chappe.core.jobs import JobSpec
from chappe.store import bulk
from chappe.store.listing import matching
from chappe.testing.store import SiteRig, StoreRig
from chappe.wire.bulk import ActView, NewAct, NewSelection, SelectionView, Verb
from chappe.wire.jobs import EnvelopeChange, JobFilter


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ACT_CHUNK", 3)


def submitted(site: SiteRig, n: int, **fields: Any) -> list[JobSpec]:
    specs = [site.rig.spec(site, **fields) for _ in range(n)]
    site.rig.submit(*specs)
    return specs


def select(rig: StoreRig, id: str | None = None, **where: Any) -> SelectionView:
    new = NewSelection(id or rig.new_id(), JobFilter(**where))
    jobs = rig.ask(matching, rig.user, new.filter)
    return rig.do(bulk.store_selection, rig.user, new, jobs)


def begin(rig: StoreRig, selection: SelectionView, verb: Verb, **more: Any) -> ActView:
    return rig.do(bulk.begin_act, rig.user, NewAct(rig.new_id(), selection.id, verb, **more))


def steps(rig: StoreRig, most: int = 1_000) -> int:
    """What the Hub's loop does: a chunk of each act in turn; how many it were."""
    done = 0
    while done < most and (todo := rig.ask(bulk.open_acts)):
        for n in todo:
            rig.do(bulk.step, n)
            done += 1
    return done


def view(rig: StoreRig, act: ActView) -> ActView:
    return rig.ask(bulk.get_act, rig.user, act.id)[1]


def states(rig: StoreRig, specs: Sequence[JobSpec]) -> Counter[str]:
    return Counter(rig.states(*specs))


def test_it_holds_what_matched_and_says_how_many(rig: StoreRig, site: SiteRig) -> None:
    submitted(site, 2, name="a")
    submitted(site, 5, name="b")
    selection = select(rig, name="b")
    assert selection.count == 5
    assert rig.ask(bulk.get_selection, rig.user, selection.id) == selection


def test_frozen_means_frozen(rig: StoreRig, site: SiteRig) -> None:
    early = submitted(site, 7)
    act = begin(rig, select(rig, phase="runnable"), "cancel")
    steps(rig, most=1)
    late = submitted(site, 7)  # while the act goes on
    steps(rig)
    late += submitted(site, 1)
    assert states(rig, early) == {"CANCELLED": 7}
    assert states(rig, late) == {"PREPROCESSED": 8}
    done = view(rig, act)
    assert (done.state, done.done, done.total, done.counts) == ("done", 7, 7, {"cancelled": 7})


def test_each_chunk_is_a_transaction_that_says_how_far_it_came(
    rig: StoreRig, site: SiteRig
) -> None:
    submitted(site, 7)
    act = begin(rig, select(rig), "cancel")
    seen = [view(rig, act).done]
    while view(rig, act).ended_at is None:
        steps(rig, most=1)
        seen.append(view(rig, act).done)
        assert rig.sql("SELECT count(*) FROM job WHERE state = 'CANCELLED'")[0][0] == seen[-1]
    assert seen == [0, 3, 6, 7]


def test_an_act_goes_on_after_a_restart_and_does_nothing_twice(
    rig: StoreRig, site: SiteRig
) -> None:
    specs = submitted(site, 8)
    act = begin(rig, select(rig), "cancel")
    while view(rig, act).ended_at is None:
        steps(rig, most=1)
        rig.restart()
    assert states(rig, specs) == {"CANCELLED": 8}
    assert view(rig, act).counts == {"cancelled": 8}
    assert rig.sql("SELECT count(*) FROM event WHERE new = 'CANCELLED'")[0][0] == 8


def test_a_chunk_that_was_not_committed_is_done_again(rig: StoreRig, site: SiteRig) -> None:
    specs = submitted(site, 4)
    act = begin(rig, select(rig), "cancel")
    (n,) = rig.ask(bulk.open_acts)

    def dies(tx: Any) -> None:
        bulk.step(tx, n)
        raise Conflict("killed before the commit")

    with pytest.raises(Conflict):
        rig.do(dies)
    assert view(rig, act).done == 0
    steps(rig)
    assert states(rig, specs) == {"CANCELLED": 4}
    assert view(rig, act).counts == {"cancelled": 4}


def test_every_verb(rig: StoreRig, site: SiteRig) -> None:
    specs = submitted(site, 4)

    def act(verb: Verb, **more: Any) -> dict[str, int]:
        act = begin(rig, select(rig), verb, **more)
        steps(rig)
        return view(rig, act).counts

    assert act("hold") == {"held": 4}
    assert act("release") == {"released": 4}
    assert act("update", change=EnvelopeChange(priority=7, tags={"a": "b"})) == {"updated": 4}
    assert {rig.job(s.id).priority for s in specs} == {7}
    assert act("delete") == {"not_final": 4}
    assert act("cancel") == {"cancelled": 4}
    assert act("retry") == {"retried": 4}
    assert act("cancel") == {"cancelled": 4}
    assert act("delete") == {"deleted": 4}
    assert act("delete") == {}


def test_what_was_deleted_meanwhile_is_counted_as_gone(rig: StoreRig, site: SiteRig) -> None:
    specs = submitted(site, 5)
    act = begin(rig, select(rig), "cancel")
    rig.cancel(*specs[:2])
    rig.delete(*specs[:2])
    steps(rig)
    assert view(rig, act).counts == {"cancelled": 3, "gone": 2}


def test_acts_take_turns(rig: StoreRig, site: SiteRig) -> None:
    submitted(site, 6)
    selection = select(rig)
    acts = [begin(rig, selection, "hold"), begin(rig, selection, "release")]
    steps(rig, most=2)
    assert [view(rig, act).done for act in acts] == [3, 3]


def test_an_empty_selection_is_done_at_once(rig: StoreRig, site: SiteRig) -> None:
    act = begin(rig, select(rig, name="nobody"), "cancel")
    steps(rig)
    done = view(rig, act)
    assert (done.state, done.total, done.counts) == ("done", 0, {})


def test_repeating_is_harmless_and_other_content_is_a_conflict(
    rig: StoreRig, site: SiteRig
) -> None:
    submitted(site, 2)
    selection = select(rig, name="true")
    submitted(site, 2)
    assert select(rig, selection.id, name="true") == selection
    with pytest.raises(Conflict):
        select(rig, selection.id, name="other")
    new = NewAct(rig.new_id(), selection.id, "cancel")
    first = rig.do(bulk.begin_act, rig.user, new)
    steps(rig)
    again = rig.do(bulk.begin_act, rig.user, new)
    assert (again.id, again.state, again.counts) == (first.id, "done", {"cancelled": 2})
    with pytest.raises(Conflict):
        rig.do(bulk.begin_act, rig.user, NewAct(new.id, selection.id, "retry"))


def test_a_stopped_act_goes_no_further(rig: StoreRig, site: SiteRig) -> None:
    submitted(site, 7)
    act = begin(rig, select(rig), "cancel")
    steps(rig, most=1)
    stopped = rig.do(bulk.stop_act, rig.user, act.id)
    assert (stopped.state, stopped.done) == ("stopped", 3)
    assert steps(rig) == 0
    assert rig.do(bulk.stop_act, rig.user, act.id) == stopped


def test_an_act_that_failed_says_why_and_is_over(rig: StoreRig, site: SiteRig) -> None:
    submitted(site, 1)
    act = begin(rig, select(rig), "cancel")
    rig.do(bulk.fail, rig.ask(bulk.open_acts)[0], "no luck")
    failed = view(rig, act)
    assert (failed.state, failed.message) == ("failed", "no luck")
    assert rig.ask(bulk.open_acts) == []


def test_selections_expire_but_not_under_an_act(rig: StoreRig, site: SiteRig) -> None:
    submitted(site, 4)
    kept, gone = select(rig), select(rig)
    begin(rig, kept, "cancel")
    rig.clock.advance(limits.SELECTION_S + 1)
    rig.do(bulk.forget_expired)
    with pytest.raises(NotFound):
        rig.ask(bulk.get_selection, rig.user, gone.id)
    steps(rig)
    assert rig.sql("SELECT count(*) FROM job WHERE state = 'CANCELLED'")[0][0] == 4
    rig.do(bulk.forget_expired)
    assert rig.sql("SELECT count(*) FROM selection_chunk")[0][0] == 0
    assert len(rig.ask(bulk.list_acts, rig.user)) == 1
    rig.clock.advance(limits.ACT_KEPT_S + 1)
    rig.do(bulk.forget_expired)
    assert rig.ask(bulk.list_acts, rig.user) == []


def test_selections_are_few_and_the_expired_make_room(
    rig: StoreRig, site: SiteRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SELECTIONS_PER_PROJECT", 2)
    select(rig)
    dropped = select(rig)
    with pytest.raises(Busy):
        select(rig)
    rig.do(bulk.drop_selection, rig.user, dropped.id)
    select(rig)
    rig.clock.advance(limits.SELECTION_S + 1)
    select(rig)


def test_selections_that_were_acted_upon_make_room(
    rig: StoreRig, site: SiteRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SELECTIONS_PER_PROJECT", 2)
    submitted(site, 4)
    for _ in range(10):  # as many acts as one likes, one after the other
        begin(rig, select(rig), "hold")
        steps(rig)
    busy, used = select(rig), select(rig)
    for selection in (busy, used):
        begin(rig, selection, "release")
        steps(rig)
    begin(rig, busy, "hold")
    select(rig)
    steps(rig)
    assert rig.ask(bulk.list_acts, rig.user)[0].counts == {"held": 4}
    with pytest.raises(NotFound):
        rig.ask(bulk.get_selection, rig.user, used.id)


def test_a_selection_under_an_act_is_not_dropped(rig: StoreRig, site: SiteRig) -> None:
    submitted(site, 1)
    selection = select(rig)
    begin(rig, selection, "hold")
    with pytest.raises(Conflict):
        rig.do(bulk.drop_selection, rig.user, selection.id)


def test_what_is_too_large_is_not_selected(
    rig: StoreRig, site: SiteRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SELECTION_JOBS", 4)
    submitted(site, 4)
    assert select(rig).count == 4
    submitted(site, 1)
    with pytest.raises(TooLarge):
        select(rig)


def test_a_mistyped_site_is_not_an_empty_selection(rig: StoreRig, site: SiteRig) -> None:
    with pytest.raises(NotFound, match="paris"):
        select(rig, site="pari")


def test_a_change_belongs_to_an_update_and_to_nothing_else(rig: StoreRig, site: SiteRig) -> None:
    selection = select(rig)
    with pytest.raises(Invalid):
        begin(rig, selection, "update")
    with pytest.raises(Invalid):
        begin(rig, selection, "cancel", change=EnvelopeChange(priority=1))
