"""Both faces against a Hub that answers from memory: requests, repeats, waits, acts, threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

import chappe
from chappe import AsyncClient, Client, Job
from chappe.core.errors import ChappeError, Conflict, NotFound
from chappe.core.jobs import decode_spec
from chappe.core.leases import Outcome, Reason
from chappe.core.states import FINAL_PHASES
from chappe.link.clock import new_id
from chappe.link.keys import SigningKey
from chappe.link.signing import make_submissions, verify
from chappe.sdk.errors import Ambiguous, Invalid, JobCancelled, JobFailed, WaitTimeout
from chappe.wire.events import Event, EventPage, cursor_of, parse_cursor
from chappe.wire.jobs import (
    ActOnJobs,
    ActReply,
    CreateJobs,
    CreateReply,
    JobPage,
    JobVerdict,
    JobView,
    QueryJobs,
    SignedSpec,
)
from chappe.wire.sites import Listing, SiteView, Whoami

PARIS = new_id()
STDERR = "Traceback\nCFL limit\n"


class FakeHub:
    """Answers requests from dictionaries; `routes` lets a test take one over."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobView] = {}
        self.specs: dict[str, SignedSpec] = {}
        self.results: dict[str, tuple[str, bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self.acts: list[ActOnJobs] = []
        self.exhausted: set[str] = set()
        self.routes: dict[tuple[str, str], Callable[[httpx2.Request], Any]] = {}
        self.busy = self.busiest = 0
        self.state, self.phase = "JOB_FINISHED", "finished"
        self.outcome: Outcome | None = Outcome(Reason.EXIT, exit=0)
        self.more = asyncio.Event()

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        self.requests.append((request.method, path))
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            await asyncio.sleep(0)
            route = self.routes.get((request.method, path))
            answer = self._answer(request, path) if route is None else route(request)
            if isinstance(answer, httpx2.Response):
                return answer
            return reply(200, msgspec.json.encode(answer))
        except ChappeError as e:
            error = {"code": e.code, "message": e.message, "field": e.field, "details": e.details}
            return reply(e.status, msgspec.json.encode({"error": error}))
        finally:
            self.busy -= 1

    def _answer(self, request: httpx2.Request, path: str) -> Any:
        match request.method, *path.removeprefix("/v1/").split("/"):
            case "GET", "whoami":
                return Whoami("user", "proj", "default", "0", 1, 1)
            case "GET", "sites":
                return Listing(sites=[SiteView(PARIS, "paris", True)])
            case "GET", "events":
                return EventPage([], cursor_of(1, len(self.jobs)))
            case "GET", "events", "stream":
                return httpx2.Response(200, stream=Ends(self, request.headers["last-event-id"]))
            case "POST", "jobs":
                return self._create(request.content)
            case "POST", "jobs", "query":
                return self._query(msgspec.json.decode(request.content, type=QueryJobs))
            case "POST", "jobs", verb:
                return self._act(verb, msgspec.json.decode(request.content, type=ActOnJobs))
            case "GET", "jobs", job if job in self.jobs:
                return self.jobs[job]
            case "GET", "jobs", job, "result" if job in self.results:
                media, body = self.results[job]
                return reply(200, body, media)
            case "GET", "jobs", job, "signed" if job in self.specs:
                return self.specs[job]
        raise NotFound(f"there is no {path}")

    def _create(self, body: bytes) -> CreateReply:
        self.bodies.append(body)
        request = msgspec.json.decode(body, type=CreateJobs)
        verdicts = []
        cursor = cursor_of(1, len(self.jobs))
        for new in request.jobs:
            spec = decode_spec(new.spec)
            assert new.submission is not None
            self.specs[spec.id] = SignedSpec(new.spec, request.submissions[new.submission], new.idx)
            verdicts.append(JobVerdict(spec.id, "exists" if spec.id in self.jobs else "created"))
            self.add(spec.id, spec.name)
        self.more.set()
        return CreateReply(verdicts, cursor)

    def add(self, job: str, name: str = "") -> None:
        self.jobs[job] = JobView(
            job, name, self.state, self.phase, [PARIS], 0.0, 1.0, attempt=1, outcome=self.outcome
        )

    def _query(self, query: QueryJobs) -> JobPage:
        f = query.filter
        found = [
            view
            for view in self.jobs.values()
            if (f.ids is None or view.id in f.ids) and view.id.startswith(f.id_prefix or "")
        ]
        start = int(query.cursor or 0)
        page = found[start : start + query.limit]
        more = start + query.limit < len(found)
        return JobPage(page, str(start + query.limit) if more else None)

    def _act(self, verb: str, act: ActOnJobs) -> ActReply:
        self.acts.append(act)
        done = {"cancel": "cancelled", "retry": "retried", "delete": "deleted"}[verb]
        verdicts = []
        for job in act.filter.ids or []:
            code = done if job in self.jobs else "not_found"
            if verb == "retry" and job in self.exhausted and job not in act.signed:
                code = "attempts"
            verdicts.append(JobVerdict(job, code))
        return ActReply({done: len(verdicts)}, verdicts)


def reply(status: int, body: bytes, media: str = "application/json") -> httpx2.Response:
    return httpx2.Response(status, headers={"content-type": media}, stream=httpx2.ByteStream(body))


class Ends(httpx2.AsyncByteStream):
    """A feed on which each Job has one Event, its end, as soon as it exists."""

    def __init__(self, hub: FakeHub, cursor: str) -> None:
        self.hub = hub
        self.seq = parse_cursor(cursor)[1]

    async def __aiter__(self) -> Any:
        yield b": ready\n\n"
        while True:
            self.hub.more.clear()
            for view in list(self.hub.jobs.values())[self.seq :]:
                self.seq += 1
                if view.phase in FINAL_PHASES:
                    yield b"id: 1:%d\ndata: %b\n\n" % (
                        self.seq,
                        msgspec.json.encode(self.end(view)),
                    )
            await self.hub.more.wait()

    def end(self, view: JobView) -> Event:
        data = {"outcome": msgspec.to_builtins(view.outcome)} if view.outcome else {}
        return Event(self.seq, "job", view.id, 1.0, 1.0, None, view.state, view.phase, 1, 1, data)


@pytest.fixture
def hub() -> FakeHub:
    return FakeHub()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "key"


def over(client: AsyncClient | Client, hub: FakeHub) -> None:
    client._engine.hub._http = httpx2.AsyncClient(transport=httpx2.MockTransport(hub))


@pytest.fixture
def client(hub: FakeHub, key: Path) -> Iterator[Client]:
    with Client(url="http://127.0.0.1:1", token="t", key=key) as made:
        over(made, hub)
        yield made


def test_a_submission_is_signed_with_the_users_key(client: Client, hub: FakeHub, key: Path) -> None:
    job = client.app("model", site="paris").options(name="m1").submit(dt=600)
    found = hub.specs[job.id]
    assert decode_spec(found.spec).parameters == {"dt": 600}
    assert verify(found.submission).key == client.public_key()
    assert key.stat().st_mode & 0o777 == 0o600
    assert (job.name, job.state) == ("m1", "CREATED")


def test_many_jobs_travel_a_thousand_a_request_a_few_at_once(client: Client, hub: FakeHub) -> None:
    jobs = client.app("model", site="paris").map([{"n": i} for i in range(5_200)])
    assert len(hub.bodies) == 6
    assert 2 <= hub.busiest <= 4
    assert [job.id for job in jobs] == sorted(hub.jobs)
    assert hub.requests.count(("GET", "/v1/whoami")) == 1


def test_a_lost_answer_is_repeated_with_the_same_bytes(client: Client, hub: FakeHub) -> None:
    def lose(request: httpx2.Request) -> Any:
        del hub.routes["POST", "/v1/jobs"]
        hub._create(request.content)
        raise httpx2.ReadError("connection reset")

    hub.routes["POST", "/v1/jobs"] = lose
    job = client.app("model", site="paris").submit()
    assert len(hub.bodies) == 2
    assert hub.bodies[0] == hub.bodies[1]
    assert list(hub.jobs) == [job.id]


def test_waiting_for_new_jobs_reads_none_of_them(client: Client, hub: FakeHub) -> None:
    jobs = client.app("model", site="paris").map([{}] * 2_500)
    assert all(job.ok for job in client.wait_all(jobs))
    assert ("POST", "/v1/jobs/query") not in hub.requests


def test_what_existed_already_is_read(client: Client, hub: FakeHub) -> None:
    """Its Events may lie before the position that the second answer names."""
    draft = client.app("model", site="paris")()
    client.submit(draft)
    assert client.submit(draft).wait(timeout_s=30).ok
    assert hub.requests.count(("POST", "/v1/jobs/query")) == 1


def test_a_second_wait_reads_what_has_become_of_it(client: Client, hub: FakeHub) -> None:
    job = client.app("model", site="paris").submit().wait()
    hub.jobs[job.id] = msgspec.structs.replace(hub.jobs[job.id], attempt=2)
    assert job.wait(timeout_s=30).attempt == 2


def test_a_refusal_names_what_the_hub_named(client: Client, hub: FakeHub) -> None:
    def refuse(request: httpx2.Request) -> Any:
        raise Invalid("a number is wanted", field="parameters.dt", details=[{"id": "x"}])

    hub.routes["POST", "/v1/jobs"] = refuse
    with pytest.raises(Invalid, match="a number is wanted") as error:
        client.app("model", site="paris").map([{}] * 3_000)
    assert error.value.field == "parameters.dt"
    assert error.value.details == [{"id": "x"}]


def test_nothing_is_sent_for_no_jobs(client: Client, hub: FakeHub) -> None:
    assert client.submit([]) == []
    assert chappe.wait_all([]) == []
    assert list(chappe.as_completed([])) == []
    assert hub.requests == []


def test_a_result_comes_as_a_value(client: Client, hub: FakeHub) -> None:
    hub.outcome = Outcome(Reason.EXIT, exit=0, result_sha256="0" * 64)
    job = client.app("model", site="paris").submit()
    hub.results[job.id] = "application/json", b'{"energy": 0.5}'
    assert job.result() == {"energy": 0.5}
    assert job.ok


def test_without_a_result_there_is_none_and_no_request(client: Client, hub: FakeHub) -> None:
    job = client.app("model", site="paris").submit()
    assert job.result() is None
    assert not any(path.endswith("/result") for _, path in hub.requests)


def test_a_failed_job_raises_with_its_tail(client: Client, hub: FakeHub) -> None:
    hub.state, hub.phase = "FAILED", "failed"
    hub.outcome = Outcome(Reason.EXIT, exit=3, tail=STDERR)
    job = client.run("paris", ["model"], name="m3")
    assert job.wait() is job
    assert (job.done, job.ok) == (True, False)
    with pytest.raises(JobFailed, match="CFL limit") as error:
        job.result()
    assert error.value.outcome == hub.outcome


def test_a_cancelled_job_raises_its_own_error(client: Client, hub: FakeHub) -> None:
    hub.state, hub.phase, hub.outcome = "CANCELLED", "cancelled", None
    with pytest.raises(JobCancelled):
        client.run("paris", ["x"]).result()


def test_a_wait_that_is_too_long_says_how_many_are_left(client: Client, hub: FakeHub) -> None:
    jobs = client.app("model", site="paris").map([{}] * 3)
    for job in jobs[:2]:
        view = hub.jobs[job.id]
        hub.jobs[job.id] = msgspec.structs.replace(view, state="RUNNING", phase="running")
    with pytest.raises(WaitTimeout, match="2 of 3 jobs"):
        client.wait_all(jobs, timeout_s=0.05)
    assert [job.done for job in jobs] == [False, False, True]


def test_lists_go_through_all_pages_and_may_be_left_early(client: Client, hub: FakeHub) -> None:
    made = client.app("model", site="paris").map([{}] * 2_500)
    assert {job.id for job in client.jobs(site="paris")} == {job.id for job in made}
    before = len(hub.requests)
    assert isinstance(next(iter(client.jobs())), Job)
    assert len(hub.requests) == before + 1


def test_an_unknown_condition_is_named(client: Client) -> None:
    with pytest.raises(Invalid, match="no condition 'status'"):
        list(client.jobs(status="x"))  # type: ignore[call-arg]


def test_acts_on_everything_must_be_meant(client: Client, hub: FakeHub) -> None:
    for act in (client.cancel, client.delete, client.retry):
        with pytest.raises(Invalid, match="at least one condition"):
            act()
    assert hub.acts == []


def test_short_ids(client: Client, hub: FakeHub) -> None:
    for end in ("a", "b"):
        hub.add(f"0195c000-0000-7000-8000-00000000000{end}", name=f"job-{end}")
    assert client.job("0195c0000000-7000-800000000000000A").name == "job-a"
    with pytest.raises(Ambiguous, match="job-b"):
        client.job("0195")
    with pytest.raises(NotFound, match="begins with 'ffff'"):
        client.job("ffff")
    with pytest.raises(Invalid, match="4 hex digits"):
        client.job("01")


def exhausted(client: Client, hub: FakeHub) -> Job:
    job = client.app("model", site="paris").options(retries=1).submit(dt=1)
    hub.exhausted.add(job.id)
    return job


def test_a_retry_beyond_the_signature_is_signed_anew(client: Client, hub: FakeHub) -> None:
    job = exhausted(client, hub)
    job.retry()
    act = hub.acts[-1]
    assert act.signed == {job.id: (0, 0)}
    proof = verify(act.submissions[0])
    assert proof.key == client.public_key()
    assert proof.max_attempts == 1 + 2, "one start is used, and the spec allows two more"


def test_a_hub_that_counts_wrong_gains_no_attempts(client: Client, hub: FakeHub) -> None:
    job = exhausted(client, hub)
    hub.jobs[job.id] = msgspec.structs.replace(hub.jobs[job.id], attempt=900)
    job.retry()
    most = verify(hub.acts[-1].submissions[0]).max_attempts
    assert most == 2 + 2, "no more starts can be used than were signed for"


def test_only_bytes_that_this_key_signed_are_signed_again(client: Client, hub: FakeHub) -> None:
    """A stolen Hub must not get its own bytes signed by a user's retry."""
    job = exhausted(client, hub)
    honest = hub.specs[job.id]
    evil = bytes(honest.spec).replace(b'"dt":1', b'"dt":2')
    (of_another,) = make_submissions(SigningKey(bytes(32)), "proj", [evil], 2e9)
    (elsewhere,) = make_submissions(client._engine.key(), "proj", [evil.replace(b"7", b"8")], 2e9)
    for shown, said in (
        (SignedSpec(msgspec.Raw(evil), honest.submission, 0), "not those that were signed"),
        (SignedSpec(msgspec.Raw(evil), of_another, 0), "another key"),
        (SignedSpec(honest.spec, honest.submission, 1), "not those that were signed"),
        (SignedSpec(msgspec.Raw(evil), elsewhere, 0), "not those that were signed"),
        (
            SignedSpec(honest.spec, msgspec.structs.replace(honest.submission, sig="AAAA"), 0),
            "signature",
        ),
        (hub.specs[exhausted(client, hub).id], "another job"),
    ):
        hub.specs[job.id] = shown
        with pytest.raises(Conflict, match=said):
            job.retry()
        assert hub.acts[-1].signed == {}


def test_a_retry_of_what_has_not_ended_is_refused(client: Client, hub: FakeHub) -> None:
    job = client.app("model", site="paris").submit()
    hub.routes["POST", "/v1/jobs/retry"] = lambda _: ActReply(
        {"not_final": 1}, [JobVerdict(job.id, "not_final")]
    )
    with pytest.raises(Conflict, match="has not ended yet") as error:
        job.retry()
    assert error.value.code == "not_final"


def test_one_client_serves_several_threads(client: Client, hub: FakeHub) -> None:
    app = client.app("model", site="paris")
    with ThreadPoolExecutor(8) as threads:
        jobs = list(threads.map(lambda n: app.submit(n=n).wait(timeout_s=30), range(40)))
    assert len({job.id for job in jobs}) == 40
    assert all(job.ok for job in jobs)


def test_it_works_inside_a_running_loop(client: Client, hub: FakeHub) -> None:
    """As in a notebook."""

    async def cell() -> bool:
        return client.app("model", site="paris").submit().wait().ok

    assert asyncio.run(cell())


def test_a_closed_client_says_so_and_its_thread_is_gone(hub: FakeHub, key: Path) -> None:
    client = Client(url="http://127.0.0.1:1", token="t", key=key)
    over(client, hub)
    thread = client._loop._thread
    job = client.app("model", site="paris").submit()
    job.wait()
    client.close()
    client.close()
    assert not thread.is_alive()
    with pytest.raises(Conflict, match="closed"):
        job.refresh()


def test_a_client_that_is_dropped_ends_its_thread(key: Path) -> None:
    client = Client(url="http://127.0.0.1:1", token="t", key=key)
    thread = client._loop._thread
    del client
    thread.join(10)
    assert not thread.is_alive()


def test_jobs_of_two_clients_are_not_waited_for_together(client: Client, key: Path) -> None:
    with (
        Client(url="http://127.0.0.1:1", token="t", key=key) as other,
        pytest.raises(Invalid, match="different clients"),
    ):
        chappe.wait_all([Job(client, new_id()), Job(other, new_id())])


async def test_the_asynchronous_face_does_the_same(hub: FakeHub, key: Path) -> None:
    async with AsyncClient(url="http://127.0.0.1:1", token="t", key=key) as client:
        over(client, hub)
        app = client.app("model", sites=["paris"])
        first = await app.submit(n=0)
        rest = await app.options(parents=[first]).map([{"n": 1}, {"n": 2}], names=["a", "b"])
        done = [job async for job in client.as_completed([first, *rest])]
        assert {job.id for job in done} == {first.id, *(job.id for job in rest)}
        assert all(job.ok for job in await client.wait_all(rest))
        assert await first.result() is None
        assert [job.name async for job in client.jobs(ids=[rest[1].id])] == ["b"]
        assert await (await client.job(first.id)).cancel() == "cancelled"
