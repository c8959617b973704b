"""Prometheus metrics. Labels are bounded: routes from the table, verdicts and states from core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from chappe.wire.bus import QueueView
from chappe.wire.jobs import Counts
from chappe.wire.sync import SyncReply

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from chappe.hub.state import Hub

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 35)
VERDICTS = ("stored", "duplicate", "quarantined")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What is counted as it happens; the rest is read when it is asked for."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "chappe_requests",
            "Requests answered",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._durations = Histogram(
            "chappe_request_seconds",
            "Time to answer; long polls include their wait",
            ("route",),
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._reports = Counter(
            "chappe_reports", "Reports of pilots, by verdict", ("verdict",), registry=self.registry
        )
        self._grants = Counter("chappe_grants", "Jobs granted to pilots", registry=self.registry)
        self.stream_reads = Counter(
            "chappe_stream_reads", "Reads of the EventLog for streams", registry=self.registry
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered. `route` is the template of the table, never the path as sent."""
        self._requests.labels(method, route, str(status)).inc()
        self._durations.labels(route).observe(seconds)

    def sync(self, reply: SyncReply) -> None:
        """A sync's verdicts and grants."""
        if reply.grants:
            self._grants.inc(len(reply.grants))
        counts: dict[str, int] = {}
        for verdict in reply.verdicts:
            counts[verdict.verdict] = counts.get(verdict.verdict, 0) + 1
        for name, n in counts.items():
            self._reports.labels(name).inc(n)


class Found(NamedTuple):
    """What is read from the store: Jobs by state, Sessions by state, and by door what became of messages."""

    jobs: Counts
    sessions: list[tuple[str, int]]
    messages: list[tuple[str, int, int, int]]
    queues: list[QueueView]


class _Now(Collector):
    """Gauges of this moment."""

    def __init__(self, hub: Hub, found: Found) -> None:
        self._hub = hub
        self._found = found

    def collect(self) -> Iterator[Metric]:
        """The families, as prometheus_client wants them."""
        hub, stats = self._hub, self._hub.store.writer.stats
        for name, words, value in (
            ("commits", "Commits", stats.commits),
            ("commands", "Commands that were committed", stats.commands),
            ("rollbacks", "Transactions rolled back", stats.rollbacks),
            ("writer_busy_seconds", "Time the writer spent in transactions", stats.busy_s),
        ):
            yield CounterMetricFamily(f"chappe_{name}", words, value)
        for name, words, value in (
            ("writer_queue", "Commands that wait for the writer", hub.store.writer.depth),
            ("largest_group", "Most commands in one commit so far", stats.largest_group),
            ("long_polls", "Requests that wait for something to be told", len(hub.polls)),
            ("streams", "Open event streams", len(hub.streams)),
            (
                "bus_busy",
                "Workers of the bus that work now",
                hub.workers.busy if hub.workers else 0,
            ),
            ("messages_waiting", "Messages that wait to be stored", hub.intake.waiting),
        ):
            yield GaugeMetricFamily(f"chappe_{name}", words, value)
        jobs = GaugeMetricFamily("chappe_jobs", "Jobs by state", labels=("state",))
        by_state: dict[str, int] = {}
        for _site, _app, state, n in self._found.jobs.counts:
            by_state[state] = by_state.get(state, 0) + n
        for state, n in sorted(by_state.items()):
            jobs.add_metric((state,), n)
        yield jobs
        sessions = GaugeMetricFamily("chappe_sessions", "Sessions by state", labels=("state",))
        for state, n in self._found.sessions:
            sessions.add_metric((state,), n)
        yield sessions
        links = GaugeMetricFamily(
            "chappe_broker_connected", "Whether a link to a broker stands", labels=("link",)
        )
        for link, standing in hub.links.items():
            links.add_metric((link,), standing.connected)
        yield links
        messages = CounterMetricFamily(
            "chappe_messages", "Messages received, by door and verdict", labels=("door", "verdict")
        )
        for door, *numbers in self._found.messages:
            for verdict, n in zip(VERDICTS, numbers, strict=True):
                messages.add_metric((door, verdict), n)
        yield messages
        yield from _queues(self._found.queues)


def _queues(queues: list[QueueView]) -> Iterator[Metric]:
    """The bus: what waits in each queue and since when, and what was done with it."""
    gauges: tuple[tuple[str, str, Callable[[QueueView], float]], ...] = (
        ("depth", "Messages in the queue that are not dead", lambda q: q.depth),
        ("dead", "Dead letters", lambda q: q.dead),
        ("oldest_seconds", "For how long the oldest message waits", lambda q: q.oldest_s or 0.0),
    )
    for name, words, value in gauges:
        gauge = GaugeMetricFamily(f"chappe_bus_{name}", words, labels=("queue",))
        for queue in queues:
            gauge.add_metric((queue.name,), value(queue))
        yield gauge
    done = CounterMetricFamily(
        "chappe_bus_messages", "What was done with messages", labels=("queue", "what")
    )
    for queue in queues:
        for what in ("arrived", "acked", "retried", "lost", "died", "revived", "forgotten"):
            done.add_metric((queue.name, what), getattr(queue, what))
    yield done


def render(hub: Hub, found: Found) -> bytes:
    """All metrics in the text format."""
    now = CollectorRegistry()
    now.register(_Now(hub, found))
    return generate_latest(hub.metrics.registry) + generate_latest(now)
