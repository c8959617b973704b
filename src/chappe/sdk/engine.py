"""The one implementation behind both faces: all is async, and speaks of ids and wire types.

`aio` and `sync` put handles around it; nothing is decided there.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

import msgspec

from chappe.core import limits
from chappe.core.ids import is_uuid7
from chappe.core.states import FINAL_PHASES
from chappe.link.clock import now
from chappe.link.http import RETRY, HubClient, RetryPolicy
from chappe.link.keys import SigningKey, default_path, load_or_create
from chappe.sdk import logs, sending, sitekeys
from chappe.sdk.admin import Admin
from chappe.sdk.bus import Bus
from chappe.sdk.config import Settings
from chappe.sdk.drafts import Draft
from chappe.sdk.errors import Ambiguous, Gone, Invalid, NotFound, WaitTimeout
from chappe.sdk.feed import PATIENT, Ended, Feed, Position, not_found
from chappe.sdk.keyring import DIRECTORY, Keyring
from chappe.sdk.messages import Messages
from chappe.sdk.people import People
from chappe.sdk.results import ResultFile
from chappe.sdk.stats import seconds
from chappe.wire.events import Event, EventPage, parse_cursor
from chappe.wire.jobs import CreateReply, JobFilter, JobPage, JobView, QueryJobs, Why
from chappe.wire.logs import LogPage
from chappe.wire.results import AskResults, Results
from chappe.wire.sites import SiteView, Whoami

_IN_FLIGHT = 3
#: A script that submits outlasts a restart of the Hub.
_SUBMIT = RetryPolicy(tries=1_000, budget_s=120.0)
_JOBS_IN_FILTER = 100
_HEX = re.compile(r"[0-9a-f]{4,32}")


class Where(TypedDict, total=False):
    """Which Jobs; all conditions must hold.

    ids: full ids. phase: waiting, runnable, running, finished, failed or cancelled; open: not ended.
    state: one of the finer states. site: name or id. app, name: exact. name_prefix: how the name begins.
    parent: the children of this Job. tags: all of them. held: whether it is held, and has not ended.
    session, batch_job: had now by this Session, or by that of this BatchJob. created_since, created_until,
    ended_since, ended_until: seconds since 1970, or aware datetimes.
    """

    ids: Sequence[str]
    phase: str
    state: str
    site: str
    app: str
    name: str
    name_prefix: str
    parent: str
    tags: Mapping[str, str]
    held: bool
    created_since: float | datetime
    created_until: float | datetime
    ended_since: float | datetime
    ended_until: float | datetime
    session: str
    batch_job: str


class Engine:
    """A connection to one Hub. Made on the event loop that it lives on."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.hub = HubClient(settings.url, settings.token, ca_file=settings.ca_file)
        self.admin = Admin(self.hub)
        self.people = People(self.hub)
        self.messages = Messages(self.hub)
        self.bus = Bus(self.hub)
        self.feed = Feed(self.hub, partial(self._existing, retry=PATIENT))
        self._me: Whoami | None = None
        self._key: SigningKey | None = None
        self._keyring: Keyring | None = None
        self._sites: dict[str, SiteView] = {}

    async def aclose(self) -> None:
        """Close the stream and the connections."""
        await self.feed.aclose()
        await self.hub.aclose()

    # --- who we are

    async def whoami(self) -> Whoami:
        """What the token may do. Asked once. Raises Invalid when it is for another project."""
        if self._me is None:
            me = await self.hub.request("GET", "/v1/whoami", reply=Whoami)
            wanted = self.settings.project
            if wanted is not None and wanted not in (me.project, me.project_name):
                raise Invalid(
                    f"the token belongs to project {me.project_name!r}, not to {wanted!r}: "
                    "correct the one or the other in the client's configuration",
                    field="project",
                )
            self._me = me
        return self._me

    def key(self) -> SigningKey:
        """The user's signing key, made on first use."""
        if self._key is None:
            self._key = load_or_create(self._key_path())
        return self._key

    def keyring(self) -> Keyring:
        """The keys by which this user knows Sites, kept beside the user's own."""
        if self._keyring is None:
            self._keyring = Keyring(self._key_path().parent / DIRECTORY)
        return self._keyring

    def _key_path(self) -> Path:
        given = self.settings.key
        return Path(given) if given else default_path()

    async def site_ids(self, names: Iterable[str]) -> dict[str, str]:
        """Names and ids of Sites, each with its id; read again when one of `names` is not known."""
        if not self._sites.keys() >= set(names):
            views = await self.admin.sites()
            self._sites = {v.id: v for v in views} | {v.name: v for v in views}
        return {name: view.id for name, view in self._sites.items()}

    async def site_names(self) -> dict[str, str]:
        """Each Site's name by its id: what the Hub answers holds ids."""
        return {view.id: view.name for view in await self.admin.sites()}

    # --- submitting

    async def submit(self, drafts: Sequence[Draft]) -> dict[str, Position]:
        """Create the Jobs of `drafts`; sending one twice creates it once.

        Returns, for each Job that did not exist yet, where its Events begin. Raises Invalid naming the
        first bad item. What travels in one request is created all or none.
        """
        created: dict[str, Position] = {}
        if not drafts:
            return created
        groups = sending.plan(drafts)
        names = {
            site for t in {id(d.template): d.template for d in drafts}.values() for site in t.sites
        }
        me = await self.whoami()
        sites = await self.site_ids(names)
        # What a function returns is believed by its Site's key: where that was changed, nothing is sent.
        called = {s for d in drafts if d.template.function is not None for s in d.template.sites}
        sitekeys.check((self._sites[s] for s in called if s in self._sites), self.keyring())
        context = sending.Context(
            project=me.project,
            sites=sites,
            key=self.key(),
            not_after=now() + limits.NOT_AFTER_DEFAULT_S,
        )
        waiting = iter(groups.groups)
        senders = 1 if groups.in_order else min(_IN_FLIGHT, len(groups.groups))
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(senders):
                    tasks.create_task(self._send(waiting, context, created))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return created

    async def _send(
        self,
        waiting: Iterator[list[Draft]],
        context: sending.Context,
        created: dict[str, Position],
    ) -> None:
        """Encode and post one group after the other, so that only a few bodies exist at once."""
        for group in waiting:
            for body in sending.encode(group, context):
                reply = await self.hub.request("POST", "/v1/jobs", body, CreateReply, retry=_SUBMIT)
                begin = parse_cursor(reply.cursor)
                created.update((v.id, begin) for v in reply.verdicts if v.code == "created")

    # --- reading

    async def view(self, job: str) -> JobView:
        """One Job with its spec."""
        return await self.hub.request("GET", f"/v1/jobs/{job}", reply=JobView)

    async def views(self, ids: Sequence[str], retry: RetryPolicy = RETRY) -> list[JobView]:
        """Jobs by their ids. Raises NotFound naming one that does not exist."""
        found = await self._existing(ids, retry)
        missing = set(ids).difference(view.id for view in found)
        if missing:
            raise not_found(missing)
        return found

    async def _existing(self, ids: Sequence[str], retry: RetryPolicy) -> list[JobView]:
        """Those of the Jobs that exist."""
        found: list[JobView] = []
        for start in range(0, len(ids), limits.PAGE_MAX):
            some = list(ids[start : start + limits.PAGE_MAX])
            query = QueryJobs(JobFilter(ids=some), limit=len(some))
            page = await self.hub.request("POST", "/v1/jobs/query", query, JobPage, retry=retry)
            found += page.jobs
        return found

    async def pages(self, where: JobFilter) -> AsyncGenerator[list[JobView]]:
        """The Jobs that match, a page at a time, newest first."""
        cursor: str | None = None
        while True:
            query = QueryJobs(where, limit=limits.PAGE_MAX, cursor=cursor)
            page = await self.hub.request("POST", "/v1/jobs/query", query, JobPage)
            if page.jobs:
                yield page.jobs
            cursor = page.next
            if cursor is None:
                return

    async def find(self, short: str) -> JobView:
        """A Job by its id or by an unambiguous beginning of it (≥ 4 hex digits)."""
        if is_uuid7(short):
            return await self.view(short)
        query = QueryJobs(JobFilter(id_prefix=prefix_of(short)), limit=6)
        page = await self.hub.request("POST", "/v1/jobs/query", query, JobPage)
        if not page.jobs:
            raise NotFound(f"no job's id begins with {short!r}")
        if len(page.jobs) > 1:
            some = "".join(f"\n  {v.id}  {v.name or v.app or 'command'}" for v in page.jobs[:5])
            more = "\n  …" if len(page.jobs) > 5 else ""
            raise Ambiguous(
                f"{short!r} begins several ids, give more of it:{some}{more}", field="id"
            )
        return page.jobs[0]

    async def why(self, job: str) -> Why:
        """What a Job waits for."""
        return await self.hub.request("GET", f"/v1/jobs/{job}/why", reply=Why)

    async def result(self, job: str) -> ResultFile:
        """The bytes of a Job's result. Raises NotFound when it has none."""
        answer = await self.hub.fetch("GET", f"/v1/jobs/{job}/result")
        media = answer.headers.get("content-type", "").partition(";")[0].strip()
        return ResultFile(media, answer.data)

    def log_pages(self, job: str, part: logs.Part, *, follow: bool) -> AsyncGenerator[LogPage]:
        """The pages of a Job's output (see sdk.logs)."""
        return logs.pages(self.hub, lambda id: self.changes([id]), job, part, follow=follow)

    async def results(self, ids: Sequence[str]) -> dict[str, ResultFile]:
        """The results of those of these Jobs that have one, in few requests."""
        found: dict[str, ResultFile] = {}
        waiting = list(ids)
        while waiting:
            some, waiting = waiting[: limits.PAGE_MAX], waiting[limits.PAGE_MAX :]
            asked = AskResults(some)
            page = await self.hub.request("POST", "/v1/jobs/results", asked, Results, retry=PATIENT)
            found.update((r.job, ResultFile(r.media, r.body)) for r in page.results)
            waiting = page.rest + waiting
        return found

    async def job_events(self, job: str) -> list[Event]:
        """All Events of one Job, oldest first."""
        return [e async for e in self._event_pages(f"/v1/jobs/{job}/events", {}, None)]

    async def events(
        self, *, follow: bool, cursor: str | None, filters: Mapping[str, Any]
    ) -> AsyncGenerator[Event]:
        """Events from `cursor` (None: from the start, or from now when following), then new ones."""
        if not follow:
            async for event in self._event_pages("/v1/events", filters, cursor):
                yield event
            return
        stream = self.hub.stream_events(params=dict(filters), last_event_id=cursor)
        async with contextlib.aclosing(stream):
            async for _cursor, event in stream:
                yield event

    async def _event_pages(
        self, path: str, filters: Mapping[str, Any], cursor: str | None
    ) -> AsyncGenerator[Event]:
        while True:
            params = dict(filters) if cursor is None else {**filters, "cursor": cursor}
            page = await self.hub.request("GET", path, reply=EventPage, params=params)
            for event in page.events:
                yield event
            # With a filter a page may be empty though more follows: the cursor stands still at the end.
            if page.cursor == cursor:
                return
            cursor = page.cursor

    async def cursor(self) -> str:
        """The feed's present position."""
        params = {"cursor": "now"}
        return (await self.hub.request("GET", "/v1/events", reply=EventPage, params=params)).cursor

    async def changes(self, ids: Sequence[str]) -> AsyncGenerator[Event]:
        """Each Job's present state (`seq` 0), then its changes of state, until all have ended."""
        while True:
            here = await self.cursor()
            views = await self.views(list(dict.fromkeys(ids)))
            for view in views:
                yield _as_event(view)
            open_ = {view.id for view in views if view.phase not in FINAL_PHASES}
            if not open_:
                return
            filters = {"job": sorted(open_)} if len(open_) <= _JOBS_IN_FILTER else {}
            events = self.events(follow=True, cursor=here, filters=filters)
            try:
                async with contextlib.aclosing(events):
                    async for event in events:
                        if event.subject not in open_:
                            continue
                        yield event
                        if event.phase in FINAL_PHASES:
                            open_.discard(event.subject)
                        if not open_:
                            return
            except Gone:
                continue  # the log was replaced by a backup: a new position, and the states again

    # --- waiting

    async def watch(
        self, jobs: Mapping[str, Position | None], timeout_s: float | None
    ) -> AsyncGenerator[list[Ended]]:
        """Each Job once, as it ends, some at a time. Raises WaitTimeout when `timeout_s` pass first.

        `jobs` says where the Events of a Job begin, None when another client created it.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        left = total = len(jobs)
        ended = self.feed.watch(jobs)
        async with contextlib.aclosing(ended):
            while left:
                try:
                    async with asyncio.timeout_at(deadline):
                        some = await anext(ended)
                except TimeoutError:
                    raise WaitTimeout(
                        f"{left} of {total} jobs had not ended after {timeout_s:g} s; they go on"
                    ) from None
                left -= len(some)
                yield some


def one_of(short: str, ids: Iterable[str], what: str) -> str:
    """The one id that begins with `short`. Raises NotFound or Ambiguous, naming `what`."""
    prefix = prefix_of(short)
    found = [one for one in ids if one.startswith(prefix)]
    if not found:
        raise NotFound(f"no {what}'s id begins with {short!r}")
    if len(found) > 1:
        some = "".join(f"\n  {one}" for one in found[:5])
        raise Ambiguous(f"{short!r} begins several ids, give more of it:{some}", field="id")
    return found[0]


def _as_event(view: JobView) -> Event:
    return Event(
        seq=0,
        kind="job",
        subject=view.id,
        received_at=view.changed_at,
        occurred_at=view.changed_at,
        new=view.state,
        phase=view.phase,
        attempt=view.attempt,
        epoch=view.epoch,
        data={"outcome": msgspec.to_builtins(view.outcome)} if view.outcome else {},
    )


def prefix_of(short: str) -> str:
    """The beginning of an id in canonical form, from one typed with or without hyphens."""
    digits = short.strip().lower().replace("-", "")
    if not _HEX.fullmatch(digits):
        raise Invalid(f"{short[:60]!r} is no job's id, nor ≥ 4 hex digits of one", field="id")
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return "-".join(part for part in parts if part)


def filter_of(**where: Unpack[Where]) -> JobFilter:
    """A JobFilter from the conditions given. Raises Invalid for one that does not exist."""
    unknown = where.keys() - Where.__annotations__.keys()
    if unknown:
        known = ", ".join(Where.__annotations__)
        raise Invalid(
            f"there is no condition {min(unknown)!r} (there are: {known})", field="filter"
        )
    plain = {
        name: seconds(name, value) if isinstance(value, datetime) else value
        for name, value in where.items()
    }
    try:
        return msgspec.convert(plain, JobFilter)
    except msgspec.ValidationError as e:
        raise Invalid(f"a condition has the wrong type: {e}", field="filter") from None
