"""Prometheus metrics. Labels are bounded: routes from the table, verdicts and states from core."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from chappe.wire.sync import SyncReply

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from chappe.hub.state import Hub
    from chappe.wire.jobs import Counts

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 35)
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


class _Now(Collector):
    """Gauges of this moment."""

    def __init__(self, hub: Hub, counts: Counts, sessions: Iterable[tuple[str, int]]) -> None:
        self._hub = hub
        self._counts = counts
        self._sessions = sessions

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
        ):
            yield GaugeMetricFamily(f"chappe_{name}", words, value)
        jobs = GaugeMetricFamily("chappe_jobs", "Jobs by state", labels=("state",))
        by_state: dict[str, int] = {}
        for _site, _app, state, n in self._counts.counts:
            by_state[state] = by_state.get(state, 0) + n
        for state, n in sorted(by_state.items()):
            jobs.add_metric((state,), n)
        yield jobs
        sessions = GaugeMetricFamily("chappe_sessions", "Sessions by state", labels=("state",))
        for state, n in self._sessions:
            sessions.add_metric((state,), n)
        yield sessions


def render(hub: Hub, counts: Counts, sessions: Iterable[tuple[str, int]]) -> bytes:
    """All metrics in the text format."""
    now = CollectorRegistry()
    now.register(_Now(hub, counts, sessions))
    return generate_latest(hub.metrics.registry) + generate_latest(now)
