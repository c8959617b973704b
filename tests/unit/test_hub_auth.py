"""Tokens to Principals: what is remembered, and for how long."""

from __future__ import annotations

import asyncio

import pytest

from chappe.core.access import RULES, Party, Reach
from chappe.core.errors import Forbidden, Unauthenticated
from chappe.hub import auth as module
from chappe.hub.auth import Auth
from chappe.store.principal import Principal

READ = RULES["GET /v1/jobs"]
OWNER = Principal("user", 1, "p", "default", "aaaabbbbcccc", account_n=1, role="owner")


class Store:
    """Tokens as the store would know them; counts how often it is asked."""

    def __init__(self, *principals: Principal) -> None:
        self.by_token = {f"token-{p.token_prefix}": p for p in principals}
        self.asked = 0
        self.reading = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def find(self, token: str) -> Principal | None:
        self.asked += 1
        found = self.by_token.get(token)
        self.reading.set()
        await self.gate.wait()
        return found


def bearer(p: Principal) -> str:
    return f"Bearer token-{p.token_prefix}"


async def test_a_token_is_looked_up_once() -> None:
    store = Store(OWNER)
    auth = Auth(store.find, lambda: 0.0)
    for _ in range(3):
        assert (await auth.check(bearer(OWNER), READ))[0] is OWNER
    assert store.asked == 1


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic token-aaaabbbbcccc"])
async def test_without_a_token_nobody_is_asked(header: str | None) -> None:
    store = Store(OWNER)
    with pytest.raises(Unauthenticated):
        await Auth(store.find, lambda: 0.0).check(header, READ)
    assert store.asked == 0


async def test_unknown_tokens_are_not_remembered() -> None:
    store = Store()
    auth = Auth(store.find, lambda: 0.0)
    with pytest.raises(Unauthenticated):
        await auth.check(bearer(OWNER), READ)
    store.by_token = {"token-aaaabbbbcccc": OWNER}
    assert (await auth.check(bearer(OWNER), READ))[0] is OWNER


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("POST /v1/sync", "of a pilot; yours is that of an owner and a user"),
        ("PUT /v1/sites/{id}/apps", "of a site; yours is that of an owner and a user"),
    ],
)
async def test_what_is_for_others_is_forbidden(action: str, words: str) -> None:
    auth = Auth(Store(OWNER).find, lambda: 0.0)
    with pytest.raises(Forbidden, match=words):
        await auth.check(bearer(OWNER), RULES[action])


async def test_the_widest_reach_of_all_that_a_token_is_counts() -> None:
    row = {Party.PERSON: Reach.OWN, Party.OWNER: Reach.PROJECT}
    assert await Auth(Store(OWNER).find, lambda: 0.0).check(bearer(OWNER), row) == (
        OWNER,
        Reach.PROJECT,
    )


async def test_an_expired_token_is_refused_though_it_is_remembered() -> None:
    now = 100.0
    brief = Principal("user", 1, "p", "default", "ddddeeeeffff", expires_at=200.0, role="viewer")
    auth = Auth(Store(brief).find, lambda: now)
    assert (await auth.check(bearer(brief), READ))[0] is brief
    now = 200.0
    with pytest.raises(Unauthenticated) as refused:
        await auth.check(bearer(brief), READ)
    assert refused.value.code == "token_expired"


async def test_a_revoked_token_is_forgotten() -> None:
    store = Store(OWNER)
    auth = Auth(store.find, lambda: 0.0)
    await auth.check(bearer(OWNER), READ)
    store.by_token.clear()
    auth.revoked({OWNER.token_prefix, "unheard-of00"})
    with pytest.raises(Unauthenticated):
        await auth.check(bearer(OWNER), READ)


async def test_a_look_up_that_began_before_a_revocation_is_made_again() -> None:
    store = Store(OWNER)
    store.gate.clear()
    auth = Auth(store.find, lambda: 0.0)
    asking = asyncio.ensure_future(auth.check(bearer(OWNER), READ))
    await store.reading.wait()
    # The store has read the token as good; now it is revoked, and only then the read returns.
    store.by_token.clear()
    auth.revoked({OWNER.token_prefix})
    store.gate.set()
    with pytest.raises(Unauthenticated):
        await asking
    assert store.asked == 2


async def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE", 3)
    many = [Principal("user", 1, "p", "default", f"prefix{i:06}", role="viewer") for i in range(5)]
    store = Store(*many)
    auth = Auth(store.find, lambda: 0.0)
    for p in many:
        await auth.check(bearer(p), READ)
    assert (len(auth._known), len(auth._digests)) == (3, 3)
    await auth.check(bearer(many[-1]), READ)
    assert store.asked == 5
    await auth.check(bearer(many[0]), READ)
    assert store.asked == 6
