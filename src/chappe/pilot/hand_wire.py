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
import datetime as dt
import fcntl
import os
import socket
import ssl
import struct
from contextlib import suppress
from pathlib import Path

import msgspec

from chappe.core.errors import Unavailable
from chappe.link.files import write_atomic
from chappe.pilot.launch_wire import FRAME_BYTES, FrameError, HeadFrame, LauncherFrame
from chappe.pilot.topology import Topology

FILE = "head.json"
CERT = "hands-cert.pem"
KEY = "hands-key.pem"
_LENGTH = struct.Struct(">I")
_VALID_DAYS = 400
_SIOCGIFADDR = 0x8915


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
    if (directory / CERT).exists():
        return
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Chappe session")])
    begin = dt.datetime.fromtimestamp(now, dt.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A day back: the nodes' clocks may differ.
        .not_valid_before(begin - dt.timedelta(days=1))
        .not_valid_after(begin + dt.timedelta(days=_VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    # The certificate last: where it is, its key is too.
    write_atomic(directory / KEY, private, 0o600)
    write_atomic(directory / CERT, cert.public_bytes(serialization.Encoding.PEM), 0o600)


def tls(directory: Path, *, server: bool) -> ssl.SSLContext:
    """The context of one side, which shows the Session's certificate and takes only that. Raises
    Unavailable."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # The certificate is pinned; a node has many names.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(directory / CERT)
        context.load_cert_chain(directory / CERT, directory / KEY)
    except OSError as e:
        raise Unavailable(f"the session's certificate in {directory} cannot be used: {e}") from e
    return context


def addresses() -> list[str]:
    """All IPv4 addresses that another node may reach: those that the interfaces have, as the kernel says."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an IPv4 address
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, request)
                found.append(socket.inet_ntoa(answer[20:24]))
    return [address for address in found if not address.startswith(("127.", "169.254."))]


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
