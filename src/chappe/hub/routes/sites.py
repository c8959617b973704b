"""Sites, their Apps, and the agents' long poll."""

from __future__ import annotations

import asyncio

import msgspec

from chappe.core import limits
from chappe.hub.call import Call
from chappe.hub.polls import Poll
from chappe.store import queries
from chappe.store import sites as store
from chappe.wire.demand import Demand
from chappe.wire.sites import (
    AgentHello,
    AgentSync,
    AgentSyncReply,
    Listing,
    NewSite,
    NewSiteReply,
    PublishApps,
    SiteView,
)


class AppsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one Site only (id or name)."""

    site: str | None = None


DEMAND_SPACING_S = 0.25
"""An agent that follows what waits is told of changes no closer together than this."""


async def create(call: Call[NewSite, None]) -> NewSiteReply:
    """Register a Site and make its token. Repeating it with the same id and name makes a new token."""
    return await call.hub.write(store.create_site, call.actor, call.body)


async def renew_token(call: Call[None, None]) -> NewSiteReply:
    """Make a Site's token anew; the one that it had is revoked. The reply shows it this once."""
    return await call.hub.write(store.renew_token, call.actor, call.path["id"])


async def index(call: Call[None, None]) -> Listing:
    """List the Sites with their Sessions; a Site sees itself."""
    hub = call.hub
    return Listing(sites=await hub.read(queries.list_sites, call.principal, hub.clock()))


async def show(call: Call[None, None]) -> SiteView:
    """Show one Site, by id or name."""
    hub = call.hub
    return await hub.read(queries.get_site, call.principal, call.path["id"], hub.clock())


async def delete(call: Call[None, None]) -> None:
    """Forget a Site that has no Jobs left to run and no live Sessions."""
    await call.hub.write(store.delete_site, call.actor, call.path["id"])


async def publish_apps(call: Call[PublishApps, None]) -> None:
    """Replace the Site's Apps by these."""
    await call.hub.write(store.publish_apps, call.principal, call.path["id"], call.body)


async def apps(call: Call[None, AppsQuery]) -> Listing:
    """List the Apps, of one Site or of all."""
    return Listing(apps=await call.hub.read(queries.list_apps, call.principal, call.query.site))


async def hello(call: Call[AgentHello, None]) -> None:
    """Say that an agent starts. A second one is refused while the first is heard."""
    await call.hub.write(store.hello, call.principal, call.path["id"], call.body)


async def sync(call: Call[AgentSync, None]) -> AgentSyncReply:
    """An agent's reports on BatchJobs, and its orders.

    Answered at once when there is anything new to say, else after at most `wait_s` (up to 30 s).
    """
    hub, p, body = call.hub, call.principal, call.body
    if body.wait_s <= 0:
        reply = await hub.write(store.agent_sync, p, call.path["id"], body)
    else:
        key = ("agent", p.site_n)
        waiting = [] if body.demand is None else [("waiting", p.site_n)]
        with hub.polls.poll(key, 0, (key, *waiting)) as poll:
            reply = _with_wishes(call, await hub.write(store.agent_sync, p, call.path["id"], body))
            if not _news(call, reply):
                reply = await _wait(call, poll, reply)
    hub.agents_told[p.site_n] = (body.agent, _lasting(reply))
    return reply


async def demand(call: Call[None, None]) -> Demand:
    """Show what waits for a Site, counted by shape, and which of its pilots ask for work."""
    return await call.hub.write(store.show_demand, call.principal, call.path["id"])


async def _wait(call: Call[AgentSync, None], poll: Poll, reply: AgentSyncReply) -> AgentSyncReply:
    """Look again at every hint, until there is news or nobody listens any more."""
    hub, p = call.hub, call.principal
    deadline = asyncio.get_running_loop().time() + min(call.body.wait_s, limits.WAIT_MAX_S)
    leaving = asyncio.ensure_future(call.left())
    leaving.add_done_callback(lambda _left: poll.end())
    try:
        while not _news(call, reply) and await poll.wait(deadline):
            if call.body.demand is not None:
                # Jobs may come by the thousand, one by one: they are looked at together.
                await asyncio.sleep(DEMAND_SPACING_S)
            reply = await hub.write(store.agent_sync, p, call.path["id"], call.body)
            reply = _with_wishes(call, reply)
    finally:
        leaving.cancel()
    return reply


def _with_wishes(call: Call[AgentSync, None], reply: AgentSyncReply) -> AgentSyncReply:
    """The reply, and what somebody wishes to read at this Site."""
    logs = call.hub.wishes.of(("agent", call.principal.site_n), call.body.logs_seen)
    return msgspec.structs.replace(reply, logs=logs) if logs else reply


def _news(call: Call[AgentSync, None], reply: AgentSyncReply) -> bool:
    """Whether to answer now. Cancels and silent Sessions stay in every reply until they are over, so
    only those that this agent was not told yet are news; else its long poll would spin."""
    if (
        reply.accepted
        or reply.logs
        or reply.demand
        or any(not order.cancel for order in reply.orders)
    ):
        return True
    agent, told = call.hub.agents_told.get(call.principal.site_n, ("", frozenset()))
    return bool(_lasting(reply) - (told if agent == call.body.agent else frozenset()))


def _lasting(reply: AgentSyncReply) -> frozenset[str]:
    """What a reply repeats until it is over."""
    return frozenset(reply.silent) | {order.id for order in reply.orders if order.cancel}
