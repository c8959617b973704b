"""Logging in and out. The one place where a request without a token changes anything."""

from __future__ import annotations

from functools import partial

import structlog

from chappe.core.access import Reach
from chappe.core.errors import ChappeError, Forbidden, Invalid, Unauthenticated
from chappe.hub import passwords
from chappe.hub.call import Call
from chappe.store import logins, tokens
from chappe.wire.people import ChangePassword, Join, Login, LoginReply

log = structlog.get_logger("chappe.hub.logins")


async def login(call: Call[Login, None]) -> LoginReply:
    """Exchange a name and a password for a token, which is shown this once.

    Answered alike, and after the same time, for a wrong name and a wrong password.
    """
    hub, wish = call.hub, call.body
    hub.passwords.attempts.begin(wish.name, call.address)
    account = await hub.read(logins.account, wish.name)
    stored = None if account is None else account.password
    right = await hub.passwords.is_right(wish.password, stored)
    if account is None or not right:
        # The name only where it is one: people type passwords in its place.
        log.warning("refused", user=account.name if account else None, address=call.address)
        raise Unauthenticated("the name or the password is wrong", code="bad_login")
    hub.passwords.attempts.succeeded(wish.name, call.address)
    return await hub.write(logins.login, account, wish, call.address)


async def join(call: Call[Join, None]) -> LoginReply:
    """Set the password with an invitation's code, once, and log in."""
    hub, wish = call.hub, call.body
    passwords.check_new(wish.password)
    hub.passwords.attempts.begin(None, call.address)
    try:
        await hub.read(partial(logins.invited, code=wish.code, now=hub.clock()))
        hashed = await hub.passwords.hash(wish.password)
        reply = await hub.write(logins.join, wish, hashed, call.address)
    except Unauthenticated as error:
        log.warning("refused", invitation=error.code, address=call.address)
        raise
    except ChappeError:
        hub.passwords.attempts.succeeded(None, call.address)
        raise
    hub.passwords.attempts.succeeded(None, call.address)
    return reply


async def logout(call: Call[None, None]) -> None:
    """Revoke the token that asks."""
    p = call.actor
    await call.hub.write(tokens.revoke_token, p, Reach.OWN, p.token_prefix)


async def change_password(call: Call[ChangePassword, None]) -> None:
    """Set one's password. Tokens stay as they are: revoke those that others may know."""
    hub, p, body = call.hub, call.actor, call.body
    passwords.check_new(body.new_password)
    account = await hub.read(logins.account, p.account or "")
    if account is not None and account.password is not None:
        if body.old_password is None:
            raise Invalid("say the old password as well", field="old_password")
        hub.passwords.attempts.begin(account.name, call.address)
        if not await hub.passwords.is_right(body.old_password, account.password):
            raise Forbidden("the old password is wrong", code="bad_login", field="old_password")
        hub.passwords.attempts.succeeded(account.name, call.address)
    await hub.write(logins.set_password, p, await hub.passwords.hash(body.new_password))
