"""What a restarted pilot makes of its predecessor's journal, the launcher's snapshot and the ledger. Pure.

A grant that the journal holds and that has no end yet is, in this order: running or waiting at the launcher,
or ended there; else never started, if the launcher lives (it would know); else lost with the launcher, if
its start was claimed; else never started. What was never started may still be, once the Hub has renewed it.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from chappe.link.journal import End, Recovered
from chappe.pilot.launch_wire import Key, Snapshot, Started
from chappe.wire.sync import Grant


class Plan:
    """The grants by what became of them; `strays` are ends at the launcher that nobody waits for."""

    def __init__(self) -> None:
        self.running: list[tuple[Grant, Started]] = []
        self.handed: list[Grant] = []
        self.ended: list[Grant] = []
        self.over: list[tuple[Grant | None, End]] = []
        self.startable: list[Grant] = []
        self.lost: list[Grant] = []
        self.strays: list[Key] = []


def unclear(recovered: Recovered, snapshot: Snapshot | None) -> list[Grant]:
    """The grants of which only the ledger knows whether their start was claimed."""
    known = set(_known(snapshot)) if snapshot is not None else set()
    return [
        grant
        for grant in recovered.grants.values()
        if (grant.job, grant.epoch) not in known and not _is_over(grant, recovered)
    ]


def plan(
    recovered: Recovered, snapshot: Snapshot | None, claimed: Collection[str], *, sure: bool = True
) -> Plan:
    """Sort what the journal holds. `snapshot` is None when the launcher was gone, `claimed` names the Jobs
    whose start is claimed by this Session. It is not `sure` that the launcher which had one of these is
    among those that were asked: then what none of them knows is lost."""
    made = Plan()
    grants = {(g.job, g.epoch): g for g in recovered.grants.values()}
    for end in recovered.ends.values():
        made.over.append((grants.get((end.job, end.epoch)), end))
        if (end.job, end.epoch) in grants:
            del grants[(end.job, end.epoch)]
    if snapshot is not None:
        for run in snapshot.running:
            # Without an entry in the journal (its disk was full) all we know is that it runs.
            grant = grants.pop(run.key) if run.key in grants else _stub(run)
            made.running.append((grant, run))
        made.handed += [grants.pop(key) for key in snapshot.waiting if key in grants]
        for ended in snapshot.ended:
            if ended.key in grants:
                made.ended.append(grants.pop(ended.key))
            else:
                made.strays.append(ended.key)
    for grant in grants.values():
        lost = (snapshot is None or not sure) and grant.job in claimed
        (made.lost if lost else made.startable).append(grant)
    return made


def _is_over(grant: Grant, recovered: Recovered) -> bool:
    end = recovered.ends.get(grant.job)
    return end is not None and end.epoch == grant.epoch


def _known(snapshot: Snapshot) -> list[Key]:
    return [
        *(run.key for run in snapshot.running),
        *(ended.key for ended in snapshot.ended),
        *snapshot.waiting,
    ]


def _stub(run: Started) -> Grant:
    return Grant(run.job, run.epoch, run.attempt, msgspec.Raw(b"{}"))
