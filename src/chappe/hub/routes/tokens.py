"""Tokens, and what a token is."""

from __future__ import annotations

import chappe
from chappe.hub.call import Call
from chappe.store import tokens as store
from chappe.wire.events import WIRE_VERSION
from chappe.wire.people import NewServiceToken
from chappe.wire.sites import NewToken, TokenList, TokenView, Whoami


async def create(call: Call[NewToken, None]) -> TokenView:
    """Make a further token of the same user; its text is shown this once.

    It ends no later than the token that makes it.
    """
    return await call.hub.write(store.create_token, call.actor, call.body)


async def create_service(call: Call[NewServiceToken, None]) -> TokenView:
    """Make a token of the project itself, with a role, for a program; its text is shown this once."""
    return await call.hub.write(store.create_service_token, call.actor, call.body)


async def index(call: Call[None, None]) -> TokenList:
    """List tokens, without their secrets: an owner's request all of the project, another's its user's own."""
    return await call.hub.read(store.tokens, call.principal, call.reach)


async def revoke(call: Call[None, None]) -> None:
    """Revoke a token, at once: an owner any of the project, others their own."""
    await call.hub.write(store.revoke_token, call.actor, call.reach, call.path["prefix"])


async def whoami(call: Call[None, None]) -> Whoami:
    """Say what the token may do, and which version the Hub has."""
    p = call.principal
    return Whoami(
        scope=p.scope,
        project=p.project_id,
        project_name=p.project_name,
        version=chappe.__version__,
        wire=WIRE_VERSION,
        incarnation=call.hub.store.incarnation,
        site=p.site_id,
        session=p.session_id,
        user=p.account,
        role=p.role,
        administrator=p.is_admin,
    )
