"""squeue and qstat: what Jobs look like in their words."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from chappe.core.arrays import first_id, parse, task_ids, tasks
from chappe.core.ids import number_of
from chappe.core.leases import Outcome, Reason
from chappe.core.leases import Usage as Used
from chappe.link.clock import new_id
from chappe.sdk.batch import desk, qstat, squeue
from chappe.sdk.batch.flags import Usage
from chappe.sdk.batch.making import numbered_id
from chappe.sdk.batch.request import named
from chappe.sdk.batch.seen import SHORT, Seen, chosen, clock, see
from chappe.sdk.engine import Engine
from chappe.sdk.errors import Ambiguous, TooLarge
from chappe.wire.jobs import JobFilter, JobView

CONTEXT = squeue.Context(1_000.0, {"s": "paris"})
KEPT = {"dialect": "slurm", "user": "eva", "queue": "long", "cores": 4, "wall_s": 600.0}


def seen(state: str = "RUNNING", phase: str = "running", **fields: Any) -> Seen:
    told: dict[str, Any] = {"data": {"batch": KEPT}, "site": "s", "id": numbered_id(), **fields}
    return see(JobView(told.pop("id"), "run", state, phase, ["s"], 900.0, 940.0, **told))


def array(states: list[tuple[str, str]]) -> list[Seen]:
    first = numbered_id()
    indices = parse(f"1-{len(states)}")
    ids = task_ids(first_id(first), len(states))
    return [
        seen(state, phase, id=id, task=task)
        for id, task, (state, phase) in zip(ids, tasks(first, indices), states, strict=True)
    ]


WAITS, RUNS = ("PREPROCESSED", "runnable"), ("RUNNING", "running")


@pytest.mark.parametrize(
    ("job", "state", "why"),
    [
        (seen(*WAITS), "PENDING", "Resources"),
        (seen("AWAITING_PARENTS", "waiting", waiting_parents=2), "PENDING", "Dependency"),
        (seen(*WAITS, held_at=1.0), "PENDING", "JobHeldUser"),
        (seen(*WAITS, not_before=9e9), "PENDING", "BeginTime"),
        (seen(), "RUNNING", "None"),
        (seen(cancel_at=1.0), "COMPLETING", "None"),
        (seen("JOB_FINISHED", "finished", outcome=Outcome(Reason.EXIT, 0)), "COMPLETED", "None"),
        (seen("FAILED", "failed", outcome=Outcome(Reason.EXIT, 3)), "FAILED", "None"),
        (seen("FAILED", "failed", outcome=Outcome(Reason.TIMEOUT)), "TIMEOUT", "None"),
        (seen("FAILED", "failed", outcome=Outcome(Reason.NODE_LOST)), "NODE_FAIL", "None"),
        (seen("FAILED", "failed"), "FAILED", "None"),
        (seen("CANCELLED", "cancelled"), "CANCELLED", "None"),
    ],
)
def test_states(job: Seen, state: str, why: str) -> None:
    assert (job.state, job.waits_for) == (state, why)
    assert len(SHORT[state]) <= 2


def test_squeue_prints_what_programs_parse() -> None:
    job = seen()
    rows = squeue.rows([job], each=False)
    (line,) = squeue.text(rows, "%i %T", CONTEXT, header=False)
    assert line == f"{job.number} RUNNING"
    head, line = squeue.text(rows, squeue.DEFAULT, CONTEXT, header=True)
    assert head.split() == [
        "JOBID",
        "PARTITION",
        "NAME",
        "USER",
        "ST",
        "TIME",
        "NODES",
        "NODELIST(REASON)",
    ]
    assert line.split() == [str(job.number), "long", "run", "eva", "R", "1:00", "1", "paris"]
    (line,) = squeue.text(rows, "%.5t|%-3j|%3C|%l|%L|%%|%2u", CONTEXT, header=False)
    assert line == "    R|%-3j|4  |10:00|9:00|%|ev"
    assert squeue.columns(rows, "jobid:20,state:.9", CONTEXT, header=False) == [
        f"{job.number:<20}  RUNNING"
    ]
    with pytest.raises(Usage, match="%y"):
        squeue.text(rows, "%y", CONTEXT, header=False)
    with pytest.raises(Usage, match="nonsense"):
        squeue.columns(rows, "nonsense", CONTEXT, header=False)
    (found,) = squeue.document([job], CONTEXT)["jobs"]
    assert (found["job_id"], found["job_state"], found["partition"]) == (
        job.number,
        ["RUNNING"],
        "long",
    )


def test_tasks_that_wait_alike_share_a_line_unless_each_is_wanted() -> None:
    jobs = array([RUNS, WAITS, WAITS, WAITS])
    number = jobs[0].number
    assert [row.id for row in squeue.rows(jobs, each=False)] == [f"{number}_[2-4]", f"{number}_1"]
    assert [row.id for row in squeue.rows(jobs, each=True)] == [
        f"{number}_{i}" for i in (1, 2, 3, 4)
    ]
    assert [line.id for line in qstat.lines(jobs, each=False)] == [f"{number}[].chappe"]
    assert [line.state for line in qstat.lines(jobs, each=False)] == ["B"]
    assert [line.state for line in qstat.lines(jobs, each=True)] == ["R", "Q", "Q", "Q"]
    assert [line.state for line in qstat.lines(jobs[1:], each=False)] == ["Q"]


def test_a_number_that_fits_two_submissions_means_neither() -> None:
    one, other = numbered_id(), new_id()
    twin = one[:19] + other[19:]
    views = [seen(id=id).view for id in (one, twin)]
    assert number_of(one) == number_of(twin)
    with pytest.raises(Ambiguous, match=twin):
        chosen(named(str(number_of(one))), views)
    assert [s.view.id for s in chosen(named(one), views[:1])] == [one]
    jobs = array([RUNS, WAITS])
    (second,) = chosen(named(f"{jobs[0].number}_2"), [job.view for job in jobs])
    assert second.task == 2


class Pages:
    """Of an Engine only what lists Jobs: 25 000 that run."""

    async def pages(self, where: JobFilter) -> AsyncGenerator[list[JobView]]:
        for _ in range(25 if where.phase == "open" else 0):
            yield [seen().view for _ in range(1_000)]


async def test_some_jobs_are_not_shown_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    one = desk.Desk(cast(Engine, Pages()))
    everything = squeue.asked({}, (), "eva")
    many = await one.listed(everything, over=False)
    assert len(many) > 22_000  # two ids may be alike: they are made by the thousand
    monkeypatch.setattr(desk, "LISTED_MOST", 10_000)
    with pytest.raises(TooLarge, match="more than 10000 jobs"):
        await one.listed(everything, over=False)


def test_conditions() -> None:
    job = seen()
    assert squeue.asked({"states": "R,PD", "partition": "long,x", "name": "run"}, (), "eva").holds(
        job
    )
    assert squeue.asked({"states": "all"}, (), "eva").holds(job)
    for values in ({"states": "PD"}, {"partition": "short"}, {"name": "other"}, {"account": "x"}):
        assert not squeue.asked(values, (), "eva").holds(job)
    assert squeue.asked({"me": ""}, (), "eva").user == "eva"
    assert squeue.asked({"jobs": "1_[2,3],4"}, ("5",), "eva").names == ("1_[2,3]", "4", "5")
    with pytest.raises(Usage, match="Invalid job state"):
        squeue.asked({"states": "HAPPY"}, (), "eva")


def test_qstat_in_its_forms() -> None:
    outcome = Outcome(Reason.EXIT, 3, usage=Used(wall_s=61.0))
    ended = seen("FAILED", "failed", outcome=outcome)
    (line,) = qstat.lines([ended], each=False)
    table = qstat.table([line], CONTEXT)
    assert table[2].split() == [line.id, "run", "eva", "00:01:01", "F", "long"]
    full = qstat.full([line], CONTEXT)
    assert full[0] == f"Job Id: {ended.number}.chappe"
    assert {
        "    job_state = F",
        "    Exit_status = 3",
        "    Resource_List.walltime = 00:10:00",
    } < set(full)
    document = qstat.document([line], CONTEXT)
    assert document["Jobs"][line.id]["resources_used"] == {"walltime": "00:01:01"}
    wide = qstat.wide([line], CONTEXT)
    assert wide[-1].split()[-2:] == ["F", "00:01"]
    assert qstat.table([], CONTEXT) == []
    held = seen("AWAITING_PARENTS", "waiting", waiting_parents=1)
    assert qstat.lines([held], each=False)[0].state == "H"


@pytest.mark.parametrize(
    "data", [{}, {"batch": 5}, {"batch": {"user": []}}, {"batch": {"cores": "x"}}]
)
def test_what_others_wrote_into_a_job_breaks_nothing(data: dict[str, Any]) -> None:
    job = seen(data=data)
    rows = squeue.rows([job], each=False)
    assert len(squeue.text(rows, squeue.LONG, CONTEXT, header=True)) == 2
    assert qstat.full(qstat.lines([job], each=True), CONTEXT)


def test_a_name_is_no_line_of_its_own() -> None:
    job = seen(data={"batch": {**KEPT, "user": "eva\n999 R", "queue": "\x1b[2J"}})
    for lines in (
        squeue.text(squeue.rows([job], each=False), "%u %P", CONTEXT, header=False),
        qstat.table(qstat.lines([job], each=False), CONTEXT),
        qstat.full(qstat.lines([job], each=False), CONTEXT),
    ):
        assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "UNLIMITED"), (0, "0:00"), (61, "1:01"), (3_661, "1:01:01"), (93_784, "1-02:03:04")],
)
def test_clock(seconds: float | None, text: str) -> None:
    assert clock(seconds) == text
