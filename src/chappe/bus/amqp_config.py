"""amqp.toml: how a hub reaches a RabbitMQ broker, whose its accounts are, and what is published there."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from chappe.bus.amqp_topology import MODES
from chappe.core.errors import Invalid
from chappe.link.files import read_private

#: Where a test may kill the door and the outlet (here, because this module needs no AMQP library).
CRASH_POINTS = ("hub.amqp_kept", "hub.amqp_published")

PORTS = {"amqp": 5672, "amqps": 5671}
_OWN_MACHINE = frozenset(("127.0.0.1", "::1", "localhost"))


class Account(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose messages come from an account of the broker: a producer of a project."""

    project: str
    producer: str


class Outlet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which Events are published: those of `projects`, in routing keys of `mode`."""

    projects: tuple[str, ...]
    mode: str = "prod"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"`mode` is one of {' '.join(MODES)}")


class Amqp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A broker: the addresses of its nodes, how to log in there, and what it is for.

    With `cert_file` and `key_file` the log-in is EXTERNAL: the broker takes the account from the certificate.
    Else it is PLAIN, with the user of the address and the one line of `password_file`. `accounts` are those
    whose messages are taken; without any there is no door. What other accounts send goes into quarantine,
    in the project of the first. Of each queue, `prefetch` messages or envelopes wait
    here for their commit at most.
    """

    urls: tuple[str, ...]
    password_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    heartbeat_s: int = 20
    prefetch: int = 200
    accounts: dict[str, Account] = {}
    outlet: Outlet | None = None

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError("`urls` wants the address of at least one node")
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("`cert_file` and `key_file` belong together")
        for url in self.urls:
            _check(url, external=bool(self.cert_file))
        if not 1 <= self.heartbeat_s <= 600 or not 1 <= self.prefetch <= 10_000:
            raise ValueError("`heartbeat_s` is from 1 to 600, `prefetch` from 1 to 10 000")

    def at(self, directory: Path) -> Amqp:
        """The same, its files' names taken from `directory` on."""
        names = ("password_file", "ca_file", "cert_file", "key_file")
        files = {n: str(directory / getattr(self, n)) for n in names if getattr(self, n)}
        return msgspec.structs.replace(self, **files)

    @property
    def external(self) -> bool:
        """Whether the log-in is by certificate."""
        return bool(self.cert_file)

    @property
    def user(self) -> str:
        """The account, as far as it is known here; the broker finds that of a certificate."""
        return urlsplit(self.urls[0]).username or ""

    def password(self) -> str:
        """The password. Raises Invalid when its file cannot be read, or is open to others."""
        if not self.password_file:
            raise Invalid("a log-in by password wants `password_file`", field="password_file")
        return read_private(Path(self.password_file), "password_file")

    def tls(self) -> ssl.SSLContext:
        """What an encrypted connection is checked by. Raises Invalid for files that are none."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file)
        except OSError as e:
            raise Invalid(f"the certificates cannot be used: {e}", field="ca_file") from e
        return context


def load(path: Path) -> Amqp:
    """Read amqp.toml; names of files in it are relative to its directory. Raises Invalid naming the file."""
    try:
        config = msgspec.toml.decode(path.read_bytes(), type=Amqp)
    except OSError as e:
        raise Invalid(f"{path} cannot be read: {e.strerror}", field="amqp") from e
    except (msgspec.MsgspecError, ValueError) as e:
        raise Invalid(f"{path}: {e}", field="amqp") from e
    return config.at(path.absolute().parent)


def _check(url: str, *, external: bool) -> None:
    """Raise ValueError for an address that cannot be used, or not safely."""
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.hostname or ''}"
    if parts.scheme not in PORTS or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{shown} is not of the form amqps://USER@HOST:PORT/VHOST")
    if parts.password is not None:
        raise ValueError(f"{shown}: a password does not belong there; use `password_file`")
    if parts.scheme == "amqp" and (external or parts.hostname not in _OWN_MACHINE):
        raise ValueError(f"{shown}: another machine is only talked to by amqps://")
    if not external and not parts.username:
        raise ValueError(f"{shown}: name the account, as in amqps://USER@HOST")
