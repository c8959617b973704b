"""What the bus should do, said as plainly as possible: lists in memory, searched from end to end."""

from __future__ import annotations

from dataclasses import dataclass, field

from chappe.core.queues import Topology
from chappe.core.topics import matches
from chappe.store.queues import Verdict

LOST = "its consumer was lost, or took longer than its lease"


@dataclass
class Row:
    """A message in a queue."""

    queue: str
    position: int
    state: str = "ready"
    until: float = 0.0
    lease: int = 0
    tries: int = 0
    reason: str = ""

    @property
    def seen(self) -> tuple[str, int, str, int, str]:
        """What can be compared with the store."""
        return self.queue, self.position, self.state, self.tries, self.reason


@dataclass
class Published:
    """A message in the log."""

    position: int
    topic: str
    body: int


@dataclass
class NaiveBus:
    """The model: `now` is the calendar, `boot` the clock that never jumps."""

    topology: Topology
    now: float = 0.0
    boot: float = 0.0
    log: list[Published] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    leases: int = 0

    def publish(self, topic: str, body: int, delay_s: float) -> int:
        """One row for each queue that has a pattern for it."""
        position = len(self.log) + 1
        self.log.append(Published(position, topic, body))
        for queue in self.topology.queues.values():
            if any(matches(pattern, topic) for pattern in queue.patterns):
                row = Row(queue.name, position)
                if delay_s > 0:
                    row.state, row.until = "delayed", self.now + delay_s
                self.rows.append(row)
        return position

    def take(self, queue: str, most: int) -> list[tuple[int, int]]:
        """(position, body) of the oldest that are ready."""
        self.come_back(queue, self.boot)
        ready = [row for row in self.rows if row.queue == queue and row.state == "ready"]
        taken = sorted(ready, key=lambda row: row.position)[:most]
        if taken:
            self.leases += 1
        for row in taken:
            row.state, row.lease, row.tries = "leased", self.leases, row.tries + 1
            row.until = self.boot + self.topology.queues[queue].lease_s
        return [(row.position, self.log[row.position - 1].body) for row in taken]

    def come_back(self, queue: str, boot: float) -> None:
        """Delays and leases that have ended."""
        for row in self.rows:
            if row.queue == queue and row.state == "delayed" and row.until <= self.now:
                row.state = "ready"
            if row.queue == queue and row.state == "leased" and row.until <= boot:
                last = row.tries >= self.topology.queues[queue].attempts
                row.state, row.reason = "dead" if last else "ready", LOST

    def held(self, queue: str, position: int, lease: int) -> Row | None:
        """The row, if it is still whose lease this is."""
        for row in self.rows:
            if (row.queue, row.position, row.lease) == (queue, position, lease):
                return row if row.state == "leased" else None
        return None

    def ack(self, row: Row | None) -> bool:
        """Done with."""
        if row is None:
            return False
        self.rows.remove(row)
        return True

    def nack(self, row: Row | None, reason: str, delay_s: float | None) -> Verdict:
        """Again, later; or never."""
        if row is None:
            return Verdict.STALE
        terms = self.topology.queues[row.queue]
        row.reason = reason
        if row.tries >= terms.attempts:
            row.state = "dead"
            return Verdict.DEAD
        wait_s = terms.backoff_s * 2 ** (row.tries - 1) if delay_s is None else delay_s
        row.state, row.until = ("delayed", self.now + wait_s) if wait_s else ("ready", 0.0)
        return Verdict.RETRIED

    def release(self, row: Row | None) -> bool:
        """It was not begun."""
        if row is None:
            return False
        row.state, row.tries = "ready", row.tries - 1
        return True

    def replay(self, queue: str, after: int, until: int) -> int:
        """All of the log once more, but what is in the queue."""
        count = 0
        for message in self.log[after:until]:
            if not any(matches(p, message.topic) for p in self.topology.queues[queue].patterns):
                continue
            there = [r for r in self.rows if (r.queue, r.position) == (queue, message.position)]
            if not there:
                self.rows.append(Row(queue, message.position))
                count += 1
            elif there[0].state == "dead":
                there[0].state, there[0].tries = "ready", 0
                count += 1
        return count
