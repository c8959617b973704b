"""Simulations, as their messages tell of them: lists, and a handle on one.

`uid` is a simuid, or any unambiguous beginning of it. Where several producers tell of simulations with the
same id, `producer` says which is meant; `main` is the project itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any, TypedDict, TypeVar, Unpack
from urllib.parse import quote

from chappe.core import limits
from chappe.sdk.engine import Engine
from chappe.sdk.errors import Ambiguous, NotFound
from chappe.sdk.loop import Loop
from chappe.sdk.series import Metrics
from chappe.wire.events import Event
from chappe.wire.messages import MessageView
from chappe.wire.simulations import (
    CardView,
    FactPage,
    FactView,
    SimulationDetail,
    SimulationJobs,
    SimulationJobView,
    SimulationPage,
    SimulationView,
)

T = TypeVar("T")

KIND = {"kind": ["simulation"]}


class WhereSimulation(TypedDict, total=False):
    """Conditions on simulations; all must hold. Without `all`, only active tries. Times: since 1970."""

    id: str
    id_prefix: str
    name: str
    name_prefix: str
    state: str
    experiment: str
    model: str
    space: str
    machine: str
    login: str
    centre: str
    account: str
    producer: str
    started_since: float
    started_until: float
    all: bool


async def views(
    engine: Engine, limit: int | None = None, **where: Unpack[WhereSimulation]
) -> AsyncGenerator[SimulationView]:
    """Simulations that match, the last heard of for the first time first; at most `limit`."""
    left, cursor = limit, None
    while left is None or left > 0:
        most = limits.PAGE_DEFAULT if left is None else min(left, limits.PAGE_MAX)
        params = _params({**where, "cursor": cursor, "limit": most})
        page = await engine.hub.request(
            "GET", "/v1/simulations", reply=SimulationPage, params=params
        )
        for view in page.simulations:
            yield view
        left = None if left is None else left - len(page.simulations)
        cursor = page.cursor
        if cursor is None:
            return


def _params(given: dict[str, Any]) -> dict[str, str]:
    return {
        name: str(int(value)) if isinstance(value, bool) else str(value)
        for name, value in given.items()
        if value is not None
    }


async def find(engine: Engine, uid: str, producer: str | None = None) -> tuple[str, str | None]:
    """The full id of a simulation, and whose it is. Raises NotFound or Ambiguous."""
    for where in (WhereSimulation(id=uid, all=True), WhereSimulation(id_prefix=uid, all=True)):
        if producer is not None:
            where["producer"] = producer
        found = [view async for view in views(engine, 3, **where)]
        if len(found) == 1:
            return found[0].id, found[0].producer
        if found:
            told = ", ".join(f"{view.id} ({view.producer})" for view in found)
            raise Ambiguous(f"{uid!r} may be {told}: write more of it, or name the producer")
    raise NotFound(f"there is no simulation {uid!r}")


class AsyncSimulation:
    """One simulation, for asyncio."""

    def __init__(self, engine: Engine, uid: str, producer: str | None = None) -> None:
        self._engine = engine
        #: Its simuid, and who tells of it.
        self.uid = uid
        self.producer = producer

    async def show(self) -> SimulationDetail:
        """All of it but its jobs. Raises NotFound."""
        return await self._get("", SimulationDetail)

    async def jobs(self) -> list[SimulationJobView]:
        """Its jobs, in the order in which they began."""
        found: list[SimulationJobView] = []
        cursor: str | None = ""
        while cursor is not None:
            params = {"cursor": cursor, "limit": limits.PAGE_MAX}
            page = await self._get("/jobs", SimulationJobs, **params)
            found += page.jobs
            cursor = page.cursor
        return sorted(found, key=lambda job: (job.started_at or 0.0, job.id))

    async def periods(self) -> list[FactView]:
        """The periods that its jobs reached, in the order of arrival."""
        return await self._facts("/periods")

    async def commands(self) -> list[FactView]:
        """The commands that failed in its jobs, in the order of arrival."""
        return await self._facts("/commands")

    async def actions(self) -> list[FactView]:
        """What its jobs read and wrote, in the order of arrival."""
        return await self._facts("/actions")

    async def messages(self, limit: int = 1_000) -> list[MessageView]:
        """Its messages, at most `limit`, the newest first."""
        return await self._engine.messages.ls(limit, simulation=self.uid, producer=self.producer)

    async def metrics(self, names: Sequence[str] = (), *, buckets: int = 500) -> Metrics:
        """Its scalar series, each in at most so many points."""
        series = await self._engine.messages.series(self.uid, names=names, buckets=buckets)
        return Metrics([one for one in series if self.producer in (None, one.producer)])

    async def card(self) -> str:
        """Its configuration card. Raises NotFound when it sent none."""
        return (await self._get("/card", CardView)).text

    async def purge(self) -> SimulationDetail:
        """Hide it for ever, with the tries before it; its messages stay."""
        path = f"/v1/simulations/{quote(self.uid, safe='')}/purge"
        params = _params({"producer": self.producer})
        return await self._engine.hub.request("POST", path, reply=SimulationDetail, params=params)

    async def watch(self) -> AsyncGenerator[Event]:
        """Its Events from now on, until closed."""
        cursor = await self._engine.cursor()
        feed = self._engine.events(follow=True, cursor=cursor, filters=KIND)
        async with contextlib.aclosing(feed):
            async for event in feed:
                if event.subject == self.uid:
                    yield event

    async def _facts(self, path: str) -> list[FactView]:
        found: list[FactView] = []
        cursor: int | None = 0
        while cursor is not None:
            page = await self._get(path, FactPage, cursor=cursor, limit=limits.PAGE_MAX)
            found += page.facts
            cursor = page.cursor
        return found

    async def _get(self, path: str, reply: type[T], **params: Any) -> T:
        return await self._engine.hub.request(
            "GET",
            f"/v1/simulations/{quote(self.uid, safe='')}{path}",
            reply=reply,
            params=_params({**params, "producer": self.producer}),
        )


class Simulation:
    """One simulation; see AsyncSimulation for what each does and raises."""

    def __init__(self, loop: Loop, simulation: AsyncSimulation) -> None:
        self._loop = loop
        self._simulation = simulation
        self.uid = simulation.uid
        self.producer = simulation.producer

    def show(self) -> SimulationDetail:
        """All of it but its jobs. Raises NotFound."""
        return self._loop.run(self._simulation.show())

    def jobs(self) -> list[SimulationJobView]:
        """Its jobs, in the order in which they began."""
        return self._loop.run(self._simulation.jobs())

    def periods(self) -> list[FactView]:
        """The periods that its jobs reached, in the order of arrival."""
        return self._loop.run(self._simulation.periods())

    def commands(self) -> list[FactView]:
        """The commands that failed in its jobs, in the order of arrival."""
        return self._loop.run(self._simulation.commands())

    def actions(self) -> list[FactView]:
        """What its jobs read and wrote, in the order of arrival."""
        return self._loop.run(self._simulation.actions())

    def messages(self, limit: int = 1_000) -> list[MessageView]:
        """Its messages, at most `limit`, the newest first."""
        return self._loop.run(self._simulation.messages(limit))

    def metrics(self, names: Sequence[str] = (), *, buckets: int = 500) -> Metrics:
        """Its scalar series, each in at most so many points."""
        return self._loop.run(self._simulation.metrics(names, buckets=buckets))

    def card(self) -> str:
        """Its configuration card. Raises NotFound when it sent none."""
        return self._loop.run(self._simulation.card())

    def purge(self) -> SimulationDetail:
        """Hide it for ever, with the tries before it; its messages stay."""
        return self._loop.run(self._simulation.purge())

    def watch(self) -> Generator[Event]:
        """Its Events from now on, until closed."""
        return self._loop.iterate(self._simulation.watch)
