"""What the Hub's client makes of addresses, answers and streams of bytes (its connections: integration/)."""

from __future__ import annotations

import json
import socket
import ssl
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chappe.core import errors
from chappe.link import transport
from chappe.link.http import HubClient
from chappe.link.sse import Message, Parser
from chappe.link.transport import BadReply

URL = "https://hub.example.org:8443"


def hub_error(code: str, **more: object) -> bytes:
    return json.dumps({"error": {"code": code, "message": "words", **more}, "new": 1}).encode()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (413, "too_large", errors.TooLarge),
        (422, "cycle", errors.Invalid),
        (401, "unauthenticated", errors.Unauthenticated),
        (403, "forbidden", errors.Forbidden),
        (404, "not_found", errors.NotFound),
        (409, "not_final", errors.Conflict),
        (409, "session_dead", errors.SessionDead),
        (410, "cursor_reset", errors.Gone),
        (429, "busy", errors.Busy),
        (503, "unavailable", errors.Unavailable),
        (500, "error", errors.Unavailable),
        (408, "timeout", errors.Unavailable),
        (405, "method", errors.Invalid),
    ],
)
def test_a_hubs_error_becomes_ours(status: int, code: str, kind: type[errors.ChappeError]) -> None:
    error = transport.error_of(URL, status, hub_error(code, field="parents", details=[1]))
    assert type(error) is kind
    assert (error.message, error.code, error.field, error.details) == (
        "words",
        code,
        "parents",
        [1],
    )


@pytest.mark.parametrize(
    ("status", "kind", "transient"),
    [(502, errors.Unavailable, True), (404, errors.NotFound, False), (418, BadReply, False)],
)
def test_an_answer_that_no_hub_gave_names_the_address(
    status: int, kind: type[errors.ChappeError], transient: bool
) -> None:
    error = transport.error_of(URL, status, b"<html>")
    assert type(error) is kind
    assert error.transient is transient
    assert URL in error.message
    assert str(status) in error.message


def test_a_redirection_is_not_followed() -> None:
    assert isinstance(transport.error_of(URL, 302, b""), BadReply)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), ("0", 0.0), ("", None), ("-1", None), ("9" * 400, None), ("²", None)],
)
def test_retry_after_in_seconds(value: str, seconds: float | None) -> None:
    assert transport.retry_after_s({"retry-after": value}) == seconds
    assert transport.retry_after_s({}) is None


@pytest.mark.parametrize(
    ("cause", "code", "words"),
    [
        (ConnectionRefusedError(111, "refused"), "refused", "is the hub running"),
        (socket.gaierror(-2, "Name or service not known"), "unknown_host", "not known"),
        (ssl.SSLCertVerificationError("self-signed"), "tls", "ca_file"),
        (ssl.SSLEOFError(8, "EOF occurred"), "disconnected", "TLS broke off"),
        (OSError(113, "No route to host"), "refused", "No route"),
        (None, "disconnected", "ConnectError"),
    ],
)
def test_a_transport_error_is_told_in_words(
    cause: BaseException | None, code: str, words: str
) -> None:
    error = httpx2.ConnectError("x")
    if cause is not None:
        group = ExceptionGroup("all addresses failed", [OSError("other")])
        group.__cause__ = cause
        error.__cause__ = group
    if isinstance(cause, ssl.SSLCertVerificationError):
        cause.verify_message = "self-signed certificate"
    told = transport.unreachable(URL, error)
    assert told.transient
    assert told.code == code
    assert URL in told.message
    assert words in told.message


def test_a_proxy_and_a_timeout_have_codes_of_their_own() -> None:
    assert transport.unreachable(URL, httpx2.ProxyError("403")).code == "proxy"
    assert transport.unreachable(URL, httpx2.ReadTimeout("")).code == "timeout"


@pytest.mark.parametrize(
    "url",
    [
        "http://hub.example.org",
        "ftp://x",
        "hub.example.org",
        "",
        "https://",
        "https://me:secret@hub.example.org",
        "https://hub.example.org/?token=1",
        "https://hub\0.example.org",
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        transport.checked_url(url)
    assert caught.value.field == "url"
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("https://hub.example.org:8443/", "https://hub.example.org:8443"),
        ("https://example.org/chappe/", "https://example.org/chappe"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
    ],
)
def test_an_address_that_can_be_used(url: str, wanted: str) -> None:
    assert transport.checked_url(url) == wanted


def test_a_certificate_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(errors.Invalid, match=name) as caught:
            transport.tls_context(tmp_path / name)
        assert caught.value.field == "ca_file"


async def test_a_wrong_proxy_variable_is_named_and_its_password_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "gopher://me:secret@proxy")
    with pytest.raises(errors.Invalid, match="HTTPS_PROXY") as caught:
        HubClient(URL)
    assert "secret" not in str(caught.value)


STREAM = (
    b": ready\n\nid: 1:7\ndata: {}\n\n: keep-alive\n\nid: 1:9\n\r\n"
    b"event: x\r\nid:1:10\r\ndata: a\r\ndata:b\r\n\r\ndata: no id\n\nid: 1:11\ndata: unfinished\n"
)
MESSAGES = [
    Message("1:7", b"{}"),
    Message("1:9", b""),
    Message("1:10", b"a\nb"),
    Message(None, b"no id"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_a_stream_is_parsed_wherever_it_is_cut(cuts: list[int]) -> None:
    parser = Parser()
    edges = [0, *sorted(cuts), len(STREAM)]
    found = [
        message for start, stop in pairwise(edges) for message in parser.feed(STREAM[start:stop])
    ]
    assert found == MESSAGES


def test_an_endless_message_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chappe.link.sse.MESSAGE_BYTES", 100)
    for piece in (b"data: " + b"x" * 60, b"data: " + b"x" * 60 + b"\n"):
        parser = Parser()
        with pytest.raises(BadReply, match="longer"):  # noqa: PT012 - either piece may be too much
            for _ in range(2):
                list(parser.feed(piece))
