"""The Hub over its network: who may call what, what is refused, and that repeating is harmless."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from typing import Any

import msgspec
import pytest

from chappe.core import limits
from chappe.core.errors import Conflict, Gone, NotFound, TooLarge, Unauthenticated
from chappe.core.jobs import Envelope
from chappe.hub.route import Route
from chappe.hub.table import ROUTES
from chappe.link.clock import new_id
from chappe.link.http import NO_RETRY, HubClient
from chappe.testing.hub import RunningHub
from chappe.wire.jobs import (
    ActOnJobs,
    ActReply,
    Counts,
    CreateJobs,
    CreateReply,
    JobFilter,
    JobPage,
    JobView,
    NewJob,
    QueryJobs,
)
from chappe.wire.sites import NewSite, NewSiteReply, NewToken, TokenList, TokenView
from tests.integration.hub_rig import Answer, raw, world

BY_NAME = {f"{route.method} {route.path}": route for route in ROUTES}
SCOPED = [name for name, route in BY_NAME.items() if route.scopes]
WITH_BODY = [name for name, route in BY_NAME.items() if route.signature.body is not None]


class Cast:
    """One token of each scope, and the ids that they belong to. Made once, by plain requests."""

    def __init__(self, hub: RunningHub) -> None:
        self.hub = hub
        self.site, self.batch_job, self.session = new_id(), new_id(), new_id()
        site = self.post("/v1/sites", hub.token, id=self.site, name=f"cast-{self.site}")
        self.post("/v1/batch-jobs", hub.token, id=self.batch_job, site=self.site)
        session = self.post(
            "/v1/sessions", site["token"], id=self.session, batch_job=self.batch_job
        )
        self.tokens = {"user": hub.token, "site": site["token"], "session": session["token"]}

    def post(self, path: str, token: str, **body: Any) -> Any:
        answer = raw(self.hub, "POST", path, token, json.dumps(body).encode())
        assert answer.status < 300, answer.body
        return json.loads(answer.body)

    def good(self, route: Route) -> str | None:
        """A token that a route takes, if it needs one."""
        return self.tokens[max(route.scopes)] if route.scopes else None

    def call(
        self,
        route: Route,
        token: str | None,
        body: bytes | None = b"{}",
        id: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Call a route with `id` in its path and a body that does not matter."""
        path = re.sub(r"{(id|name)}", id or new_id(), route.path).replace(
            "{prefix}", id or "aaaabbbbcccc"
        )
        return raw(
            self.hub, route.method, path, token, body if route.method != "GET" else None, headers
        )


@pytest.fixture(scope="module")
def cast(shared_hub: RunningHub) -> Cast:
    return Cast(shared_hub)


def error_of(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.error["code"]


# -- who may call what (generated from the table) ----------------------------------------------------


@pytest.mark.parametrize("name", SCOPED)
def test_without_a_good_token_there_is_no_way_in(cast: Cast, name: str) -> None:
    route = BY_NAME[name]
    stranger = "chp_u_aaaabbbbcccc_" + "x" * 43
    altered = cast.tokens["user"][:-1] + ("a" if cast.tokens["user"][-1] != "a" else "b")
    for token in (None, "rubbish", stranger, altered):
        answer = cast.call(route, token)
        assert error_of(answer) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("scope", ["user", "site", "session"])
@pytest.mark.parametrize("name", SCOPED)
def test_scopes_are_those_of_the_table(cast: Cast, name: str, scope: str) -> None:
    route = BY_NAME[name]
    answer = cast.call(route, cast.tokens[scope])
    if scope in route.scopes:
        assert answer.status not in (401, 500)
        assert answer.status != 403 or answer.error["code"] == "may_run_twice"
    else:
        assert error_of(answer) == (403, "forbidden")


@pytest.mark.parametrize("name", ["GET /healthz", "GET /readyz", "GET /metrics"])
def test_the_process_tells_its_health_to_anybody(cast: Cast, name: str) -> None:
    assert cast.call(BY_NAME[name], None).status == 200


@pytest.mark.parametrize("name", BY_NAME)
def test_no_answer_is_missing_from_the_document(cast: Cast, name: str) -> None:
    from chappe.hub.openapi import error_statuses

    route = BY_NAME[name]
    known = {200, 204, route.status, *error_statuses(route, route.signature)}
    tokens = [None, *cast.tokens.values()]
    bodies = [b"{}", b"{", b'{"id": 1}']
    answers = {cast.call(route, token, body).status for token in tokens for body in bodies}
    assert answers <= known


def test_what_is_anothers_never_existed(cast: Cast) -> None:
    other = Cast(cast.hub)
    nobodys = new_id()
    for name, theirs, body in [
        ("GET /v1/sites/{id}", other.site, {}),
        ("PUT /v1/sites/{id}/apps", other.site, {"apps": []}),
        ("POST /v1/sites/{id}/agent", other.site, {"agent": new_id(), "host": "x"}),
        ("POST /v1/sites/{id}/sync", other.site, {"agent": new_id()}),
        ("POST /v1/batch-jobs/{id}/cancel", other.batch_job, {}),
        ("GET /v1/batch-jobs/{id}", other.batch_job, {}),
        ("POST /v1/sessions/{id}/end", other.session, {}),
    ]:
        answers = [
            cast.call(BY_NAME[name], cast.tokens["site"], json.dumps(body).encode(), id)
            for id in (theirs, nobodys)
        ]
        texts = [
            a.body.replace(id.encode(), b"ID")
            for a, id in zip(answers, (theirs, nobodys), strict=True)
        ]
        assert [a.status for a in answers] == [404, 404], name
        assert texts[0] == texts[1], name


def test_a_pilot_ends_no_session_but_its_own(cast: Cast) -> None:
    other = Cast(cast.hub)
    end = BY_NAME["POST /v1/sessions/{id}/end"]
    assert cast.call(end, cast.tokens["session"], id=other.session).status == 404
    assert cast.call(end, other.tokens["session"], id=other.session).status == 204
    again = cast.call(end, other.tokens["session"], id=other.session)
    assert error_of(again) == (409, "session_dead")


def test_silence_is_not_death(cast: Cast) -> None:
    other = Cast(cast.hub)
    end = BY_NAME["POST /v1/sessions/{id}/end"]
    refused = cast.call(end, cast.tokens["user"], id=other.session)
    assert error_of(refused) == (403, "may_run_twice")
    ordered = cast.call(end, cast.tokens["user"], b'{"may_run_twice": true}', other.session)
    assert ordered.status == 204


async def test_a_token_dies_with_its_revocation(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        made = await w.user.request("POST", "/v1/tokens", NewToken("brief"), TokenView)
        brief = w.client(made.token)
        await brief.request("GET", "/v1/whoami")
        await w.user.request("DELETE", f"/v1/tokens/{made.prefix}")
        with pytest.raises(Unauthenticated):
            await brief.request("GET", "/v1/whoami")
        listed = await w.user.request("GET", "/v1/tokens", reply=TokenList)
        (view,) = [t for t in listed.tokens if t.prefix == made.prefix]
        assert view.revoked_at is not None
        assert view.token is None


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"null", b"[]", b'"x"', b"[" * 50_000])
@pytest.mark.parametrize("name", [n for n in WITH_BODY if BY_NAME[n].signature.body is not bytes])
def test_malformed_bodies_are_refused(cast: Cast, name: str, body: bytes) -> None:
    route = BY_NAME[name]
    answer = cast.call(route, cast.good(route), body, headers={"a": "b"})
    assert answer.status == 422
    assert answer.error["transient"] is False if "transient" in answer.error else True


@pytest.mark.parametrize("name", WITH_BODY)
def test_bodies_that_are_too_long_are_refused_before_they_come(cast: Cast, name: str) -> None:
    route = BY_NAME[name]
    announced = {"content-length": str(route.limit_bytes + 1)}
    answer = cast.call(route, cast.good(route), b"", headers=announced)
    if route.signature.query is None:
        assert error_of(answer) == (413, "too_large")
    else:
        assert answer.status in (413, 422)


USER_BODIES: dict[str, dict[str, Any]] = {
    "POST /v1/jobs": {"jobs": []},
    "POST /v1/jobs/query": {"filter": {}},
    "POST /v1/jobs/cancel": {"filter": {"name": "nobody's"}},
    "POST /v1/jobs/retry": {"filter": {"name": "nobody's"}},
    "POST /v1/jobs/delete": {"filter": {"name": "nobody's"}},
    "POST /v1/jobs/count": {},
    "POST /v1/jobs/hold": {"filter": {"name": "nobody's"}},
    "POST /v1/jobs/release": {"filter": {"name": "nobody's"}},
    "POST /v1/jobs/update": {"filter": {"name": "nobody's"}, "change": {}},
    "POST /v1/jobs/results": {"ids": []},
    "POST /v1/selections": {"id": "x", "filter": {}},
    "POST /v1/acts": {"id": "x", "selection": "y", "verb": "cancel"},
    "POST /v1/sites": {"id": "x", "name": "y"},
    "POST /v1/batch-jobs": {"id": "x", "site": "y"},
    "POST /v1/tokens": {},
    "POST /v1/tokens/service": {"role": "viewer"},
    "PUT /v1/password": {"new_password": "short"},
    "POST /v1/users": {"name": ""},
    "POST /v1/users/{name}/invite": {},
    "POST /v1/projects": {"id": "x", "name": ""},
    "PUT /v1/members/{name}": {"role": "viewer"},
    "POST /v1/messages/requeue": {},
    "POST /v1/messages/compare": {},
    "POST /v1/producers": {"name": ""},
    "POST /v1/bus/queues/{name}/replay": {"after": 0},
    "POST /v1/bus/dead/revive": {"queue": "x"},
}
#: Bodies whose fields are not the Hub's to know: messages may say whatever they like.
FREE_BODIES = {"POST /v1/messages"}


@pytest.mark.parametrize("name", USER_BODIES)
def test_a_field_that_nobody_knows_is_refused_by_its_name(cast: Cast, name: str) -> None:
    body = json.dumps({**USER_BODIES[name], "colour": "red"}).encode()
    answer = cast.call(BY_NAME[name], cast.tokens["user"], body)
    assert (answer.status, answer.error["field"]) == (422, "colour")


def test_every_body_that_a_user_sends_is_in_that_list() -> None:
    sent = {n for n in WITH_BODY if "user" in BY_NAME[n].scopes}
    assert sent - {"POST /v1/sessions/{id}/end"} - FREE_BODIES == set(USER_BODIES)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"colour": "red"}, "colour"),
        ({"resources": {"cores": 0}}, "resources.cores"),
        ({"workdir": "../.."}, "workdir"),
        ({"id": "x"}, "id"),
        ({"id": str(uuid.uuid4())}, "id"),
        ({"sites": []}, "sites"),
        ({"sites": [new_id()]}, "sites"),
        ({"app": {"name": "unheard-of"}}, "app.name"),
        ({"project": new_id()}, "project"),
        ({"parents": [new_id()]}, "parents"),
        ({"command": ["/bin/true"]}, "app"),
    ],
)
async def test_a_wrong_job_is_refused_by_field_and_nothing_is_created(
    shared_hub: RunningHub, change: dict[str, Any], field: str
) -> None:
    async with world(shared_hub) as w:
        good = w.jobs(1).jobs[0]
        bad = NewJob(msgspec.Raw(json.dumps(w.spec(**change)).encode()))
        body = msgspec.json.encode(CreateJobs([good, bad]))
        answer = await asyncio.to_thread(
            raw, shared_hub, "POST", "/v1/jobs", shared_hub.token, body
        )
        assert answer.status == 422
        assert answer.error["field"] == field
        assert [v["field"] for v in answer.error["details"]] == [field]
        id = msgspec.json.decode(good.spec)["id"]
        with pytest.raises(NotFound):
            await w.user.request("GET", f"/v1/jobs/{id}", retry=NO_RETRY)


async def test_a_circle_of_jobs_is_refused(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        a, b = new_id(), new_id()
        specs = [w.spec(id=a, parents=[b]), w.spec(id=b, parents=[a])]
        jobs = CreateJobs([NewJob(msgspec.Raw(json.dumps(s).encode())) for s in specs])
        answer = await asyncio.to_thread(
            raw, shared_hub, "POST", "/v1/jobs", shared_hub.token, msgspec.json.encode(jobs)
        )
        assert error_of(answer) == (422, "cycle")


@pytest.mark.parametrize("path", ["/v1/jobs/query", "/v1/jobs/cancel"])
async def test_a_hundred_thousand_ids_in_a_filter_are_refused(
    shared_hub: RunningHub, path: str
) -> None:
    async with world(shared_hub) as w:
        body = ActOnJobs(JobFilter(ids=[new_id() for _ in range(100_000)]))
        with pytest.raises(TooLarge) as refused:
            await w.user.request("POST", path, QueryJobs(body.filter) if "query" in path else body)
        assert refused.value.field == "filter.ids"


async def test_more_jobs_than_the_limit_are_refused(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        jobs = CreateJobs(w.jobs(1).jobs * (limits.JOBS_PER_REQUEST + 1))
        with pytest.raises(TooLarge) as refused:
            await w.user.request("POST", "/v1/jobs", jobs)
        assert refused.value.field == "jobs"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/jobs/", 404, "not_found"),
        ("PATCH", "/v1/jobs", 405, "method_not_allowed"),
        ("GET", "/docs", 404, "not_found"),
    ],
)
def test_what_is_not_there_has_the_form_of_all_errors(
    shared_hub: RunningHub, method: str, path: str, status: int, code: str
) -> None:
    answer = raw(shared_hub, method, path, shared_hub.token)
    assert error_of(answer) == (status, code)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("cursor=x", "cursor"),
        ("phase=x", "phase"),
        ("tag=x", "tag"),
        ("colour=red", "colour"),
        ("id_prefix=zz", "id_prefix"),
    ],
)
def test_wrong_queries_are_refused_by_field(shared_hub: RunningHub, query: str, field: str) -> None:
    answer = raw(shared_hub, "GET", f"/v1/jobs?{query}", shared_hub.token)
    assert (answer.status, answer.error["field"]) == (422, field)


# -- that it works, and that repeating is harmless ---------------------------------------------------


async def test_a_create_may_be_repeated(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        jobs = w.jobs(3, envelope=Envelope(tags={"a": "1", "b": "2"}, data={"x": [1]}))
        first = await w.user.request("POST", "/v1/jobs", jobs, CreateReply)
        again = await w.user.request("POST", "/v1/jobs", jobs, CreateReply)
        assert [v.code for v in first.verdicts] == ["created"] * 3
        assert [v.code for v in again.verdicts] == ["exists"] * 3
        counts = await w.user.request("GET", "/v1/jobs/counts", reply=Counts)
        assert sum(n for site, _, _, n in counts.counts if site == w.site_id) == 3
        # The same with its keys in another order is the same.
        swapped = CreateJobs(
            [
                NewJob(j.spec, Envelope(tags={"b": "2", "a": "1"}, data={"x": [1]}))
                for j in jobs.jobs
            ]
        )
        await w.user.request("POST", "/v1/jobs", swapped, CreateReply)


async def test_another_job_under_the_same_id_is_a_conflict(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        jobs = w.jobs(1)
        await w.user.request("POST", "/v1/jobs", jobs)
        spec = msgspec.json.decode(jobs.jobs[0].spec)
        for other in (
            NewJob(msgspec.Raw(json.dumps({**spec, "name": "other"}).encode())),
            NewJob(jobs.jobs[0].spec, Envelope(priority=1)),
        ):
            with pytest.raises(Conflict) as refused:
                await w.user.request("POST", "/v1/jobs", CreateJobs([*w.jobs(1).jobs, other]))
            assert [v["id"] for v in refused.value.details] == [spec["id"]]


async def test_a_deleted_job_is_gone(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        jobs = w.jobs(1)
        (id,) = [
            v.id for v in (await w.user.request("POST", "/v1/jobs", jobs, CreateReply)).verdicts
        ]
        act = ActOnJobs(JobFilter(ids=[id]))
        early = await w.user.request("POST", "/v1/jobs/delete", act, ActReply)
        assert early.counts == {"not_final": 1}
        await w.user.request("POST", "/v1/jobs/cancel", act)
        done = await w.user.request("POST", "/v1/jobs/delete", act, ActReply)
        assert [(v.id, v.code) for v in done.verdicts] == [(id, "deleted")]
        with pytest.raises(Gone):
            await w.user.request("POST", "/v1/jobs", jobs)
        with pytest.raises(NotFound):
            await w.user.request("GET", f"/v1/jobs/{id}")


async def test_acts_by_filter_go_through_all_chunks(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        many = Envelope(tags={"set": w.site_id})
        await w.create(4_500, envelope=many)
        await w.create(1)
        act = ActOnJobs(JobFilter(tags={"set": w.site_id}))
        reply = await w.user.request("POST", "/v1/jobs/cancel", act, ActReply)
        assert (reply.counts, reply.verdicts) == ({"cancelled": 4_500}, [])
        reply = await w.user.request("POST", "/v1/jobs/retry", act, ActReply)
        assert reply.counts == {"retried": 4_500}


async def test_pages_hold_each_job_once(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        ids = await w.create(25)
        seen: list[str] = []
        cursor = None
        while True:
            page = await w.user.request(
                "GET",
                "/v1/jobs",
                reply=JobPage,
                params={"site": w.site_id, "limit": 10, "cursor": cursor},
            )
            seen += [j.id for j in page.jobs]
            cursor = page.next
            if cursor is None:
                break
        assert seen == list(reversed(ids))


async def test_sixteen_clients_post_a_thousand_jobs_each_at_once(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        clients = [w.client(shared_hub.token) for _ in range(16)]
        bodies = [w.jobs(1_000) for _ in clients]

        async def post(client: HubClient, body: CreateJobs) -> list[str]:
            reply = await client.request("POST", "/v1/jobs", body, CreateReply, retry=NO_RETRY)
            return [v.code for v in reply.verdicts]

        replies = await asyncio.gather(*map(post, clients, bodies))
        assert [set(codes) for codes in replies] == [{"created"}] * 16
        counts = await w.user.request("GET", "/v1/jobs/counts", reply=Counts)
        assert sum(n for site, _, _, n in counts.counts if site == w.site_id) == 16_000


async def test_a_site_may_be_registered_again_for_a_new_token(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        new = NewSite(new_id(), f"again-{w.site_id}")
        first = await w.user.request("POST", "/v1/sites", new, NewSiteReply)
        second = await w.user.request("POST", "/v1/sites", new, NewSiteReply)
        with pytest.raises(Unauthenticated):
            await w.client(first.token).request("GET", "/v1/whoami")
        await w.client(second.token).request("GET", "/v1/whoami")
        await w.user.request("DELETE", f"/v1/sites/{new.id}")
        with pytest.raises(Unauthenticated):
            await w.client(second.token).request("GET", "/v1/whoami")


async def test_a_job_shows_its_spec_to_the_pilot_too(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        (id,) = await w.create(1, name="seen")
        assert [g.job for g in (await pilot.sync()).grants] == [id]
        for client in (w.user, pilot.client):
            view = await client.request("GET", f"/v1/jobs/{id}", reply=JobView)
            assert view.spec is not None
            assert view.spec.name == "seen"


def test_no_secret_is_in_the_log(cast: Cast) -> None:
    # By now this Hub has made and seen many tokens; none of their secrets is in its log.
    for token in cast.tokens.values():
        assert token.split("_", 3)[3] not in cast.hub.log
    assert "unexpected error" not in cast.hub.log
