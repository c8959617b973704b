"""The bus in the store: what is published in a transaction is there when that commits, and never otherwise.

A message is stored once, in the log, at the next position; each queue bound to its topic has a row of its
own for it, until it is acknowledged. A consumer takes rows under a lease: a number never given before, so
that whoever lost a message (its lease ran out, and another has it) can neither acknowledge it nor give it
back. What a consumer changes belongs into the transaction that acknowledges: then each message has its
effect once, though it may be worked on more than once.

    queues.publish(tx, "supervision.detect", {"simulation": uid}, project=p)      # in any command
    taken = queues.take(tx, "internal-supervision-detect", 16)
    if queues.ack(tx, message): …                                                 # and its effects

Nothing is given up in silence: what failed as often as its queue allows is a dead letter, with the reason,
until a person has it tried again. Leases are measured with CLOCK_BOOTTIME, which no clock's step can end;
those of a Hub that is gone are ended by the next one when it starts (`forsake`).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import msgspec
import structlog

from chappe.core import limits
from chappe.core.errors import TooLarge
from chappe.core.queues import DECLARED, Topology
from chappe.store.dialect import sql
from chappe.store.tx import Tx, to_json

log = structlog.get_logger("chappe.store.queues")

#: Whose delay or lease has ended.
DUE = sql("""
    SELECT position, state, tries FROM bus_delivery WHERE queue = :queue
    AND ((state = 'leased' AND until <= :boot) OR (state = 'delayed' AND until <= :now))
    LIMIT :most""")

RETURN = sql("""
    UPDATE bus_delivery SET state = 'ready', until = NULL, reason = COALESCE(:reason, reason)
    WHERE queue = :queue AND position IN (SELECT value FROM ints(:positions) v)""")

BURY = sql("""
    UPDATE bus_delivery SET state = 'dead', until = NULL, died_at = :now, reason = :reason
    WHERE queue = :queue AND position IN (SELECT value FROM ints(:positions) v)""")

READY = sql("""
    SELECT position FROM bus_delivery WHERE queue = :queue AND state = 'ready'
    ORDER BY position LIMIT :most""")

LEASE = sql("""
    UPDATE bus_delivery SET state = 'leased', until = :until, lease = :lease, tries = tries + 1
    WHERE queue = :queue AND position IN (SELECT value FROM ints(:positions) v)""")

BODIES = sql("""
    SELECT d.position, d.project, l.topic, l.body, d.tries, l.published_at
    FROM ints(:positions) v
    CROSS JOIN bus_delivery d ON d.queue = :queue AND d.position = v.value
    CROSS JOIN bus_log l ON l.position = d.position
    ORDER BY d.position""")

NEXT = sql("""
    SELECT state, min(until) FROM bus_delivery
    WHERE queue = :queue AND until IS NOT NULL GROUP BY state""")

ACK = sql("""
    DELETE FROM bus_delivery WHERE queue = :queue AND position = :position
    AND state = 'leased' AND lease = :lease RETURNING position""")

GIVE_BACK = sql("""
    UPDATE bus_delivery SET state = :state, until = :until, died_at = :died_at, reason = :reason
    WHERE queue = :queue AND position = :position AND state = 'leased' AND lease = :lease
    RETURNING position""")

RELEASE = sql("""
    UPDATE bus_delivery SET state = 'ready', until = NULL, tries = tries - 1
    WHERE queue = :queue AND position = :position AND state = 'leased' AND lease = :lease
    RETURNING position""")

FORSAKEN = sql("SELECT DISTINCT queue FROM bus_delivery WHERE state = 'leased'")

LOST = "its consumer was lost, or took longer than its lease"
#: How many a take makes ready at most, whose time has come.
RETURN_MOST = 1_000
#: On CLOCK_BOOTTIME, in seconds.
FOREVER = 1e15


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message as a consumer has it: the `tries`-th try, under `lease`. `body` is JSON."""

    queue: str
    position: int
    lease: int
    project: int
    topic: str
    body: str
    tries: int
    published_at: float

    def decode(self) -> Any:
        """What was published."""
        return msgspec.json.decode(self.body)


class Taken(msgspec.Struct, frozen=True):
    """Messages, oldest first; if fewer than wanted, seconds until a delay or a lease ends (None: of none)."""

    messages: list[Message]
    wait_s: float | None = None


class Verdict(StrEnum):
    """What became of a message that was given back."""

    RETRIED = "retried"
    DEAD = "dead"
    STALE = "stale"  # it was not the consumer's any more, and nothing was changed


class Queues:
    """The queues of a topology; `publish` and the others below are those of the declared one."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    def publish(
        self, tx: Tx, topic: str, body: Any, *, project: int = 0, delay_s: float = 0.0
    ) -> int:
        """Publish `body` (anything that msgspec makes JSON of) in this transaction, to be delivered after
        `delay_s`; its position. Raises NotFound for a topic that is not declared, TooLarge."""
        queues = self.topology.route(topic)
        text = to_json(body)
        if len(text) > limits.BUS_BODY_BYTES:
            raise TooLarge(f"a message on the bus has {limits.BUS_BODY_BYTES} bytes at most")
        return tx.published(project, topic, text, queues, delay_s)

    def take(self, tx: Tx, queue: str, most: int) -> Taken:
        """Up to `most` messages, for the queue's `lease_s`. What this transaction publishes is not among
        them."""
        terms = self.topology.find(queue)
        self._return(tx, queue, tx.boot)
        found = [row[0] for row in tx.read(READY, queue=queue, most=most)]
        messages = self._lease(tx, queue, found, tx.boot + terms.lease_s) if found else []
        if len(found) == most:
            return Taken(messages)
        clocks = {"leased": tx.boot, "delayed": tx.now}
        waits = [until - clocks[state] for state, until in tx.read(NEXT, queue=queue)]
        return Taken(messages, min(waits, default=None))

    def _lease(self, tx: Tx, queue: str, found: Sequence[int], until: float) -> list[Message]:
        lease, positions = tx.next_lease(), to_json(found)
        tx.write(LEASE, queue=queue, until=until, lease=lease, positions=positions)
        rows = tx.read(BODIES, queue=queue, positions=positions)
        return [Message(queue, row[0], lease, *row[1:]) for row in rows]

    def _return(self, tx: Tx, queue: str, boot: float) -> int:
        """Make those ready whose delay has ended, or whose lease ran out before `boot`: dead, if that was the
        last try. How many were looked at."""
        rows = tx.read(DUE, queue=queue, boot=boot, now=tx.now, most=RETURN_MOST)
        attempts = self.topology.find(queue).attempts
        lost = {row.position: row.tries >= attempts for row in rows if row.state == "leased"}
        late = [row.position for row in rows if row.state == "delayed"]
        dead = [position for position, last in lost.items() if last]
        again = [position for position, last in lost.items() if not last]
        for positions, reason in ((late, None), (again, LOST)):
            if positions:
                tx.write(RETURN, queue=queue, positions=to_json(positions), reason=reason)
        if dead:
            tx.write(BURY, queue=queue, positions=to_json(dead), now=tx.now, reason=LOST)
            self._say_dead(queue, dead, LOST)
        if rows:
            tally = tx.tally(queue)
            tally.died += len(dead)
            tally.lost += len(lost)
        return len(rows)

    def forsake(self, tx: Tx) -> None:
        """End all leases: those who had them were of a Hub that is gone."""
        for (queue,) in tx.read(FORSAKEN):
            while queue in self.topology.queues and self._return(tx, queue, FOREVER):
                pass

    def ack(self, tx: Tx, message: Message) -> bool:
        """The message is dealt with. False when it is not the consumer's any more: then its effects must not
        be, either."""
        if not tx.write(ACK, **_key(message)):
            return False
        tx.tally(message.queue).acked += 1
        return True

    def nack(self, tx: Tx, message: Message, reason: str, delay_s: float | None = None) -> Verdict:
        """Give a message back that could not be dealt with, for another try after `delay_s` (None: as its
        queue has it); a dead letter, if this was the last."""
        terms = self.topology.find(message.queue)
        if message.tries >= terms.attempts:
            return self.reject(tx, message, reason)
        wait_s = terms.backoff(message.tries) if delay_s is None else delay_s
        state, until = ("delayed", tx.now + wait_s) if wait_s > 0 else ("ready", None)
        why = _bounded(reason)
        if not tx.write(
            GIVE_BACK, **_key(message), state=state, until=until, died_at=None, reason=why
        ):
            return Verdict.STALE
        tx.tally(message.queue).retried += 1
        return Verdict.RETRIED

    def reject(self, tx: Tx, message: Message, reason: str) -> Verdict:
        """Make a dead letter of a message: trying it again would not help."""
        why = _bounded(reason)
        if not tx.write(
            GIVE_BACK, **_key(message), state="dead", until=None, died_at=tx.now, reason=why
        ):
            return Verdict.STALE
        tx.tally(message.queue).died += 1
        self._say_dead(message.queue, [message.position], why)
        return Verdict.DEAD

    def release(self, tx: Tx, message: Message) -> bool:
        """Give a message back that was not begun: this was no try. False when it is not the consumer's."""
        if not tx.write(RELEASE, **_key(message)):
            return False
        tx.tally(message.queue)
        return True

    @staticmethod
    def _say_dead(queue: str, positions: list[int], reason: str) -> None:
        log.warning("dead letter", queue=queue, positions=positions, reason=reason)


def _key(message: Message) -> dict[str, Any]:
    return {"queue": message.queue, "position": message.position, "lease": message.lease}


def _bounded(reason: str) -> str:
    """A reason that every database can store."""
    text = reason[: limits.BUS_REASON_CHARS].replace("\0", "\ufffd")
    return text.encode(errors="replace").decode()


BUS = Queues(DECLARED)
publish = BUS.publish
take = BUS.take
ack = BUS.ack
nack = BUS.nack
reject = BUS.reject
release = BUS.release
forsake = BUS.forsake
