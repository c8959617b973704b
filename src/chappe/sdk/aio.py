"""The asynchronous face: `AsyncClient`, its Apps and its Jobs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, Unpack, overload

from chappe.link.results import VALUE
from chappe.sdk import acts, config, drafts, values
from chappe.sdk import simulations as sims
from chappe.sdk import stats as figures
from chappe.sdk.admin import Admin
from chappe.sdk.bus import Bus
from chappe.sdk.drafts import Draft, Options
from chappe.sdk.engine import Engine, Where, filter_of
from chappe.sdk.errors import error_of
from chappe.sdk.feed import Position
from chappe.sdk.functions import as_app
from chappe.sdk.handles import AppHandle, JobHandle
from chappe.sdk.logs import Part, Text
from chappe.sdk.messages import Messages
from chappe.sdk.people import People
from chappe.sdk.progress import Progress
from chappe.sdk.results import ResultFile
from chappe.sdk.selections import AsyncSelection, Changes, change_of
from chappe.wire.bulk import JobCount
from chappe.wire.events import Event
from chappe.wire.jobs import JobView, Why
from chappe.wire.logs import LogPage
from chappe.wire.simulations import SimulationView
from chappe.wire.sites import AppView, SiteView


class AsyncJob(JobHandle):
    """A Job that was submitted. Its methods speak with the Hub; its attributes say what was last heard."""

    __slots__ = ("_engine",)

    def __init__(
        self,
        engine: Engine,
        id: str,
        name: str = "",
        since: Position | None = None,
        function: bool = False,
    ) -> None:
        super().__init__(id, name, since, function)
        self._engine = engine

    async def refresh(self) -> JobView:
        """Read the Job, and return all that the Hub shows of it."""
        view = await self._engine.view(self.id)
        self._learn(view)
        return view

    async def wait(self, timeout_s: float | None = None) -> Self:
        """Return once it has ended, in whatever way. Raises WaitTimeout after `timeout_s`."""
        async for (ended,) in self._engine.watch({self.id: self._since}, timeout_s):
            self._learn(ended)
        return self

    async def result(self, timeout_s: float | None = None) -> Any:
        """Wait, then return the result as a Python value (see ResultFile.decode), None without one; of a
        function what it returned.

        Raises JobFailed, with the tail of stderr, or JobCancelled; of a function what it raised.
        """
        if not self.done:
            await self.wait(timeout_s)
        if not self.ok and not self.function:
            await self.refresh()  # a list does not say whether it is a function's
        if not self.ok and not self._has_result:
            raise error_of(await self.refresh())
        found = await self._file()
        if found is None or not (self.function or found.media == VALUE):
            return None if found is None else found.decode()
        return values.load(found, self.id, self._engine.keyring())

    async def result_file(self, timeout_s: float | None = None) -> ResultFile | None:
        """Wait, then return the result as it is, None without one. Raises as `result` does."""
        if not self.done:
            await self.wait(timeout_s)
        if not self.ok:
            raise error_of(await self.refresh())
        found = await self._file()
        if found is None or not (self.function or found.media == VALUE):
            return found
        return values.unsealed(found, self.id, self._engine.keyring())

    async def _file(self) -> ResultFile | None:
        """The result as the Hub has it."""
        return await self._engine.result(self.id) if self._has_result else None

    async def cancel(self) -> str:
        """Cancel it: `cancelled` at once, `cancelling` while its pilot ends it, `finished` too late."""
        return await acts.one(self._engine, "cancel", self.id)

    async def retry(self) -> None:
        """Run a failed or cancelled Job again, signed anew where its signature allows no more.

        Raises Conflict when it has not ended, or has succeeded.
        """
        await acts.one(self._engine, "retry", self.id)
        await self.refresh()

    async def delete(self) -> None:
        """Remove a Job that has ended. Raises Conflict when it has not."""
        await acts.one(self._engine, "delete", self.id)

    async def hold(self) -> str:
        """Grant it to nobody until it is released: `held`, or `holding` while a pilot has it."""
        return await acts.one(self._engine, "hold", self.id)

    async def release(self) -> None:
        """Let it be granted again. Harmless when it is not held."""
        await acts.one(self._engine, "release", self.id)

    async def update(self, **changes: Unpack[Changes]) -> None:
        """Change its priority, tags or data (see Changes), also after its end."""
        await acts.one(self._engine, "update", self.id, change_of(**changes))

    async def events(self) -> list[Event]:
        """All Events of the Job, oldest first."""
        return await self._engine.job_events(self.id)

    async def why(self) -> Why:
        """Exactly what it waits for."""
        return await self._engine.why(self.id)

    async def logs(
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
        part = Part(stderr, tail, start, attempt)
        pages = self._engine.log_pages(self.id, part, follow=False)
        return "".join([text.of(page) async for page in pages])

    async def follow(
        self, *, stderr: bool = False, tail: int | None = None, attempt: int | None = None
    ) -> AsyncGenerator[str]:
        """Its output as it is written, in pieces, until it has ended; waits for its start, and goes on
        with its next attempts unless one is named. Begins with the last `tail` lines (200)."""
        text = Text()
        pages = self.log_pages(stderr=stderr, tail=tail, attempt=attempt, follow=True)
        async with contextlib.aclosing(pages):
            async for page in pages:
                yield text.of(page)

    def log_pages(
        self,
        *,
        stderr: bool = False,
        tail: int | None = None,
        start: int | None = None,
        attempt: int | None = None,
        follow: bool = False,
    ) -> AsyncGenerator[LogPage]:
        """The same as bytes with their offsets, for programs that resume where they left off."""
        part = Part(stderr, tail, start, attempt)
        return self._engine.log_pages(self.id, part, follow=follow)


class AsyncApp(AppHandle):
    """An App whose Jobs are submitted by coroutines; see AppHandle for `options` and drafting."""

    def __init__(self, client: AsyncClient, template: drafts.Template) -> None:
        super().__init__(template)
        self._client = client

    async def submit(
        self, parameters: Mapping[str, Any] | None = None, /, **named: Any
    ) -> AsyncJob:
        """Run one Job. Keywords (or one mapping) are the App's parameters."""
        return await self._client.submit(self(parameters, **named))

    async def map(
        self, parameters: Iterable[Mapping[str, Any]], *, names: Iterable[str] | None = None
    ) -> list[AsyncJob]:
        """Run one Job for each set of parameters, in few requests; `names` names them in turn."""
        return await self._client.submit(drafts.many(self._template, parameters, names))


class AsyncClient:
    """A connection to a Hub, for asyncio: `async with chappe.AsyncClient() as client: …`.

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
        self._engine = Engine(settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. Jobs go on."""
        await self._engine.aclose()

    @property
    def settings(self) -> config.Settings:
        """Where the Hub is and who the user is, as this client found it."""
        return self._engine.settings

    def public_key(self) -> str:
        """The public half of the user's signing key (made on first use), as `trusted_keys` has it."""
        return self._engine.key().public_b64

    @property
    def people(self) -> People:
        """Users, projects, members and the audit."""
        return self._engine.people

    @property
    def messages(self) -> Messages:
        """Messages of simulations, and who may send them."""
        return self._engine.messages

    @property
    def bus(self) -> Bus:
        """The hub's queues and their dead letters."""
        return self._engine.bus

    @property
    def admin(self) -> Admin:
        """Sites, allocations, Sessions and tokens."""
        return self._engine.admin

    def app(
        self,
        name: str,
        *,
        site: str | None = None,
        sites: Sequence[str] = (),
        version: str | None = None,
    ) -> AsyncApp:
        """An App at a Site, or at whichever of several has room first. Sends nothing."""
        where = drafts.one_or_more(site, sites)
        return AsyncApp(self, drafts.template(where, app=name, version=version))

    @overload
    async def submit(self, jobs: Draft, /) -> AsyncJob: ...
    @overload
    async def submit(self, jobs: Iterable[Draft], /) -> list[AsyncJob]: ...
    @overload
    async def submit(
        self, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> AsyncJob: ...
    async def submit(
        self, jobs: Draft | Iterable[Draft] | Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> AsyncJob | list[AsyncJob]:
        """Submit drafts, signed, or one call of a function that `chappe.app` made an App.

        A graph of up to 10 000 Jobs is created all or none. Independent Jobs travel 1 000 a request;
        after an error, submitting the same drafts again creates what is missing and nothing twice.
        """
        if callable(jobs):
            jobs = as_app(jobs)(*args, **kwargs)
        if isinstance(jobs, Draft):
            return (await self.submit([jobs]))[0]
        some = list(jobs)
        created = await self._engine.submit(some)
        return [
            AsyncJob(self._engine, d.id, d.name, created.get(d.id), d.template.function is not None)
            for d in some
        ]

    async def map(
        self,
        function: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        names: Iterable[str] | None = None,
    ) -> list[AsyncJob]:
        """Call a function once for each item (or each tuple of items) at its Site: one request for up to
        10 000. `names` names the Jobs in turn."""
        no_keywords: dict[str, Any] = {}
        calls = ((args, no_keywords) for args in zip(*iterables, strict=False))
        return await self.submit(as_app(function).drafts(calls, names))

    @overload
    async def run(
        self, site: str | Sequence[str], argv: Sequence[str], **options: Unpack[Options]
    ) -> AsyncJob: ...
    @overload
    async def run(
        self,
        site: str | Sequence[str],
        argv: Sequence[str],
        *,
        array: str | Iterable[int],
        dialect: str = "",
        **options: Unpack[Options],
    ) -> list[AsyncJob]: ...
    async def run(
        self,
        site: str | Sequence[str],
        argv: Sequence[str],
        *,
        array: str | Iterable[int] | None = None,
        dialect: str = "",
        **options: Unpack[Options],
    ) -> AsyncJob | list[AsyncJob]:
        """Run one command (a list of arguments; no shell) at a Site that trusts your key.

        With `array` ("1-100", "1-100%20", or numbers) once for each index (see Draft.array).
        """
        draft = Draft(drafts.template(site, command=argv).with_options(options), {})
        return await self.submit(draft if array is None else draft.array(array, dialect))

    async def job(self, id: str) -> AsyncJob:
        """A Job by its id or an unambiguous beginning of it. Raises NotFound or Ambiguous."""
        view = await self._engine.find(id)
        return self._handle(view)

    async def jobs(self, **where: Unpack[Where]) -> AsyncIterator[AsyncJob]:
        """The Jobs that match all conditions (see Where), newest first; all without any."""
        async for page in self._engine.pages(filter_of(**where)):
            for view in page:
                yield self._handle(view)

    async def as_completed(
        self, jobs: Iterable[AsyncJob], timeout_s: float | None = None
    ) -> AsyncIterator[AsyncJob]:
        """Each Job once, as it ends. Raises WaitTimeout after `timeout_s`."""
        by_id = {job.id: job for job in jobs}
        since = {job.id: job._since for job in by_id.values()}
        async for some in self._engine.watch(since, timeout_s):
            for ended in some:
                job = by_id[ended.id]
                job._learn(ended)
                yield job

    async def wait_all(
        self, jobs: Iterable[AsyncJob], timeout_s: float | None = None, *, progress: bool = False
    ) -> list[AsyncJob]:
        """Return the Jobs once all have ended, in whatever way; look at their `ok`.

        `progress` draws a bar: on stderr where that is a terminal, or in a notebook.
        """
        some = list(jobs)
        with Progress(len(set(some)), shown=progress) as bar:
            async for job in self.as_completed(some, timeout_s):
                bar.ended(job.phase)
        return some

    async def cancel(self, **where: Unpack[Where]) -> dict[str, int]:
        """Cancel all Jobs that match (at least one condition); returns how many of each verdict."""
        return await acts.many(self._engine, "cancel", filter_of(**where))

    async def delete(self, **where: Unpack[Where]) -> dict[str, int]:
        """Delete those of the matching Jobs that have ended; returns how many of each verdict."""
        return await acts.many(self._engine, "delete", filter_of(**where))

    async def retry(self, **where: Unpack[Where]) -> dict[str, int]:
        """Run matching Jobs again that failed or were cancelled; returns how many of each verdict."""
        return await acts.many(self._engine, "retry", filter_of(**where))

    async def hold(self, **where: Unpack[Where]) -> dict[str, int]:
        """Grant none of the matching Jobs until they are released; returns how many of each verdict."""
        return await acts.many(self._engine, "hold", filter_of(**where))

    async def release(self, **where: Unpack[Where]) -> dict[str, int]:
        """Let matching Jobs that are held be granted again; returns how many of each verdict."""
        return await acts.many(self._engine, "release", filter_of(**where))

    async def select(self, **where: Unpack[Where]) -> AsyncSelection:
        """Freeze the Jobs that match now (all without a condition): look at its `count`, then act on it."""
        view = await acts.select(self._engine, filter_of(**where))
        return AsyncSelection(self._engine, view)

    def events(
        self,
        *,
        follow: bool = False,
        cursor: str | None = None,
        kinds: Sequence[str] = (),
        jobs: Sequence[drafts.HasId | str] = (),
        final: bool = False,
        tags: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[Event]:
        """The EventLog from its start, or from `cursor`; with `follow`, what is new, until closed.

        `kinds`: job, job.deleted, job.held, job.released, job.updated, session, batch_job, site,
        simulation. `jobs`: at most 100. `final`: only ends of Jobs. `tags`: only of Jobs that have all of
        them.
        """
        return self._engine.events(
            follow=follow, cursor=cursor, filters=drafts.event_filters(kinds, jobs, final, tags)
        )

    async def cursor(self) -> str:
        """The feed's present position: `events` from there tell all that happens from now on."""
        return await self._engine.cursor()

    def changes(self, jobs: Iterable[drafts.HasId | str]) -> AsyncGenerator[Event]:
        """Each Job's present state (as an Event of `seq` 0), then its changes, until all have ended."""
        return self._engine.changes(drafts.ids_of(jobs))

    async def sites(self) -> list[SiteView]:
        """The Sites, with whether their agents are heard."""
        return await self.admin.sites()

    async def site_names(self) -> dict[str, str]:
        """Each Site's name by its id: Jobs, Apps and counts name Sites by their ids."""
        return await self._engine.site_names()

    async def apps(self, site: str | None = None) -> list[AppView]:
        """The Apps that Sites offer, with their parameters."""
        return await self.admin.apps(site)

    async def count(self, **where: Unpack[Where]) -> JobCount:
        """How many Jobs match: exact by site, app, state and phase; with other conditions to 10 000."""
        return await self._engine.admin.count(filter_of(**where))

    async def stats(
        self,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        by: Sequence[str] = ("site", "app"),
    ) -> figures.JobStats:
        """Throughput, utilisation, waiting and run times of the Jobs that ended in a period.

        By default in the last 24 hours. `by`: site, app, both, or neither; utilisation without app.
        """
        found = await figures.fetch(self._engine.hub, since, until, by)
        return figures.JobStats(found, await self.site_names())

    async def simulation(self, uid: str, producer: str | None = None) -> sims.AsyncSimulation:
        """A simulation, by its simuid or a beginning of it. Raises NotFound or Ambiguous."""
        return sims.AsyncSimulation(self._engine, *await sims.find(self._engine, uid, producer))

    def simulations(
        self, limit: int | None = None, **where: Unpack[sims.WhereSimulation]
    ) -> AsyncGenerator[SimulationView]:
        """Simulations that match, the last heard of for the first time first; active tries, unless `all`."""
        return sims.views(self._engine, limit, **where)

    async def counts(self) -> list[tuple[str, str, str, int]]:
        """How many Jobs are in each (site, app, state); site "" while none is chosen."""
        return await self.admin.counts()

    def _handle(self, view: JobView) -> AsyncJob:
        job = AsyncJob(self._engine, view.id)
        job._learn(view)
        return job
