"""How many connections a Hub serves: one too many is told so, and nobody else is harmed."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Generator
from contextlib import ExitStack
from http.client import HTTPMessage
from pathlib import Path

import pytest

from chappe.testing.hub import RunningHub

WITHIN_S = 60.0

#: A Hub like any other, but for its limit.
FEW = """
import sys
from chappe.core import limits
limits.CONNECTIONS = 4
from chappe.hub.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Generator[RunningHub, None, None]:
    running = RunningHub(tmp_path / "hub", {"port": 0}, {}, ("-c", FEW))
    with running.start():
        yield running


def connect(hub: RunningHub, stack: ExitStack) -> http.client.HTTPSConnection:
    host, _, port = hub.url.removeprefix("https://").rpartition(":")
    context = ssl.create_default_context(cafile=hub.ca_file)
    connection = http.client.HTTPSConnection(host, int(port), timeout=30, context=context)
    stack.callback(connection.close)
    return connection


def ask(connection: http.client.HTTPSConnection) -> int:
    return answer(connection)[0]


def answer(connection: http.client.HTTPSConnection) -> tuple[int, HTTPMessage, bytes]:
    connection.request("GET", "/healthz")
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def test_one_connection_too_many_is_answered_503(hub: RunningHub) -> None:
    with ExitStack() as stack:
        served = [connect(hub, stack) for _ in range(3)]
        assert [ask(connection) for connection in served] == [200] * 3
        status, headers, body = answer(connect(hub, stack))
        assert status == 503
        error = json.loads(body)["error"]
        assert (error["code"], error["transient"]) == ("too_many_connections", True)
        assert headers["content-type"] == "application/json"
        assert (headers["connection"], headers["retry-after"]) == ("close", "1")
        served[0].close()
        # When the hub hears of it, a busy machine decides.
        until = time.monotonic() + WITHIN_S
        while ask(connect(hub, stack)) != 200:
            assert time.monotonic() < until, "there is no room again"
