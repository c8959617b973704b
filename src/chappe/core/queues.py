"""The queues of the bus, the topics that are published, and which goes where: data, checked when it is read.

A message that no queue takes is lost in silence on many a broker. Here a topic is declared before anything
is published there, and a topology in which one goes nowhere cannot be made.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from chappe.core.errors import Invalid, NotFound
from chappe.core.topics import bound, check_pattern, check_topic, unbound

BACKOFF_MOST_S = 3_600.0


class Outside(msgspec.Struct, frozen=True):
    """What others call a queue: its name on a broker, and the type (code) of what is in it."""

    queue: str
    type: str


class Queue(msgspec.Struct, frozen=True):
    """A queue and its consumers' terms.

    A message taken is its consumer's for `lease_s`, then it is there for others again. It is tried
    `attempts` times, later and later (from `backoff_s` on, doubled each time), then it is a dead letter. One
    worker holds `prefetch` at most.
    """

    name: str
    patterns: tuple[str, ...]
    prefetch: int = 16
    lease_s: float = 60.0
    attempts: int = 5
    backoff_s: float = 1.0
    outside: Outside | None = None

    def backoff(self, tries: int) -> float:
        """Seconds to wait after so many tries."""
        return min(self.backoff_s * 2.0 ** min(tries - 1, 30), BACKOFF_MOST_S)


class Topology:
    """Queues by name, and the topics that may be published. Raises Invalid for a name twice, a pattern that
    takes none of the topics, and a topic that no queue takes."""

    def __init__(self, queues: Iterable[Queue], topics: Iterable[str]) -> None:
        self.queues: dict[str, Queue] = {}
        self.topics = tuple(check_topic(topic) for topic in topics)
        for queue in queues:
            if queue.name in self.queues:
                raise Invalid(f"there are two queues {queue.name}", field="name")
            for pattern in queue.patterns:
                if not any(bound(t, {"": [check_pattern(pattern)]}) for t in self.topics):
                    raise Invalid(f"{queue.name}: {pattern} takes no topic", field="patterns")
            if queue.attempts < 1 or queue.prefetch < 1 or queue.lease_s <= 0:
                raise Invalid(f"{queue.name}: attempts, prefetch and lease_s are above 0")
            self.queues[queue.name] = queue
        bindings = {queue.name: queue.patterns for queue in self.queues.values()}
        lost = unbound(self.topics, bindings)
        if lost:
            raise Invalid(f"no queue takes {', '.join(lost)}", field="topics")
        self._routes = {topic: bound(topic, bindings) for topic in self.topics}

    def route(self, topic: str) -> tuple[str, ...]:
        """The queues that a topic goes to: at least one. Raises NotFound for one that is not declared."""
        queues = self._routes.get(topic)
        if queues is None:
            raise NotFound(f"no topic {topic[:60]!r} is declared", code="topic_unknown")
        return queues

    def into(self, queue: str) -> list[str]:
        """The topics that go to a queue."""
        return [topic for topic, queues in self._routes.items() if queue in queues]

    def find(self, name: str) -> Queue:
        """A queue by our name, or `NAME:TYPE` as others call it. Raises NotFound, naming those that are."""
        for queue in self.queues.values():
            other = queue.outside
            if name == queue.name or (other and name == f"{other.queue}:{other.type}"):
                return queue
        known = ", ".join(self.queues)
        raise NotFound(f"there is no queue {name[:60]!r} (there are: {known})", field="queue")


SUPERVISOR = "live-superviseur"

QUEUES = (
    # Whether the bus works: an operator publishes, and is told when it was taken and acknowledged.
    Queue("hub-check", ("hub.check",), attempts=3),
    # The chain of supervision. Others have one queue for its three steps, which the code tells apart.
    Queue(
        "internal-supervision-detect",
        ("supervision.detect",),
        outside=Outside(SUPERVISOR, "8000"),
    ),
    Queue(
        "internal-supervision-format",
        ("supervision.format",),
        outside=Outside(SUPERVISOR, "8100"),
    ),
    Queue(
        "out-supervision-dispatch",
        ("supervision.dispatch",),
        attempts=3,
        outside=Outside(SUPERVISOR, "8200"),
    ),
)
TOPICS = ("hub.check", "supervision.detect", "supervision.format", "supervision.dispatch")

DECLARED = Topology(QUEUES, TOPICS)
