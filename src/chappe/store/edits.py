"""Hold, release and update: what changes about a Job beside its state.

A held Job is not granted. The hold lies beside the state and outlasts it: a Job that a pilot has is left
there, and is not granted again when it comes back; one that waits for its parents stops once they have ended.
Tags, data and priority are the unsigned part of a Job, so changing them needs no new signature.
"""

from __future__ import annotations

import msgspec

from chappe.core.errors import Invalid
from chappe.core.jobs import Envelope, check_envelope
from chappe.core.states import FINAL
from chappe.store.acts import Numbers, on_jobs
from chappe.store.dialect import sql
from chappe.store.jobrow import JobRow
from chappe.store.prepare import canonical
from chappe.store.principal import Principal
from chappe.store.tx import Insert, Tx, to_json
from chappe.wire.jobs import ActOnJobs, ActReply, EnvelopeChange

HOLD = sql("""
    UPDATE job SET held_at = :held_at WHERE n IN (SELECT value FROM ints(:ns) v)""")

ENVELOPES = sql("""
    SELECT n, envelope FROM job WHERE n IN (SELECT value FROM ints(:ns) v)""")

SET_ENVELOPES = sql("""
    UPDATE job SET envelope = v.envelope, priority = v.priority, updated_at = :now
    FROM rows(:rows, n int, envelope text, priority int) v WHERE job.n = v.n""")

DROP_TAGS = sql("""
    DELETE FROM tag WHERE job IN (SELECT value FROM ints(:ns) v)
    AND k IN (SELECT value FROM texts(:keys) v)""")

INSERT_TAGS = Insert("tag", "project k v job")

_NONE = Envelope()
_decode = msgspec.json.Decoder(Envelope).decode


def hold(tx: Tx, p: Principal, act: ActOnJobs, jobs: Numbers = None) -> ActReply:
    """Grant the Jobs to nobody until they are released."""
    return on_jobs(tx, p, act, jobs, hold_rows)


def hold_rows(tx: Tx, rows: list[JobRow]) -> dict[int, str]:
    """`hold`, for Jobs that were found."""
    codes: dict[int, str] = {}
    held = []
    for row in rows:
        if row.state in FINAL:
            codes[row.n] = "skipped"
            continue
        codes[row.n] = "held" if row.session is None else "holding"
        if row.held_at is None:
            if row.waits:
                tx.waiting(row.shape, -1)
            row.held_at = tx.now
            held.append(row)
    _write(tx, held, tx.now, "job.held")
    return codes


def release(tx: Tx, p: Principal, act: ActOnJobs, jobs: Numbers = None) -> ActReply:
    """Let held Jobs be granted again."""
    return on_jobs(tx, p, act, jobs, release_rows)


def release_rows(tx: Tx, rows: list[JobRow]) -> dict[int, str]:
    """`release`, for Jobs that were found."""
    released = [row for row in rows if row.held_at is not None]
    for row in released:
        row.held_at = None
        if row.waits:
            tx.waiting(row.shape, 1)
    _write(tx, released, None, "job.released")
    return dict.fromkeys([row.n for row in rows], "skipped") | dict.fromkeys(
        [row.n for row in released], "released"
    )


def _write(tx: Tx, rows: list[JobRow], held_at: float | None, kind: str) -> None:
    if rows:
        tx.write(HOLD, held_at=held_at, ns=to_json([row.n for row in rows]))
    for row in rows:
        tx.event(row.project, kind, row.n, attempt=row.attempt, epoch=row.epoch)


def update(tx: Tx, p: Principal, act: ActOnJobs, jobs: Numbers = None) -> ActReply:
    """Change the tags, data or priority of Jobs, also of those that have ended."""
    change = check_change(act.change)
    return on_jobs(tx, p, act, jobs, lambda tx, rows: update_rows(tx, rows, change))


def check_change(change: EnvelopeChange | None) -> EnvelopeChange:
    """The change, or Invalid when there is none, or one that no Job could take."""
    if change is None or change == EnvelopeChange():
        raise Invalid("an update needs a priority, tags or data to change", field="change")
    check_envelope(Envelope(change.tags, change.data, change.priority or 0))
    both = change.tags.keys() & set(change.untag)
    if both:
        raise Invalid(f"tag {min(both)!r} is both set and removed", field="change.untag")
    return change


def update_rows(tx: Tx, rows: list[JobRow], change: EnvelopeChange) -> dict[int, str]:
    """`update`, for Jobs that were found. A Job whose tags or data would grow too large is left alone."""
    if not rows:
        return {}
    project = {row.n: row.project for row in rows}
    codes: dict[int, str] = {}
    updated: list[tuple[int, str | None, int]] = []
    for n, stored in tx.read(ENVELOPES, ns=to_json(list(project))):
        new = _changed(_NONE if stored is None else _decode(stored), change)
        try:
            check_envelope(new)
        except Invalid as e:
            codes[n] = e.code
            continue
        codes[n] = "updated"
        updated.append((n, None if new == _NONE else canonical(new), new.priority))
    tx.write(SET_ENVELOPES, rows=to_json(updated), now=tx.now)
    keys = [*change.tags, *change.untag]
    if keys:
        ns = [n for n, _, _ in updated]
        tx.write(DROP_TAGS, ns=to_json(ns), keys=to_json(keys))
        tx.insert(INSERT_TAGS, [(project[n], k, v, n) for n in ns for k, v in change.tags.items()])
    data = _told(change)
    for row in rows:
        if codes[row.n] == "updated":
            tx.event(
                row.project, "job.updated", row.n, attempt=row.attempt, epoch=row.epoch, data=data
            )
    return codes


def _changed(envelope: Envelope, change: EnvelopeChange) -> Envelope:
    tags = {k: v for k, v in envelope.tags.items() if k not in change.untag} | change.tags
    removed = [k for k, v in change.data.items() if v is None]
    data = {k: v for k, v in (envelope.data | change.data).items() if k not in removed}
    priority = envelope.priority if change.priority is None else change.priority
    return Envelope(tags, data, priority)


def _told(change: EnvelopeChange) -> str:
    """What the Event says: of `data` only the names, since it may be long and there may be many Jobs."""
    told = {
        "priority": change.priority,
        "tags": change.tags,
        "untag": change.untag,
        "data": sorted(change.data),
    }
    return to_json({name: value for name, value in told.items() if value not in (None, {}, [])})
