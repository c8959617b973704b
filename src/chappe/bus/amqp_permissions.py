"""What each account may do at the broker, as regular expressions, and how they are set there.

A producer may publish to `x-primary` under its own name and nothing else: it cannot read, nor say that it
is somebody else, for the broker checks the user in the routing key and in the property `user_id`. An
application may read what the hub publishes, through queues of its own. The hub may declare, read and
write what amqp_topology names, and nothing else.
"""

from __future__ import annotations

import re
import shlex
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import httpx2

from chappe.bus import amqp_topology as topology
from chappe.core.errors import Forbidden, Invalid, NotFound, Unavailable
from chappe.link.files import read_private

_NOTHING = "^$"
_ANSWER_S = 30.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}")


class Role(StrEnum):
    """What an account is for."""

    HUB = "hub"
    PRODUCER = "producer"
    APPLICATION = "application"


class Topic(NamedTuple):
    """Which routing keys an account may use at an exchange."""

    exchange: str
    write: str
    read: str


class Permissions(NamedTuple):
    """What an account may configure, write and read in a virtual host."""

    account: str
    configure: str
    write: str
    read: str
    topics: tuple[Topic, ...]


def permissions(account: str, role: Role, queues: tuple[str, ...] = ()) -> Permissions:
    """The permissions of an account. `queues` are those of the topology that an application reads too.

    Raises Invalid for a name that could mean another's, or queues that are none.
    """
    if not _NAME.fullmatch(account):
        raise Invalid(
            f"{account!r} is no account's name: letters, digits and _ . @ - are", field="account"
        )
    internal = [q.name for q in topology.QUEUES if q.exchange == topology.SECONDARY]
    if wrong := [q for q in queues if q not in internal]:
        raise Invalid(
            f"applications do not read {wrong[0]}; they read {' '.join(internal)}", field="queue"
        )
    if role is Role.HUB:
        all_ = _one_of([e.name for e in topology.EXCHANGES] + [q.name for q in topology.QUEUES])
        return Permissions(account, all_, all_, all_, ())
    if role is Role.PRODUCER:
        (word,) = topology.routing_key("", account, "", "", "").split(".")[1:2]
        own = f"^({'|'.join(topology.MODES)})\\.{re.escape(word)}\\."
        topics = (Topic(topology.PRIMARY, own, _NOTHING),)
        return Permissions(account, _NOTHING, _one_of([topology.PRIMARY]), _NOTHING, topics)
    own = f"app-{re.escape(account)}(\\..*)?"
    read = "|".join([own, *map(re.escape, (topology.SECONDARY, *queues))])
    return Permissions(account, f"^({own})$", f"^({own})$", f"^({read})$", ())


def _one_of(names: list[str]) -> str:
    return f"^({'|'.join(map(re.escape, names))})$"


def commands(given: Permissions, vhost: str) -> list[str]:
    """The commands of rabbitmqctl that set them."""
    host = ["-p", vhost, given.account]
    lines = [["set_permissions", *host, given.configure, given.write, given.read]]
    lines += [["set_topic_permissions", *host, *topic] for topic in given.topics]
    return [shlex.join(["rabbitmqctl", *line]) for line in lines]


def apply(given: Permissions, vhost: str, api: str, admin: str, password_file: Path) -> None:
    """Set them through the management API at `api`, replacing what the account had in that virtual host.

    Raises NotFound for an account or virtual host that is not there, Forbidden, Unavailable, and Invalid for
    a file that is not private.
    """
    password = read_private(password_file, "password_file")
    place = f"{quote(vhost, safe='')}/{quote(given.account, safe='')}"
    fields = {"configure": given.configure, "write": given.write, "read": given.read}
    with httpx2.Client(base_url=api, auth=(admin, password), timeout=_ANSWER_S) as client:
        _ask(client, "PUT", f"/api/permissions/{place}", fields)
        _ask(client, "DELETE", f"/api/topic-permissions/{place}", None)
        for topic in given.topics:
            _ask(client, "PUT", f"/api/topic-permissions/{place}", topic._asdict())


def _ask(client: httpx2.Client, method: str, path: str, body: dict[str, str] | None) -> None:
    try:
        reply = client.request(method, path, json=body)
    except httpx2.TransportError as e:
        raise Unavailable(f"the broker's management API does not answer: {e}", field="api") from e
    if reply.is_success or (method == "DELETE" and reply.status_code == 404):
        return
    said = reply.text[:300]
    if reply.status_code in (401, 403):
        raise Forbidden(
            f"the broker does not let this account administer it: {said}", field="admin"
        )
    if reply.status_code in (400, 404):
        raise NotFound(
            f"the broker knows no such account or virtual host ({said}); make the account with "
            "`rabbitmqctl add_user`",
            field="account",
        )
    raise Unavailable(f"the broker's management API said {reply.status_code}: {said}", field="api")
