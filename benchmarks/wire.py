"""HTTP as cheap as a client can have it: one TLS connection, bytes in, bytes out.

Rows that measure the Hub use it, so that a client's own costs are not in them; rows that promise what a
user gets use the SDK.
"""

from __future__ import annotations

import http.client
import ssl
from types import TracebackType
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

T = TypeVar("T")


class Wire:
    """One connection under one token; a context manager."""

    def __init__(self, url: str, token: str, ca_file: str | None, timeout_s: float = 60.0) -> None:
        parts = urlsplit(url)
        assert parts.scheme == "https", f"every row is measured with TLS on, and {url} has none"
        context = ssl.create_default_context(cafile=ca_file)
        self._http = http.client.HTTPSConnection(
            parts.hostname or "", parts.port, context=context, timeout=timeout_s
        )
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def send(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The reply's bytes. Raises RuntimeError for any status but 2xx."""
        self._http.request(method, path, body, self._headers)
        response = self._http.getresponse()
        data = response.read()
        if not 200 <= response.status < 300:
            raise RuntimeError(f"{method} {path}: {response.status} {data[:500]!r}")
        return data

    def ask(self, method: str, path: str, body: msgspec.Struct | None, reply: type[T]) -> T:
        """Send a wire type (None: no body) and decode the reply."""
        content = None if body is None else msgspec.json.encode(body)
        return msgspec.json.decode(self.send(method, path, content), type=reply)
