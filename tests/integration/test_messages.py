"""The HTTPS door for messages, on a running Hub: stored before it answers, once, with its bytes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest

from chappe.link.clock import new_id
from chappe.testing.hub import RunningHub, start_hub
from tests.integration.hub_rig import Answer, raw


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def hub(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningHub]:
    options = {}
    if request.param == "postgresql":
        options["db"] = request.getfixturevalue("postgres").database()
    running = start_hub(tmp_path_factory.mktemp("messages") / "hub", **options)
    yield running
    running.stop()
    assert "unexpected error" not in running.log


def call(
    hub: RunningHub, method: str, path: str, body: Any = None, token: str = "", **headers: str
) -> Answer:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    return raw(hub, method, path, token or hub.token, data, named)


def ok(hub: RunningHub, method: str, path: str, body: Any = None, **more: str) -> Any:
    answer = call(hub, method, path, body, **more)
    assert answer.status < 300, answer.body
    return json.loads(answer.body) if answer.body else None


def send(hub: RunningHub, body: Any, **more: str) -> list[str]:
    answer = call(hub, "POST", "/v1/messages", body, **more)
    assert answer.status == 202, answer.body
    return [v["verdict"] for v in json.loads(answer.body)["verdicts"]]


def message(uid: str, **fields: Any) -> dict[str, Any]:
    return {"msgUID": uid, "msgType": "custom.step", "msgProducer": "chappe"} | fields


def source(hub: RunningHub, name: str) -> dict[str, Any]:
    sources = ok(hub, "GET", "/v1/messages/stats")["sources"]
    return next((s for s in sources if s["source"] == name), {})


def test_each_message_gets_its_verdict_and_is_shown_as_it_came(hub: RunningHub) -> None:
    uid, sim = new_id(), new_id()
    body = json.dumps(message(uid, simuid=sim, note="é")).encode()
    assert send(hub, body) == ["stored"]
    assert send(hub, b"[" + body + b"," + body + b"]") == ["duplicate", "duplicate"]
    assert send(hub, message(uid, simuid=sim, note="other")) == ["conflict"]
    lines = json.dumps(message(new_id())).encode() + b"\n{no json\n"
    packed = gzip.compress(lines)
    headers = {"content_type": "application/x-ndjson", "content_encoding": "gzip"}
    assert send(hub, packed, **headers) == ["stored", "quarantined"]
    shown = ok(hub, "GET", f"/v1/messages/{uid}")
    assert shown["raw"].encode() == body
    assert shown["fields"] == {"note": "é"}
    (found,) = ok(hub, "GET", f"/v1/messages?simulation={sim}")["messages"]
    assert (found["uid"], found["producer"], found["door"]) == (uid, "main", "https")


def test_pages_go_both_ways_and_miss_nothing(hub: RunningHub) -> None:
    sim = new_id()
    uids = [new_id() for _ in range(7)]
    send(hub, [message(uid, simuid=sim, jobuid=uid[-1]) for uid in uids])
    for newest in ("", "&newest=1"):
        found: list[str] = []
        cursor = ""
        while True:
            path = f"/v1/messages?simulation={sim}&limit=3{newest}{cursor}"
            page = ok(hub, "GET", path)
            found += [m["uid"] for m in page["messages"]]
            if page["cursor"] is None or not page["messages"]:
                break
            cursor = f"&cursor={page['cursor']}"
        assert found == (uids[::-1] if newest else uids)


def test_a_producer_sends_under_its_own_name_and_touches_no_others(hub: RunningHub) -> None:
    name, uid = f"p-{new_id()}", new_id()
    token = ok(hub, "POST", "/v1/producers", {"name": name})["token"]
    assert send(hub, message(uid)) == ["stored"]
    assert send(hub, message(uid, forged=1), token=token) == ["stored"]
    assert ok(hub, "GET", f"/v1/messages/{uid}").get("fields") is None
    assert ok(hub, "GET", f"/v1/messages/{uid}?producer={name}")["fields"] == {"forged": 1}
    assert call(hub, "GET", "/v1/messages", token=token).status == 403
    counted = source(hub, f"producer {name}")
    assert (counted["received"], counted["stored"]) == (1, 1)
    assert name in [p["name"] for p in ok(hub, "GET", "/v1/producers")["producers"]]
    ok(hub, "DELETE", f"/v1/producers/{name}")
    assert call(hub, "POST", "/v1/messages", message(new_id()), token=token).status == 401
    again = ok(hub, "POST", "/v1/producers", {"name": name})["token"]
    assert send(hub, message(uid, forged=1), token=again) == ["duplicate"]


@pytest.mark.parametrize("name", ["main", "", "a b", "x" * 65])
def test_a_producers_name_is_one(hub: RunningHub, name: str) -> None:
    answer = call(hub, "POST", "/v1/producers", {"name": name})
    assert (answer.status, answer.error["field"]) == (422, "name")


def test_what_is_in_quarantine_is_shown_and_decoded_again(hub: RunningHub) -> None:
    name = f"p-{new_id()}"
    token = ok(hub, "POST", "/v1/producers", {"name": name})["token"]
    nonsense = {"nonsense": new_id()}
    assert send(hub, nonsense, token=token) == ["quarantined"]
    waiting = ok(hub, "GET", "/v1/quarantine?reason=no_uid&limit=1000")["quarantined"]
    (mine,) = [q for q in waiting if q["producer"] == name]
    assert json.loads(ok(hub, "GET", f"/v1/quarantine/{mine['n']}")["raw"]) == nonsense
    done = ok(hub, "POST", "/v1/messages/requeue", {"numbers": [mine["n"]]})
    assert (done["tried"], done["stored"], done["quarantined"]) == (1, 0, 1)
    counted = source(hub, f"producer {name}")
    assert [counted[k] for k in ("received", "stored", "duplicate", "quarantined")] == [1, 0, 0, 1]


def test_a_stream_shows_what_is_missing_and_what_was_changed(hub: RunningHub) -> None:
    import hashlib

    sim, stream = new_id(), new_id()
    prev, sent = "", []
    for seq in range(1, 9):
        fields = {"simuid": sim, "msgStream": stream, "msgSeq": seq, "msgPrev": prev}
        sent.append(json.dumps(message(new_id(), **fields)).encode())
        prev = hashlib.sha256(sent[-1]).hexdigest()
    # 3 and 4 are lost; 6 was written by somebody else.
    forged = json.loads(sent[5]) | {"msgUID": new_id(), "forged": True}
    for body in (*sent[:2], sent[4], json.dumps(forged).encode(), *sent[6:]):
        assert send(hub, body) == ["stored"]
    (found,) = ok(hub, "GET", f"/v1/messages/streams?simulation={sim}")["streams"]
    assert (found["sent"], found["received"], found["applied"], found["missing"]) == (8, 6, 6, 2)
    assert (found["gaps"], found["broken"]) == ([[3, 4]], [7])
    assert found["head"] == prev
    for body in sent[2:4]:
        send(hub, body)
    (found,) = ok(hub, "GET", f"/v1/messages/streams?simulation={sim}")["streams"]
    assert (found["missing"], found["broken"], found["simulations"]) == (0, [7], [sim])


def test_what_is_received_is_told_to_prometheus(hub: RunningHub) -> None:
    send(hub, message(new_id()))
    text = call(hub, "GET", "/metrics").body.decode()
    lines = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line[0] != "#"
    }
    parts = [
        lines[f'chappe_messages_total{{door="https",verdict="{v}"}}']
        for v in ("stored", "duplicate", "quarantined")
    ]
    assert parts[0] >= 1
    assert "chappe_messages_waiting" in lines


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{}", {"content_type": "text/plain"}, 422),
        (b"[1,", {}, 422),
        (b"x" * (17 << 20), {}, 413),
    ],
)
def test_what_cannot_be_taken_is_refused_as_a_whole(
    hub: RunningHub, body: bytes, headers: dict[str, str], status: int
) -> None:
    before = ok(hub, "GET", "/v1/messages/stats")["last"]
    assert call(hub, "POST", "/v1/messages", body, **headers).status == status
    assert ok(hub, "GET", "/v1/messages/stats")["last"] == before
