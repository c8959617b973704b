"""Hubs on PostgreSQL: start, standby, takeover, and servers that go away."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from chappe.link.clock import new_id
from chappe.testing.hub import RunningHub
from chappe.testing.place import Databases
from chappe.testing.postgres import PostgresServer
from chappe.testing.relay import Relay
from tests.integration.hub_rig import raw

#: What a takeover may take.
TAKEOVER_S = 5.0


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    """A database of a test's own."""
    url = databases.borrow()
    yield url
    databases.give_back(url)


@pytest.fixture
def hub(tmp_path: Path, url: str) -> Iterator[RunningHub]:
    """A Hub that writes it."""
    hub = RunningHub(tmp_path / "first", {"port": 0, "db": url}, {})
    with hub.start():
        yield hub


@pytest.fixture
def standby(tmp_path: Path, url: str, hub: RunningHub) -> Iterator[RunningHub]:
    """Another that waits, with the first one's certificate."""
    options = {
        "port": 0,
        "db": url,
        "tls_cert": hub.data / "hub-cert.pem",
        "tls_key": hub.data / "hub-key.pem",
    }
    other = RunningHub(tmp_path / "second", options, {})
    other.launch()
    with other:
        line = other._ready_line(30)
        assert line.startswith("hub standby https://"), line + other.log
        other.url = line.split()[2]
        other.ca_file = hub.ca_file
        yield other


def until(condition: Callable[[], bool], hub: RunningHub, within_s: float = 60) -> None:
    """Return when it is true; an address where nobody answers yet makes it false."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        assert time.monotonic() < deadline, hub.log[-3000:]
        time.sleep(0.01)


def readyz(hub: RunningHub) -> int:
    return raw(hub, "GET", "/readyz").status


def test_a_standby_says_what_it_is_and_serves_nothing(hub: RunningHub, standby: RunningHub) -> None:
    assert readyz(hub) == 200
    for path in ("/readyz", "/v1/whoami", "/metrics"):
        answer = raw(standby, "GET", path, hub.token)
        assert answer.status == 503
        error = json.loads(answer.body)["error"]
        assert (error["code"], error["transient"]) == ("standby", True)
    assert raw(standby, "GET", "/healthz").status == 200
    assert standby.stop() == 0
    assert readyz(hub) == 200


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_a_standby_takes_over_and_nothing_is_lost(
    hub: RunningHub, standby: RunningHub, url: str, sig: signal.Signals
) -> None:
    token = hub.token
    made: list[str] = []
    stop = threading.Event()

    def load() -> None:
        """Sites, one after the other, each noted here once it was answered."""
        while not stop.is_set():
            body = json.dumps({"id": new_id(), "name": f"site-{len(made)}"}).encode()
            try:
                answer = raw(hub, "POST", "/v1/sites", token, body)
            except OSError:
                return
            if answer.status >= 300:
                return
            made.append(json.loads(body)["name"])

    client = threading.Thread(target=load)
    client.start()
    until(lambda: len(made) > 20, hub)
    hub.process.send_signal(sig)
    began = time.monotonic()
    hub.process.wait()
    until(lambda: readyz(standby) == 200, standby)
    took_s = time.monotonic() - began
    stop.set()
    client.join()
    sites = json.loads(raw(standby, "GET", "/v1/sites", token).body)["sites"]
    assert set(made) <= {site["name"] for site in sites}, "what was acknowledged is there"
    with psycopg.connect(url) as conn:
        seqs = conn.execute("SELECT seq FROM event WHERE project = 1 ORDER BY seq").fetchall()
    assert seqs == [(n,) for n in range(1, len(seqs) + 1)]
    assert len(seqs) >= len(made)
    # A takeover takes less than a second on a quiet machine; ten times the promise allows for a busy one.
    assert took_s < 10 * TAKEOVER_S


def test_a_hub_that_was_cut_off_becomes_the_standby(
    tmp_path: Path, url: str, postgres: PostgresServer
) -> None:
    relay = Relay(socket.create_server(("127.0.0.1", 0)), postgres.port)
    through = url.replace(f":{postgres.port}/", f":{relay.address[1]}/")
    first = RunningHub(tmp_path / "first", {"port": 0, "db": through}, {})
    second = RunningHub(tmp_path / "second", {"port": 0, "db": url}, {})
    try:
        first.start()
        second.launch()
        second.url = second._ready_line(30).split()[2]
        second.ca_file = str(second.data / "hub-cert.pem")
        relay.cut(reset=True)
        until(lambda: readyz(second) == 200, second)
        relay.restore()

        def stands_by() -> bool:
            answer = raw(first, "GET", "/readyz")
            return answer.status == 503 and json.loads(answer.body)["error"]["code"] == "standby"

        until(stands_by, first)
        assert second.stop() == 0
        until(lambda: readyz(first) == 200, first)
    finally:
        for hub in (first, second):
            hub.stop()
        relay.close()
