"""Tokens, and what a token is."""

from __future__ import annotations

import chappe
from chappe.hub.call import Call
from chappe.store import queries
from chappe.store import tokens as store
from chappe.wire.events import WIRE_VERSION
from chappe.wire.sites import NewToken, ProjectList, TokenList, TokenView, Whoami


async def create(call: Call[NewToken, None]) -> TokenView:
    """Make a further token of the same user; its text is shown this once."""
    return await call.hub.write(store.create_token, call.principal, call.body)


async def index(call: Call[None, None]) -> TokenList:
    """List the project's tokens, without their secrets."""
    return TokenList(await call.hub.read(queries.list_tokens, call.principal))


async def revoke(call: Call[None, None]) -> None:
    """Revoke a token, at once."""
    await call.hub.write(store.revoke_token, call.principal, call.path["prefix"])


async def projects(call: Call[None, None]) -> ProjectList:
    """List the projects that the token may see."""
    return ProjectList(await call.hub.read(queries.list_projects, call.principal))


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
