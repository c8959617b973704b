"""Log in: exchange a password, or an invitation's code, for a token, and keep that in the client's file."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import msgspec

from chappe.link.files import write_atomic
from chappe.link.http import NO_RETRY, HubClient
from chappe.sdk.config import Settings
from chappe.wire.people import Join, Login, LoginReply

__all__ = ["LoginReply", "join", "keep", "login"]


def login(
    url: str,
    name: str,
    password: str,
    *,
    project: str | None = None,
    ca_file: str | None = None,
    expires_in_s: float | None = None,
) -> LoginReply:
    """A token for `project` (None: the only one that there is for you), which lives for 90 days unless told.

    Raises Unauthenticated for a wrong name or password, Conflict `which_project` where you must name one,
    NotFound for one that is not yours, Busy after too many attempts; the errors of reaching a hub.
    """
    wish = Login(name, password, project, _note(), expires_in_s)
    return asyncio.run(_ask(url, ca_file, "/v1/login", wish))


def join(
    url: str,
    code: str,
    password: str,
    *,
    project: str | None = None,
    ca_file: str | None = None,
    expires_in_s: float | None = None,
) -> LoginReply:
    """The same with an invitation's code, which sets your password; it can be used once."""
    wish = Join(code, password, project, _note(), expires_in_s)
    return asyncio.run(_ask(url, ca_file, "/v1/join", wish))


def keep(path: Path, settings: Settings) -> None:
    """Write a client's configuration, for its owner's eyes only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = msgspec.json.format(msgspec.json.encode(settings), indent=2) + b"\n"
    write_atomic(path, text, 0o600)


async def _ask(url: str, ca_file: str | None, path: str, wish: Login | Join) -> LoginReply:
    async with HubClient(url, ca_file=ca_file) as hub:
        # Once only: each try counts as an attempt.
        return await hub.request("POST", path, wish, LoginReply, retry=NO_RETRY)


def _note() -> str:
    return f"log-in from {socket.gethostname()}"[:200]
