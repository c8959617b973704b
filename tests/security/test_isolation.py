"""Every route with every kind of token, and what of others can be read, touched or inferred: nothing.

Who may call what stands in the Hub's own table; the dangerous routes stand here a second time, so that a
slip in that table is seen. What is another's looks exactly as if it had never existed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from chappe.hub.route import Route
from chappe.hub.table import ROUTES
from chappe.link.clock import new_id
from chappe.testing.hub import RunningHub
from tests.integration.hub_rig import Answer, raw

BY_NAME = {f"{route.method} {route.path}": route for route in ROUTES}
RESULT = b"[1]"
DIGEST = hashlib.sha256(RESULT).hexdigest()

# A second opinion on whom the dangerous routes are for.
ONLY: dict[str, set[str]] = {
    "POST /v1/jobs": {"user"},
    "POST /v1/jobs/cancel": {"user"},
    "POST /v1/jobs/retry": {"user"},
    "POST /v1/jobs/delete": {"user"},
    "POST /v1/jobs/hold": {"user"},
    "POST /v1/jobs/release": {"user"},
    "POST /v1/jobs/update": {"user"},
    "POST /v1/selections": {"user"},
    "DELETE /v1/selections/{id}": {"user"},
    "POST /v1/acts": {"user"},
    "POST /v1/acts/{id}/stop": {"user"},
    "GET /v1/jobs": {"user"},
    "POST /v1/jobs/query": {"user"},
    "POST /v1/jobs/count": {"user"},
    "POST /v1/jobs/results": {"user"},
    "GET /v1/jobs/counts": {"user"},
    "GET /v1/events": {"user"},
    "GET /v1/events/stream": {"user"},
    "GET /v1/jobs/{id}": {"user", "session"},
    "GET /v1/jobs/{id}/logs": {"user"},
    "POST /v1/logs": {"site", "session"},
    "GET /v1/jobs/{id}/parents": {"user", "session"},
    "GET /v1/jobs/{id}/result": {"user", "session"},
    "PUT /v1/jobs/{id}/result": {"session"},
    "POST /v1/results": {"session"},
    "GET /v1/tokens": {"user"},
    "POST /v1/tokens": {"user"},
    "DELETE /v1/tokens/{prefix}": {"user"},
    "GET /v1/projects": {"user"},
    "POST /v1/tokens/service": {"user"},
    "POST /v1/sites/{id}/token": {"user"},
    "GET /v1/users": {"user"},
    "POST /v1/users": {"user"},
    "POST /v1/users/{name}/invite": {"user"},
    "POST /v1/users/{name}/disable": {"user"},
    "POST /v1/users/{name}/enable": {"user"},
    "POST /v1/projects": {"user"},
    "GET /v1/members": {"user"},
    "PUT /v1/members/{name}": {"user"},
    "DELETE /v1/members/{name}": {"user"},
    "GET /v1/audit": {"user"},
    "POST /v1/messages": {"user", "site", "producer"},
    "GET /v1/messages": {"user"},
    "GET /v1/messages/{uid}": {"user"},
    "POST /v1/messages/requeue": {"user"},
    "POST /v1/messages/compare": {"user"},
    "POST /v1/producers": {"user"},
    "DELETE /v1/producers/{name}": {"user"},
    "GET /v1/simulations": {"user"},
    "POST /v1/simulations/{id}/purge": {"user"},
    "GET /v1/bus/queues": {"user"},
    "GET /v1/bus/queues/{name}": {"user"},
    "POST /v1/bus/queues/{name}/replay": {"user"},
    "GET /v1/bus/dead": {"user"},
    "POST /v1/bus/dead/revive": {"user"},
    "POST /v1/bus/check": {"user"},
    "POST /v1/logout": {"user"},
    "PUT /v1/password": {"user"},
    "POST /v1/sites": {"user"},
    "DELETE /v1/sites/{id}": {"user"},
    "PUT /v1/sites/{id}/apps": {"site"},
    "POST /v1/sites/{id}/agent": {"site"},
    "POST /v1/sites/{id}/sync": {"site"},
    "POST /v1/batch-jobs": {"user", "site"},
    "POST /v1/sessions": {"site"},
    "POST /v1/sync": {"session"},
    "POST /v1/sync/wake": {"session"},
}
# Answered without any token: whether the process is well, and nothing of anybody.
OPEN = {"GET /healthz", "GET /readyz", "GET /metrics"}
# Exchange a secret for a token: tests/security/test_logins.py attacks them.
ENTRANCES = {"POST /v1/login", "POST /v1/join"}


class Tokens:
    """One token of each kind that there is, by its kind."""

    def __init__(self, hub: RunningHub) -> None:
        self.hub = hub
        self.site = self.make_site()
        self.other = self.make_site()
        self.dead = self.make_site()
        end = f"/v1/sessions/{self.dead.session}/end"
        assert self.call("POST", end, self.dead.token, {}).status == 204
        made = self.post("/v1/tokens", hub.token, note="second")
        revoked = self.post("/v1/tokens", hub.token, note="revoked")
        assert self.call("DELETE", f"/v1/tokens/{revoked['prefix']}", hub.token).status == 204
        brief = self.post("/v1/tokens", hub.token, note="brief", expires_in_s=0.001)
        time.sleep(0.002)  # not a wait for anything: its time is over, whatever happens meanwhile
        user = hub.token
        altered = user[:-1] + ("a" if user[-1] != "a" else "b")
        self.bad: dict[str, str | None] = {
            "none": None,
            "garbage": "rubbish",
            "empty": " ",
            "long": "x" * 5_000,
            "unknown": f"chp_u_aaaabbbbcccc_{'x' * 43}",
            "altered": altered,
            "other letter": user.replace("chp_u_", "chp_s_"),
            "short": user[:-1],
            "joined": f"{user} {user}",
            "revoked": revoked["token"],
            "expired": brief["token"],
        }
        self.good: dict[str, tuple[str, str]] = {
            "user": ("user", user),
            "second user": ("user", made["token"]),
            "site": ("site", self.site.token),
            "other site": ("site", self.other.token),
            "session": ("session", self.site.pilot),
        }

    def call(self, method: str, path: str, token: str | None, body: Any = None) -> Answer:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        return raw(self.hub, method, path, token, data)

    def post(self, path: str, token: str, **body: Any) -> Any:
        answer = self.call("POST", path, token, body)
        assert answer.status < 300, answer.body
        return json.loads(answer.body)

    def make_site(self) -> Site:
        id, batch_job, session = new_id(), new_id(), new_id()
        name = f"s-{id}"
        token = self.post("/v1/sites", self.hub.token, id=id, name=name)["token"]
        agent = new_id()
        hello = {"agent": agent, "host": "here"}
        assert self.call("POST", f"/v1/sites/{id}/agent", token, hello).status == 204
        name_of_app = f"nop-{id[-4:]}"
        app = {"name": name_of_app, "version": "1", "digest": "0" * 64, "unsigned": True}
        assert self.call("PUT", f"/v1/sites/{id}/apps", token, {"apps": [app]}).status == 204
        self.post("/v1/batch-jobs", self.hub.token, id=batch_job, site=id)
        pilot = self.post("/v1/sessions", token, id=session, batch_job=batch_job)["token"]
        return Site(id, name, token, agent, batch_job, session, pilot, name_of_app)

    def submit(self, site: Site, parents: tuple[str, ...] = (), **fields: Any) -> str:
        """An unsigned Job at a Site; its id."""
        spec = {
            "id": new_id(),
            "project": self.hub.project,
            "sites": [site.id],
            "app": {"name": site.app},
            "parents": parents,
            **fields,
        }
        self.post("/v1/jobs", self.hub.token, jobs=[{"spec": spec}])
        return str(spec["id"])

    def sync(self, site: Site, number: int, **fields: Any) -> Any:
        """One sync of a Site's pilot; it asks for one Job."""
        room = {"cores": 1, "mem_bytes": 2**40, "node_cores": 9, "node_mem_bytes": 2**40}
        body = {
            "session": site.session,
            "request_no": number,
            "answered": number - 1,
            "seen": [0, 0],
            "capacity": room,
            **fields,
        }
        return self.post("/v1/sync", site.pilot, **body)


class Site(NamedTuple):
    """A Site with an allocation and its pilot."""

    id: str
    name: str
    token: str
    agent: str
    batch_job: str
    session: str
    pilot: str
    app: str


@pytest.fixture(scope="module")
def tokens(open_hub: RunningHub) -> Tokens:
    return Tokens(open_hub)


def path_of(route: Route, id: str) -> str:
    return route.path.replace("{id}", id).replace("{prefix}", "aaaabbbbcccc").replace("{name}", id)


def body_of(route: Route) -> bytes | None:
    return None if route.method == "GET" else b"{}"


# --- scopes


def test_the_dangerous_routes_are_for_whom_they_are_for() -> None:
    assert {name for name, route in BY_NAME.items() if not route.scopes} == OPEN | ENTRANCES
    assert {name: set(BY_NAME[name].scopes) for name in ONLY} == ONLY
    # Whatever changes something is in that list, or is for all who may see its object.
    others = {"POST /v1/batch-jobs/{id}/cancel", "POST /v1/sessions/{id}/end"}
    assert {n for n in BY_NAME if not n.startswith("GET ")} <= set(ONLY) | others | ENTRANCES


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in OPEN | ENTRANCES])
def test_a_token_that_is_none_opens_nothing(tokens: Tokens, name: str) -> None:
    route = BY_NAME[name]
    answers = {}
    for kind, token in tokens.bad.items():
        answer = tokens.call(route.method, path_of(route, new_id()), token, body_of(route))
        assert answer.status == 401, kind
        assert answer.headers["www-authenticate"] == "Bearer"
        assert len(answer.body) < 300, "it does not repeat what it was sent"
        answers[kind] = answer.body
    # Whoever guesses does not learn how near a token came to a good one.
    like = {answers[k] for k in ("unknown", "altered", "other letter", "short", "revoked", "long")}
    assert len(like) == 1


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in OPEN | ENTRANCES])
def test_each_route_takes_the_scopes_of_the_table(tokens: Tokens, name: str) -> None:
    route = BY_NAME[name]
    for kind, (scope, token) in tokens.good.items():
        answer = tokens.call(route.method, path_of(route, new_id()), token, body_of(route))
        if scope in route.scopes:
            assert answer.status not in (401, 403), kind
        else:
            assert (answer.status, answer.error["code"]) == (403, "forbidden"), kind


@pytest.mark.parametrize("name", [n for n in BY_NAME if "session" in BY_NAME[n].scopes])
def test_a_dead_sessions_token_learns_only_that_it_is_dead(tokens: Tokens, name: str) -> None:
    route = BY_NAME[name]
    answer = tokens.call(route.method, path_of(route, new_id()), tokens.dead.pilot, body_of(route))
    assert (answer.status, answer.error["code"]) == (409, "session_dead")


def test_what_needs_no_token_tells_of_nobody(tokens: Tokens) -> None:
    job = tokens.submit(tokens.other, name="precious")
    for name in OPEN:
        text = tokens.call("GET", BY_NAME[name].path, None).body.decode()
        for secret in (job, "precious", tokens.site.id, tokens.site.name, tokens.hub.project):
            assert secret not in text, name


# --- one Site and another


def same(tokens: Tokens, ask: Callable[[str], Answer], theirs: str, nobodys: str) -> None:
    """What is another's is answered as what never was: status, headers and bytes, but for the id itself."""
    a, b = ask(theirs), ask(nobodys)
    assert a.status == b.status == 404, (a, b)
    drop = {"date"}
    heads = [{k: v for k, v in x.headers.items() if k not in drop} for x in (a, b)]
    assert heads[0] == heads[1]
    assert a.body.replace(theirs.encode(), b"ID") == b.body.replace(nobodys.encode(), b"ID")


SITES_OWN: list[tuple[str, str, str, Any]] = [
    ("GET", "/v1/sites/{}", "id", None),
    ("PUT", "/v1/sites/{}/apps", "id", {"apps": []}),
    ("POST", "/v1/sites/{}/agent", "id", {"agent": new_id(), "host": "x"}),
    ("POST", "/v1/sites/{}/sync", "id", {"agent": new_id()}),
    ("GET", "/v1/batch-jobs/{}", "batch_job", None),
    ("POST", "/v1/batch-jobs/{}/cancel", "batch_job", None),
    ("POST", "/v1/sessions/{}/end", "session", {}),
]


@pytest.mark.parametrize(("method", "path", "what", "body"), SITES_OWN)
def test_a_site_cannot_tell_anothers_from_nothing(
    tokens: Tokens, method: str, path: str, what: str, body: Any
) -> None:
    theirs = getattr(tokens.other, what)
    same(
        tokens,
        lambda id: tokens.call(method, path.format(id), tokens.site.token, body),
        theirs,
        new_id(),
    )


def test_a_site_cannot_make_pilots_for_another(tokens: Tokens) -> None:
    def session(batch_job: str) -> Answer:
        body = {"id": new_id(), "batch_job": batch_job}
        return tokens.call("POST", "/v1/sessions", tokens.site.token, body)

    def order(site: str) -> Answer:
        body = {"id": new_id(), "site": site}
        return tokens.call("POST", "/v1/batch-jobs", tokens.site.token, body)

    same(tokens, session, tokens.other.batch_job, new_id())
    same(tokens, order, tokens.other.id, new_id())
    # Nor take another's over under its own names.
    stolen = {"id": tokens.other.session, "batch_job": tokens.site.batch_job}
    assert tokens.call("POST", "/v1/sessions", tokens.site.token, stolen).status == 409
    assert tokens.sync(tokens.other, 1)["request_no"] == 1


@pytest.mark.parametrize("who", ["site", "session"])
def test_lists_hold_ones_own_and_do_not_count_others(tokens: Tokens, who: str) -> None:
    site = tokens.site
    token = tokens.good[who][1]
    lists: dict[str, tuple[str, Callable[[Any], object], object]] = {
        "/v1/sites": ("sites", lambda s: s["id"], site.id),
        "/v1/apps": ("apps", lambda a: a["site"], site.id),
    }
    if who == "site":
        lists["/v1/sessions?all=1"] = ("sessions", lambda s: s["id"], site.session)
        lists["/v1/batch-jobs"] = ("batch_jobs", lambda b: b["id"], site.batch_job)
    for path, (field, key, own) in lists.items():
        found = json.loads(tokens.call("GET", path, token).body)[field]
        assert [key(item) for item in found] == [own], path
    sites = json.loads(tokens.call("GET", "/v1/sites", token).body)["sites"]
    assert [s["id"] for s in sites[0]["sessions"]] == [site.session]
    for path in ("/v1/apps", "/v1/batch-jobs")[: 2 if who == "site" else 1]:
        asked = [
            tokens.call("GET", f"{path}?site={which}", token)
            for which in (tokens.other.id, tokens.other.name, new_id(), "nobody")
        ]
        assert len({(a.status, a.body) for a in asked}) == 1, path


def test_a_site_cannot_report_on_anothers_allocation(tokens: Tokens) -> None:
    """An end would be proof of death: the other's Jobs would be started twice."""
    site, other = tokens.site, tokens.other
    for id in (other.batch_job, new_id()):
        report = {"id": id, "state": "ended"}
        body = {"agent": site.agent, "reports": [report], "known": [site.batch_job]}
        reply = tokens.post(f"/v1/sites/{site.id}/sync", site.token, **body)
        assert reply["accepted"] == [id]  # "forget it": alike for both
        assert "orders" not in reply
    seen = json.loads(tokens.call("GET", f"/v1/batch-jobs/{other.batch_job}", other.token).body)
    assert seen["state"] == "requested"
    assert tokens.call("GET", "/v1/whoami", other.pilot).status == 200


# --- one pilot and another


@pytest.fixture(scope="module")
def leased(tokens: Tokens) -> dict[str, str]:
    """Jobs of two Sites: finished parents with results, and what each pilot holds and does not hold."""
    site, other = tokens.make_site(), tokens.make_site()
    jobs = {"parent": tokens.submit(site), "stranger": tokens.submit(site)}
    for number, name in ((1, "parent"), (2, "stranger")):
        reply = tokens.sync(site, number * 2 - 1)
        (grant,) = reply["grants"]
        assert grant["job"] == jobs[name]
        put = f"/v1/jobs/{grant['job']}/result?epoch=1&sha256={DIGEST}"
        headers = {"content-type": "application/json"}
        assert raw(tokens.hub, "PUT", put, site.pilot, RESULT, headers).status == 204
        end = {"no": number, "job": grant["job"], "epoch": 1, "attempt": 1, "kind": "end", "at": 1}
        end["started_at"] = 1
        outcome = {"reason": "exit", "exit": 0, "result_sha256": DIGEST}
        done = tokens.sync(site, number * 2, reports=[{**end, "outcome": outcome}], capacity=None)
        assert done["verdicts"] == [[number, "applied"]]
    jobs["child"] = tokens.submit(site, (jobs["parent"],))
    (grant,) = tokens.sync(site, 5)["grants"]
    assert grant["job"] == jobs["child"]
    jobs["waiting"] = tokens.submit(site, (jobs["stranger"],))
    jobs["theirs"] = tokens.submit(other)
    (grant,) = tokens.sync(other, 1)["grants"]
    assert grant["job"] == jobs["theirs"]
    return {**jobs, "token": site.pilot, "other": other.pilot, "session": site.session}


@pytest.mark.parametrize("path", ["/v1/jobs/{}", "/v1/jobs/{}/parents", "/v1/jobs/{}/result"])
@pytest.mark.parametrize("whose", ["stranger", "waiting", "theirs"])
def test_a_pilot_cannot_read_what_it_does_not_need(
    tokens: Tokens, leased: dict[str, str], path: str, whose: str
) -> None:
    same(
        tokens,
        lambda id: tokens.call("GET", path.format(id), leased["token"]),
        leased[whose],
        new_id(),
    )


def test_a_pilot_can_read_what_it_holds_and_its_parents(
    tokens: Tokens, leased: dict[str, str]
) -> None:
    for path in ("/v1/jobs/{}", "/v1/jobs/{}/parents"):
        for name in ("child", "parent"):
            assert tokens.call("GET", path.format(leased[name]), leased["token"]).status == 200
    parents = tokens.call("GET", f"/v1/jobs/{leased['child']}/parents", leased["token"])
    assert [p["id"] for p in json.loads(parents.body)["parents"]] == [leased["parent"]]
    got = tokens.call("GET", f"/v1/jobs/{leased['parent']}/result", leased["token"])
    assert got.body == RESULT


def test_a_pilot_cannot_put_results_of_others(tokens: Tokens, leased: dict[str, str]) -> None:
    data = b'"false"'
    digest = hashlib.sha256(data).hexdigest()

    def put(job: str, epoch: int = 1) -> Answer:
        path = f"/v1/jobs/{job}/result?epoch={epoch}&sha256={digest}"
        return raw(
            tokens.hub, "PUT", path, leased["token"], data, {"content-type": "application/json"}
        )

    answers = {put(leased[name]).body for name in ("theirs", "stranger", "waiting")}
    assert answers == {put(new_id()).body}
    assert put(new_id()).error["code"] == "stale_lease"
    assert put(leased["child"], 2).error["code"] == "stale_lease"
    kept = tokens.call("GET", f"/v1/jobs/{leased['stranger']}/result", tokens.hub.token)
    assert kept.body == RESULT


def test_many_results_at_a_time_reach_no_further(tokens: Tokens, leased: dict[str, str]) -> None:
    data = b'"false"'
    digest = hashlib.sha256(data).hexdigest()
    jobs = [leased[name] for name in ("theirs", "stranger", "waiting")] + [new_id()]
    media, body = "application/json", base64.b64encode(data).decode()
    uploads = [
        {"job": job, "epoch": epoch, "sha256": digest, "media": media, "body": body}
        for job in jobs
        for epoch in (0, 1, 2)
    ]
    reply = tokens.post("/v1/results", leased["token"], results=uploads)
    assert [verdict[2] for verdict in reply["verdicts"]] == ["stale_lease"] * len(uploads)
    kept = tokens.call("GET", f"/v1/jobs/{leased['stranger']}/result", tokens.hub.token)
    assert kept.body == RESULT


def test_a_pilot_cannot_speak_for_another_session(tokens: Tokens, leased: dict[str, str]) -> None:
    for session in (tokens.site.session, new_id()):
        body = {"session": session, "request_no": 9, "answered": 0, "seen": [0, 0]}
        answer = tokens.call("POST", "/v1/sync", leased["token"], body)
        assert (answer.status, answer.error["field"]) == (422, "session")

    def end(id: str) -> Answer:
        return tokens.call("POST", f"/v1/sessions/{id}/end", leased["token"], {})

    same(tokens, end, tokens.site.session, new_id())


def test_reports_about_others_jobs_change_nothing(tokens: Tokens, leased: dict[str, str]) -> None:
    targets = [leased["theirs"], leased["waiting"], leased["stranger"], new_id()]
    outcome = {"reason": "exit", "exit": 1}
    reports = [
        {
            "no": 100 + i,
            "job": job,
            "epoch": epoch,
            "attempt": 1,
            "kind": kind,
            "at": 1,
            "outcome": outcome,
        }
        for i, (job, epoch, kind) in enumerate(
            (job, epoch, kind)
            for job in targets
            for epoch in (0, 1, 2)
            for kind in ("start", "end", "refused")
        )
    ]
    before = [tokens.call("GET", f"/v1/jobs/{j}", tokens.hub.token).body for j in targets]
    held = [[job, epoch, True] for job in targets for epoch in (0, 1, 2)]
    body = {
        "session": leased["session"],
        "request_no": 100,
        "answered": 99,
        "seen": [0, 0],
        "held": [*held, [leased["child"], 1]],
        "returned": [[job, epoch] for job in targets for epoch in (0, 1, 2)],
        "reports": reports,
    }
    reply = tokens.post("/v1/sync", leased["token"], **body)
    assert {verdict for _, verdict in reply["verdicts"]} == {"stale_lease"}
    assert {job for job, _ in reply["unknown"]} == set(targets)
    after = [tokens.call("GET", f"/v1/jobs/{j}", tokens.hub.token).body for j in targets]
    assert before == after


def test_a_pilot_cannot_make_the_hub_forget_its_past(
    tokens: Tokens, leased: dict[str, str]
) -> None:
    """`seen` makes a restored Hub begin a new incarnation; no pilot needs a thousand of them at once."""
    whoami = tokens.call("GET", "/v1/whoami", tokens.hub.token)
    before = json.loads(whoami.body)["incarnation"]
    for seen in ([2**53, 0], [before + 100_000, 0], [2**60, 0], [-(2**60), 0], [1e30, 0]):
        body = {
            "session": leased["session"],
            "request_no": 200,
            "answered": 0,
            "seen": seen,
        }
        answer = tokens.call("POST", "/v1/sync", leased["token"], body)
        assert answer.status == 422, seen
        assert answer.error["field"].startswith("seen")
    after = json.loads(tokens.call("GET", "/v1/whoami", tokens.hub.token).body)
    assert after["incarnation"] == before
