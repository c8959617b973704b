"""A Hub's store under a test's hand: the real thing in a file of its own, on a clock that waits.

    with StoreRig(tmp_path / "hub.db") as rig:
        site = rig.add_site("paris")
        pilot = site.add_pilot()
        job = rig.spec(site)
        rig.submit(job)
        (grant,) = pilot.sync(capacity=cores(4)).grants
        pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
        pilot.sync(reports=[pilot.end(grant)])
        assert rig.job(job.id).state == "JOB_FINISHED"

The pilot does only what it is told, right or wrong. Ids are counted, not drawn: a test that fails does
so again.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chappe.core.ids import uuid7
from chappe.core.jobs import AppRef, Envelope, JobSpec
from chappe.core.leases import Outcome, Reason
from chappe.core.shapes import Capacity
from chappe.store import acts, changes, create, prepare, principal, queries, sites, sync, tokens
from chappe.store.db import Store, open_store
from chappe.store.principal import Principal
from chappe.testing.clock import FakeClock
from chappe.testing.place import Place, SqlitePlace
from chappe.wire.jobs import (
    ActOnJobs,
    ActReply,
    CreateJobs,
    CreateReply,
    JobFilter,
    JobView,
    NewJob,
)
from chappe.wire.sites import (
    AgentHello,
    AgentSync,
    AgentSyncReply,
    AppView,
    BatchJobReport,
    NewBatchJob,
    NewSession,
    NewSite,
    PublishApps,
)
from chappe.wire.submission import SIGNATURE_PREFIX, Statement, Submission
from chappe.wire.sync import Grant, HeldJob, Report, SyncReply, SyncRequest

T = TypeVar("T")
GIB = 1 << 30

#: An App that unsigned Jobs may use, and one that they may not.
TRUE = AppView("true", "1", "0" * 64, unsigned=True)
SIGNED = AppView("signed", "1", "0" * 64)


def cores(n: int, **more: Any) -> Capacity:
    """A node of `n` cores, all free, with 1 GiB each."""
    fields = {"cores": n, "mem_bytes": n * GIB, "node_cores": n, "node_mem_bytes": n * GIB}
    return Capacity(**(fields | more))


def held(grant: Grant, *, started: bool = True) -> HeldJob:
    """A grant as `held` of a sync names it."""
    return HeldJob(grant.job, grant.epoch, started)


class Signer:
    """A user's key."""

    def __init__(self, seed: int = 1) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed.to_bytes(32, "big"))
        self.public = base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    def submission(
        self,
        id: str,
        project: str,
        specs: Sequence[bytes],
        not_after: float,
        max_attempts: int | None = None,
    ) -> Submission:
        """A statement over `specs`, signed."""
        hashes = base64.b64encode(b"".join(hashlib.sha256(s).digest() for s in specs)).decode()
        statement = Statement(self.public, project, not_after, hashes, max_attempts)
        return self.sign(id, msgspec.json.encode(statement))

    def sign(self, id: str, statement: bytes) -> Submission:
        """Any bytes, signed as a statement."""
        sig = base64.b64encode(self._key.sign(SIGNATURE_PREFIX + statement)).decode()
        return Submission(id, msgspec.Raw(statement), sig)


class StoreRig:
    """An open store with its owner, in a file or any other Place. A context manager, or call `close`."""

    def __init__(self, place: Path | Place, clock: FakeClock | None = None) -> None:
        self.place: Place = SqlitePlace(place) if isinstance(place, Path) else place
        self.clock = clock or FakeClock()
        self.signer = Signer()
        self._counter = itertools.count(1)
        #: How often the store was opened: what belongs to one opening is keyed by it.
        self.openings = 0
        self.store = self._open()
        made = self.do(tokens.bootstrap)
        if made is None:
            raise ValueError(f"{self.place.url} was used before; give the rig a new place")
        self.token = made[1]
        self.user = self.whoami(self.token)

    def __enter__(self) -> StoreRig:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        self.place.leave()

    # -- the store ---------------------------------------------------------------------------------

    def _open(self) -> Store:
        self.openings += 1
        return open_store(self.place.url, clock=self.clock, data=self.place.data)

    def close(self) -> None:
        """Close the store."""
        self.place.let_go()
        self.store.close()

    def restart(self) -> None:
        """Close and open again, as a Hub that was stopped and started."""
        self.close()
        self.store = self._open()

    @property
    def path(self) -> Path:
        """The file of a store on SQLite."""
        if not isinstance(self.place, SqlitePlace):
            raise TypeError("this store is in no file")
        return self.place.path

    def backup(self) -> bytes:
        """The whole database, at one moment."""
        return self.place.backup()

    def put_back(self, backup: bytes, *, elsewhere: bool = True) -> None:
        """Stop, put an older copy in the database's place by hand, start: nobody tells the Hub.

        `elsewhere`: as on another machine, without the mark that the Hub keeps beside its database.
        """
        self.close()
        self.place.put_back(backup, elsewhere=elsewhere)
        self.store = self._open()

    def do(self, fn: Callable[..., T], *args: Any, bulk: bool = False) -> T:
        """Run a command `fn(tx, *args)` and wait for its commit."""
        return self.store.writer.submit(fn, *args, bulk=bulk).result()

    def settle(self) -> int:
        """Do what the Hub does when a command left Jobs undecided; how many commands it took."""
        commands = 0
        while self.ask(changes.unsettled):
            self.do(changes.settle_more, bulk=True)
            commands += 1
        return commands

    def ask(self, fn: Callable[..., T], *args: Any) -> T:
        """Run a read `fn(conn, *args)`."""
        return self.store.read(fn, *args)

    def sql(self, query: str, *args: Any) -> list[Any]:
        """Rows, read behind the store's back."""
        return self.place.sql(query, args)

    def whoami(self, token: str) -> Principal:
        """The Principal of a token. LookupError when it is unknown, as after a restore."""
        found = self.ask(principal.find, token)
        if found is None:
            raise LookupError("the token is unknown or revoked")
        return found

    def new_id(self) -> str:
        """An id made now."""
        n = next(self._counter)
        return uuid7(int(self.clock() * 1000), n.to_bytes(10, "big"))

    # -- jobs --------------------------------------------------------------------------------------

    def spec(self, *sites: SiteRig, **fields: Any) -> JobSpec:
        """A Job of the App `true` at these Sites."""
        app = None if "command" in fields else AppRef("true")
        given: dict[str, Any] = {"id": self.new_id(), "app": app} | fields
        return JobSpec(project=self.user.project_id, sites=tuple(s.id for s in sites), **given)

    def request(
        self,
        *specs: JobSpec | bytes,
        signed: bool = False,
        envelopes: Sequence[Envelope] = (),
        not_after: float | None = None,
        max_attempts: int | None = None,
    ) -> CreateJobs:
        """The body that creates these Jobs; signed by `signer`, 1 000 to a submission."""
        raws = [s if isinstance(s, bytes) else msgspec.json.encode(s) for s in specs]
        until = self.clock() + 86_400 if not_after is None else not_after
        submissions = [
            self.signer.submission(
                self.new_id(), self.user.project_id, raws[i : i + 1000], until, max_attempts
            )
            for i in range(0, len(raws) if signed else 0, 1000)
        ]
        jobs = [
            NewJob(
                msgspec.Raw(raw),
                envelopes[i] if envelopes else Envelope(),
                i // 1000 if signed else None,
                i % 1000 if signed else 0,
            )
            for i, raw in enumerate(raws)
        ]
        return CreateJobs(jobs, submissions)

    def create(self, body: CreateJobs) -> CreateReply:
        """Create Jobs as the route does: prepare outside, create on the writer's thread."""
        prepared = prepare.prepare(self.store.writer.catalog, self.user, body, self.clock())
        return self.do(create.create_jobs, self.user, prepared, bulk=True)

    def submit(self, *specs: JobSpec | bytes, **how: Any) -> CreateReply:
        """`request` and `create`."""
        return self.create(self.request(*specs, **how))

    def job(self, id: str) -> JobView:
        """A Job as its user sees it."""
        return self.ask(queries.get_job, self.user, id)

    def states(self, *jobs: JobSpec) -> list[str]:
        """The states of these Jobs."""
        return [self.job(job.id).state for job in jobs]

    def cancel(self, *jobs: JobSpec) -> ActReply:
        """Cancel these Jobs."""
        return self.do(acts.cancel, self.user, _named(jobs))

    def retry(self, *jobs: JobSpec) -> ActReply:
        """Retry these Jobs."""
        return self.do(acts.retry, self.user, _named(jobs))

    def delete(self, *jobs: JobSpec) -> ActReply:
        """Delete these Jobs."""
        return self.do(acts.delete, self.user, _named(jobs))

    # -- sites -------------------------------------------------------------------------------------

    def add_site(self, name: str, apps: Sequence[AppView] = (TRUE, SIGNED)) -> SiteRig:
        """A Site with its agent and Apps."""
        made = self.do(sites.create_site, self.user, NewSite(self.new_id(), name))
        site = SiteRig(self, made.id, name, made.token)
        self.do(sites.publish_apps, site.principal, made.id, PublishApps(list(apps)))
        site.hello()
        return site


class _Holder:
    """Whoever holds a token; its Principal is looked up anew when the store was opened anew."""

    def __init__(self, rig: StoreRig, token: str) -> None:
        self.rig = rig
        self.token = token
        self._found: tuple[int, Principal] | None = None

    def renew(self, token: str) -> None:
        """Use another token from now on."""
        self.token, self._found = token, None

    @property
    def principal(self) -> Principal:
        """Whom the token stands for, in the store as it is now. LookupError when it is unknown."""
        if self._found is None or self._found[0] != self.rig.openings:
            self._found = (self.rig.openings, self.rig.whoami(self.token))
        return self._found[1]


class SiteRig(_Holder):
    """A Site and its agent."""

    def __init__(self, rig: StoreRig, id: str, name: str, token: str) -> None:
        super().__init__(rig, token)
        self.id = id
        self.name = name
        self.agent = rig.new_id()

    def hello(self, previous: str | None = None) -> None:
        """The agent starts."""
        body = AgentHello(self.agent, f"{self.name}.example", previous)
        self.rig.do(sites.hello, self.principal, self.id, body)

    def sync(
        self, *reports: BatchJobReport, known: Sequence[str] = (), sessions: Sequence[str] = ()
    ) -> AgentSyncReply:
        """One sync of the agent."""
        body = AgentSync(self.agent, list(reports), list(known), sessions=list(sessions))
        return self.rig.do(sites.agent_sync, self.principal, self.id, body)

    def add_batch_job(self, by_user: bool = False) -> str:
        """Ask for an allocation; the BatchJob's id."""
        who = self.rig.user if by_user else self.principal
        return self.rig.do(sites.create_batch_job, who, NewBatchJob(self.rig.new_id(), self.id)).id

    def add_pilot(self) -> PilotRig:
        """An allocation with a Session."""
        batch_job = self.add_batch_job()
        self.sync(BatchJobReport(batch_job, "running"), known=[batch_job])
        new = NewSession(self.rig.new_id(), batch_job)
        made = self.rig.do(sites.create_session, self.principal, new)
        return PilotRig(self, made.id, batch_job, made.token)

    def register(self, pilot: PilotRig) -> None:
        """Make a pilot's allocation and Session known anew; it has a new token then."""
        self.rig.do(sites.create_batch_job, self.principal, NewBatchJob(pilot.batch_job, self.id))
        new = NewSession(pilot.id, pilot.batch_job)
        pilot.renew(self.rig.do(sites.create_session, self.principal, new).token)

    def end(self, pilot: PilotRig, state: str = "ended") -> AgentSyncReply:
        """Proof of death: the scheduler says that the allocation is over."""
        return self.sync(BatchJobReport(pilot.batch_job, state))


class PilotRig(_Holder):
    """A pilot that says what it is told to say; it keeps only the numbers."""

    def __init__(self, site: SiteRig, id: str, batch_job: str, token: str) -> None:
        super().__init__(site.rig, token)
        self.site = site
        self.id = id
        self.batch_job = batch_job
        self.request_no = 0
        self.report_no = 0
        self.seen = (0, 0)

    def request(self, **fields: Any) -> SyncRequest:
        """The next request; it says that all before it were answered, unless told otherwise."""
        self.request_no += 1
        given: dict[str, Any] = {
            "session": self.id,
            "request_no": self.request_no,
            "answered": self.request_no - 1,
            "seen": self.seen,
        }
        return SyncRequest(**(given | fields))

    def send(self, request: SyncRequest) -> SyncReply:
        """Send a request, be it for the second time."""
        reply = self.rig.do(sync.sync, self.principal, request)
        self.seen = max(self.seen, (reply.incarnation, reply.commit_no))
        return reply

    def sync(self, **fields: Any) -> SyncReply:
        """`request` and `send`."""
        return self.send(self.request(**fields))

    def report(self, grant: Grant, kind: str, **fields: Any) -> Report:
        """The next report, about a grant."""
        self.report_no += 1
        return Report(
            self.report_no, grant.job, grant.epoch, grant.attempt, kind, self.rig.clock(), **fields
        )

    def start(self, grant: Grant) -> Report:
        """The report of a start."""
        return self.report(grant, "start")

    def end(
        self, grant: Grant, *, exit: int = 0, overtakes: bool = False, **outcome: Any
    ) -> Report:
        """The report of an end; `overtakes` when the start was not reported."""
        fields: dict[str, Any] = {"reason": Reason.EXIT, "exit": exit} | outcome
        return self.report(
            grant,
            "end",
            started_at=self.rig.clock() if overtakes else None,
            outcome=Outcome(**fields),
        )

    def run(self, grant: Grant, **end: Any) -> SyncReply:
        """Start a granted Job and end it, in two syncs."""
        self.sync(held=[held(grant)], reports=[self.start(grant)])
        return self.sync(reports=[self.end(grant, **end)])


def _named(jobs: Sequence[JobSpec]) -> ActOnJobs:
    return ActOnJobs(JobFilter(ids=[job.id for job in jobs]))
