"""What the front ends ask of the Hub: submit, find by number, list, cancel, wait.

Nothing is kept at the user's side: a number is a part of its Job's id (core.ids.number_of).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence

from chappe.core import limits
from chappe.link.clock import now
from chappe.sdk import acts, config
from chappe.sdk.batch.making import TAG, USER, VALUE, make, numbered_id
from chappe.sdk.batch.request import Named, Request, named
from chappe.sdk.batch.seen import Seen, chosen, see
from chappe.sdk.batch.squeue import Asked
from chappe.sdk.drafts import Draft
from chappe.sdk.engine import Engine
from chappe.sdk.errors import ChappeError, Invalid, NotFound, TooLarge
from chappe.wire.jobs import JobFilter, JobView

#: How many Jobs are looked up at once, and how many a command may name.
_AT_ONCE = 8
NAMES_MOST = 1_000
#: How long ended Jobs are listed (by their numbers they are found as long as the Hub keeps them).
_ENDED_S = 86_400.0
#: Jobs, at most, in a list. Of more none are shown, for some would pass for all: programs take
#: a Job that is not listed for one that has ended.
LISTED_MOST = 100_000
_TRIES = 5


class Desk:
    """A connection to the Hub for one command."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def sites(self) -> dict[str, str]:
        """Each Site's name by its id."""
        return await self._engine.site_names()

    async def submit(
        self, request: Request, environ: Mapping[str, str], user: str, host: str
    ) -> list[Draft]:
        """Create the Jobs of a request. Raises Invalid, NotFound and what a connection raises."""
        site = await self._site(request.site, environ)
        parents: list[str] = []
        if request.depends is not None:
            found = await self.find(request.depends.on)
            parents = list(dict.fromkeys(one.view.id for some in found.values() for one in some))
        for attempt in range(_TRIES):
            made = make(request, numbered_id(), site, user, host, parents)
            try:
                await self._engine.submit(made)
            except ChappeError as error:
                # Another client took this number in this very millisecond.
                if error.code != "conflict" or attempt + 1 == _TRIES:
                    raise
            else:
                break
        return made

    async def _site(self, wanted: str | None, environ: Mapping[str, str]) -> str:
        """Where to submit: as asked, else where the caller itself is a Job, else the only Site there is."""
        names = sorted((await self.sites()).values())
        site = wanted or environ.get("CHAPPE_SITE")
        if site is None and len(names) == 1:
            (site,) = names
        if site is None:
            known = ", ".join(names) or "none yet"
            raise Invalid(
                f"say which site: --clusters (qsub: -q @SITE), or CHAPPE_SITE (there are: {known})",
                field="sites",
            )
        return site

    async def find(self, names: Sequence[str]) -> dict[str, list[Seen]]:
        """What each name means, in their order. Raises Invalid, NotFound naming one that means nothing."""
        found = await self.look(names)
        for name, some in found.items():
            if not some:
                raise NotFound(f"there is no job {name}", field="id")
        return found

    async def look(self, names: Sequence[str]) -> dict[str, list[Seen]]:
        """As `find`; a name that means nothing has an empty list."""
        if len(names) > NAMES_MOST:
            raise Invalid(f"name at most {NAMES_MOST} jobs at a time", field="id")
        wanted = {name: named(name) for name in names}
        slots = asyncio.Semaphore(_AT_ONCE)

        async def one(name: Named) -> list[Seen]:
            async with slots:
                return chosen(name, await self._views(JobFilter(id_prefix=name.prefix)))

        try:
            async with asyncio.TaskGroup() as tasks:
                looking = {text: tasks.create_task(one(name)) for text, name in wanted.items()}
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return {text: task.result() for text, task in looking.items()}

    async def listed(self, asked: Asked, *, over: bool) -> list[Seen]:
        """The front ends' Jobs that are active, and with `over` those that ended within a day.

        Raises TooLarge.
        """
        tags = {TAG: VALUE} | ({} if asked.user is None else {USER: asked.user})
        # In one list, which a Job leaves only when it ends: read phase by phase, one that is granted anew
        # meanwhile would be in none of them.
        found = await self._views(JobFilter(phase="open", site=asked.site, tags=tags))
        if over:
            since = now() - _ENDED_S
            found += await self._views(JobFilter(site=asked.site, tags=tags, ended_since=since))
        # What ended between the two is in both.
        return [see(view) for view in {view.id: view for view in found}.values()]

    async def _views(self, where: JobFilter) -> list[JobView]:
        """All of them. Raises TooLarge when they are too many."""
        found: list[JobView] = []
        async with contextlib.aclosing(self._engine.pages(where)) as pages:
            async for page in pages:
                found += page
                if len(found) > LISTED_MOST:
                    raise TooLarge(
                        f"more than {LISTED_MOST} jobs: name some, or give --clusters; `chappe job` acts "
                        "on any number",
                        field="id",
                    )
        return found

    async def cancel(self, jobs: Sequence[Seen]) -> None:
        """Cancel Jobs; those that have ended are left as they are."""
        ids = [one.view.id for one in jobs]
        for start in range(0, len(ids), limits.ACT_CHUNK):
            await acts.by_ids(self._engine, "cancel", ids[start : start + limits.ACT_CHUNK])

    async def wait(self, jobs: Sequence[Draft]) -> list[Seen]:
        """Return the Jobs once all have ended."""
        watching = self._engine.watch({job.id: None for job in jobs}, None)
        async with contextlib.aclosing(watching) as ends:
            async for _some in ends:
                pass
        return [see(view) for view in await self._engine.views([job.id for job in jobs])]


@contextlib.asynccontextmanager
async def desk() -> AsyncGenerator[Desk]:
    """A desk by the user's configuration. Raises ConfigMissing, Invalid."""
    engine = Engine(config.load())
    try:
        yield Desk(engine)
    finally:
        await engine.aclose()
