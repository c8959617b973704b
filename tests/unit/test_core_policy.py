"""What may be asked of a scheduler, and how often: the rules without any scheduler."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chappe.core import policy as rules
from chappe.core.batchjobs import BatchJobIntent, check_intent
from chappe.core.errors import Invalid
from chappe.core.policy import Breaker, Bucket, NotAllowed, Policy, QueueRule, Standing

HOSTILE = (
    "debug\n#SBATCH --uid=root",
    "debug\r#SBATCH -A x",
    "a b",
    "$(reboot)",
    "`reboot`",
    "x;reboot",
    "x|y",
    "x&",
    "x>f",
    "'x",
    '"x',
    "x\\",
    "#x",
    "-x",
    "--x",
    "x\0",
    "é",
    "x" * 101,
    "x\u2028y",
)


@pytest.mark.parametrize("field", ["queue", "account", "qos", "reservation"])
@pytest.mark.parametrize("value", HOSTILE)
def test_a_name_that_could_be_more_than_a_name_is_refused_by_its_field(
    field: str, value: str
) -> None:
    with pytest.raises(Invalid) as e:
        check_intent(BatchJobIntent(**{field: value}))  # type: ignore[arg-type]
    assert e.value.field == f"intent.{field}"


@pytest.mark.parametrize(
    "directive",
    [
        "--comment=x\n#SBATCH --uid=0",
        "reboot",
        "--comment='x",
        "--output=$HOME/x",
        "--a b c",
        "#SBATCH",
        "--x=`y`",
        "--x=\\",
        "",
        "-",
    ],
)
def test_a_directive_that_could_be_more_than_one_is_refused(directive: str) -> None:
    with pytest.raises(Invalid) as e:
        check_intent(BatchJobIntent(job_extra_directives=(directive,)))
    assert e.value.field == "intent.job_extra_directives"


@pytest.mark.parametrize("constraint", ["a b", "a\nb", "a;b", "$x", "'", "-x", "#"])
def test_a_constraint_is_an_expression_of_features_only(constraint: str) -> None:
    with pytest.raises(Invalid) as e:
        check_intent(BatchJobIntent(constraint=constraint))
    assert e.value.field == "intent.constraint"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nodes", 0),
        ("nodes", 10**9),
        ("cores", -1),
        ("gpus", -1),
        ("mem_bytes", -1),
        ("wall_s", 0.0),
        ("wall_s", math.nan),
        ("wall_s", math.inf),
    ],
)
def test_a_number_out_of_bounds_is_refused_by_its_field(field: str, value: float) -> None:
    with pytest.raises(Invalid) as e:
        check_intent(BatchJobIntent(**{field: value}))  # type: ignore[arg-type]
    assert e.value.field == f"intent.{field}"


def test_what_people_ask_for_is_taken() -> None:
    intent = BatchJobIntent(
        nodes=4,
        wall_s=7200.0,
        queue="gpu_a100.long",
        account="proj-42@cea",
        qos="normal",
        reservation="maint:1",
        constraint="[rack1*2&rack2*4]",
        job_extra_directives=("--exclusive", "--licenses=matlab:2", "-l select=1:ncpus=4"),
    )
    check_intent(intent)
    allowed = Policy(
        queues={"gpu_a100.long": QueueRule(nodes_max=4)},
        directives=["--exclusive", "--licenses=*", "-l *"],
    )
    rules.check_policy(allowed)
    rules.check_allowed(allowed, intent)


@given(st.text())
def test_no_text_brings_a_line_of_its_own_into_a_script(text: str) -> None:
    for intent in (
        BatchJobIntent(queue=text),
        BatchJobIntent(constraint=text),
        BatchJobIntent(job_extra_directives=(f"--x={text}",)),
    ):
        try:
            check_intent(intent)
        except Invalid:
            continue
        assert text.isascii()
        assert not set(text) & set(" \n\r\t\v\f\0\"'\\$`;<>#!")


@pytest.mark.parametrize(
    ("policy", "intent", "field"),
    [
        (Policy(queues={"short": QueueRule()}), BatchJobIntent(), "queue"),
        (Policy(queues={"short": QueueRule()}), BatchJobIntent(queue="long"), "queue"),
        (Policy(accounts=["a"]), BatchJobIntent(account="b"), "account"),
        (Policy(qos=["low"]), BatchJobIntent(qos="high"), "qos"),
        (Policy(reservations=["r"]), BatchJobIntent(reservation="s"), "reservation"),
        (Policy(), BatchJobIntent(job_extra_directives=("--uid=0",)), "job_extra_directives"),
        (Policy(nodes_max=2), BatchJobIntent(nodes=3), "nodes"),
        (
            Policy(queues={"q": QueueRule(nodes_max=2)}),
            BatchJobIntent(queue="q", nodes=3),
            "nodes",
        ),
        (
            Policy(queues={"q": QueueRule(wall_s_max=60.0)}),
            BatchJobIntent(queue="q", wall_s=61.0),
            "wall_s",
        ),
        (Policy(queues={"q": QueueRule(wall_s_max=60.0)}), BatchJobIntent(queue="q"), "wall_s"),
    ],
)
def test_what_the_owner_does_not_allow_is_refused_by_its_field(
    policy: Policy, intent: BatchJobIntent, field: str
) -> None:
    with pytest.raises(NotAllowed) as e:
        rules.check_allowed(policy, intent)
    assert e.value.field == f"intent.{field}"


def test_there_is_room_up_to_each_limit_and_not_beyond() -> None:
    waiting, running = Standing("q", 2, waiting=True), Standing("q", 2, waiting=False)
    intent = BatchJobIntent(queue="q", nodes=2)
    assert rules.room(Policy(queued_max=1), intent, [running, running]) == ""
    assert "wait" in rules.room(Policy(queued_max=1), intent, [waiting])
    assert rules.room(Policy(running_max=2), intent, [running]) == ""
    assert "run" in rules.room(Policy(running_max=2), intent, [running, waiting])
    assert rules.room(Policy(nodes_max=4), intent, [running]) == ""
    assert "nodes" in rules.room(Policy(nodes_max=4), intent, [running, waiting])
    own = Policy(queues={"q": QueueRule(queued_max=1)})
    assert rules.room(own, intent, [Standing("other", 1, waiting=True)]) == ""
    assert "wait in q" in rules.room(own, intent, [waiting])


@given(
    st.lists(st.floats(0, 50), max_size=200),
    st.floats(0.01, 10),
    st.integers(1, 10),
)
def test_no_stretch_of_time_sees_more_submissions_than_burst_and_rate(
    pauses: list[float], rate: float, burst: int
) -> None:
    policy = Policy(submissions_per_s=rate, submissions_burst=burst)
    bucket, at = Bucket(float(burst), 0.0), 0.0
    taken: list[float] = []
    for pause in pauses:
        at += pause
        if bucket.wait_s(policy, at) == 0.0:
            bucket = bucket.taken(policy, at)
            taken.append(at)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            most = burst + rate * (taken[last] - taken[first])
            assert last - first + 1 <= most + 1e-6


def test_after_waiting_as_long_as_was_said_there_is_one() -> None:
    policy = Policy(submissions_per_s=0.1, submissions_burst=1)
    bucket = Bucket(1.0, 0.0).taken(policy, 0.0)
    wait_s = bucket.wait_s(policy, 3.0)
    assert wait_s == pytest.approx(7.0)
    assert bucket.wait_s(policy, 3.0 + wait_s) == pytest.approx(0.0)
    assert bucket.taken(policy, -100.0).filled(policy, -100.0) == 0.0


def test_a_scheduler_that_fails_again_and_again_is_left_alone_ever_longer() -> None:
    breaker, pauses = Breaker(), []
    for _ in range(12):
        breaker = breaker.failed(0.0)
        pauses.append(breaker.wait_s(0.0))
    assert pauses[:2] == [0.0, 0.0]
    assert pauses[2:5] == [30.0, 60.0, 120.0]
    assert pauses[-1] == rules.BREAK_MOST_S


def test_a_clock_that_was_set_back_leaves_no_scheduler_alone_for_as_long() -> None:
    breaker = Breaker()
    for _ in range(20):
        breaker = breaker.failed(1.8e9)
    assert breaker.wait_s(1.8e9) == pytest.approx(rules.BREAK_MOST_S)
    assert breaker.wait_s(1.8e9 - 86_400.0) == 0.0


def test_a_slow_scheduler_is_asked_less_often() -> None:
    wait = rules.status_wait_s
    assert wait(60.0, 15.0, waiting=False, query_s=0.1) == 60.0
    assert wait(60.0, 15.0, waiting=True, query_s=0.1) == 15.0
    assert wait(10.0, 15.0, waiting=True, query_s=0.1) == 10.0
    assert wait(60.0, 15.0, waiting=True, query_s=40.0) == 200.0


def test_the_words_name_every_limit() -> None:
    policy = Policy(
        submissions_per_s=1 / 15,
        submissions_burst=3,
        queued_max=7,
        running_max=9,
        nodes_max=33,
        queues={"gpu": QueueRule(nodes_max=2, wall_s_max=600.0, queued_max=1, running_max=4)},
        accounts=["acc"],
        qos=["low"],
        reservations=["res"],
        directives=["--exclusive"],
        cancel_batch=11,
    )
    text = " ".join(rules.words(policy, 60.0, 15.0))
    for words in (
        "4 jobs a minute, 3 at once",
        "every 60 s",
        "every 15 s while one waits",
        "At most 7 BatchJobs wait",
        "At most 9",
        "At most 33 nodes",
        "up to 11 BatchJobs",
        "Queue gpu: at most 2 nodes each, 600 s each, 1 waiting, 4 waiting or running",
        "acc",
        "low",
        "res",
        "--exclusive",
    ):
        assert words in text
