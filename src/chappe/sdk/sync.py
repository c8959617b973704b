"""The synchronous face: `Client`, its Apps and its Jobs, for scripts and notebooks.

Each method runs its asynchronous counterpart on the client's background loop; several threads may use
one client.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from chappe.link.results import VALUE
from chappe.sdk import acts, config, drafts, sitekeys, values
from chappe.sdk import simulations as sims
from chappe.sdk import stats as figures
from chappe.sdk.drafts import Draft, Options
from chappe.sdk.engine import Engine, Where, filter_of
from chappe.sdk.errors import Invalid, error_of
from chappe.sdk.feed import Position
from chappe.sdk.functions import as_app
from chappe.sdk.handles import AppHandle, JobHandle
from chappe.sdk.logs import Part, Text
from chappe.sdk.loop import Loop
from chappe.sdk.progress import Progress
from chappe.sdk.results import ResultFile
from chappe.sdk.selections import Changes, Selection, change_of
from chappe.sdk.sitekeys import SiteKey
from chappe.sdk.sync_admin import SyncAdmin
from chappe.sdk.sync_bus import SyncBus
from chappe.sdk.sync_messages import SyncMessages
from chappe.sdk.sync_people import SyncPeople
from chappe.wire.bulk import JobCount
from chappe.wire.events import Event
from chappe.wire.jobs import JobView, Why
from chappe.wire.logs import LogPage
from chappe.wire.simulations import SimulationView
from chappe.wire.sites import AppView, SiteView

T = TypeVar("T")


class Job(JobHandle):
    """A Job that was submitted. Its methods speak with the Hub; its attributes say what was last heard."""

    __slots__ = ("_client",)

    def __init__(
        self,
        client: Client,
        id: str,
        name: str = "",
        since: Position | None = None,
        function: bool = False,
    ) -> None:
        super().__init__(id, name, since, function)
        self._client = client

    def refresh(self) -> JobView:
        """Read the Job, and return all that the Hub shows of it."""
        view = self._client._run(self._client._engine.view(self.id))
        self._learn(view)
        return view

    def wait(self, timeout_s: float | None = None) -> Self:
        """Return once it has ended, in whatever way. Raises WaitTimeout after `timeout_s`."""
        for _job in self._client.as_completed([self], timeout_s):
            pass
        return self

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait, then return the result as a Python value (see ResultFile.decode), None without one; of a
        function what it returned.

        Raises JobFailed, with the tail of stderr, or JobCancelled; of a function what it raised.
        """
        if not self.done:
            self.wait(timeout_s)
        if not self.ok and not self.function:
            self.refresh()  # a list does not say whether it is a function's
        if not self.ok and not self._has_result:
            raise error_of(self.refresh())
        found = self._file()
        if found is None or not (self.function or found.media == VALUE):
            return None if found is None else found.decode()
        return values.load(found, self.id, self._client._engine.keyring())

    def result_file(self, timeout_s: float | None = None) -> ResultFile | None:
        """Wait, then return the result as it is, None without one. Raises as `result` does."""
        if not self.done:
            self.wait(timeout_s)
        if not self.ok:
            raise error_of(self.refresh())
        found = self._file()
        if found is None or not (self.function or found.media == VALUE):
            return found
        return values.unsealed(found, self.id, self._client._engine.keyring())

    def _file(self) -> ResultFile | None:
        """The result as the Hub has it."""
        if not self._has_result:
            return None
        return self._client._run(self._client._engine.result(self.id))

    def cancel(self) -> str:
        """Cancel it: `cancelled` at once, `cancelling` while its pilot ends it, `finished` too late."""
        return self._client._run(acts.one(self._client._engine, "cancel", self.id))

    def retry(self) -> None:
        """Run a failed or cancelled Job again, signed anew where its signature allows no more.

        Raises Conflict when it has not ended, or has succeeded.
        """
        self._client._run(acts.one(self._client._engine, "retry", self.id))
        self.refresh()

    def delete(self) -> None:
        """Remove a Job that has ended. Raises Conflict when it has not."""
        self._client._run(acts.one(self._client._engine, "delete", self.id))

    def hold(self) -> str:
        """Grant it to nobody until it is released: `held`, or `holding` while a pilot has it."""
        return self._client._run(acts.one(self._client._engine, "hold", self.id))

    def release(self) -> None:
        """Let it be granted again. Harmless when it is not held."""
        self._client._run(acts.one(self._client._engine, "release", self.id))

    def update(self, **changes: Unpack[Changes]) -> None:
        """Change its priority, tags or data (see Changes), also after its end."""
        self._client._run(acts.one(self._client._engine, "update", self.id, change_of(**changes)))

    def events(self) -> list[Event]:
        """All Events of the Job, oldest first."""
        return self._client._run(self._client._engine.job_events(self.id))

    def why(self) -> Why:
        """Exactly what it waits for."""
        return self._client._run(self._client._engine.why(self.id))

    def logs(
        self,
        *,
        stderr: bool = False,
        tail: int | None = None,
        start: int | None = None,
        attempt: int | None = None,
    ) -> str:
        """Its output so far, read from the file at the Site.

        `tail`: the last so many lines (200); `start`: from this byte on instead. `stderr`: the other
        output, where the App keeps it apart. `attempt`: not the last one.
        """
        text = Text()
        pages = self.log_pages(stderr=stderr, tail=tail, start=start, attempt=attempt)
        return "".join(text.of(page) for page in pages)

    def follow(
        self, *, stderr: bool = False, tail: int | None = None, attempt: int | None = None
    ) -> Generator[str]:
        """Its output as it is written, in pieces, until it has ended; waits for its start, and goes on
        with its next attempts unless one is named. Begins with the last `tail` lines (200)."""
        text = Text()
        for page in self.log_pages(stderr=stderr, tail=tail, attempt=attempt, follow=True):
            yield text.of(page)

    def log_pages(
        self,
        *,
        stderr: bool = False,
        tail: int | None = None,
        start: int | None = None,
        attempt: int | None = None,
        follow: bool = False,
    ) -> Generator[LogPage]:
        """The same as bytes with their offsets, for programs that resume where they left off."""
        part = Part(stderr, tail, start, attempt)
        engine = self._client._engine
        return self._client._loop.iterate(lambda: engine.log_pages(self.id, part, follow=follow))


class App(AppHandle):
    """An App at one Site or several; see AppHandle for `options` and drafting."""

    def __init__(self, client: Client, template: drafts.Template) -> None:
        super().__init__(template)
        self._client = client

    def submit(self, parameters: Mapping[str, Any] | None = None, /, **named: Any) -> Job:
        """Run one Job. Keywords (or one mapping) are the App's parameters."""
        return self._client.submit(self(parameters, **named))

    def map(
        self, parameters: Iterable[Mapping[str, Any]], *, names: Iterable[str] | None = None
    ) -> list[Job]:
        """Run one Job for each set of parameters, in few requests; `names` names them in turn."""
        return self._client.submit(drafts.many(self._template, parameters, names))


class Client:
    """A connection to a Hub: `client = chappe.Client()`, or `with chappe.Client() as client: …`.

    Without arguments it is configured by `$CHAPPE_CONFIG` or `~/.config/chappe/client.json`. `url` and
    `token` name another Hub; `ca_file` the certificate to trust; `key` the file of the signing key.
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        token: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        project: str | None = None,
        key: str | os.PathLike[str] | None = None,
        config_file: str | os.PathLike[str] | None = None,
    ) -> None:
        settings = config.load(
            url=url, token=token, ca_file=ca_file, project=project, key=key, config=config_file
        )
        self._loop = Loop()
        # Also when a client is simply dropped, or the interpreter ends.
        self._finalizer = weakref.finalize(self, self._loop.close)
        self._engine = self._run(_make(settings))
        self._loop.at_close = self._engine.aclose

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and the background thread. Jobs go on. Idempotent."""
        self._finalizer()

    @property
    def settings(self) -> config.Settings:
        """Where the Hub is and who the user is, as this client found it."""
        return self._engine.settings

    def public_key(self) -> str:
        """The public half of the user's signing key (made on first use), as `trusted_keys` has it."""
        return self._engine.key().public_b64

    def know_site(self, site: str, key: str) -> None:
        """Know a Site (its id) by this public key, as `chappe site key` shows it, and by no other.

        Without it the key is the one that the Hub tells when a function is first sent there. Raises
        SiteKeyChanged.
        """
        self._engine.keyring().key_of(site, key)

    def site_keys(self) -> list[SiteKey]:
        """By which key each Site is known here, and which one the Hub tells."""
        return sitekeys.listed(self.sites(), self._engine.keyring())

    def accept_site_key(self, site: str, fingerprint: str) -> SiteKey:
        """Know a Site (name or id) by its present key, whose fingerprint its owner reads with `chappe site
        key`. Raises Invalid, and changes nothing, when the Hub tells another."""
        return sitekeys.accept(self.sites(), site, fingerprint, self._engine.keyring())

    @property
    def people(self) -> SyncPeople:
        """Users, projects, members and the audit."""
        return SyncPeople(self._loop, self._engine.people)

    @property
    def messages(self) -> SyncMessages:
        """Messages of simulations, and who may send them."""
        return SyncMessages(self._loop, self._engine.messages)

    @property
    def bus(self) -> SyncBus:
        """The hub's queues and their dead letters."""
        return SyncBus(self._loop, self._engine.bus)

    @property
    def admin(self) -> SyncAdmin:
        """Sites, allocations, Sessions and tokens."""
        return SyncAdmin(self._loop, self._engine.admin)

    def app(
        self,
        name: str,
        *,
        site: str | None = None,
        sites: Sequence[str] = (),
        version: str | None = None,
    ) -> App:
        """An App at a Site, or at whichever of several has room first. Sends nothing."""
        where = drafts.one_or_more(site, sites)
        return App(self, drafts.template(where, app=name, version=version))

    @overload
    def submit(self, jobs: Draft, /) -> Job: ...
    @overload
    def submit(self, jobs: Iterable[Draft], /) -> list[Job]: ...
    @overload
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job: ...
    def submit(
        self, jobs: Draft | Iterable[Draft] | Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Job | list[Job]:
        """Submit drafts, signed, or one call of a function that `chappe.app` made an App.

        A graph of up to 10 000 Jobs is created all or none. Independent Jobs travel 1 000 a request;
        after an error, submitting the same drafts again creates what is missing and nothing twice.
        """
        if callable(jobs):
            jobs = as_app(jobs)(*args, **kwargs)
        if isinstance(jobs, Draft):
            return self.submit([jobs])[0]
        some = list(jobs)
        created = self._run(self._engine.submit(some))
        return [
            Job(self, d.id, d.name, created.get(d.id), d.template.function is not None)
            for d in some
        ]

    def map(
        self,
        function: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        names: Iterable[str] | None = None,
    ) -> list[Job]:
        """Call a function once for each item (or each tuple of items) at its Site: one request for up to
        10 000. `names` names the Jobs in turn."""
        no_keywords: dict[str, Any] = {}
        calls = ((args, no_keywords) for args in zip(*iterables, strict=False))
        return self.submit(as_app(function).drafts(calls, names))

    @overload
    def run(
        self, site: str | Sequence[str], argv: Sequence[str], **options: Unpack[Options]
    ) -> Job: ...
    @overload
    def run(
        self,
        site: str | Sequence[str],
        argv: Sequence[str],
        *,
        array: str | Iterable[int],
        dialect: str = "",
        **options: Unpack[Options],
    ) -> list[Job]: ...
    def run(
        self,
        site: str | Sequence[str],
        argv: Sequence[str],
        *,
        array: str | Iterable[int] | None = None,
        dialect: str = "",
        **options: Unpack[Options],
    ) -> Job | list[Job]:
        """Run one command (a list of arguments; no shell) at a Site that trusts your key.

        With `array` ("1-100", "1-100%20", or numbers) once for each index (see Draft.array).
        """
        draft = Draft(drafts.template(site, command=argv).with_options(options), {})
        return self.submit(draft if array is None else draft.array(array, dialect))

    def job(self, id: str) -> Job:
        """A Job by its id or an unambiguous beginning of it. Raises NotFound or Ambiguous."""
        return self._handle(self._run(self._engine.find(id)))

    def jobs(self, **where: Unpack[Where]) -> Iterator[Job]:
        """The Jobs that match all conditions (see Where), newest first; all without any."""
        return (self._handle(view) for view in self.views(**where))

    def views(self, **where: Unpack[Where]) -> Iterator[JobView]:
        """As `jobs`, with all that the Hub shows in lists: times, tags, outcome."""
        condition = filter_of(**where)
        for page in self._loop.iterate(lambda: self._engine.pages(condition)):
            yield from page

    def as_completed(self, jobs: Iterable[Job], timeout_s: float | None = None) -> Iterator[Job]:
        """Each Job once, as it ends. Raises WaitTimeout after `timeout_s`."""
        by_id = {job.id: job for job in jobs}
        since = {job.id: job._since for job in by_id.values()}
        for some in self._loop.iterate(lambda: self._engine.watch(since, timeout_s)):
            for ended in some:
                job = by_id[ended.id]
                job._learn(ended)
                yield job

    def wait_all(
        self, jobs: Iterable[Job], timeout_s: float | None = None, *, progress: bool = False
    ) -> list[Job]:
        """Return the Jobs once all have ended, in whatever way; look at their `ok`.

        `progress` draws a bar: on stderr where that is a terminal, or in a notebook.
        """
        some = list(jobs)
        with Progress(len(set(some)), shown=progress) as bar:
            self._run(self._learn_ends({job.id: job for job in some}, timeout_s, bar))
        return some

    async def _learn_ends(
        self, jobs: dict[str, Job], timeout_s: float | None, bar: Progress
    ) -> None:
        """All of a wait on the client's loop: handing ends over to another thread costs more."""
        since = {job.id: job._since for job in jobs.values()}
        async with contextlib.aclosing(self._engine.watch(since, timeout_s)) as ends:
            async for some in ends:
                for ended in some:
                    jobs[ended.id]._learn(ended)
                    bar.ended(ended.phase)

    def cancel(self, **where: Unpack[Where]) -> dict[str, int]:
        """Cancel all Jobs that match (at least one condition); returns how many of each verdict."""
        return self._run(acts.many(self._engine, "cancel", filter_of(**where)))

    def delete(self, **where: Unpack[Where]) -> dict[str, int]:
        """Delete those of the matching Jobs that have ended; returns how many of each verdict."""
        return self._run(acts.many(self._engine, "delete", filter_of(**where)))

    def retry(self, **where: Unpack[Where]) -> dict[str, int]:
        """Run matching Jobs again that failed or were cancelled; returns how many of each verdict."""
        return self._run(acts.many(self._engine, "retry", filter_of(**where)))

    def hold(self, **where: Unpack[Where]) -> dict[str, int]:
        """Grant none of the matching Jobs until they are released; returns how many of each verdict."""
        return self._run(acts.many(self._engine, "hold", filter_of(**where)))

    def release(self, **where: Unpack[Where]) -> dict[str, int]:
        """Let matching Jobs that are held be granted again; returns how many of each verdict."""
        return self._run(acts.many(self._engine, "release", filter_of(**where)))

    def select(self, **where: Unpack[Where]) -> Selection:
        """Freeze the Jobs that match now (all without a condition): look at its `count`, then act on it."""
        view = self._run(acts.select(self._engine, filter_of(**where)))
        return Selection(self._loop, self._engine, view)

    def events(
        self,
        *,
        follow: bool = False,
        cursor: str | None = None,
        kinds: Sequence[str] = (),
        jobs: Sequence[drafts.HasId | str] = (),
        final: bool = False,
        tags: Mapping[str, str] | None = None,
    ) -> Generator[Event]:
        """The EventLog from its start, or from `cursor`; with `follow`, what is new, until closed.

        `kinds`: job, job.deleted, job.held, job.released, job.updated, session, batch_job, site,
        simulation. `jobs`: at most 100. `final`: only ends of Jobs. `tags`: only of Jobs that have all of
        them.
        """
        filters = drafts.event_filters(kinds, jobs, final, tags)
        return self._loop.iterate(
            lambda: self._engine.events(follow=follow, cursor=cursor, filters=filters)
        )

    def cursor(self) -> str:
        """The feed's present position: `events` from there tell all that happens from now on."""
        return self._run(self._engine.cursor())

    def changes(self, jobs: Iterable[drafts.HasId | str]) -> Generator[Event]:
        """Each Job's present state (as an Event of `seq` 0), then its changes, until all have ended."""
        ids = drafts.ids_of(jobs)
        return self._loop.iterate(lambda: self._engine.changes(ids))

    def sites(self) -> list[SiteView]:
        """The Sites, with whether their agents are heard."""
        return self.admin.sites()

    def site_names(self) -> dict[str, str]:
        """Each Site's name by its id: Jobs, Apps and counts name Sites by their ids."""
        return self._run(self._engine.site_names())

    def apps(self, site: str | None = None) -> list[AppView]:
        """The Apps that Sites offer, with their parameters."""
        return self.admin.apps(site)

    def count(self, **where: Unpack[Where]) -> JobCount:
        """How many Jobs match: exact by site, app, state and phase; with other conditions to 10 000."""
        return self._run(self._engine.admin.count(filter_of(**where)))

    def stats(
        self,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        by: Sequence[str] = ("site", "app"),
    ) -> figures.JobStats:
        """Throughput, utilisation, waiting and run times of the Jobs that ended in a period.

        By default in the last 24 hours. `by`: site, app, both, or neither; utilisation without app.
        """
        found = self._run(figures.fetch(self._engine.hub, since, until, by))
        return figures.JobStats(found, self.site_names())

    def simulation(self, uid: str, producer: str | None = None) -> sims.Simulation:
        """A simulation, by its simuid or a beginning of it. Raises NotFound or Ambiguous."""
        found = self._run(sims.find(self._engine, uid, producer))
        return sims.Simulation(self._loop, sims.AsyncSimulation(self._engine, *found))

    def simulations(
        self, limit: int | None = None, **where: Unpack[sims.WhereSimulation]
    ) -> Generator[SimulationView]:
        """Simulations that match, the last heard of for the first time first; active tries, unless `all`."""
        return self._loop.iterate(lambda: sims.views(self._engine, limit, **where))

    def counts(self) -> list[tuple[str, str, str, int]]:
        """How many Jobs are in each (site, app, state); site "" while none is chosen."""
        return self.admin.counts()

    def _handle(self, view: JobView) -> Job:
        job = Job(self, view.id)
        job._learn(view)
        return job

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(work)


def as_completed(jobs: Iterable[Job], timeout_s: float | None = None) -> Iterator[Job]:
    """Each Job once, as it ends: `for job in chappe.as_completed(jobs): …`. See Client.as_completed."""
    some = list(jobs)
    return _client_of(some).as_completed(some, timeout_s) if some else iter(())


def wait_all(
    jobs: Iterable[Job], timeout_s: float | None = None, *, progress: bool = False
) -> list[Job]:
    """Return the Jobs once all have ended, in whatever way. See Client.wait_all."""
    some = list(jobs)
    return _client_of(some).wait_all(some, timeout_s, progress=progress) if some else []


def _client_of(jobs: Sequence[Job]) -> Client:
    clients = {id(job._client): job._client for job in jobs}
    if len(clients) > 1:
        raise Invalid("these jobs belong to different clients: wait for each client's jobs apart")
    return jobs[0]._client


async def _make(settings: config.Settings) -> Engine:
    """The engine belongs to the loop that it is made on."""
    return Engine(settings)
