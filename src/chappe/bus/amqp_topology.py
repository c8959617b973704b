"""What stands on a RabbitMQ broker: exchanges, quorum queues and bindings, as running centres know them.

Producers publish to `x-primary` with a routing key `MODE.USER.PRODUCER.APP.TYPE`, where TYPE is a code of
libIGCM or a native type (whose own dots are more words). Applications bind queues of their own to
`x-secondary`, where the hub publishes its Events. Nothing that is published is dropped: what no binding
takes goes to `live-other`, and what a broker gives up on (a limit of deliveries that its operator set) to
`live-dead`; the hub reads both.

Delays are kept in the hub's store and not at the broker: its plug-in for delays keeps them on one node,
where they are lost with it. A message is published when it is due.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from chappe.core.topics import matches

if TYPE_CHECKING:
    from pamqp.common import FieldTable

PRIMARY = "x-primary"
SECONDARY = "x-secondary"
OTHER = "x-other"
DEAD = "x-dead"

#: What a mode may be, the first word of a routing key.
MODES = ("dev", "test", "prod")


class Exchange(NamedTuple):
    """A durable exchange."""

    name: str
    kind: str
    arguments: FieldTable


class Queue(NamedTuple):
    """A durable quorum queue, bound to an exchange by the types that it takes (`*` one word, `#` any)."""

    name: str
    exchange: str
    types: tuple[str, ...]
    arguments: FieldTable

    @property
    def keys(self) -> tuple[str, ...]:
        """The routing keys of its bindings."""
        return tuple("#" if t == "#" else f"*.*.*.*.{t}" for t in self.types)


EXCHANGES = (
    Exchange(OTHER, "fanout", {}),
    Exchange(DEAD, "fanout", {}),
    Exchange(PRIMARY, "topic", {"alternate-exchange": OTHER}),
    Exchange(SECONDARY, "topic", {}),
)

_QUORUM: FieldTable = {"x-queue-type": "quorum"}
#: A dead letter is handed over with a confirmation, which a queue may do only if it refuses what is too much.
_KEPT = _QUORUM | {
    "x-dead-letter-exchange": DEAD,
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}
#: Events stay in the hub's log: what nobody fetches from this queue is forgotten, the oldest first.
EVENTS_KEPT = 100_000

_COMPUTE = "0000 0100 1000 1001 1100 1900 1999 8888 9000 9999"
_POST = "2000 2100 2900 2999 3000 3100 3900 3999 post.# checker.#"
_NATIVE = "simulation.# job.# command.# heartbeat metric log custom.#"


def _queue(name: str, exchange: str, types: str) -> Queue:
    return Queue(name, exchange, tuple(types.split()), _KEPT)


QUEUES = (
    _queue("live-monitoring-compute", PRIMARY, f"{_COMPUTE} 4000 4100 4900 {_NATIVE}"),
    _queue("live-monitoring-post-processing", PRIMARY, _POST),
    _queue("live-metrics-env", PRIMARY, "7000 io"),
    _queue("live-metrics-conso", PRIMARY, "7010 7011 accounting accounting.jobs"),
    _queue("live-metrics-pcmdi", PRIMARY, "7100 metric.sets"),
    _queue("live-superviseur", SECONDARY, "8000 8100 8200 supervision.#"),
    _queue("live-cv", SECONDARY, "-1000 internal.vocabulary"),
    _queue("live-fe", SECONDARY, "-2000 internal.front_end"),
    _queue("live-smtp", SECONDARY, "-3000 internal.mail"),
    _queue("live-alert", SECONDARY, "-4000 internal.alert"),
    Queue("live-events", SECONDARY, ("#",), _QUORUM | {"x-max-length": EVENTS_KEPT}),
    _queue("live-other", OTHER, "#"),
    Queue("live-dead", DEAD, ("#",), _QUORUM),
)

#: The queues that the hub reads: all that come from producers, and what went astray.
DOOR = tuple(queue.name for queue in QUEUES if queue.exchange != SECONDARY)


def routing_key(mode: str, user: str, producer: str, app: str, type: str) -> str:
    """The key of a message, in lower case; dots within the first four words become hyphens."""
    words = (word.replace(".", "-") or "-" for word in (mode, user, producer, app))
    return ".".join((*words, type)).lower()


def takers(exchange: str, type: str, queues: Iterable[Queue] = QUEUES) -> Iterator[Queue]:
    """The queues that get a message of this type from an exchange."""
    key = routing_key("prod", "user", "producer", "app", type)
    for queue in queues:
        if queue.exchange == exchange and any(matches(pattern, key) for pattern in queue.keys):
            yield queue


def unbound(types: Iterable[str], queues: Iterable[Queue] = QUEUES) -> list[str]:
    """Those of `types` that no queue of the producers' or of the applications' exchange names."""
    kept = [queue for queue in queues if "#" not in queue.types]
    return [
        type
        for type in types
        if not any(True for exchange in (PRIMARY, SECONDARY) for _ in takers(exchange, type, kept))
    ]
