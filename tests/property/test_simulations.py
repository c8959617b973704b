"""The fold of simulations: any order, any duplication, either dialect, and always what brute force says."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chappe.core import lateness, simulations
from chappe.core.lateness import SimulationView, State, learned_slack_ns
from chappe.core.messages import Mark, Message, decode
from chappe.core.simulations import Fold, JobFold
from chappe.core.timestamps import NS
from chappe.core.vocabulary import KINDS
from chappe.testing.naive_fold import naive_tries, naive_views
from chappe.testing.simulations import Course, Dialect, Scenario, campaign, disturbed, scenario

SLACK_NS = 600 * NS


class Folded:
    """All that the fold makes of messages, each taken once."""

    def __init__(self, messages: Iterable[Message]) -> None:
        self.seen: set[str] = set()
        self.folds: dict[str, Fold] = {}
        self.jobs: dict[str, dict[str, JobFold]] = {}
        for message in messages:
            self.add(message)

    def add(self, message: Message) -> None:
        if message.uid in self.seen or not message.simulation:
            return
        self.seen.add(message.uid)
        uid = message.simulation
        fold = self.folds.setdefault(uid, Fold(uid))
        kind, at = fold.add(message)
        job = simulations.job_of(message, kind)
        if job is not None:
            jobs = self.jobs.setdefault(uid, {})
            jobs.setdefault(job, JobFold(job)).add(message, kind, at)

    def views(self, now_ns: int) -> list[SimulationView]:
        return [
            lateness.view(self.folds[uid], list(self.jobs.get(uid, {}).values()), now_ns, SLACK_NS)
            for uid in sorted(self.folds)
        ]

    def tries(self) -> dict[str, simulations.Try]:
        same: dict[tuple[str, ...], list[Fold]] = {}
        for fold in self.folds.values():
            if fold.identity is not None:
                same.setdefault(fold.identity, []).append(fold)
        return {uid: t for folds in same.values() for uid, t in simulations.tries(folds).items()}


TYPES = [*KINDS, "custom.x", ""]
FIELDS = {
    "name": st.sampled_from(["a", "b"]),
    "value": st.sampled_from(["1", 2.5, "x"]),
    "startDate": st.just("1850-01-01"),
    "endDate": st.sampled_from(["1850-12-30", "18491230", ""]),
    "calendar": st.sampled_from(["360d", "noleap", ""]),
    "card": st.sampled_from(["CalendarType=noleap", ""]),
    "jobWarningDelay": st.sampled_from(["100", "", "0", "NONE", "x", "1e300"]),
    "PeriodDateBegin": st.sampled_from(["18500101", "x"]),
    "PeriodDateEnd": st.sampled_from(["18500130", "18500230", "18500330", "null"]),
    "every_s": st.sampled_from(["10", "0", None]),
}


@st.composite
def some_messages(draw: st.DrawFn) -> list[Message]:
    return [
        Message(
            uid=f"u{n}",
            code="9876",
            type=draw(st.sampled_from(TYPES)),
            simulation=draw(st.sampled_from(["A", "B", ""])),
            job=draw(st.sampled_from(["", "1", "2", "3"])),
            at_ns=draw(st.integers(0, 12)) * 100 * NS,
            at_raw="",
            producer="",
            version="",
            stream="",
            seq=0,
            prev="",
            dialect="2.8",
            marks=draw(st.sampled_from([(), (), (), (Mark.CLOCK_SUSPECT,)])),
            fields=draw(st.fixed_dictionaries({}, optional=FIELDS)),
        )
        for n in range(draw(st.integers(0, 14)))
    ]


@given(some_messages(), st.data(), st.integers(0, 30))
def test_i3_any_set_of_messages_in_any_order(
    messages: list[Message], data: st.DataObject, now: int
) -> None:
    now_ns = now * 100 * NS
    expected = naive_views(messages, now_ns, SLACK_NS)
    order = data.draw(st.permutations(messages))
    again = data.draw(st.lists(st.sampled_from(messages), max_size=5)) if messages else []
    folded = Folded([*order, *again])
    assert folded.views(now_ns) == expected
    assert folded.tries() == naive_tries(messages)


@given(some_messages(), st.integers(0, 20))
def test_a_fold_that_was_written_down_goes_on(messages: list[Message], at: int) -> None:
    folded = Folded(messages[:at])
    folded.folds = {
        uid: msgspec.json.decode(msgspec.json.encode(fold), type=Fold)
        for uid, fold in folded.folds.items()
    }
    folded.jobs = {
        uid: msgspec.json.decode(msgspec.json.encode(jobs), type=dict[str, JobFold])
        for uid, jobs in folded.jobs.items()
    }
    for message in messages[at:]:
        folded.add(message)
    assert folded.views(NS) == naive_views(messages, NS, SLACK_NS)


@given(some_messages())
def test_nothing_flips_before_its_due(messages: list[Message]) -> None:
    """Looking again when a verdict says so misses no change."""
    for uid, jobs in Folded(messages).jobs.items():
        for job in jobs.values():
            now_ns = 0
            state, due_ns = lateness.judge(job, None, now_ns, SLACK_NS)
            while due_ns is not None:
                assert due_ns > now_ns, uid
                assert lateness.judge(job, None, due_ns - 1, SLACK_NS).state == state
                now_ns = due_ns
                state, due_ns = lateness.judge(job, None, now_ns, SLACK_NS)
            assert lateness.judge(job, None, 1 << 62, SLACK_NS).state == state


def check(made: Scenario, seed: int) -> None:
    messages = [decode(raw) for raw in made.arriving()]
    now_ns = int(made.end_s) * NS
    folded = Folded(decode(raw) for raw in disturbed(made.arriving(), seed))
    assert folded.views(now_ns) == naive_views(messages, now_ns, SLACK_NS)
    assert {v.uid: v.state for v in folded.views(now_ns)} == made.states
    assert {uid for uid, t in folded.tries().items() if t.active} == made.active


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("course", Course)
def test_l13_every_course_comes_to_its_end_however_it_arrives(
    course: Course, dialect: Dialect
) -> None:
    for seed in range(3):
        check(scenario(course, seed, dialect, storm=30), seed)


@given(st.integers(0, 1000))
def test_many_simulations_at_once(seed: int) -> None:
    check(campaign(seed, 4), seed)


def test_a_scenario_is_its_seed() -> None:
    assert scenario(Course.OK, 1).said == scenario(Course.OK, 1).said
    assert scenario(Course.OK, 1).said != scenario(Course.OK, 2).said


def tell(type: str, at: int, job: str = "1", **fields: object) -> Message:
    marks: tuple[str, ...] = ()
    if fields.pop("suspect", False):
        marks = (Mark.CLOCK_SUSPECT,)
    uid = f"{type}-{at}-{job}"
    return Message(uid, "", type, "S", job, at * NS, "", "", "", "", 0, "", "2.8", marks, fields)


def look(messages: list[Message], now: int) -> SimulationView:
    (view,) = Folded(messages).views(now * NS)
    assert [view] == naive_views(messages, now * NS, SLACK_NS)
    return view


def test_l13_an_end_does_not_clear_an_error_but_a_later_job_does() -> None:
    story = [
        tell("simulation.started", 2),
        tell("job.fatal", 5),
        tell("job.ended", 6),
        tell("simulation.ended", 7),
    ]
    assert look(story, 8).state is State.ERROR
    assert look([*story, tell("job.started", 9, "2")], 10).state is State.RUNNING
    assert look([*story, tell("job.started", 1, "2")], 10).state is State.ERROR


def test_l15_late_is_undone_by_the_end_that_was_missing() -> None:
    story = [tell("simulation.started", 1, jobWarningDelay="100")]
    assert look(story, 700).state is State.RUNNING
    assert look(story, 701).state is State.LATE
    assert look([*story, tell("job.ended", 90)], 701).state is State.QUEUED


def test_l12_a_purge_stays_whatever_comes_later() -> None:
    story = [tell("simulation.purged", 50), tell("simulation.started", 100), tell("job.ended", 200)]
    assert look(story, 300).purged
    (of,) = Folded(story).tries().values()
    assert (of.active, of.purged) == (False, True)


def test_silence_and_a_lost_end() -> None:
    story = [tell("simulation.started", 1), tell("heartbeat", 10, every_s=20)]
    assert look(story, 709).state is State.RUNNING
    assert look(story, 710).state is State.SILENT
    assert look([*story, tell("metric", 11, name="e", value=1)], 710).state is State.RUNNING
    assert look(story, 90_000).state is State.LOST_END
    after = [tell("simulation.started", 1), tell("job.started", 500, "2")]
    assert look(after, 1_099).jobs[0].state is State.RUNNING
    assert look(after, 1_100).jobs[0].state is State.LOST_END


def test_a_period_that_fails_again_and_again_needs_a_person() -> None:
    period = {"PeriodDateBegin": "18500101", "PeriodDateEnd": "18500130"}
    story = [tell("simulation.started", 1)]
    for job in range(4):
        story += [
            tell("job.started", 10 * job + 2, str(job)),
            tell("job.period", 10 * job + 3, str(job), **period),
            tell("job.fatal", 10 * job + 4, str(job)),
        ]
    view = look(story, 100)
    assert (view.repeats, view.stuck) == (4, True)
    beyond = {"PeriodDateBegin": "18500201", "PeriodDateEnd": "18500230"}
    assert look([*story, tell("job.period", 50, "9", **beyond)], 100).repeats == 1


def test_slack_is_learned_from_what_messages_took() -> None:
    assert learned_slack_ns({}) == lateness.SLACK_DEFAULT_NS
    assert learned_slack_ns({3: 19}) == lateness.SLACK_DEFAULT_NS
    assert learned_slack_ns({3: 1000}) == lateness.SLACK_MIN_NS
    assert learned_slack_ns({3: 980, 20: 20}) == (2 << 20) * 1_000_000
    assert learned_slack_ns({3: 995, 20: 5}) == lateness.SLACK_MIN_NS
    assert learned_slack_ns({60: 1000}) == lateness.SLACK_DEFAULT_NS * 24
