"""What must hold of the store after each step, whatever came before (promises I5 to I8, I10 and I11).

It is read from the file, behind the store's back, and folded here by rules of its own: a rule of the
store that is wrong must not be what judges it.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

import msgspec

from chappe.core.states import FINAL, LEASED, PHASE, RUNNABLE, Phase, State, legal
from chappe.testing.store import StoreRig

FINAL_PHASES = ("finished", "failed", "cancelled", "deleted")


@dataclass
class Folded:
    """What the Events say of one Job."""

    state: State
    attempt: int = 0
    epoch: int = 0
    outcome: Any = None
    started_epoch: int = 0
    deleted: bool = False


class Checker:
    """Reads new Events as they come. `forget` when the store's past was replaced."""

    def __init__(self, rig: StoreRig) -> None:
        self.rig = rig
        #: Ids of Jobs that a retry of this step may have reopened.
        self.reopened: set[str] = set()
        self.forget()

    def forget(self) -> None:
        """Fold from the first Event again."""
        self._seq = 0
        self._jobs: dict[int, Folded] = {}

    def check(self) -> None:
        """Raise AssertionError when a promise is broken."""
        rows = {row["n"]: row for row in self.rig.sql("SELECT * FROM job")}
        self._fold(rows)
        self._rows_are_folds(rows)
        self._nothing_is_lost(rows)
        self._counts(rows)
        self._memory(rows)
        self.reopened = set()

    def _fold(self, rows: dict[int, sqlite3.Row]) -> None:
        # From the first Event on, reopenings of the past are read again: only new ones are judged.
        first = self._seq == 0
        ((next_seq,),) = self.rig.sql("SELECT next_seq FROM project")
        for event in self.rig.sql("SELECT * FROM event WHERE seq > ? ORDER BY seq", self._seq):
            assert event["seq"] == self._seq + 1, f"a gap before Event {event['seq']} (I5)"
            self._seq = event["seq"]
            if event["kind"] == "job":
                self._step(event, rows, replayed=first)
            elif event["kind"] == "job.deleted":
                folded = self._jobs[event["job"]]
                assert folded.state in FINAL, "a Job was deleted that was not final"
                folded.deleted = True
        assert next_seq == self._seq + 1, "next_seq is not the next (I5)"
        head = self.rig.store.head(self.rig.user.project_n)
        assert head == self._seq, f"the committed head is {head}, the log ends at {self._seq} (I5)"

    def _step(self, event: sqlite3.Row, rows: dict[int, sqlite3.Row], *, replayed: bool) -> None:
        n, new = event["job"], State(event["new"])
        old = None if event["old"] is None else State(event["old"])
        assert legal(old, new), f"{old} → {new} is not legal (I7)"
        folded = self._jobs.get(n)
        if folded is None:
            assert old is None, f"job {n} begins with {old} (I11)"
            folded = self._jobs[n] = Folded(new)
        else:
            assert old is folded.state, f"job {n}: {folded.state}, and then {old} → {new} (I11)"
            assert not folded.deleted, f"job {n} was deleted, and then → {new}"
        if old in FINAL:
            assert old is not State.JOB_FINISHED, f"job {n} was finished, and then → {new} (I6)"
            id = rows[n]["id"]
            assert replayed or id in self.reopened, f"job {n} was {old}, and nobody retried it (I6)"
        assert event["epoch"] >= folded.epoch, f"job {n}: the epoch fell (I8)"
        assert event["attempt"] >= folded.attempt, f"job {n}: the attempt fell"
        if new is State.RUNNING:
            assert event["epoch"] > folded.started_epoch, f"job {n} started twice in an epoch (I8)"
            assert event["attempt"] > folded.attempt, f"job {n} started an attempt twice"
            folded.started_epoch = event["epoch"]
        folded.state, folded.epoch, folded.attempt = new, event["epoch"], event["attempt"]
        data = msgspec.json.decode(event["data"]) if event["data"] else {}
        folded.outcome = data.get("outcome", folded.outcome)

    def _rows_are_folds(self, rows: dict[int, sqlite3.Row]) -> None:
        assert rows.keys() == self._jobs.keys(), "rows without Events, or Events without rows (I11)"
        for n, row in rows.items():
            folded = self._jobs[n]
            assert row["state"] == folded.state, f"job {n} is {row['state']}, not {folded.state}"
            assert row["attempt"] == folded.attempt, f"job {n}: attempt {row['attempt']} (I11)"
            assert row["epoch"] >= folded.epoch, f"job {n}: the row's epoch fell behind (I8)"
            assert (row["phase"] == "deleted") == folded.deleted
            self._indexed_as_it_is(row)
            if not folded.deleted:
                outcome = row["outcome"] and msgspec.json.decode(row["outcome"])
                assert outcome == folded.outcome, (
                    f"job {n}: {outcome} is not {folded.outcome} (I11)"
                )

    def _indexed_as_it_is(self, row: sqlite3.Row) -> None:
        state, resting = State(row["state"]), row["resting"]
        if row["phase"] == "deleted":
            assert resting is None
        elif PHASE[state] is Phase.RUNNING:
            assert resting in RUNNABLE, f"job {row['n']} runs, and was started from {resting}"
        else:
            assert resting == state, f"job {row['n']} is {state}, and listed as {resting}"
        over = row["phase"] == "deleted" or state in FINAL
        assert (row["ended_at"] is not None) == over, f"job {row['n']}: ended {row['ended_at']}"

    def _nothing_is_lost(self, rows: dict[int, sqlite3.Row]) -> None:
        sessions = {s["n"]: s["state"] for s in self.rig.sql("SELECT n, state FROM session")}
        open_parents: dict[int, int] = {}
        for child, parent in self.rig.sql("SELECT child, parent FROM edge"):
            is_open = rows[parent]["phase"] not in FINAL_PHASES
            open_parents[child] = open_parents.get(child, 0) + is_open
        for n, row in rows.items():
            state = State(row["state"])
            if row["session"] is not None:
                assert state in LEASED, f"job {n} is leased and {state}"
                assert sessions[row["session"]] != "dead", f"job {n} is leased to the dead (I10)"
                assert row["not_before"] is None, f"job {n} is leased before its time"
            else:
                assert row["cancel_at"] is None, f"job {n}: nobody will ever obey its cancel"
            if row["phase"] in FINAL_PHASES:
                assert row["session"] is None
            elif state is State.AWAITING_PARENTS:
                waits = open_parents.get(n, 0)
                assert row["waiting_parents"] == waits, (
                    f"job {n} waits for {row['waiting_parents']} parents, {waits} are open"
                )
                assert waits > 0, f"job {n} waits for parents that are final (I10)"
            else:
                assert state in RUNNABLE or row["session"] is not None, f"job {n} is lost: {state}"

    def _counts(self, rows: dict[int, sqlite3.Row]) -> None:
        waiting: dict[int, int] = {}
        counted: dict[tuple[int, str, str], int] = {}
        for row in rows.values():
            if row["phase"] == "deleted":
                continue
            key = (row["site"] or 0, row["app"] or "", row["state"])
            counted[key] = counted.get(key, 0) + 1
            bars = (row["session"], row["not_before"], row["held_at"])
            if row["phase"] == "runnable" and bars == (None, None, None):
                waiting[row["shape"]] = waiting.get(row["shape"], 0) + 1
        for n, stored in self.rig.sql("SELECT n, waiting FROM shape"):
            assert stored == waiting.get(n, 0), f"shape {n}: {stored} wait, not {waiting.get(n, 0)}"
            cached = self.rig.store.writer.catalog.shapes[n].waiting
            assert cached == stored, f"shape {n}: {cached} wait in memory, {stored} on disk"
        stored_counts = {
            (site, app, state): count
            for site, app, state, count in self.rig.sql(
                "SELECT site, app, state, count FROM counter WHERE count <> 0"
            )
        }
        assert stored_counts == counted, "the counters are not the counts"

    def _memory(self, rows: dict[int, sqlite3.Row]) -> None:
        """What the writer remembers of leases is what the rows say."""
        leases = self.rig.store.writer.catalog.leases
        remembered = {row.n: row for held in leases.values() for row in held.values()}
        leased = {n for n, row in rows.items() if row["session"] is not None}
        assert remembered.keys() == leased, "memory and disk differ on what is leased"
        for n, kept in remembered.items():
            assert kept.id in leases[rows[n]["session"]]
            for name in msgspec.structs.fields(kept):
                on_disk = rows[n][name.name]
                in_memory = getattr(kept, name.name)
                assert in_memory == on_disk, f"job {n}.{name.name}: {in_memory} but {on_disk}"
