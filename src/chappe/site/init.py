"""Make a Site: register it with the Hub and lay out its directory.

The Site's id is written down before the Hub hears of it, and site.toml comes last. An initialisation that
was interrupted at any point is completed by running it again: the Hub gives the same Site a new token.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import msgspec

from chappe.core.errors import Conflict, Invalid
from chappe.core.hidden import HidesToken
from chappe.core.ids import check_id
from chappe.core.publickeys import fingerprint
from chappe.link import trust
from chappe.link.clock import new_id
from chappe.link.files import write_atomic
from chappe.link.http import HubClient
from chappe.link.keys import load_or_create
from chappe.site.config import load, parse, render
from chappe.site.machine import Machine, written
from chappe.site.paths import SitePaths
from chappe.site.schedulers import KINDS
from chappe.wire.sites import NewSite, NewSiteReply

CA_FILE = "hub-ca.pem"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

HELLO_APP = """\
# An App is something that may be run at this Site. This one prints a greeting; copy it to begin your own.
# `chappe app check FILE` looks for mistakes; the agent publishes changes within half a minute.
name = "hello"
version = "1"
description = "Prints a greeting, to show that this site works"

# The program and its arguments. Each element is filled in on its own and never split by a shell.
command = ["/bin/echo", "Hello, {{ name }}, from {{ site }}"]

# true: Jobs without a signature may use it too. Leave that to Apps that can do no harm.
unsigned = false

[parameters.name]
type = "string"
default = "world"
help = "Whom to greet"

[files]
# Standard output goes to stdout.log in the Job's own directory below data/.
own_directory = true
log = "file"
"""


class DirectoryInUse(Conflict):
    """The directory holds something else; a Site wants one of its own."""

    default_code = "directory_in_use"


class HubAccess(HidesToken, msgspec.Struct, frozen=True):
    """How the user reaches the Hub: address, user's token, certificate authority (PEM file) or None."""

    url: str
    token: str
    ca_file: str | None = None


class NewSiteMade(msgspec.Struct, frozen=True):
    """What `init_site` made; `key` is the Site's own public key (base64)."""

    directory: str
    id: str
    name: str
    project: str
    key: str


class _Begun(msgspec.Struct, frozen=True):
    """The record of an initialisation that has begun."""

    id: str
    name: str
    url: str


def init_site(
    directory: Path | str,
    name: str,
    hub: HubAccess,
    public_key: str,
    comment: str = "",
    *,
    functions: bool = False,
    machine: Machine | None = None,
) -> NewSiteMade:
    """Make `directory` the Site `name`, which trusts `public_key` (base64 of an Ed25519 key); `functions`:
    whether it runs Python functions that this key signed. What was found of the `machine` is written
    into site.toml.

    Raises DirectoryInUse, Invalid (name, key, url), the Hub's errors (a name that is taken is a Conflict),
    OSError. After any of them it can be run again.
    """
    if not _NAME.fullmatch(name):
        raise Invalid(
            "a site's name is letters, digits, '-', '_' and '.', at most 64", field="name"
        )
    paths = SitePaths.of(Path(directory))
    begun = _begin(paths, name, hub.url.rstrip("/"))
    reply = asyncio.run(_register(hub, begun))
    if (reply.id, reply.name) != (begun.id, begun.name):
        raise Invalid(f"the hub at {begun.url} registered another site than {name}", field="hub")
    check_id(reply.project, "project")
    _lay_out(paths)
    put_token(paths.token, reply.token)
    key = load_or_create(paths.signing_key)
    trust.add(paths.trusted_keys, public_key, comment)
    example = paths.apps / "hello.toml"
    if not example.exists():
        write_atomic(example, HELLO_APP.encode(), 0o644)
    settings: dict[str, dict[str, str | bool]] = {
        "hub": {"url": begun.url},
        "site": {"id": reply.id, "name": reply.name, "project": reply.project},
    }
    if functions:
        settings["functions"] = {"allowed": True}
    if hub.ca_file is not None:
        # A copy: the Site must work where the user's own files are not.
        write_atomic(paths.root / CA_FILE, Path(hub.ca_file).read_bytes(), 0o644)
        settings["hub"]["ca_file"] = CA_FILE
    text = render(settings)
    if machine is not None:
        text = written(text, machine, KINDS)
        parse(text, str(paths.config))  # what is written must be what the agent reads
    write_atomic(paths.config, text.encode(), 0o644)
    paths.init_record.unlink()
    return NewSiteMade(str(paths.root), reply.id, reply.name, reply.project, key.public_b64)


class OwnKey(msgspec.Struct, frozen=True):
    """The public half (base64) of a Site's own key, and what people compare instead of it."""

    key: str
    fingerprint: str


def public_key(directory: Path | str) -> OwnKey:
    """The key by which users know a Site. Raises SiteProblem, KeyProblem."""
    paths = SitePaths.of(Path(directory))
    load(paths.root)
    key = load_or_create(paths.signing_key).public_b64
    return OwnKey(key, fingerprint(key))


def token_place(directory: Path) -> Path:
    """Where the token of the Site in `directory` belongs. Raises Invalid when that is no Site."""
    paths = SitePaths.of(directory)
    if not paths.config.is_file():
        raise Invalid(f"{directory} is no site's directory", field="directory")
    return paths.token


def put_token(place: Path, token: str) -> None:
    """Write a Site's token, for its owner's eyes only."""
    write_atomic(place, token.encode() + b"\n", 0o600)


def _begin(paths: SitePaths, name: str, url: str) -> _Begun:
    """Take the directory, and fix the Site's id. Raises DirectoryInUse."""
    paths.root.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        begun = msgspec.json.decode(paths.init_record.read_bytes(), type=_Begun)
    except (FileNotFoundError, msgspec.DecodeError):
        begun = None
    if begun is None:
        if paths.config.exists():
            raise DirectoryInUse(
                f"{paths.root} is a site already; `chappe site check` looks after it"
            )
        if any(entry.name != paths.init_record.name for entry in paths.root.iterdir()):
            raise DirectoryInUse(f"{paths.root} is not empty: a site wants a directory of its own")
        begun = _Begun(new_id(), name, url)
        write_atomic(paths.init_record, msgspec.json.encode(begun), 0o600)
    if (begun.name, begun.url) != (name, url):
        raise DirectoryInUse(
            f"{paths.root}: making the site {begun.name!r} at {begun.url} was interrupted here; "
            "complete it under that name, or empty the directory"
        )
    return begun


async def _register(hub: HubAccess, begun: _Begun) -> NewSiteReply:
    async with HubClient(
        hub.url, hub.token, ca_file=hub.ca_file, user_agent="chappe-site"
    ) as client:
        return await client.request(
            "POST", "/v1/sites", NewSite(begun.id, begun.name), NewSiteReply
        )


def _lay_out(paths: SitePaths) -> None:
    # Whatever the umask: who could write here would decide what runs.
    for path in (paths.apps, paths.data, paths.logs, paths.ledger):
        path.mkdir(mode=0o755, exist_ok=True)
    for path in (paths.secrets, paths.sessions, paths.outbox):
        path.mkdir(mode=0o700, exist_ok=True)
        path.chmod(0o700)
