"""What can go wrong between us and the Hub, in words for a person; addresses and certificates.

The messages name the Hub's URL and what failed, never a token or a proxy's password.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx2
import msgspec

from chappe.core.errors import BY_STATUS, ChappeError, Invalid, SessionDead, Unavailable
from chappe.wire.events import ErrorReply

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what was expected: also bad UTF-8, and nesting without end."""


class BadReply(ChappeError):
    """The answer is not one of a Hub that this version understands."""

    default_code = "bad_reply"


def checked_url(url: str) -> str:
    """The Hub's address without a slash at its end. Raises Invalid unless it can be used."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as e:
        raise Invalid(f"the hub's url cannot be read: {e}", field="url") from None
    if parsed.userinfo or parsed.query or parsed.fragment or not parsed.host:
        raise Invalid("the hub's url is like https://hub.example.org:8443", field="url")
    if parsed.scheme != "https" and not (parsed.scheme == "http" and parsed.host in _LOOPBACK):
        raise Invalid(
            f"{url}: only https is possible (http would show the token to everybody on the way)",
            field="url",
        )
    return str(parsed).rstrip("/")


def tls_context(ca_file: str | Path | None) -> ssl.SSLContext:
    """Trust the system's certificates and those of `ca_file`. Raises Invalid."""
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as e:
            reason = e.strerror or str(e)
            raise Invalid(
                f"the certificate file {ca_file} cannot be used: {reason}", field="ca_file"
            ) from None
    return context


def unreachable(url: str, error: httpx2.TransportError) -> Unavailable:
    """What a transport error means. Code: tls | refused | unknown_host | timeout | proxy | disconnected."""
    code, what = _diagnosis(error)
    return Unavailable(f"the hub at {url} is out of reach: {what}", code=code)


def _diagnosis(error: httpx2.TransportError) -> tuple[str, str]:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "tls", (
                f"its certificate is not trusted ({cause.verify_message}): "
                "give the hub's own certificate as ca_file"
            )
        if isinstance(cause, ssl.SSLError):
            # Also what a hub that is being stopped looks like, so it is no reason to give up.
            return "disconnected", f"TLS broke off ({cause}): is this the hub's https port?"
        if isinstance(cause, socket.gaierror):
            return "unknown_host", f"its name is not known here ({cause.strerror})"
        if isinstance(cause, ConnectionRefusedError):
            return "refused", "the connection was refused: is the hub running?"
        if isinstance(cause, OSError) and cause.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            return "refused", f"no way to it ({cause.strerror})"
    if isinstance(error, httpx2.ProxyError):
        return "proxy", "the proxy of the environment (HTTPS_PROXY) refused"
    if isinstance(error, httpx2.TimeoutException):
        return "timeout", "no answer in time"
    return "disconnected", f"the connection broke ({type(error).__name__}: {error})"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, also inside groups (a connection is tried by several addresses)."""
    for _ in range(20):
        if error is None:
            return
        yield error
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from _causes(inner)
        error = error.__cause__ or error.__context__


def error_of(url: str, status: int, data: bytes) -> ChappeError:
    """The error that an answer with a status outside 2xx stands for."""
    if status < 400:
        return BadReply(f"{url} answered {status}, a redirection: use the address it points to")
    try:
        said = msgspec.json.decode(data, type=ErrorReply).error
    except UNREADABLE:
        what = f"{url} answered {status}, and not as a hub does: is this its address?"
        return Unavailable(what) if _passes(status) else BY_STATUS.get(status, BadReply)(what)
    if said.code == SessionDead.default_code:
        kind: type[ChappeError] = SessionDead
    elif _passes(status):
        kind = BY_STATUS.get(status, Unavailable)
    else:
        kind = BY_STATUS.get(status, Invalid)
    return kind(said.message, code=said.code, field=said.field, details=said.details)


def _passes(status: int) -> bool:
    """Whether trying again later can help."""
    return status in (408, 429) or status >= 500


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds; None when it is not there (or a date, which nobody here sends)."""
    value = headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() and len(value) < 7 else None
