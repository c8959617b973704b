"""Short lists for whoever types: names of sites and apps, ids of jobs, states.

The Hub is asked once and briefly, and no answer is no offer: who presses Tab wants to be told of no errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from msgspec import Struct

from chappe.core.errors import ChappeError
from chappe.core.states import State
from chappe.link.http import NO_RETRY, HubClient
from chappe.sdk.config import load
from chappe.sdk.engine import prefix_of
from chappe.wire.jobs import JobFilter, JobPage, QueryJobs
from chappe.wire.sites import Listing

T = TypeVar("T")

WITHIN_S = 2.0
_MOST = 50

#: What may be typed, and a word about it.
Offer = tuple[str, str]


def offers(kind: str, begun: str) -> list[Offer]:
    """What there is of a kind (sites, apps, jobs, states) that begins so."""
    try:
        return _KINDS[kind](begun)
    except (ChappeError, OSError):
        return []


def _sites(begun: str) -> list[Offer]:
    views = _ask("GET", "/v1/sites", None, Listing).sites or []
    return [
        (view.name, "online" if view.online else "offline")
        for view in views
        if view.name.startswith(begun)
    ]


def _apps(begun: str) -> list[Offer]:
    views = _ask("GET", "/v1/apps", None, Listing).apps or []
    told = {view.name: view.description for view in views if view.name.startswith(begun)}
    return sorted(told.items())


def _jobs(begun: str) -> list[Offer]:
    prefix = prefix_of(begun) if len(begun) >= 4 else None
    query = QueryJobs(JobFilter(id_prefix=prefix), limit=_MOST)
    views = _ask("POST", "/v1/jobs/query", query, JobPage).jobs
    return [
        (view.id, f"{view.name} {view.state}")
        for view in views
        if view.id.startswith(begun.lower())
    ]


def _states(begun: str) -> list[Offer]:
    return [(str(state), "") for state in State if state.startswith(begun.upper())]


_KINDS: dict[str, Callable[[str], list[Offer]]] = {
    "sites": _sites,
    "apps": _apps,
    "jobs": _jobs,
    "states": _states,
}


def _ask(method: str, path: str, body: Struct | None, reply: type[T]) -> T:
    async def ask() -> T:
        settings = load()
        async with HubClient(settings.url, settings.token, ca_file=settings.ca_file) as hub:
            return await hub.request(method, path, body, reply, timeout_s=WITHIN_S, retry=NO_RETRY)

    return asyncio.run(ask())
