"""The bus of a hub that runs: seen, checked, replayed, and killed at every moment that has a name."""

from __future__ import annotations

import http.client
import json
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from chappe.bus.workers import CRASH_POINTS
from chappe.testing.daemons import until
from chappe.testing.hub import RunningHub, start_hub
from tests.integration.hub_rig import raw
from tests.integration.test_cli_people import Person

KILLED = -9


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Generator[RunningHub, None, None]:
    with start_hub(tmp_path_factory.mktemp("bus") / "hub", workers=2) as running:
        yield running


def ask(hub: RunningHub, method: str, path: str, body: Any = None) -> Any:
    sent = None if body is None else json.dumps(body).encode()
    answer = raw(hub, method, path, hub.token, sent)
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def queue(hub: RunningHub, name: str = "hub-check") -> dict[str, Any]:
    found: dict[str, Any] = ask(hub, "GET", f"/v1/bus/queues/{name}")["queue"]
    return found


def test_an_operator_looks_checks_and_has_it_done_again(hub: RunningHub, tmp_path: Path) -> None:
    admin = Person(hub, tmp_path / "admin")
    admin.config.write_bytes(hub.client_config.read_bytes())
    before = queue(hub).get("acked", 0)
    last = ask(hub, "GET", "/v1/bus/queues")["position"]
    assert "the bus works" in admin.ok("bus", "check")
    queues = admin.objects("bus", "ls")
    assert {q["others"]: q["name"] for q in queues if q.get("others")} == {
        "live-superviseur:8000": "internal-supervision-detect",
        "live-superviseur:8100": "internal-supervision-format",
        "live-superviseur:8200": "out-supervision-dispatch",
    }
    assert "internal-supervision-format" in admin.ok("bus", "show", "live-superviseur:8100")
    assert "1 put in again" in admin.ok("bus", "replay", "hub-check", "--after", str(last))
    until(lambda: queue(hub).get("acked") == before + 2, "it is acknowledged again")
    assert "no dead letters" in admin.ok("bus", "dead")
    assert "0 tried anew" in admin.ok("bus", "retry", "hub-check", "1")
    refused = admin.chappe("bus", "show", "live-superviseur")
    assert (refused.returncode, "there are: hub-check" in refused.stderr) == (3, True)
    metrics = raw(hub, "GET", "/metrics").body.decode()
    for line in (
        'chappe_bus_depth{queue="hub-check"} 0.0',
        f'chappe_bus_messages_total{{queue="hub-check",what="acked"}} {before + 2}.0',
        'chappe_bus_dead{queue="out-supervision-dispatch"} 0.0',
    ):
        assert line in metrics


def test_without_workers_it_says_so(hub: RunningHub, tmp_path: Path) -> None:
    with start_hub(tmp_path / "other", workers=0) as idle:
        answer = raw(idle, "POST", "/v1/bus/check", idle.token)
        assert (answer.status, b"--workers 0" in answer.body) == (503, True)


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_it_dies_anywhere_and_nothing_is_lost_or_left(hub: RunningHub, point: str) -> None:
    """What was published is acknowledged by the next process, once."""
    before = queue(hub).get("acked", 0)
    hub.restart({"CHAPPE_CRASH_AT": point})
    with suppress(OSError, http.client.HTTPException):
        raw(hub, "POST", "/v1/bus/check", hub.token)
    assert hub.wait_dead() == KILLED
    hub.start()
    until(lambda: queue(hub)["depth"] == 0, "the queue is empty")
    left = queue(hub)
    assert (left["acked"] - before, left["dead"]) == (1, 0)
