"""The Hub as a process: first start, stop, crash, a second one, a full disk."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chappe.core.errors import Unavailable
from chappe.hub import bootstrap, http
from chappe.link.http import NO_RETRY
from chappe.store import writer
from chappe.testing.hub import HubFailed, RunningHub, start_hub
from chappe.wire.jobs import Counts, CreateReply
from chappe.wire.sites import Whoami
from tests.integration.hub_rig import Pilot, raw, until, world

#: Far more than a stop takes, far less than a client's patience.
STOP_S = 20.0


def whoami(hub: RunningHub, token: str) -> int:
    return raw(hub, "GET", "/v1/whoami", token).status


# -- the first start -----------------------------------------------------------------------------------


def test_the_first_start_lets_its_owner_in_and_tells_nobody_else(hub: RunningHub) -> None:
    assert whoami(hub, hub.token) == 200
    user = hub.data / "user" / "client.json"
    for path in (hub.client_config, user):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    config = json.loads(user.read_text())
    assert set(config) == {"url", "project", "token", "ca_file"}
    assert config == json.loads(hub.client_config.read_text())
    assert str(user) in hub.log
    assert config["token"] not in hub.log
    assert config["token"].encode() not in b"".join(
        p.read_bytes() for p in hub.data.glob("hub.sqlite*")
    )
    assert stat.S_IMODE((hub.data / "hub.sqlite").stat().st_mode) == 0o600


def test_what_is_there_stays_over_a_restart(hub: RunningHub) -> None:
    url, token, project = hub.url, hub.token, hub.project
    cert = (hub.data / "hub-cert.pem").read_bytes()
    assert hub.stop() == 0
    hub.start()
    assert (hub.url, hub.token, hub.project) == (url, token, project)
    assert (hub.data / "hub-cert.pem").read_bytes() == cert
    assert whoami(hub, token) == 200


def test_a_moved_hub_corrects_its_files(hub: RunningHub) -> None:
    before = hub.url
    hub.stop()
    hub._options["port"] = 0
    hub.start()
    assert hub.url != before
    user = json.loads((hub.data / "user" / "client.json").read_text())
    assert (user["url"], user["token"]) == (hub.url, hub.token)


def test_the_file_of_another_hub_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "client.json"
    theirs.write_text('{"url": "https://elsewhere", "project": "p", "token": "t"}')
    before = theirs.read_bytes()
    with start_hub(tmp_path / "hub", environ={"CHAPPE_CONFIG": str(theirs)}) as hub:
        assert theirs.read_bytes() == before
        assert whoami(hub, hub.token) == 200


@pytest.mark.parametrize("point", bootstrap.CRASH_POINTS)
def test_a_first_start_that_is_killed_locks_nobody_out(tmp_path: Path, point: str) -> None:
    hub = RunningHub(tmp_path / "hub", {"port": 0}, {})
    hub.launch({"CHAPPE_CRASH_AT": point})
    assert hub.wait_dead() == -signal.SIGKILL
    with hub.start():
        user = json.loads((hub.data / "user" / "client.json").read_text())
        assert whoami(hub, user["token"]) == 200
        projects = json.loads(raw(hub, "GET", "/v1/projects", user["token"]).body)
        assert [p["id"] for p in projects["projects"]] == [user["project"]]


# -- refusals ------------------------------------------------------------------------------------------


def run_hub(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start a Hub that is expected to refuse."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "chappe.hub", *arguments],
        env={**os.environ, "CHAPPE_CONFIG": str(tmp_path / "none.json")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_second_hub_on_the_same_files_is_refused(hub: RunningHub, tmp_path: Path) -> None:
    second = run_hub(tmp_path, "--data", str(hub.data), "--port", "0")
    assert second.returncode == 1
    assert "another hub has" in second.stderr
    assert "Traceback" not in second.stderr
    assert whoami(hub, hub.token) == 200


def test_a_port_that_is_taken_is_refused(hub: RunningHub, tmp_path: Path) -> None:
    port = hub.url.rsplit(":", 1)[1]
    second = run_hub(tmp_path, "--data", str(tmp_path / "other"), "--port", port)
    assert second.returncode == 1
    assert f"port {port}" in second.stderr
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--db", "mysql://x"], "sqlite:///"),
        (["--tls-cert", "cert.pem"], "both"),
        (["--tls-cert", "/none", "--tls-key", "/none"], "is no file"),
    ],
)
def test_wrong_options_are_refused_in_words(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    refused = run_hub(tmp_path, "--data", str(tmp_path / "hub"), "--port", "0", *arguments)
    assert refused.returncode == 1
    assert words in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_operators_certificate_is_served(hub: RunningHub, tmp_path: Path) -> None:
    own: dict[str, Any] = {
        "tls_cert": hub.data / "hub-cert.pem",
        "tls_key": hub.data / "hub-key.pem",
    }
    with start_hub(tmp_path / "other", **own) as other:
        assert other.ca_file == ""
        other.ca_file = hub.ca_file
        assert whoami(other, other.token) == 200


# -- stop ----------------------------------------------------------------------------------------------


async def test_a_stop_answers_who_waits_and_is_quick(hub: RunningHub) -> None:
    """With long polls, streams and idle TLS connections open, none of whose clients helps."""
    async with world(hub) as w:
        pilots = [await w.pilot() for _ in range(5)]
        waits = [asyncio.create_task(p.sync(wait_s=30.0)) for p in pilots]
        host, _, port = hub.url.removeprefix("https://").rpartition(":")
        context = ssl.create_default_context(cafile=hub.ca_file)
        streams = []
        for _ in range(5):
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
            head = f"GET /v1/events/stream HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {hub.token}"
            writer.write(f"{head}\r\n\r\n".encode())
            assert b": ready" in await reader.readuntil(b": ready")
            streams.append(writer)
        idle = [await asyncio.open_connection(host, int(port), ssl=context) for _ in range(5)]
        await until(lambda: _polls(hub) == 5, "five pilots wait")
        began = time.monotonic()
        code = await asyncio.to_thread(hub.stop)
        assert code == 0
        assert time.monotonic() - began < STOP_S
        for reply in await asyncio.gather(*waits):
            assert reply.grants == []
        for writer in [*streams, *(w for _, w in idle)]:
            writer.transport.abort()
    entries = [json.loads(line) for line in hub.log.splitlines() if line.startswith("{")]
    assert entries[-1]["event"] == "stopped"
    assert not [e for e in entries if e["level"] == "error"]


def _polls(hub: RunningHub) -> int:
    found = re.search(rb"^chappe_long_polls (\d+)", raw(hub, "GET", "/metrics").body, re.M)
    return int(found.group(1)) if found else -1


def test_a_hub_is_ready_until_it_stops(hub: RunningHub) -> None:
    assert raw(hub, "GET", "/readyz").status == 200
    assert raw(hub, "GET", "/healthz").status == 200
    assert hub.stop() == 0
    with pytest.raises(OSError, match="refused"):
        raw(hub, "GET", "/readyz")


def test_the_ready_line_may_go_to_a_file(tmp_path: Path) -> None:
    with start_hub(tmp_path / "hub", ready_file=tmp_path / "ready") as hub:
        assert (tmp_path / "ready").read_text() == f"hub ready {hub.url}\n"


def test_a_hub_that_cannot_start_is_told_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(HubFailed, match="sqlite:///"):
        start_hub(tmp_path / "hub", db="nonsense://")


# -- crash ---------------------------------------------------------------------------------------------


@pytest.fixture
def idle_hub(tmp_path: Path) -> Iterator[RunningHub]:
    """A Hub that writes nothing unless it is asked."""
    running = start_hub(tmp_path / "hub", workers=0)
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize("point", [*writer.CRASH_POINTS, *http.CRASH_POINTS])
async def test_a_create_that_the_crash_left_unanswered_may_be_repeated(
    idle_hub: RunningHub, point: str
) -> None:
    hub = idle_hub
    async with world(hub) as w:
        jobs = w.jobs(50)
        await asyncio.to_thread(hub.stop)
        # A second start commits and answers nothing of its own: the first is the create.
        await asyncio.to_thread(hub.start, {"CHAPPE_CRASH_AT": f"{point}:1"})
        with pytest.raises(Unavailable):
            await w.user.request("POST", "/v1/jobs", jobs, CreateReply, retry=NO_RETRY)
        assert await asyncio.to_thread(hub.wait_dead) == -signal.SIGKILL
        await asyncio.to_thread(hub.start)
        reply = await w.user.request("POST", "/v1/jobs", jobs, CreateReply)
        committed = point != "hub.before_commit"
        assert {v.code for v in reply.verdicts} == {"exists" if committed else "created"}
        counts = await w.user.request("GET", "/v1/jobs/counts", reply=Counts)
        assert sum(n for _, _, _, n in counts.counts) == 50


async def test_a_pilot_goes_on_where_it_was_after_a_crash(hub: RunningHub) -> None:
    async with world(hub) as w:
        pilot: Pilot = await w.pilot()
        await w.create(4)
        grants = (await pilot.sync(slots=4)).grants
        ends = pilot.request([pilot.end(g) for g in grants], slots=0)
        await asyncio.to_thread(hub.kill9)
        await asyncio.to_thread(hub.start)
        reply = await pilot.send(ends)
        assert [v.verdict for v in reply.verdicts] == ["applied"] * 4
        await asyncio.to_thread(hub.kill9)
        await asyncio.to_thread(hub.start)
        again = await pilot.send(ends)
        assert [v.verdict for v in again.verdicts] == ["duplicate"] * 4
        me = await pilot.client.request("GET", "/v1/whoami", reply=Whoami)
        assert me.incarnation == 1


# -- a full disk ---------------------------------------------------------------------------------------


async def test_a_full_disk_is_told_and_recovered_from(hub: RunningHub) -> None:
    async with world(hub) as w:
        (kept,) = await w.create(1)
        wal = hub.data / "hub.sqlite-wal"
        unlimited = resource.RLIM_INFINITY
        pid = hub.process.pid
        # No file of the Hub may grow: what a full disk looks like to SQLite.
        log_bytes = (hub.data / "hub.log").stat().st_size
        full = max(wal.stat().st_size, log_bytes) + 10_000
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (full, unlimited))
        jobs = w.jobs(2_000)
        with pytest.raises(Unavailable) as told:
            await w.user.request("POST", "/v1/jobs", jobs, retry=NO_RETRY)
        assert told.value.code == "disk_full"
        # Reading goes on, and nothing of the refused request is there.
        counts = await w.user.request("GET", "/v1/jobs/counts", reply=Counts)
        assert sum(n for _, _, _, n in counts.counts) == 1
        await w.user.request("GET", f"/v1/jobs/{kept}")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        reply = await w.user.request("POST", "/v1/jobs", jobs, CreateReply)
        assert {v.code for v in reply.verdicts} == {"created"}
        seqs = [e["seq"] for e in await _events(w.user)]
        assert seqs == list(range(1, len(seqs) + 1))


async def _events(client: Any) -> list[dict[str, Any]]:
    data = (await client.fetch("GET", "/v1/events", params={"limit": 5_000})).data
    events: list[dict[str, Any]] = json.loads(data)["events"]
    return events
