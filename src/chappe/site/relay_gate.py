"""Who may use the relay, and for what: the one table of a pilot's requests, and the tokens of Sessions."""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import h11
import msgspec

from chappe.core import limits
from chappe.core.errors import Invalid, NotFound, TooLarge, Unauthenticated
from chappe.core.hidden import HidesToken
from chappe.link.clock import boottime
from chappe.site.sessions import SESSION_FILE

LOOK_AGAIN_S = 1.0

_ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_QUERY = r"(?:\?[A-Za-z0-9_.~%&=+-]{0,1000})?"
ROUTES: tuple[tuple[str, re.Pattern[str], int], ...] = tuple(
    (method, re.compile(path + _QUERY), most)
    for method, path, most in (
        ("POST", "/v1/sync", limits.BODY_BYTES),
        ("POST", "/v1/sync/wake", 0),
        ("POST", "/v1/results", limits.RESULTS_BYTES),
        ("POST", "/v1/logs", limits.MIB),
        ("GET", f"/v1/jobs/{_ID}/parents", 0),
        ("GET", f"/v1/jobs/{_ID}/result", 0),
        ("POST", f"/v1/sessions/{_ID}/end", limits.MIB),
    )
)
"""What a pilot needs of the Hub, and how many bytes it may send there."""


class Passed(NamedTuple):
    """A request that may go on to the Hub: its headers are those that count there."""

    method: str
    target: str
    headers: dict[str, str]
    size: int


class _Token(HidesToken, msgspec.Struct, frozen=True):
    """The part of session.json that matters here."""

    token: str = ""


class Gate:
    """Knows the tokens of the Site's Sessions, by their hashes."""

    def __init__(self, sessions: Path) -> None:
        self._sessions = sessions
        self._known: frozenset[bytes] = frozenset()
        self._looked_at = -LOOK_AGAIN_S
        self._looking = asyncio.Lock()

    async def check(self, request: h11.Request) -> Passed:
        """What of `request` is to be passed on. Raises Unauthenticated, NotFound, Invalid, TooLarge."""
        headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers
        ]
        shown = [value for name, value in headers if name == "authorization"]
        scheme, _, token = shown[0].partition(" ") if len(shown) == 1 else ("", "", "")
        if scheme.lower() != "bearer" or not await self._is_known(token):
            raise Unauthenticated("only pilots of this site's sessions may use its relay")
        method, target = request.method.decode("latin-1"), request.target.decode("latin-1")
        most = _most_bytes(method, target)
        given = dict(headers)
        if "transfer-encoding" in given:
            raise Invalid("the relay takes no body without a content-length", field="body")
        size = int(given.get("content-length", 0))  # h11 takes nothing but digits
        if size > most:
            raise TooLarge(f"a request is at most {most} bytes here", field="body")
        passed = {"authorization": shown[0], "content-length": str(size)}
        if "content-type" in given:
            passed["content-type"] = given["content-type"]
        return Passed(method, target, passed, size)

    async def _is_known(self, token: str) -> bool:
        """Whether a Session of this Site has this token. A new one is looked for, but not more often than
        every second, however many ask."""
        digest, asked_at = hashlib.sha256(token.encode()).digest(), boottime()
        if digest in self._known:
            return True
        async with self._looking:
            if self._looked_at < asked_at:
                await asyncio.sleep(self._looked_at + LOOK_AGAIN_S - boottime())
                self._looked_at = boottime()
                self._known = await asyncio.to_thread(_tokens, self._sessions)
        return digest in self._known


def _most_bytes(method: str, target: str) -> int:
    for wanted, pattern, most in ROUTES:
        if method == wanted and pattern.fullmatch(target):
            return most
    raise NotFound("the relay is for pilots, which ask for nothing like that")


def _tokens(sessions: Path) -> frozenset[bytes]:
    """The hashes of all tokens in the Sessions' directories; a Session that is over has none any more."""
    found = set()
    for path in sessions.glob(f"*/{SESSION_FILE}"):
        try:
            token = msgspec.json.decode(path.read_bytes(), type=_Token).token
        except (OSError, msgspec.DecodeError):
            continue  # it has just ended, or is no Session that a pilot could use
        if token:
            found.add(hashlib.sha256(token.encode()).digest())
    return frozenset(found)
