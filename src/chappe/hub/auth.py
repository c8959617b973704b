"""From a bearer token to a Principal, remembered so that a busy pilot costs no read per request.

The cache holds sha256 of tokens, not tokens. A revocation empties its entry on the event loop before
the revoking request is answered; a look-up that was under way at that moment is made again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable

from chappe.core.access import Party, Reach, Row, reach
from chappe.core.errors import Busy, Forbidden, Unauthenticated
from chappe.store.principal import Principal

CACHE = 10_000
LOOKS = 10

_WORDS = {
    Party.VIEWER: "a viewer",
    Party.OPERATOR: "an operator",
    Party.OWNER: "an owner",
    Party.PERSON: "a user",
    Party.ADMINISTRATOR: "an administrator",
    Party.SITE: "a site",
    Party.SESSION: "a pilot",
    Party.PRODUCER: "a producer",
}


class Auth:
    """`check` answers who is calling, or raises. `lookup` finds a token's Principal in the store."""

    def __init__(
        self, lookup: Callable[[str], Awaitable[Principal | None]], clock: Callable[[], float]
    ) -> None:
        self._lookup = lookup
        self._clock = clock
        self._known: OrderedDict[bytes, Principal] = OrderedDict()
        self._digests: dict[str, bytes] = {}
        self._revision = 0

    async def check(self, authorization: str | None, row: Row) -> tuple[Principal, Reach]:
        """The Principal of an Authorization header, and how far an action with this row of the table reaches.

        Raises Unauthenticated (no token, unknown, revoked, expired) or Forbidden (it is not for them).
        """
        principal = await self._principal(authorization)
        if principal.expires_at is not None and principal.expires_at <= self._clock():
            raise Unauthenticated("the token has expired: make a new one", code="token_expired")
        parties = principal.parties
        found = reach(row, parties)
        if found is None:
            yours = " and ".join(_WORDS[p] for p in Party if p in parties)
            wanted = " or ".join(_WORDS[p] for p in Party if p in row)
            raise Forbidden(f"this needs the token of {wanted}; yours is that of {yours}")
        return principal, found

    async def _principal(self, authorization: str | None) -> Principal:
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("send a token: the header `Authorization: Bearer chp_...`")
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known is not None:
            self._known.move_to_end(digest)
            return known
        for _ in range(LOOKS):
            revision = self._revision
            found = await self._lookup(token)
            if found is None:
                raise Unauthenticated("the token is unknown or was revoked")
            if revision == self._revision:
                self._remember(digest, found)
                return found
        raise Busy("many tokens are being revoked at this moment; try again")

    def _remember(self, digest: bytes, principal: Principal) -> None:
        self._known[digest] = principal
        self._digests[principal.token_prefix] = digest
        while len(self._known) > CACHE:
            _, oldest = self._known.popitem(last=False)
            self._digests.pop(oldest.token_prefix, None)

    def revoked(self, prefixes: Iterable[str]) -> None:
        """Forget these tokens."""
        self._revision += 1
        for prefix in prefixes:
            digest = self._digests.pop(prefix, None)
            if digest is not None:
                self._known.pop(digest, None)
