"""The way to the Hub through the Site's agent, for pilots on nodes that reach nothing else.

The agent writes where its relay listens into a file of the Site's directory. It may be started again, on
another login node too, so a pilot looks there anew whenever the relay does not answer. Of the relay's
addresses it takes the first that proves to be the relay, by the certificate that the agent made.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from contextlib import suppress
from pathlib import Path

import msgspec

from chappe.core.errors import Unavailable
from chappe.link.files import write_atomic
from chappe.link.http import Answer, HubClient, Request
from chappe.link.pinned import client_context, pin

PROBE_S = 10.0
_NOBODY = "https://relay.invalid"
"""What stands for the relay's URL before it was found."""


class RelayFiles(msgspec.Struct, frozen=True):
    """The `relay` of session.json: where a pilot finds the relay's address, and its certificate."""

    place: str
    cert: str


class RelayPlace(msgspec.Struct, frozen=True):
    """Where the relay listens: of the addresses, a pilot takes the first that answers."""

    addresses: list[str]
    port: int


def write_place(path: Path, place: RelayPlace) -> None:
    """Say where the relay listens. Raises OSError."""
    write_atomic(path, msgspec.json.encode(place), 0o600)


def read_place(path: Path) -> RelayPlace | None:
    """Where the relay listens; None when no file says so."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=RelayPlace)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


async def find(files: RelayFiles, tls: ssl.SSLContext) -> str:
    """The URL of the relay, which has shown its certificate to `tls`. Raises Unavailable."""
    try:
        place = await asyncio.to_thread(read_place, Path(files.place))
        await asyncio.to_thread(pin, tls, Path(files.cert))
    except OSError as e:
        raise Unavailable(f"{files.place} cannot be read: {e}", code="refused") from e
    if place is None:
        raise Unavailable(
            f"{files.place} does not say where the site's relay is: start the agent, with "
            "`[relay] enabled = true`",
            code="refused",
        )
    probes = [asyncio.create_task(_probe(a, place.port, tls)) for a in place.addresses]
    failures = []
    try:
        for probe in asyncio.as_completed(probes):
            try:
                return await probe
            except Unavailable as e:
                failures.append(e.message)
    finally:
        for task in probes:
            task.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
    raise Unavailable(
        f"the site's relay cannot be reached ({'; '.join(failures) or 'it has no address'}): is the "
        "agent running, and can this node reach the interface of `[relay]`?",
        code="refused",
    )


async def _probe(address: str, port: int, tls: ssl.SSLContext) -> str:
    try:
        async with asyncio.timeout(PROBE_S):
            _, writer = await asyncio.open_connection(address, port, ssl=tls)
    except (OSError, TimeoutError) as e:
        raise Unavailable(f"{address} port {port}: {e or type(e).__name__}") from e
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return url_of(address, port)


def url_of(address: str, port: int) -> str:
    """The URL of a relay at an address."""
    with suppress(ValueError):
        if ipaddress.ip_address(address).version == 6:
            address = f"[{address}]"
    return f"https://{address}:{port}"


class RelayedClient(HubClient):
    """Speaks with the Hub through the relay, which it finds, and finds again. Else as a HubClient."""

    def __init__(self, files: RelayFiles, token: str, *, user_agent: str) -> None:
        self._tls = client_context()
        super().__init__(_NOBODY, token, user_agent=user_agent, pinned=self._tls)
        self._files = files
        self._found = False

    async def _try(self, request: Request, limit_s: float) -> Answer:
        if not self._found:
            self.url = await find(self._files, self._tls)
            self._found = True
        try:
            return await super()._try(request, limit_s)
        except Unavailable:
            self._found = False
            raise
