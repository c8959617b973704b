"""Parts of one Site that know each other by a certificate: who made it, and who takes no other.

The files lie where only the Site's owner can read them. What is believed is the certificate itself, whatever
name, address or date stands in it; so it holds for a machine of many names and for one whose clock is wrong.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import socket
import ssl
import struct
from contextlib import suppress
from pathlib import Path

from chappe.core.errors import Unavailable
from chappe.link.files import write_atomic

_SIOCGIFADDR = 0x8915
_NO_END = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
"""What RFC 5280 has for "no end": whoever trusts it trusts it for as long as the file is there."""


def make_certificate(cert: Path, key: Path, name: str, now: float) -> None:
    """Make a certificate and its key (both 0600), unless they are there. Raises OSError."""
    if cert.exists():
        return
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    private = ec.generate_private_key(ec.SECP256R1())
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(named)
        .issuer_name(named)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        # A day back: the clocks of nodes may differ.
        .not_valid_before(dt.datetime.fromtimestamp(now, dt.UTC) - dt.timedelta(days=1))
        .not_valid_after(_NO_END)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    secret = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    # The certificate last: where it is, its key is too.
    write_atomic(key, secret, 0o600)
    write_atomic(cert, made.public_bytes(serialization.Encoding.PEM), 0o600)


def server_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Shows this certificate, and asks for none. Raises Unavailable when the files cannot be used."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    show(context, cert, key)
    return context


def client_context() -> ssl.SSLContext:
    """Takes no certificate yet: see `pin`."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def show(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Let `context` show this certificate to the other side. Raises Unavailable."""
    try:
        context.load_cert_chain(cert, key)
    except OSError as e:
        raise Unavailable(f"the certificate {cert} cannot be used: {e}") from e


def pin(context: ssl.SSLContext, cert: Path) -> None:
    """Let `context` take exactly this certificate of the other side. Raises Unavailable."""
    try:
        context.load_verify_locations(cert)
    except OSError as e:
        raise Unavailable(f"the certificate {cert} cannot be used: {e}") from e


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def addresses(interface: str = "") -> list[str]:
    """The IPv4 addresses that other machines may reach, of all interfaces or of one, as the kernel says."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            if interface not in ("", name):
                continue
            with suppress(OSError):  # an interface without an IPv4 address
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, request)
                found.append(socket.inet_ntoa(answer[20:24]))
    return [address for address in found if not address.startswith(("127.", "169.254."))]
