"""The second line of defence: what SQL itself refuses, whatever the code above it believes."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from chappe.core.states import FINAL, LEASED, PHASE, TRANSITIONS, State, legal, legal_updates
from chappe.store import migrate
from chappe.store.tx import Tx
from chappe.testing.store import StoreRig

S = State

INSERT_JOB = """
    INSERT INTO job (n, project, id, state, phase, shape, priority, epoch, attempt, max_attempts, idx,
                     name, waiting_parents, created_at, changed_at, spec, session)
    VALUES (1, 1, 'x', ?, ?, 1, 0, 0, 0, 1, 0, '', 0, 0, 0, '', ?)"""

INSERT_EVENT = """
    INSERT INTO event (project, seq, kind, job, old, new, attempt, epoch, occurred_at, received_at)
    VALUES (1, 1, ?, 1, ?, ?, 0, 0, 0, 0)"""


@pytest.fixture
def conn(memory: Path) -> Generator[sqlite3.Connection, None, None]:
    """A migrated, empty database; everything is rolled back after each statement that a test tries."""
    path = memory / "hub.db"
    migrate.migrate(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("BEGIN")
        yield conn


def allowed(conn: sqlite3.Connection, *statements: tuple[str, tuple[object, ...]]) -> bool:
    """Whether all of these pass; they leave nothing behind."""
    conn.execute("SAVEPOINT s")
    try:
        for sql, args in statements:
            conn.execute(sql, args)
    except sqlite3.IntegrityError:
        return False
    finally:
        conn.execute("ROLLBACK TO s")
    return True


def made(state: State, session: int | None = None) -> tuple[str, tuple[object, ...]]:
    return INSERT_JOB, (state, PHASE[state], session)


def test_every_change_of_a_rows_state_is_judged_as_core_judges_it(
    conn: sqlite3.Connection,
) -> None:
    update = "UPDATE job SET state = ?, phase = ? WHERE n = 1"
    for old, new in product(State, State):
        wanted = old is new or (old, new) in legal_updates()
        assert allowed(conn, made(old), (update, (new, PHASE[new]))) is wanted, f"{old} → {new}"


def test_every_event_is_judged_as_core_judges_it(conn: sqlite3.Connection) -> None:
    for old, new in product(TRANSITIONS, State):
        found = allowed(conn, (INSERT_EVENT, ("job", old, new)))
        assert found is legal(old, new), f"{old} → {new}"


@pytest.mark.parametrize("new", [None, "", "DONE", "running"])
def test_events_of_states_that_are_none(conn: sqlite3.Connection, new: str | None) -> None:
    assert not allowed(conn, (INSERT_EVENT, ("job", "RUNNING", new)))
    # Events about other things have no states.
    assert allowed(conn, (INSERT_EVENT, ("session", None, None)))


def test_only_some_states_may_be_leased(conn: sqlite3.Connection) -> None:
    for state in State:
        assert allowed(conn, made(state, 7)) is (state in LEASED), state
        assert allowed(conn, made(state))


def test_a_final_state_cannot_keep_its_lease(conn: sqlite3.Connection) -> None:
    keep = "UPDATE job SET state = ?, phase = ? WHERE n = 1"
    free = "UPDATE job SET state = ?, phase = ?, session = NULL WHERE n = 1"
    for state in FINAL:
        assert not allowed(conn, made(S.RUNNING, 7), (keep, (state, PHASE[state]))), state
        assert allowed(conn, made(S.RUNNING, 7), (free, (state, PHASE[state]))), state


def test_state_and_phase_agree(conn: sqlite3.Connection) -> None:
    phases = {*PHASE.values(), "deleted", "x"}
    for state, phase in product(State, sorted(phases)):
        wanted = phase in (PHASE[state], "deleted")
        assert allowed(conn, (INSERT_JOB, (state, phase, None))) is wanted, (state, phase)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE hub SET n = 2",
        "INSERT INTO hub VALUES (2, 1, 0, 1)",
        "INSERT INTO shape (project, hash, body, waiting) VALUES (1, '', '', -1)",
        "INSERT INTO token VALUES ('p', 'h', 'root', 1, NULL, NULL, '', 0, NULL, NULL)",
        "INSERT INTO session VALUES (1, 1, 's', 1, 1, 1, 'asleep', 0, 0, 0, NULL, NULL)",
        "INSERT INTO batch_job VALUES (1, 1, 'b', 1, 'lost', '', NULL, '', NULL, 0)",
        "UPDATE job SET waiting_parents = -1",
        "UPDATE job SET state = 'DONE'",
        "INSERT INTO event VALUES (1, 1, 'job', 1, NULL, 'RUNNING', 0, 0, 0, 0, NULL)",
    ],
)
def test_values_that_are_none_of_those_allowed(conn: sqlite3.Connection, sql: str) -> None:
    assert not allowed(conn, made(S.RUNNING), (sql, ()))


def test_one_seq_is_used_once(conn: sqlite3.Connection) -> None:
    event = (INSERT_EVENT, ("site", None, None))
    assert allowed(conn, event)
    assert not allowed(conn, event, event)


def test_one_id_is_used_once(conn: sqlite3.Connection) -> None:
    again = INSERT_JOB.replace("VALUES (1, 1", "VALUES (2, 1")
    elsewhere = INSERT_JOB.replace("VALUES (1, 1", "VALUES (2, 2")
    args = ("RUNNING", "running", None)
    assert not allowed(conn, made(S.RUNNING), (again, args))
    assert allowed(conn, made(S.RUNNING), (elsewhere, args))


def test_an_illegal_change_rolls_a_whole_command_back(rig: StoreRig) -> None:
    """As the writer meets it: the command fails, memory is read anew, and the next command works."""
    site = rig.add_site("paris")
    job = rig.spec(site)
    rig.submit(job)

    def cheat(tx: Tx) -> None:
        tx.write(text("UPDATE job SET priority = 9"))
        tx.write(text("UPDATE job SET state = 'RUN_DONE', phase = 'running'"))
        tx.write(text("UPDATE job SET state = 'PREPROCESSED', phase = 'runnable'"))

    with pytest.raises(IntegrityError, match="illegal change of state"):
        rig.do(cheat)
    assert (rig.job(job.id).state, rig.job(job.id).priority) == ("PREPROCESSED", 0)
    rig.cancel(job)
    assert rig.job(job.id).state == "CANCELLED"
