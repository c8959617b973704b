"""Input made to do harm: to the Hub's database, its answers, its live feed and its time."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from chappe.core import limits
from chappe.link.clock import new_id
from chappe.link.keys import SigningKey
from chappe.link.signing import make_submissions
from chappe.testing.hub import RunningHub
from tests.integration.hub_rig import WITHIN_S, raw
from tests.security.place import Place, Stream

HOSTILE = [
    "a\nb",
    "a\r\nSet-Cookie: x=1\r\n\r\n<html>",
    "\n\nid: 9:9\ndata: {}\n\n",
    "data: {}\r\rid: 9:9\r",
    "a\u2028b\u2029c\u0085d",
    "\u202eevil\u2066",
    "\x1b]0;owned\x07\x1b[2J",
    "a\0b",
    "'; DROP TABLE job; --",
    '" OR 1=1 --',
    "%00%0a${jndi:ldap://x}{{7*7}}",
    "<script>alert(1)</script>",
    "é" * 60,
    "𝄞" * 60,
    "\ufeff\ufffe\uffff",
    "__proto__",
]


@pytest.fixture(scope="module")
def place(open_hub: RunningHub) -> Iterator[Place]:
    made = Place(open_hub)
    yield made
    assert "unexpected error" not in open_hub.log


# --- texts


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_text_comes_back_as_it_was_or_is_refused_with_its_field(place: Place, text: str) -> None:
    for field in ("name", "workdir"):
        answer = place.create(None, **{field: text})
        if answer.status != 200:
            assert (answer.status, answer.error["field"]) == (422, field)
            continue
        id = json.loads(answer.body)["verdicts"][0]["id"]
        assert place.ok("GET", f"/v1/jobs/{id}")["spec"][field] == text
    answer = place.create({"tags": {"t": text}, "data": {text: [text]}}, parameters={"text": text})
    if "\0" in text:
        assert answer.status == 422
        assert answer.error["field"] in ("tags.t", "parameters.text")
        return
    id = json.loads(answer.body)["verdicts"][0]["id"]
    seen = place.ok("GET", f"/v1/jobs/{id}")
    assert seen["tags"] == {"t": text}
    assert seen["data"] == {text: [text]}
    assert seen["spec"]["parameters"] == {"text": text}
    found = place.ok("POST", "/v1/jobs/query", filter={"tags": {"t": text}, "site": place.site})
    assert id in [job["id"] for job in found["jobs"]]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_filters_take_texts_as_texts(place: Place, text: str) -> None:
    for field in ("app", "name"):
        # (Nobody has this tag: other tests make Jobs of these names.)
        asked = {field: text, "tags": {"no": "body"}}
        assert place.ok("POST", "/v1/jobs/query", filter=asked)["jobs"] == []
    place.refused("POST", "/v1/jobs/query", {"filter": {"site": text}}, 404, "site")
    for field in ("phase", "state", "id_prefix", "parent"):
        place.refused("POST", "/v1/jobs/query", {"filter": {field: text}}, 422, field)
    place.refused("POST", "/v1/jobs/query", {"filter": {"ids": [text]}}, 422, "filter.ids")
    acted = place.ok("POST", "/v1/jobs/cancel", filter={"name": text, "tags": {text: text}})
    assert acted["counts"] == {}


def test_keys_and_names_are_of_plain_letters(place: Place) -> None:
    for text in HOSTILE:
        if text == "__proto__":
            continue
        assert place.create({"tags": {text: ""}}).error["field"] == "tags"
        assert place.create(env={text: ""}).error["field"] == "env"
        body = {"id": new_id(), "name": text}
        place.refused("POST", "/v1/sites", body, 422, "name")


def test_nobody_writes_into_the_live_feed(place: Place) -> None:
    """Whoever chooses a text in an Event (a host's name, a message) adds no line to the stream."""
    with Stream(place.hub) as stream:
        for text in HOSTILE:
            hello = {"agent": place.agent, "host": text[:190]}
            place.ok("POST", f"/v1/sites/{place.site}/agent", place.token, **hello)
        report = {"id": place.batch_job, "state": "running", "message": "".join(HOSTILE)}
        body = {"agent": place.agent, "reports": [report], "known": [place.batch_job]}
        place.ok("POST", f"/v1/sites/{place.site}/sync", place.token, **body)
        events = stream.until("running")
    hosts = [e.data.get("host") for e in events if e.subject == place.site]
    assert hosts == [text[:190] for text in HOSTILE]
    assert events[-1].data["message"] == "".join(HOSTILE)[:1000]
    seqs = [event.seq for event in events]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs/..%2f..%2fetc%2fpasswd",
        "/v1/jobs/%2e%2e/%2e%2e/etc/passwd",
        "/v1/jobs/../../../../etc/passwd",
        "/v1/jobs/%00",
        "/v1/jobs/x%0d%0aSet-Cookie:%20a=b",
        "/v1/sites/x%0d%0aSet-Cookie:%20a=b",
        "/v1/jobs/%ff%fe",
        "/v1/jobs/%F0%9D%84%9E",
        "/v1/jobs/" + "x" * 10_000,
        "//v1/jobs",
        "/v1/jobs/;id",
        "/v1/jobs/'%20OR%201=1",
    ],
)
def test_a_strange_address_is_nothing(place: Place, path: str) -> None:
    answer = place.ask("GET", path)
    assert answer.status == 404
    assert answer.error["code"] == "not_found"
    assert "set-cookie" not in answer.headers
    assert len(answer.body) < 400


@pytest.mark.parametrize(
    "media",
    [
        "text/html",
        "application/json; charset=utf-7",
        "application/json, text/html",
        "application/json\t<script>",
        "image/svg+xml",
        "",
        "x" * 5_000,
    ],
)
def test_a_result_has_a_media_type_of_ours(place: Place, media: str) -> None:
    path = f"/v1/jobs/{new_id()}/result?epoch=1&sha256={'0' * 64}"
    session = new_id()
    order = new_id()
    place.ok("POST", "/v1/batch-jobs", id=order, site=place.site)
    made = place.ok("POST", "/v1/sessions", place.token, id=session, batch_job=order)
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of {}
    path = f"/v1/jobs/{new_id()}/result?epoch=1&sha256={digest}"
    answer = raw(place.hub, "PUT", path, made["token"], b"{}", {"content-type": media})
    assert (answer.status, answer.error["field"]) == (422, "media")


# --- numbers and sizes


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"resources": {"cores": 10**30}}, "resources.cores"),
        ({"resources": {"cores": -1}}, "resources.cores"),
        ({"resources": {"mem_bytes": 2**63}}, "resources.mem_bytes"),
        ({"resources": {"ranks": 0}}, "resources.ranks"),
        ({"resources": {"wall_s": -1}}, "resources.wall_s"),
        ({"resources": {"wall_s": 1e308}}, "resources.wall_s"),
        ({"resources": {"estimate_s": 0}}, "resources.estimate_s"),
        ({"retries": {"max": 10**18}}, "retries.max"),
        ({"retries": {"max": -1}}, "retries.max"),
        ({"retries": {"backoff_s": 1e308}}, "retries.backoff_s"),
        ({"retries": {"on": ["always"]}}, "retries.on[0]"),
        ({"takeover_s": 1}, "takeover_s"),
        ({"takeover_s": 1e308}, "takeover_s"),
        ({"not_before": -1}, "not_before"),
        ({"not_before": 1e308}, "not_before"),
        ({"parameters": {"text": 10**400}}, "parameters.text"),
        ({"parameters": {"text": "x" * 20_000}}, "parameters.text"),
        ({"parameters": {"list": ["x"] * 5_000}}, "parameters.list"),
        ({"parameters": {"list": [[1]]}}, "parameters.list"),
        ({"parameters": {"x" * 5_000: 1}}, f"parameters.{'x' * 60}"),
        ({"name": "x" * 201}, "name"),
        ({"workdir": "x" * 1_001}, "workdir"),
        ({"id": "0" * 36}, "id"),
        ({"id": "01900000-0000-7000-8000-000000000000"}, "id"),
        ({"id": "ffffffff-ffff-7fff-bfff-ffffffffffff"}, "id"),
        ({"id": new_id().upper()}, "id"),
        ({"id": new_id() + "\n"}, "id"),
        ({"command": ["x"] * 5_000, "app": None}, "command"),
        ({"command": ["x"], "app": None}, "command"),
        ({"command": ["a\0"], "app": None}, "command"),
        ({"sites": [new_id()] * 101}, "sites"),
        ({"env": {f"A{i}": "" for i in range(101)}}, "env"),
        ({"parents": [new_id()] * 2}, "parents"),
        ({"on_parent_failure": "panic"}, "on_parent_failure"),
        ({"workdir": "/" * 5}, "workdir"),
        ({"workdir": "a/../.."}, "workdir"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_its_field(
    place: Place, fields: dict[str, Any], field: str
) -> None:
    body = {"jobs": [{"spec": place.spec(**fields)}]}
    place.refused("POST", "/v1/jobs", body, (413, 422), field)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("POST", "/v1/tokens", {"expires_in_s": -1}, 422, "expires_in_s"),
        ("POST", "/v1/tokens", {"expires_in_s": 1e300}, 422, "expires_in_s"),
        ("POST", "/v1/tokens", {"note": "x" * 201}, 422, "note"),
        ("POST", "/v1/jobs/query", {"filter": {}, "limit": -1}, 422, "limit"),
        ("POST", "/v1/jobs/query", {"filter": {}, "limit": 10**30}, 422, "limit"),
        ("POST", "/v1/jobs/query", {"filter": {}, "cursor": "9" * 30}, 422, "cursor"),
        ("POST", "/v1/jobs/query", {"filter": {}, "cursor": "-1"}, 422, "cursor"),
        ("GET", "/v1/jobs?limit=-1", None, 422, "limit"),
        ("GET", "/v1/jobs?limit=1&limit=2", None, 422, "limit"),
        ("GET", "/v1/events?cursor=1:-1", None, 422, "cursor"),
        ("GET", "/v1/events?cursor=" + "9" * 5_000 + ":1", None, 422, "cursor"),
        ("GET", "/v1/events?cursor=1:2:3", None, 422, "cursor"),
        ("GET", "/v1/events?limit=5001", None, 422, "limit"),
        ("GET", "/v1/events?job=x", None, 422, "job"),
        ("GET", "/v1/events?final=yes", None, 422, "final"),
        ("GET", "/v1/jobs?" + "tag=a%3Db&" * 2_000, None, 422, None),
        ("POST", "/v1/jobs", {"jobs": []}, 422, "jobs"),
        ("POST", "/v1/jobs", {"jobs": [{"spec": 1}]}, 422, "spec"),
    ],
)
def test_what_is_out_of_bounds_in_a_request_is_refused(
    place: Place, method: str, path: str, body: Any, status: int, field: str | None
) -> None:
    place.refused(method, path, body, status, field)


def test_an_event_cursor_from_beyond_is_gone(place: Place) -> None:
    for cursor in ("1:99999999999999999999", "2:0", "999999999999:1"):
        answer = place.ask("GET", f"/v1/events?cursor={cursor}")
        assert (answer.status, answer.error["code"]) == (410, "cursor_reset")


def test_priority_is_bounded(place: Place) -> None:
    for priority in (limits.PRIORITY_ABS + 1, -(10**30), 1.5):
        answer = place.create({"priority": priority})
        assert answer.status == 422
        assert answer.error["field"].endswith("priority")


def test_sizes_have_ends(place: Place) -> None:
    many = {"filter": {"ids": [new_id() for _ in range(100_000)]}}
    for path in ("query", "cancel", "retry", "delete"):
        place.refused("POST", f"/v1/jobs/{path}", many, 413, "filter.ids")
    spec = place.spec(parents=[new_id() for _ in range(100_000)])
    place.refused("POST", "/v1/jobs", {"jobs": [{"spec": spec}]}, 413, "spec")
    tags = {f"t{i}": "" for i in range(10_000)}
    place.refused(
        "POST",
        "/v1/jobs",
        {"jobs": [{"spec": place.spec(), "envelope": {"tags": tags}}]},
        413,
        "tags",
    )
    data = {"x": "y" * limits.DATA_BYTES}
    place.refused(
        "POST",
        "/v1/jobs",
        {"jobs": [{"spec": place.spec(), "envelope": {"data": data}}]},
        413,
        "data",
    )
    too_many = {"jobs": [{"spec": place.spec()}] * (limits.JOBS_PER_REQUEST + 1)}
    place.refused("POST", "/v1/jobs", too_many, 413, "jobs")


def test_signatures_cost_time_so_they_are_counted_first(place: Place) -> None:
    """Ten thousand signatures for one Job would keep the Hub busy for a second, with one request."""
    key = SigningKey(bytes(32))
    (made,) = make_submissions(key, place.hub.project, [b"x"], time.time() + 60)
    body = {"jobs": [{"spec": place.spec()}], "submissions": [made] * 10_000}
    place.refused("POST", "/v1/jobs", msgspec.json.encode(body), 413, "submissions")
    again = {"filter": {"ids": []}, "submissions": [made] * 10_000}
    place.refused("POST", "/v1/jobs/retry", msgspec.json.encode(again), 413, "submissions")


@pytest.mark.parametrize("token", ["good", "none"])
def test_a_body_that_nobody_wants_is_not_waited_for(place: Place, token: str) -> None:
    """Chunks say no length in advance. Once they are too many, the connection ends with the answer: else
    the Hub would take in what follows for as long as it comes."""
    host, _, port = place.hub.url.removeprefix("https://").rpartition(":")
    context = ssl.create_default_context(cafile=place.hub.ca_file)
    connection = http.client.HTTPSConnection(host, int(port), timeout=WITHIN_S, context=context)
    try:
        connection.putrequest("POST", "/v1/tokens" if token == "good" else "/nowhere")
        connection.putheader("transfer-encoding", "chunked")
        connection.putheader("authorization", f"Bearer {place.hub.token}")
        connection.endheaders()
        with contextlib.suppress(OSError):  # it may be cut off while it is still sending
            for _ in range(3):
                connection.send(b"%x\r\n%b\r\n" % (limits.MIB, b" " * limits.MIB))
        response = connection.getresponse()
        assert response.status == (413 if token == "good" else 404)
        assert response.headers["connection"] == "close"
        assert "error" in json.loads(response.read())
    finally:
        connection.close()
    assert place.ok("GET", "/v1/whoami")["scope"] == "user"


# --- nesting


def nested(depth: int) -> bytes:
    return b"[" * depth + b"1" + b"]" * depth


def test_what_can_be_stored_can_be_read(place: Place) -> None:
    """Nesting is bounded by itself, and not by how deep a stack happens to be: no Job spoils a list."""
    stored = []
    for depth in (10, 60, 100, 200, 400, 800, 900, 950, 980, 990, 1_000, 2_000, 7_000):
        spec = place.spec(name="deep")
        body = b'{"jobs":[{"spec":%s,"envelope":{"data":{"x":%s}}}]}'
        answer = place.ask("POST", "/v1/jobs", body % (json.dumps(spec).encode(), nested(depth)))
        if answer.status == 200:
            stored.append(str(spec["id"]))
            continue
        assert answer.status == 422, depth
        assert depth > 60
    assert stored
    listed = place.ok("GET", f"/v1/jobs?name=deep&site={place.site}&limit=100")
    assert {job["id"] for job in listed["jobs"]} == set(stored)
    for id in stored:
        assert place.ask("GET", f"/v1/jobs/{id}").status == 200
    for depth in (100, 500, 900, 980, 5_000):
        spec_bytes = json.dumps(place.spec(parameters={"text": "TEXT"})).encode()
        body = b'{"jobs":[{"spec":%s}]}' % spec_bytes.replace(b'"TEXT"', nested(depth))
        answer = place.ask("POST", "/v1/jobs", body)
        assert answer.status == 422
        options = b'{"id":"%s","site":"%s","intent":{"options":{"x":%s}}}'
        order = options % (new_id().encode(), place.site.encode(), nested(depth))
        assert place.ask("POST", "/v1/batch-jobs", order).status in (200, 422)
    agent = {"agent": place.agent, "known": []}
    assert place.ask("POST", f"/v1/sites/{place.site}/sync", agent, place.token).status == 200
    assert place.ask("GET", "/v1/batch-jobs").status == 200


# --- graphs


def test_circles_are_found_however_long(place: Place) -> None:
    ids = [new_id() for _ in range(2_000)]
    specs = [place.spec(id=id, parents=[ids[i - 1]]) for i, id in enumerate(ids)]
    answer = place.ask("POST", "/v1/jobs", {"jobs": [{"spec": spec} for spec in specs]})
    assert (answer.status, answer.error["code"]) == (422, "cycle")
    alone = place.spec()
    alone["parents"] = [alone["id"]]
    place.refused("POST", "/v1/jobs", {"jobs": [{"spec": alone}]}, 422, "parents")
    twice = place.spec()
    place.refused("POST", "/v1/jobs", {"jobs": [{"spec": twice}, {"spec": twice}]}, 422, "id")
    assert place.ask("GET", f"/v1/jobs/{ids[0]}").status == 404
