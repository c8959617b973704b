"""`chappe message` and `chappe producer` as people type them."""

from __future__ import annotations

import hashlib
import json
import mailbox
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from chappe.cli import main
from chappe.link.clock import new_id
from chappe.testing import mails
from chappe.testing.hub import RunningHub, start_hub
from tests.integration.sdk_rig import Said


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    running = start_hub(tmp_path_factory.mktemp("cli-messages") / "hub")
    yield running
    running.stop()


class Line:
    """The command line of the Hub's owner."""

    def __init__(self, hub: RunningHub) -> None:
        self._config = str(hub.client_config)

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Said:
        own = {name: None for name in os.environ if name.startswith("CHAPPE_")}
        env = own | {"CHAPPE_CONFIG": self._config}
        done = CliRunner().invoke(main.root, arguments, input=stdin, env=env)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Said(done.exit_code, done.stdout, done.stderr)

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        said = self(*arguments, "--json")
        return [json.loads(line) for line in said.stdout.splitlines()]


@pytest.fixture
def chappe(hub: RunningHub) -> Line:
    return Line(hub)


def stream(simulation: str, count: int) -> list[bytes]:
    """Messages of one stream, each naming the one before."""
    name, prev, made = new_id(), "", []
    for seq in range(1, count + 1):
        fields = {
            "msgUID": new_id(),
            "msgType": "custom.step",
            "simuid": simulation,
            "msgStream": name,
            "msgSeq": seq,
            "msgPrev": prev,
        }
        made.append(json.dumps(fields).encode())
        prev = hashlib.sha256(made[-1]).hexdigest()
    return made


def test_a_file_is_imported_once_and_a_gap_is_seen_until_it_is_filled(
    chappe: Line, tmp_path: Path
) -> None:
    sim = new_id()
    sent = stream(sim, 6)
    file = tmp_path / "messages.ndjson"
    file.write_bytes(b"\n".join([*sent[:2], *sent[4:]]) + b"\n\n")
    assert chappe("message", "import", str(file)).stdout.strip() == "4 stored"
    assert chappe("message", "import", str(file)).stdout.strip() == "4 duplicate"
    said = chappe("message", "verify", sim)
    assert said.returncode == 1
    assert "2 (3-4)" in said.stdout
    assert chappe("message", "import", "-", stdin=b"\n".join(sent)).returncode == 0
    said = chappe("message", "verify", sim)
    assert said.returncode == 0, said.stdout
    (found,) = chappe.objects("message", "verify", sim)
    assert (found["sent"], found["applied"], found["missing"]) == (6, 6, 0)
    assert found["head"] == hashlib.sha256(sent[-1]).hexdigest()


def test_mails_are_imported_as_they_came(chappe: Line, tmp_path: Path) -> None:
    raws = [mails.message("1000") for _ in range(3)]
    box = mailbox.mbox(tmp_path / "box")
    for raw in raws[:2]:
        box.add(mails.mail([raw]).replace(b"\r\n", b"\n"))
    box.close()
    assert chappe("message", "import", str(tmp_path / "box")).stdout.strip() == "2 stored"
    (tmp_path / "mails").mkdir()
    (tmp_path / "mails" / "a.eml").write_bytes(mails.mail(raws))
    said = chappe("message", "import", str(tmp_path / "mails"))
    assert said.stdout.strip() == "2 duplicate, 1 stored"
    said = chappe("message", "import", "-", stdin=b"Subject: hello\n\nnonsense\n")
    assert (said.returncode, said.stdout.strip()) == (1, "1 quarantined")


def test_messages_are_listed_and_shown(chappe: Line) -> None:
    sim = new_id()
    sent = stream(sim, 3)
    chappe("message", "import", "-", stdin=b"\n".join(sent))
    uids = [json.loads(raw)["msgUID"] for raw in sent]
    assert [m["uid"] for m in chappe.objects("message", "ls", "--sim", sim)] == uids[::-1]
    oldest = chappe.objects("message", "ls", "--sim", sim, "--oldest", "--limit", "2")
    assert [m["uid"] for m in oldest] == uids[:2]
    assert "custom.step" in chappe("message", "ls", "--type", "custom.step").stdout
    assert sent[0].decode() in chappe("message", "show", uids[0]).stdout
    assert chappe("message", "show", "nobody-has-it").returncode == 3
    assert chappe("message", "show").returncode == 2


def test_what_is_no_message_is_in_quarantine_and_is_tried_again(chappe: Line) -> None:
    nonsense = f"no json {new_id()}".encode()
    assert chappe("message", "import", "-", stdin=nonsense).returncode == 1
    (bad,) = [
        q for q in chappe.objects("message", "quarantine") if q["size_bytes"] == len(nonsense)
    ]
    assert bad["reason"] == "not_json"
    assert nonsense.decode() in chappe("message", "show", "--quarantined", str(bad["n"])).stdout
    said = chappe("message", "requeue", str(bad["n"])).stdout
    assert said.strip() == "1 tried: 0 stored, 0 duplicates, 1 still in quarantine"
    assert "not_json" in chappe("message", "stats").stdout
    (stats,) = chappe.objects("message", "stats")
    for source in stats["sources"]:
        parts = (source["stored"], source["duplicate"], source["quarantined"])
        assert source["received"] == sum(parts)


def test_what_is_shown_is_proven_and_made_right(chappe: Line, hub: RunningHub) -> None:
    chappe("message", "import", "-", stdin=b"\n".join(stream(new_id(), 5)))
    said = chappe("admin", "verify")
    assert (said.returncode, said.stderr) == (0, "")
    # Behind the back of the hub, which keeps in memory what it has just written.
    with closing(sqlite3.connect(hub.data / "hub.sqlite", isolation_level=None)) as conn:
        conn.execute("PRAGMA busy_timeout = 60000")
        conn.execute("DELETE FROM sim_job")
        conn.execute("""UPDATE simulation SET took = '{"1": 7}'""")
    assert chappe("admin", "verify").returncode == 1
    (done,) = chappe.objects("admin", "rebuild")
    assert "latency" in {what for one in done["corrected"] for what in one["what"]}
    assert chappe("admin", "verify").returncode == 0
    events = chappe.objects("events", "--kind", "projection.corrected")
    assert len(events) == len(done["corrected"])


def test_producers_are_added_listed_and_removed(chappe: Line) -> None:
    token = chappe("producer", "add", "model").stdout.strip()
    assert token.startswith("chp_m_")
    assert [p["name"] for p in chappe.objects("producer", "ls")] == ["model"]
    assert "producer model" in chappe("token", "ls").stdout
    assert chappe("producer", "rm", "model").returncode == 0
    assert chappe.objects("producer", "ls") == []
    assert chappe("producer", "rm", "model").returncode == 3
