"""Every route of the OpenAPI document × everybody × what is theirs, another's and nobody's.

What the table of rules says is what happens; what lies beyond the reach of a token looks, byte for byte, as
if it had never existed. A new route without a row, or with an id and without an example here, fails.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chappe.core.access import RULES, Party, Reach, reach
from chappe.hub.app import openapi_document
from chappe.link.clock import new_id
from chappe.testing.hub import start_hub
from tests.integration.hub_rig import WITHIN_S, Answer
from tests.security.roles_rig import DIGEST, PARTIES, Project, World, project, world

DOCUMENT = openapi_document()
ACTIONS = [
    f"{method.upper()} {path}" for path, item in DOCUMENT["paths"].items() for method in item
]
GUARDED = [action for action in ACTIONS if RULES[action]]
#: Bodies that pass the types, so that what is asked about is looked up.
BODIES: dict[str, Any] = {
    "PUT /v1/jobs/{id}/result": b"[1]",
    "PUT /v1/sites/{id}/apps": {"apps": []},
    "POST /v1/sites/{id}/agent": {"agent": new_id(), "host": "x"},
    "POST /v1/sites/{id}/sync": {"agent": new_id()},
    "POST /v1/sessions/{id}/end": {"may_run_twice": True},
}
QUERIES = {
    "PUT /v1/jobs/{id}/result": f"?epoch=1&sha256={DIGEST}",
    "GET /v1/jobs/{id}/logs": "?start=0",
    "GET /v1/stats": "?since=1",
}
#: Users are the hub's and not a project's: an owner names any of them to make a member.
OF_THE_HUB = {"PUT /v1/members/{name}"}
#: A pilot is told that the lease is stale, for a Job of its own as for one that never was.
STALE = {"PUT /v1/jobs/{id}/result": 409}


@pytest.fixture(scope="module")
def w(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with start_hub(tmp_path_factory.mktemp("roles") / "hub") as hub:
        yield world(hub)
        assert "unexpected error" not in hub.log


def path_of(action: str, id: str) -> str:
    path = action.partition(" ")[2]
    return re.sub(r"{\w+}", id, path) + QUERIES.get(action, "")


def ask(w: World, action: str, token: str | None, id: str) -> Answer:
    method = action.partition(" ")[0]
    body = BODIES.get(action, None if method == "GET" else {})
    return w.rig.call(method, path_of(action, id), token, body)


def nobodys(action: str) -> str:
    """An id that was never given, of the form that the route takes."""
    if "{prefix}" in action:
        return "zzzzyyyyxxxx"
    if "{n}" in action:
        return "9"
    return f"u{new_id()}" if "{name}" in action else new_id()


def shape(answer: Answer, id: str) -> tuple[int, dict[str, str], bytes]:
    """An answer without its date and without the id that was asked about."""
    headers = {k: v for k, v in answer.headers.items() if k != "date"}
    return answer.status, headers, answer.body.replace(id.encode(), b"ID")


def test_the_table_has_the_routes_of_the_document() -> None:
    assert set(ACTIONS) == set(RULES)


# --- who may


@pytest.mark.parametrize("action", GUARDED)
def test_a_token_that_is_none_opens_nothing(w: World, action: str) -> None:
    kind = action.split("/")[2].partition("?")[0]
    bodies = {}
    for name, token in w.bad.items():
        answer = ask(w, action, token, w.here.ids.get(kind, new_id()))
        assert answer.status == 401, name
        assert answer.headers["www-authenticate"] == "Bearer"
        bodies[name] = answer.body
    assert len({body for name, body in bodies.items() if name != "none"}) == 1, bodies


@pytest.mark.parametrize("action", [a for a in GUARDED if a != "POST /v1/logout"])
def test_everybody_may_what_the_table_says(w: World, action: str) -> None:
    for who, parties in PARTIES.items():
        answer = ask(w, action, w.here.tokens[who], nobodys(action))
        forbidden = answer.status == 403 and answer.error["code"] == "forbidden"
        assert answer.status != 401, who
        assert forbidden is (reach(RULES[action], parties) is None), who


@pytest.mark.parametrize("action", [a for a in GUARDED if "{" in a])
def test_who_may_not_learns_nothing_of_what_there_is(w: World, action: str) -> None:
    kind = action.split("/")[2]
    for who, parties in PARTIES.items():
        if reach(RULES[action], parties) is not None:
            continue
        asked = [nobodys(action), w.there.ids.get(kind, ""), w.here.ids.get(kind, "")]
        answers = [shape(ask(w, action, w.here.tokens[who], id), id) for id in asked if id]
        assert all(answer == answers[0] for answer in answers), who


# --- what lies beyond


def compared() -> list[tuple[str, str]]:
    """(action, who) for every route with an id and everybody who may call it below the reach of the hub."""
    return [
        (action, who)
        for action in GUARDED
        if "{" in action and action not in OF_THE_HUB
        for who, parties in PARTIES.items()
        if (far := reach(RULES[action], parties)) is not None and far is not Reach.HUB
    ]


@pytest.mark.parametrize(("action", "who"), compared())
def test_another_projects_object_is_like_one_that_never_was(
    w: World, action: str, who: str
) -> None:
    kind = action.split("/")[2]
    assert kind in w.there.ids, f"give roles_rig one of the {kind}"
    theirs, none = w.there.ids[kind], nobodys(action)
    answers = [shape(ask(w, action, w.here.tokens[who], id), id) for id in (theirs, none)]
    assert answers[0] == answers[1]
    assert answers[0][0] == STALE.get(action, 404)
    # The example is one: its own people are answered otherwise, or this would show nothing.
    if action.startswith("GET ") and who in w.there.tokens:
        assert shape(ask(w, action, w.there.tokens[who], theirs), theirs) != answers[0]


@pytest.mark.parametrize("action", [a for a in GUARDED if "{" in a and Party.SITE in RULES[a]])
def test_another_sites_object_is_like_one_that_never_was(w: World, action: str) -> None:
    other = w.here.places[1]
    theirs = {"sites": other.site, "batch-jobs": other.batch_job, "sessions": other.session}
    for who in ("site", "session"):
        if reach(RULES[action], PARTIES[who]) is None:
            continue
        pair = (theirs[action.split("/")[2]], new_id())
        answers = [shape(ask(w, action, w.here.tokens[who], id), id) for id in pair]
        assert answers[0] == answers[1]
        assert answers[0][0] == 404


def foreign(there: Project) -> list[tuple[str, str, str, Callable[[str], Any]]]:
    """Requests that name something in a query or a body: (method, path, the id, body by id)."""
    job, site, ids = there.ids["jobs"], there.ids["sites"], there.ids

    def spec(id: str) -> Any:
        return {"id": new_id(), "project": id, "sites": [site], "app": {"name": "nop"}}

    def filtered(name: str, many: bool = False) -> Callable[[str], Any]:
        return lambda id: {"filter": {name: [id] if many else id}}

    def nothing(_id: str) -> Any:
        return None

    act = {"id": new_id(), "verb": "cancel"}
    return [
        ("GET", "/v1/jobs?site={}", site, nothing),
        ("GET", "/v1/jobs?parent={}", job, nothing),
        ("GET", "/v1/jobs?id_prefix={}", job, nothing),
        ("GET", "/v1/jobs?cursor={}", job, nothing),
        ("GET", "/v1/jobs?limit=1&cursor={}", job, nothing),
        ("GET", "/v1/apps?site={}", site, nothing),
        ("GET", "/v1/batch-jobs?site={}", site, nothing),
        ("GET", "/v1/events?job={}", job, nothing),
        ("GET", "/v1/members?project={}", there.id, nothing),
        ("GET", "/v1/members?project={}", there.name, nothing),
        ("DELETE", "/v1/members/admin?project={}", there.id, nothing),
        ("PUT", "/v1/members/admin", there.id, lambda id: {"role": "viewer", "project": id}),
        ("POST", "/v1/jobs/query", job, filtered("ids", many=True)),
        ("POST", "/v1/jobs/query", job, filtered("parent")),
        ("POST", "/v1/jobs/query", site, filtered("site")),
        ("POST", "/v1/jobs/count", job, lambda id: {"ids": [id]}),
        ("POST", "/v1/jobs/count", site, lambda id: {"site": id}),
        ("POST", "/v1/jobs/results", job, lambda id: {"ids": [id]}),
        ("POST", "/v1/selections", job, lambda id: {"id": new_id(), "filter": {"ids": [id]}}),
        ("POST", "/v1/jobs/hold", job, filtered("ids", many=True)),
        ("POST", "/v1/jobs/cancel", job, filtered("ids", many=True)),
        ("POST", "/v1/jobs/retry", job, filtered("ids", many=True)),
        ("POST", "/v1/jobs/delete", job, filtered("ids", many=True)),
        ("POST", "/v1/batch-jobs", site, lambda id: {"id": new_id(), "site": id}),
        ("POST", "/v1/jobs", there.id, lambda id: {"jobs": [{"spec": spec(id)}]}),
        ("POST", "/v1/acts", ids["selections"], lambda id: {**act, "selection": id}),
    ]


def test_what_a_query_or_a_body_names_is_like_what_never_was(w: World) -> None:
    for method, path, theirs, body in foreign(w.there):
        for who in ("owner", "service owner"):
            answers = []
            for id in (theirs, new_id() if len(theirs) == 36 else f"p-{new_id()}"):
                got = w.rig.call(method, path.format(id), w.here.tokens[who], body(id))
                status, headers, text = shape(got, id)
                # What the client made up itself, anew for each request, and the time of each.
                text = re.sub(rb"[0-9a-f-]{36}", b"ID", text)
                text, times = re.subn(rb"\d{10}\.\d+", b"TIME", text)
                if times:
                    headers.pop("content-length")
                answers.append((status, headers, text))
            assert answers[0] == answers[1], (method, path)


def test_what_a_job_names_is_like_what_never_was(w: World) -> None:
    mine = w.here.ids["sites"]

    def create(**fields: Any) -> Answer:
        base = {"id": new_id(), "project": w.here.id, "sites": [mine], "app": {"name": "nop"}}
        body = {"jobs": [{"spec": {**base, **fields}}]}
        return w.rig.call("POST", "/v1/jobs", w.here.owner, body)

    for name, theirs in (("sites", w.there.ids["sites"]), ("parents", w.there.ids["jobs"])):
        answers = []
        for id in (theirs, new_id()):
            got = create(**{name: [id]})
            assert got.status == 422
            answers.append(re.sub(rb"[0-9a-f-]{36}", b"ID", got.body))
        assert answers[0] == answers[1], name


def test_ids_in_use_elsewhere_are_free(w: World) -> None:
    third, theirs = project(w.rig), w.there.ids
    _, owner = w.rig.person("owner", third.id)
    site = {"id": theirs["sites"], "name": f"s-{theirs['sites']}"}
    token = w.rig.ok("POST", "/v1/sites", owner, site)["token"]
    app = {"name": "nop", "version": "1", "digest": "0" * 64, "unsigned": True}
    w.rig.ok("PUT", f"/v1/sites/{theirs['sites']}/apps", token, {"apps": [app]})
    spec = {"id": theirs["jobs"], "project": third.id, "sites": [theirs["sites"]]}
    body = {"jobs": [{"spec": {**spec, "app": {"name": "nop"}}}]}
    assert w.rig.ok("POST", "/v1/jobs", owner, body)["verdicts"][0]["code"] == "created"
    batch = {"id": theirs["batch-jobs"], "site": theirs["sites"]}
    assert w.rig.call("POST", "/v1/batch-jobs", owner, batch).status == 200
    select = {"id": theirs["selections"], "filter": {}}
    assert w.rig.call("POST", "/v1/selections", owner, select).status == 200
    # And theirs is what it was.
    seen = w.rig.ok("GET", f"/v1/batch-jobs/{theirs['batch-jobs']}", w.there.owner)
    assert seen["session"] == theirs["sessions"]


def test_lists_counts_numbers_and_events_do_not_feel_what_others_do(w: World) -> None:
    lists = [
        action
        for action in GUARDED
        if action.startswith("GET ") and "{" not in action and "stream" not in action
    ]

    def look() -> dict[tuple[str, str], tuple[int, dict[str, str], bytes]]:
        found = {}
        for action in lists:
            for who, token in w.there.tokens.items():
                status, headers, text = shape(ask(w, action, token, ""), "no id")
                if action == "GET /v1/stats":  # up to now, which it says
                    text = re.sub(rb'"until":[0-9.]+', b"", text)
                    headers.pop("content-length")
                found[action, who] = (status, headers, text)
        return found

    before = look()
    made = w.here.place()
    w.here.submit(made)
    w.here.act(w.here.select())
    name, _ = w.rig.person("viewer", w.here.id)
    w.rig.ok("POST", "/v1/tokens", w.here.owner, {"note": "further"})
    w.rig.ok("POST", "/v1/jobs/cancel", w.here.owner, {"filter": {"site": made.site}})
    w.rig.ok("POST", f"/v1/users/{name}/disable", w.rig.hub.token)
    assert look() == before
    # What it does itself, it counts as if it were alone.
    before_seq = json.loads(before["GET /v1/events", "owner"][2])["cursor"]
    w.there.submit(w.there.places[0])
    page = w.rig.ok("GET", f"/v1/events?cursor={before_seq}", w.there.owner)
    first = int(before_seq.partition(":")[2])
    assert [e["seq"] for e in page["events"]] == [first + 1 + i for i in range(len(page["events"]))]


class Feed:
    """A stream of Events as its bytes."""

    def __init__(self, w: World, token: str) -> None:
        host, _, port = w.rig.hub.url.removeprefix("https://").rpartition(":")
        context = ssl.create_default_context(cafile=w.rig.hub.ca_file)
        self._connection = http.client.HTTPSConnection(
            host, int(port), timeout=WITHIN_S, context=context
        )
        headers = {"authorization": f"Bearer {token}"}
        self._connection.request("GET", "/v1/events/stream", headers=headers)
        self._response = self._connection.getresponse()
        assert self._response.status == 200
        assert self.until(b": ready\n") == []

    def until(self, line: bytes) -> list[bytes]:
        """The lines with content before this one, or all up to the end when it is empty."""
        found: list[bytes] = []
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            read = self._response.readline()
            if read == line:
                return found
            assert read, "the stream ended"
            if read.strip():
                found.append(read)
        raise AssertionError("the line did not come in time")

    def close(self) -> None:
        self._connection.close()


def test_a_stream_carries_nothing_of_others(w: World) -> None:
    feed = Feed(w, w.there.tokens["viewer"])
    try:
        for _ in range(3):
            w.here.submit(w.here.places[0])
        mine = w.there.submit(w.there.places[0])
        while True:
            data = next(line for line in [*feed.until(b"\n"), b""] if not line.startswith(b"id:"))
            if data.startswith(b"data:"):
                break
        assert json.loads(data.removeprefix(b"data:"))["subject"] == mine
    finally:
        feed.close()


@pytest.mark.parametrize("how", ["removed", "disabled", "revoked", "another role"])
def test_a_stream_ends_with_the_right_to_it(w: World, how: str) -> None:
    name, token = w.rig.person("viewer", w.here.id)
    prefix, admin = token.split("_")[2], w.rig.hub.token
    feed = Feed(w, token)
    try:
        if how == "removed":
            w.rig.ok("DELETE", f"/v1/members/{name}?project={w.here.id}", admin)
        elif how == "disabled":
            w.rig.ok("POST", f"/v1/users/{name}/disable", admin)
        elif how == "revoked":
            w.rig.ok("DELETE", f"/v1/tokens/{prefix}", w.here.owner)
        else:
            w.rig.member(name, "operator", w.here.id)
        assert feed.until(b"") == []
    finally:
        feed.close()


# --- roles change at once


def test_a_role_that_was_taken_is_gone_with_the_next_request(w: World) -> None:
    name, token = w.rig.person("owner", w.here.id)
    assert ask(w, "GET /v1/audit", token, "").status == 200
    w.rig.member(name, "viewer", w.here.id)
    assert ask(w, "GET /v1/audit", token, "").status == 403
    assert ask(w, "GET /v1/jobs", token, "").status == 200
    w.rig.ok("DELETE", f"/v1/members/{name}?project={w.here.id}", w.rig.hub.token)
    assert ask(w, "GET /v1/jobs", token, "").status == 401


def test_a_service_token_makes_no_persons_tokens_and_no_person_rises_by_one(w: World) -> None:
    for role in ("viewer", "operator", "owner"):
        assert ask(w, "POST /v1/tokens", w.here.tokens[f"service {role}"], "").status == 403
    for role in ("viewer", "operator"):
        for path, body in (
            ("/v1/tokens/service", {"role": "owner"}),
            ("/v1/users", {"name": "mallory"}),
            ("/v1/projects", {"id": new_id(), "name": "mine"}),
        ):
            answer = w.rig.call("POST", path, w.here.tokens[role], body)
            assert answer.error["code"] == "forbidden"
        further = w.rig.ok("POST", "/v1/tokens", w.here.tokens[role], {"note": "x"})
        assert further["role"] == role
        assert w.rig.ok("GET", "/v1/whoami", further["token"])["role"] == role


def test_an_owner_is_no_administrator(w: World) -> None:
    name, token = w.rig.person("owner", w.here.id)
    for path in (f"/v1/users/{name}/invite", f"/v1/users/{name}/disable", "/v1/users"):
        assert w.rig.call("POST", path, token, {"name": "x"}).error["code"] == "forbidden"


# --- the header


def with_headers(w: World, *values: str) -> int:
    """The status for a request with these Authorization headers."""
    host, _, port = w.rig.hub.url.removeprefix("https://").rpartition(":")
    context = ssl.create_default_context(cafile=w.rig.hub.ca_file)
    connection = http.client.HTTPSConnection(host, int(port), timeout=WITHIN_S, context=context)
    try:
        connection.putrequest("GET", "/v1/whoami")
        for value in values:
            connection.putheader("Authorization", value)
        connection.endheaders()
        return connection.getresponse().status
    finally:
        connection.close()


def test_one_header_and_one_only(w: World) -> None:
    good, other = w.here.owner, w.there.owner
    assert with_headers(w, f"Bearer {good}") == 200
    for headers in (
        (f"Bearer {good}", f"Bearer {good}"),
        (f"Bearer {good}", f"Bearer {other}"),
        (f"Bearer {good}", ""),
        ("Bearer nothing", f"Bearer {good}"),
        (f"Bearer {good}, Bearer {other}",),
        (f"Basic {good}",),
        (f"Bearer  {good}",),
        (good,),
        ("Bearer",),
    ):
        assert with_headers(w, *headers) == 401, headers


def test_a_token_elsewhere_than_in_the_header_is_none(w: World) -> None:
    token = w.here.owner
    for path in (f"/v1/whoami?token={token}", f"/v1/whoami?access_token={token}"):
        assert w.rig.call("GET", path, None).status == 401
    body = json.dumps({"token": token}).encode()
    assert w.rig.call("POST", "/v1/jobs/query", None, body).status == 401
