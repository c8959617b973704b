"""The first start: the project, its owner's token, and the files that let the owner in.

The token is written to DATA/client.json *inside* the transaction that makes it, before the commit: a Hub
killed in between leaves a file that opens nothing and is replaced at the next start; killed after it,
the owner has the file. The copy for the user is made from that file at any start that misses it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
from sqlalchemy import Connection

from chappe.core import faults
from chappe.core.hidden import HidesToken
from chappe.link.files import write_atomic
from chappe.store import tokens
from chappe.store.db import Store
from chappe.store.tx import Tx

CRASH_POINTS = ("hub.before_bootstrap_commit", "hub.after_bootstrap")


class ClientConfig(HidesToken, msgspec.Struct, frozen=True, omit_defaults=True):
    """The client's configuration file."""

    url: str
    project: str
    token: str
    ca_file: str | None = None


def user_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where a user's client looks for its configuration."""
    given = environ.get("CHAPPE_CONFIG")
    return Path(given) if given else Path.home() / ".config/chappe/client.json"


def ensure_owner(
    store: Store, data: Path, url: str, ca_file: Path | None, user: Path
) -> list[Path]:
    """Make project and token if there are none, and bring the configuration files up to date.

    Returns the files that were written, for a message. A user's file that is for another Hub is left.
    """
    own = data / "client.json"
    ca = None if ca_file is None else str(ca_file.absolute())
    written = []
    if not store.read(_has_project):
        if store.writer.submit(_bootstrap, own, url, ca).result():
            written.append(own)
        faults.reach("hub.after_bootstrap")
    before = _read(own)
    if before is None:
        return written
    now = ClientConfig(url, before.project, before.token, ca)
    if now != before:
        _write(own, now)
        written.append(own)
    theirs = _read(user)
    if (theirs is None and not user.exists()) or (
        theirs is not None and theirs.token == now.token and theirs != now
    ):
        user.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(user, now)
        written.append(user)
    return written


def _has_project(conn: Connection) -> bool:
    return conn.execute(tokens.PROJECTS).first() is not None


def _bootstrap(tx: Tx, own: Path, url: str, ca: str | None) -> bool:
    made = tokens.bootstrap(tx)
    if made is None:
        return False
    project, token = made
    _write(own, ClientConfig(url, project, token, ca))
    faults.reach("hub.before_bootstrap_commit")
    return True


def _read(path: Path) -> ClientConfig | None:
    """The configuration in a file; None when it is missing or is none of ours."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ClientConfig)
    except (OSError, msgspec.MsgspecError):
        return None


def _write(path: Path, config: ClientConfig) -> None:
    text = msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"
    write_atomic(path, text, 0o600)
