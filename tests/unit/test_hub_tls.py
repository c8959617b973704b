"""The certificate that the Hub makes: who accepts it, and that it stays."""

from __future__ import annotations

import ssl
import stat
import time
from pathlib import Path

import pytest

from chappe.core.errors import Invalid
from chappe.hub import tls

DAY_S = 86_400.0


def handshake(files: tls.Files, name: str, *, strict: bool = False) -> None:
    """A TLS handshake in memory, as a client that trusts `files.ca` and asks for `name`."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(files.cert, files.key)
    context = ssl.create_default_context(cafile=files.ca)
    if strict:
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    done: set[str] = set()
    for _ in range(10):
        for who, end in (("client", client), ("server", server)):
            if who not in done:
                try:
                    end.do_handshake()
                    done.add(who)
                except ssl.SSLWantReadError:
                    continue
    assert done == {"client", "server"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tls.Files:
    return tls.files(tmp_path_factory.mktemp("tls"), None, None, time.time())


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_clients_that_have_the_file_accept_it(made: tls.Files, name: str, strict: bool) -> None:
    handshake(made, name, strict=strict)


def test_under_another_name_it_is_refused(made: tls.Files) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(made, "example.org")


def test_the_key_is_for_its_owner_only(made: tls.Files) -> None:
    assert stat.S_IMODE(made.key.stat().st_mode) == 0o600
    assert b"PRIVATE" not in made.cert.read_bytes()


def test_it_can_sign_nothing(made: tls.Files) -> None:
    from cryptography import x509

    cert = x509.load_pem_x509_certificate(made.cert.read_bytes())
    assert not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not cert.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_it_stays_the_same(tmp_path: Path) -> None:
    now = time.time()
    before = tls.files(tmp_path, None, None, now).cert.read_bytes()
    assert tls.files(tmp_path, None, None, now + 3_000 * DAY_S).cert.read_bytes() == before


@pytest.mark.parametrize("name", ["hub-cert.pem", "hub-key.pem"])
@pytest.mark.parametrize("damage", ["missing", "cut", "another's"])
def test_a_pair_that_is_not_whole_is_made_anew(tmp_path: Path, name: str, damage: str) -> None:
    now = time.time()
    made = tls.files(tmp_path, None, None, now)
    if damage == "missing":
        (tmp_path / name).unlink()
    elif damage == "cut":
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    else:
        (tmp_path / "other").mkdir()
        tls.files(tmp_path / "other", None, None, now)
        (tmp_path / "other" / name).replace(tmp_path / name)
    handshake(tls.files(tmp_path, None, None, now), "localhost")
    assert made.cert.exists()


def test_shortly_before_it_expires_it_is_renewed(tmp_path: Path) -> None:
    then = time.time() - (tls.VALID_DAYS - tls.RENEW_DAYS + 1) * DAY_S
    before = tls.files(tmp_path, None, None, then).cert.read_bytes()
    after = tls.files(tmp_path, None, None, time.time())
    assert after.cert.read_bytes() != before
    handshake(after, "localhost")


def test_the_operators_own_are_used(made: tls.Files, tmp_path: Path) -> None:
    files = tls.files(tmp_path, made.cert, made.key, 0.0)
    assert files == tls.Files(made.cert, made.key, None)
    assert not list(tmp_path.iterdir())


def test_half_a_pair_is_refused(made: tls.Files, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="both"):
        tls.files(tmp_path, made.cert, None, 0.0)
    with pytest.raises(Invalid, match="is no file"):
        tls.files(tmp_path, made.cert, tmp_path / "nothing", 0.0)
