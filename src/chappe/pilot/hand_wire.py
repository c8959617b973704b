"""What the head and its hands say to each other, and the certificate by which they know each other.

Messages are the launcher's frames (`launch_wire`), with a greeting before them. The hand says who it is and
what its node is made of; the head answers with its clock. Every deadline that the head gives is a time of
its own CLOCK_BOOTTIME; the hand moves it to its node's. The head read its clock after the hand had read its
own, so the difference that the hand takes is never too large, and a deadline never later than it was meant.

The wire is TLS. The head makes one certificate for the Session, in the Session's directory, which only our
own user can read; both sides show it and take no other. Nobody else on the allocation's network can be
either.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import struct
from pathlib import Path

import msgspec

from chappe.link import pinned
from chappe.link.files import write_atomic
from chappe.pilot.launch_wire import FRAME_BYTES, FrameError, HeadFrame, LauncherFrame
from chappe.pilot.topology import Topology

FILE = "head.json"
CERT = "hands-cert.pem"
KEY = "hands-key.pem"
_LENGTH = struct.Struct(">I")


class HeadPlace(msgspec.Struct, frozen=True):
    """Where the head listens: all addresses of its node, of which a hand takes the first that answers."""

    addresses: list[str]
    port: int


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """A hand greets the head. `slots` 0: a Job has CPUs of its own. After the `Welcome` it sends the
    snapshot of its launcher; another launcher than before knows nothing of what was started before."""

    session: str
    node: str
    topology: Topology
    mem_bytes: int
    slots: int = 0


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    """The head takes the hand; `now` is its CLOCK_BOOTTIME."""

    now: float


ToHand = HeadFrame | Welcome
ToHead = LauncherFrame | Hello

_encoder = msgspec.msgpack.Encoder()
_to_hand: msgspec.msgpack.Decoder[ToHand] = msgspec.msgpack.Decoder(ToHand)
_to_head: msgspec.msgpack.Decoder[ToHead] = msgspec.msgpack.Decoder(ToHead)


def encode(message: ToHand | ToHead) -> bytes:
    """The frame of `message`."""
    payload = _encoder.encode(message)
    return _LENGTH.pack(len(payload)) + payload


async def hear_head(reader: asyncio.StreamReader) -> ToHand:
    """What the head says next. Raises FrameError, EOFError, OSError."""
    try:
        return _to_hand.decode(await _payload(reader))
    except msgspec.MsgspecError as e:
        raise FrameError(f"the head sent no valid frame: {e}") from e


async def hear_hand(reader: asyncio.StreamReader) -> ToHead:
    """What the hand says next. Raises FrameError, EOFError, OSError."""
    try:
        return _to_head.decode(await _payload(reader))
    except msgspec.MsgspecError as e:
        raise FrameError(f"the hand sent no valid frame: {e}") from e


async def _payload(reader: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > FRAME_BYTES:
        raise FrameError(f"a frame of {length} bytes exceeds {FRAME_BYTES}")
    return await reader.readexactly(length)


# --- who is who


def make_certificate(directory: Path, now: float) -> None:
    """Make the Session's certificate, unless it is there."""
    pinned.make_certificate(directory / CERT, directory / KEY, "Chappe session", now)


def tls(directory: Path, *, server: bool) -> ssl.SSLContext:
    """The context of one side, which shows the Session's certificate and takes only that. Raises
    Unavailable."""
    if server:
        context = pinned.server_context(directory / CERT, directory / KEY)
        context.verify_mode = ssl.CERT_REQUIRED
    else:
        context = pinned.client_context()
        pinned.show(context, directory / CERT, directory / KEY)
    pinned.pin(context, directory / CERT)
    return context


def write_place(directory: Path, place: HeadPlace) -> None:
    """Say where the head listens."""
    write_atomic(directory / FILE, msgspec.json.encode(place), 0o600, durable=False)


def read_place(directory: Path) -> HeadPlace | None:
    """Where the head listens; None when it does not (any more)."""
    try:
        return msgspec.json.decode((directory / FILE).read_bytes(), type=HeadPlace)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def gone_for_good(directory: Path) -> bool:
    """Whether the Session is over: its directory, or what a pilot is told, was taken away."""
    return not os.path.exists(directory / "session.json")
