"""Tokens and keys: they stand in the files made for them, which only their owner may read, and nowhere else.

A Hub, an agent, a pilot and Jobs have lived for a while, all started with the worst umask there is; then
everything that they left or show is searched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import pkgutil
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import chappe
from chappe.core.hidden import HidesToken
from chappe.core.jobs import AppRef, JobSpec
from chappe.link.clock import new_id
from chappe.link.http import HubClient
from chappe.link.keys import SigningKey, load_or_create
from chappe.link.signing import make_submissions
from chappe.pilot.procs import find_marked
from chappe.site import daemon
from chappe.site.init import HubAccess, init_site
from chappe.site.paths import SitePaths
from chappe.testing.hub import RunningHub, start_hub
from tests.integration.hub_rig import raw
from tests.integration.site_rig import wait_until

APP = """
name = "look"
version = "1"
shell = 'env >"$CHAPPE_DATA/env"; echo oops >&2; test {{ n }} = 1 || exec sleep 600; exit 3'
[parameters.n]
type = "int"
"""


class House:
    """A Hub and a Site that have lived, their files, and all their secrets by name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hub: RunningHub = start_hub(root / "hub")
        self.key: SigningKey = load_or_create(root / "user" / "key")
        access = HubAccess(self.hub.url, self.hub.token, self.hub.ca_file)
        self.made = init_site(root / "site", "site", access, self.key.public_b64)
        self.paths = SitePaths.of(root / "site")
        (self.paths.apps / "look.toml").write_text(APP)
        daemon.start(self.paths.root)

    def live(self) -> None:
        """Let one Job fail and another run; try a few wrong ways to show a token."""
        self.session = wait_until(
            lambda: next((p.parent.name for p in self.paths.sessions.rglob("pilot.log")), ""),
            "a pilot",
        )
        specs = [
            msgspec.json.encode(
                JobSpec(
                    new_id(),
                    self.made.project,
                    (self.made.id,),
                    AppRef("look"),
                    parameters={"n": n},
                )
            )
            for n in (1, 2)
        ]
        (submission,) = make_submissions(self.key, self.made.project, specs, time.time() + 3600)
        jobs = [
            {"spec": msgspec.Raw(spec), "submission": 0, "idx": i} for i, spec in enumerate(specs)
        ]
        body = msgspec.json.encode({"jobs": jobs, "submissions": [submission]})
        assert raw(self.hub, "POST", "/v1/jobs", self.hub.token, body).status == 200
        first, second = (json.loads(spec)["id"] for spec in specs)
        wait_until(lambda: self.state(first) == "FAILED", "the first job fails")
        wait_until(lambda: self.state(second) == "RUNNING", "the second runs")
        told = f"/v1/whoami?token={self.hub.token}"
        assert raw(self.hub, "GET", told, None).status == 401
        basic = {"authorization": f"Basic {self.hub.token}"}
        assert raw(self.hub, "GET", "/v1/whoami", None, None, basic).status == 401
        assert raw(self.hub, "GET", f"/v1/sites/{self.hub.token}", self.hub.token).status == 404

    def state(self, job: str) -> str:
        answer = raw(self.hub, "GET", f"/v1/jobs/{job}", self.hub.token)
        return str(json.loads(answer.body)["state"])

    def secrets(self) -> dict[str, bytes]:
        """The part of each secret that nobody could guess, as it would be found in a text."""
        session = json.loads((self.paths.session(self.session) / "session.json").read_bytes())
        pem = (self.hub.data / "hub-key.pem").read_text().splitlines()
        tokens = {
            "user's token": self.hub.token,
            "site's token": self.paths.token.read_text().strip(),
            "session's token": session["token"],
        }
        found = {name: token.split("_", 3)[3] for name, token in tokens.items()}
        found["hub's TLS key"] = max(pem, key=len)
        found["user's key"] = max((self.root / "user/key").read_text().split(), key=len)
        assert all(len(secret) >= 40 for secret in found.values())
        return {name: secret.encode() for name, secret in found.items()}

    def close(self) -> None:
        """Leave nothing running."""
        daemon.stop(self.paths.root)
        wait_until(lambda: not kill(self.paths.sessions), "the pilots are gone")
        self.hub.stop()


def kill(sessions: Path) -> int:
    """Kill what is left of all Sessions; how many processes that were."""
    found = [process for d in sessions.iterdir() for process in find_marked(d.name)]
    for process in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    return len(found)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("house")
    before = os.umask(0)
    try:
        made = House(root)
    finally:
        os.umask(before)
    try:
        made.live()
        yield made
    finally:
        made.close()


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]


def test_a_secret_stands_in_its_own_file_only_and_that_is_its_owners(house: House) -> None:
    session = house.paths.session(house.session)
    homes = {
        "user's token": {house.hub.data / "client.json", house.hub.data / "user/client.json"},
        "site's token": {house.paths.token},
        "session's token": {session / "session.json"},
        "hub's TLS key": {house.hub.data / "hub-key.pem"},
        "user's key": {house.root / "user/key"},
    }
    contents = {path: path.read_bytes() for path in files(house.root)}
    names = {path.name for path in contents}
    # What is searched does hold the logs, the journal and the database.
    expected = {"hub.log", "hub.sqlite", "agent.log", "pilot.log", "journal", "batch.sh", "env"}
    assert expected <= names
    for name, secret in house.secrets().items():
        found = {path for path, content in contents.items() if secret in content}
        assert found == homes[name], name
        for path in found:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_no_umask_opens_a_door(house: House) -> None:
    """Who could write to the Site, its ledger, its Apps or the database would decide what runs."""
    private = {
        house.paths.secrets,
        house.paths.sessions,
        house.paths.session(house.session),
        house.paths.outbox,
        house.root / "user",
        *house.hub.data.glob("hub.sqlite*"),
    }
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    written_by_tests = {house.hub.data, house.hub.data / "hub.log", house.paths.apps / "look.toml"}
    for path in [house.paths.root, *house.paths.root.rglob("*"), *house.hub.data.rglob("*")]:
        if path not in written_by_tests and not path.is_symlink() and not path.is_socket():
            assert path.stat().st_mode & 0o022 == 0, path


def test_no_secret_is_in_an_argument_or_an_environment(house: House) -> None:
    secrets = house.secrets()
    seen = 0
    for entry in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                text = (entry / name).read_bytes()
            except OSError:
                continue  # it is gone, or another user's
            seen += b"chappe" in text
            for secret, value in secrets.items():
                assert value not in text, (secret, entry.name, name)
    assert seen >= 4  # hub, agent, pilot, launcher: all were looked at


def test_a_job_finds_no_secret_in_its_environment(house: House) -> None:
    env = (house.paths.data / "env").read_bytes()
    assert b"CHAPPE_JOB_ID=" in env
    names = {line.split(b"=")[0].decode() for line in env.splitlines() if b"=" in line}
    assert not {n for n in names if any(w in n for w in ("TOKEN", "KEY", "SECRET", "CONFIG"))}
    for secret, value in house.secrets().items():
        assert value not in env, secret


def test_the_database_holds_hashes_and_not_tokens(house: House) -> None:
    content = b"".join(path.read_bytes() for path in house.hub.data.glob("hub.sqlite*"))
    assert hashlib.sha256(house.hub.token.encode()).hexdigest().encode() in content
    assert house.hub.token.encode() not in content


# --- what objects show


def holders_of_tokens() -> Iterator[type[Any]]:
    """Every class of ours that has a field for a token."""
    for module in pkgutil.walk_packages(chappe.__path__, "chappe."):
        if module.name.endswith("__main__") or ".migrations" in module.name:
            continue
        for thing in vars(importlib.import_module(module.name)).values():
            if isinstance(thing, type) and thing.__module__ == module.name:
                fields = list(getattr(thing, "__struct_fields__", ()))
                if dataclasses.is_dataclass(thing):
                    fields += [f.name for f in dataclasses.fields(thing) if f.repr]
                if "token" in fields:
                    yield thing


def test_no_object_shows_its_token() -> None:
    found = list(holders_of_tokens())
    assert len(found) >= 6
    for holder in found:
        assert issubclass(holder, HidesToken), holder
        assert holder.__repr__.__qualname__ == "HidesToken.__repr__", holder


async def test_no_client_shows_its_token_or_key() -> None:
    token = f"chp_u_aaaabbbbcccc_{'s' * 43}"
    async with HubClient("https://127.0.0.1:1", token) as client:
        assert "sss" not in repr(client)
    private = bytes(range(1, 33))
    shown = repr(SigningKey(private)) + str(SigningKey(private))
    assert private.hex() not in shown
    assert "\\x02" not in shown


def test_tokens_are_random_enough(house: House) -> None:
    made = [
        json.loads(raw(house.hub, "POST", "/v1/tokens", house.hub.token, b"{}").body)
        for _ in range(20)
    ]
    parts = [view["token"].split("_", 3) for view in made]
    assert {(p[0], p[1]) for p in parts} == {("chp", "u")}
    assert all(len(p[3]) == 43 for p in parts)  # 256 bits in base64
    assert len({p[2] for p in parts}) == len({p[3] for p in parts}) == 20
    listed = raw(house.hub, "GET", "/v1/tokens", house.hub.token).body
    for p in parts:
        assert p[2].encode() in listed
        assert p[3].encode() not in listed
