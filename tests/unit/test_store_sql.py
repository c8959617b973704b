"""The second line of defence: what the rules forbid, the schema forbids as well (promise I7)."""

from __future__ import annotations

import itertools

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from chappe.core.states import FINAL, LEASED, PHASE, State, legal, legal_updates
from chappe.store.tx import Tx
from chappe.testing.store import StoreRig

SET = sa.text("UPDATE job SET state = :new, phase = :phase, session = NULL WHERE n = :n")
#: On each database: how the trigger is taken away, and how it comes back.
FORCE = {"sqlite": "DROP TRIGGER job_legal", "postgresql": "DROP TRIGGER job_legal ON job"}
TRIGGER = {
    "sqlite": "SELECT sql FROM sqlite_master WHERE name = 'job_legal'",
    "postgresql": "SELECT pg_get_triggerdef(oid) AS sql FROM pg_trigger WHERE tgname = 'job_legal'",
}
EVENT = sa.text(
    "INSERT INTO event (project, seq, kind, job, old, new, attempt, epoch, occurred_at, received_at) "
    "VALUES (1, :seq, 'job', 1, :old, :new, 0, 0, 0, 0)"
)


@pytest.fixture
def job(rig: StoreRig) -> int:
    """The row number of a Job."""
    site = rig.add_site("paris")
    rig.submit(rig.spec(site))
    return int(rig.sql("SELECT n FROM job")[0]["n"])


def force(rig: StoreRig) -> tuple[sa.TextClause, dict[str, object]]:
    """The statement that takes the trigger away."""
    return sa.text(FORCE[kind(rig)]), {}


def kind(rig: StoreRig) -> str:
    return rig.store.url.partition(":")[0]


def allowed(rig: StoreRig, *statements: tuple[sa.TextClause, dict[str, object]]) -> bool:
    """Whether the last statement passes after the others did."""

    def run(tx: Tx) -> None:
        for statement, params in statements[:-1]:
            tx.conn.execute(statement, params)
        try:
            tx.conn.execute(*statements[-1])
        except IntegrityError:
            outcome.append(False)
        else:
            outcome.append(True)
        tx.conn.rollback()

    outcome: list[bool] = []
    try:
        rig.store.writer.submit(run).result()
    except Exception:  # noqa: BLE001 - the transaction was taken back under the writer's hands
        assert outcome
    return outcome[0]


@pytest.mark.parametrize("old", list(State))
def test_the_trigger_lets_through_what_the_table_allows_and_nothing_else(
    rig: StoreRig, job: int, old: State
) -> None:
    trigger = rig.sql(TRIGGER[kind(rig)])[0]["sql"]
    begin = {"n": job, "new": old, "phase": PHASE[old]}
    for new in State:
        passed = allowed(
            rig,
            force(rig),
            (SET, begin),
            (sa.text(trigger.replace(":", r"\:")), {}),
            (SET, {"n": job, "new": new, "phase": PHASE[new]}),
        )
        assert passed is (new is old or (old, new) in legal_updates()), f"{old} → {new}"


def test_the_log_takes_legal_steps_and_nothing_else(rig: StoreRig) -> None:
    for old, new in itertools.product([None, *State], State):
        passed = allowed(rig, (EVENT, {"seq": 10_000, "old": old, "new": new}))
        assert passed is legal(old, new), f"{old} → {new}"


def test_a_seq_is_given_once(rig: StoreRig, job: int) -> None:
    step = {"old": "PREPROCESSED", "new": "RUNNING"}
    assert not allowed(rig, (EVENT, {"seq": 1, **step}))
    assert allowed(rig, (EVENT, {"seq": 10_000, **step}))


def test_an_id_is_given_once(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    rig.submit(rig.spec(site), rig.spec(site))
    one, other = (row["id"] for row in rig.sql("SELECT id FROM job ORDER BY n"))
    rename = sa.text("UPDATE job SET id = :new WHERE id = :old")
    assert not allowed(rig, (rename, {"old": one, "new": other}))
    assert allowed(rig, (rename, {"old": one, "new": one[::-1]}))


@pytest.mark.parametrize("state", list(State))
def test_a_lease_is_of_what_may_be_leased(rig: StoreRig, job: int, state: State) -> None:
    lease = sa.text("UPDATE job SET session = 1 WHERE n = :n")
    begin = {"n": job, "new": state, "phase": PHASE[state]}
    assert allowed(rig, force(rig), (SET, begin), (lease, {"n": job})) is (state in LEASED)


@pytest.mark.parametrize(
    ("sql", "fine"),
    [
        ("UPDATE job SET phase = 'running'", False),
        ("UPDATE job SET phase = 'deleted'", True),
        ("UPDATE job SET waiting_parents = -1", False),
        ("UPDATE job SET state = 'DONE'", False),
        ("UPDATE token SET scope = 'root'", False),
        ("UPDATE shape SET waiting = -1", False),
        ("UPDATE shape SET waiting = 0", True),
        ("INSERT INTO hub (n, incarnation, commit_no, next_job) VALUES (2, 1, 1, 1)", False),
        ("UPDATE session SET state = 'sleepy'", False),
        ("UPDATE batch_job SET state = 'unknown'", False),
    ],
)
def test_checks(rig: StoreRig, job: int, sql: str, fine: bool) -> None:
    rig.add_site("toulouse").add_pilot()
    assert allowed(rig, (sa.text(sql), {})) is fine


@pytest.mark.parametrize("state", sorted(FINAL))
def test_an_end_gives_the_lease_back(rig: StoreRig, job: int, state: State) -> None:
    run = sa.text("UPDATE job SET state = 'RUNNING', phase = 'running', session = 1 WHERE n = :n")
    keep = sa.text("UPDATE job SET state = :new, phase = :phase WHERE n = :n")
    end = {"n": job, "new": state, "phase": PHASE[state]}
    assert not allowed(rig, force(rig), (run, {"n": job}), (keep, end))
    assert allowed(rig, force(rig), (run, {"n": job}), (SET, end))


@pytest.mark.parametrize("new", [None, "", "DONE", "running"])
def test_a_state_that_is_none_is_no_step(rig: StoreRig, new: str | None) -> None:
    assert not allowed(rig, (EVENT, {"seq": 10_000, "old": "RUNNING", "new": new}))


def test_what_is_refused_takes_the_whole_command_back(rig: StoreRig, job: int) -> None:
    def cheat(tx: Tx) -> None:
        tx.write(sa.text("UPDATE job SET priority = 9"))
        tx.write(sa.text("UPDATE job SET state = 'RUN_DONE', phase = 'running'"))
        tx.write(sa.text("UPDATE job SET state = 'PREPROCESSED', phase = 'runnable'"))

    with pytest.raises(IntegrityError, match="illegal change of state"):
        rig.do(cheat)
    assert tuple(rig.sql("SELECT state, priority FROM job")[0]) == ("PREPROCESSED", 0)
    rig.add_site("rome")
