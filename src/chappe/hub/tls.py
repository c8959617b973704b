"""The Hub's certificate: the operator's own, or one that it makes at its first start.

The self-made certificate is its own trust anchor: clients are given it as `ca_file`. It may sign
nothing else (it is no CA). It stays the same, because clients hold copies of it; it is made anew only
shortly before it expires, and then the log says that clients need the new one.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from chappe.core.errors import Invalid
from chappe.link.files import write_atomic

VALID_DAYS = 3_650
RENEW_DAYS = 30

if TYPE_CHECKING:
    from cryptography import x509

log = structlog.get_logger("chappe.hub.tls")


@dataclass(frozen=True, slots=True)
class Files:
    """PEM files. `ca` is what clients are given to trust, None: the system's authorities."""

    cert: Path
    key: Path
    ca: Path | None


def files(directory: Path, cert: Path | None, key: Path | None, now: float) -> Files:
    """The certificate to serve with; without `cert` and `key` a self-made one in `directory`.

    Raises Invalid when only one of them is given, or one cannot be read.
    """
    if (cert is None) != (key is None):
        raise Invalid("give both --tls-cert and --tls-key, or neither", field="tls_cert")
    if cert is not None and key is not None:
        for name, path in (("tls_cert", cert), ("tls_key", key)):
            if not path.is_file():
                raise Invalid(f"{path} is no file", field=name)
        return Files(cert, key, None)
    made = Files(directory / "hub-cert.pem", directory / "hub-key.pem", directory / "hub-cert.pem")
    if not _is_good(made, now):
        _make(made, now)
    return made


def _is_good(made: Files, now: float) -> bool:
    """Whether there is a pair that stays valid for a while. A half-written pair is none."""
    if not (made.cert.exists() and made.key.exists()):
        return False
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        cert = x509.load_pem_x509_certificate(made.cert.read_bytes())
        key = load_pem_private_key(made.key.read_bytes(), None)
    except ValueError:
        log.warning("the certificate cannot be read; making a new one", file=str(made.cert))
        return False
    if cert.public_key() != key.public_key():
        log.warning("certificate and key do not belong together; making new ones")
        return False
    left = cert.not_valid_after_utc.timestamp() - now
    if left < RENEW_DAYS * 86_400:
        log.warning(
            "the certificate expires soon; making a new one: give clients elsewhere the new file",
            file=str(made.cert),
            days_left=int(left // 86_400),
        )
        return False
    return True


def _make(made: Files, now: float) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Chappe hub")])
    begin = dt.datetime.fromtimestamp(now, dt.UTC)
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A day back: clients' clocks may be slow.
        .not_valid_before(begin - dt.timedelta(days=1))
        .not_valid_after(begin + dt.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(_names()), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_atomic(made.key, private, 0o600)
    write_atomic(made.cert, cert.public_bytes(serialization.Encoding.PEM), 0o644)


def _names() -> list[x509.GeneralName]:
    """What clients may call this machine."""
    from cryptography import x509

    hosts = dict.fromkeys(["localhost", socket.gethostname(), socket.getfqdn()])
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.DNSName(host.encode("idna").decode()))
        except (UnicodeError, ValueError):
            log.warning("the host's name is left out of the certificate", host=host)
    names += [x509.IPAddress(ipaddress.ip_address(a)) for a in ("127.0.0.1", "::1")]
    return names
