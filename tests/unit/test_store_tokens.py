"""Tokens: found by their secret only, revoked at once, made once at the first start."""

from __future__ import annotations

import pytest

from chappe.core import limits
from chappe.core.access import Reach
from chappe.core.errors import Invalid, NotFound
from chappe.store import principal, sites, tokens
from chappe.store.principal import Principal, hash_token, make_token
from chappe.testing.store import StoreRig
from chappe.wire.sites import EndSession, NewSession, NewSite, NewToken


def found(rig: StoreRig, token: str) -> Principal | None:
    return rig.ask(principal.find, token)


def new(rig: StoreRig, note: str = "", expires_in_s: float | None = None) -> tuple[str, str]:
    """A further token: (its text, its prefix)."""
    view = rig.do(tokens.create_token, rig.user, NewToken(note, expires_in_s))
    assert view.token is not None
    return view.token, view.prefix


def test_the_first_start_makes_a_project_and_a_token_and_no_other_start_does(rig: StoreRig) -> None:
    assert (rig.user.scope, rig.user.project_name) == ("user", "default")
    assert rig.do(tokens.bootstrap) is None
    rig.restart()
    assert rig.do(tokens.bootstrap) is None
    assert len(rig.sql("SELECT 1 FROM token")) == len(rig.sql("SELECT 1 FROM project")) == 1
    assert found(rig, rig.token) == rig.user


@pytest.mark.sqlite
def test_a_secret_has_256_bits_and_is_not_stored(rig: StoreRig) -> None:
    made = {make_token("user")[0] for _ in range(50)}
    assert len(made) == 50
    assert all(len(t.split("_", 3)[3]) == 43 for t in made)
    secret = rig.token.split("_", 3)[3].encode()
    wal = rig.path.with_name(rig.path.name + "-wal")
    assert secret not in rig.path.read_bytes() + wal.read_bytes()
    assert rig.sql("SELECT hash FROM token")[0][0] == hash_token(rig.token)


def test_what_is_not_the_token_is_nobody(rig: StoreRig) -> None:
    _, kind, prefix, secret = rig.token.split("_", 3)
    turned = secret[:-2] + ("A" if secret[-2] != "A" else "B") + secret[-1]
    for text in (
        "",
        "chp_",
        rig.token[:-1],
        rig.token + "A",
        rig.token + "\n",
        f"chp_{kind}_{prefix}_{turned}",
        f"chp_{kind}_{'a' * 12}_{secret}",
        f"chp_s_{prefix}_{secret}",
        f"chp_{kind}_{prefix}_{'A' * 43}",
        "' OR 1=1 --",
    ):
        assert found(rig, text) is None, text


def test_a_revoked_token_is_nobody(rig: StoreRig) -> None:
    token, prefix = new(rig)
    assert found(rig, token) is not None
    told: set[str] = set()
    rig.store.writer.on_commit = lambda effects: told.update(effects.revoked)
    first = rig.clock()
    rig.do(tokens.revoke_token, rig.user, Reach.PROJECT, prefix)
    rig.clock.advance(9)
    rig.do(tokens.revoke_token, rig.user, Reach.PROJECT, prefix)
    assert found(rig, token) is None
    assert told == {prefix}
    assert rig.sql("SELECT revoked_at FROM token WHERE prefix = ?", prefix)[0][0] == first
    rig.restart()
    assert found(rig, token) is None


def test_an_unknown_token_cannot_be_revoked(rig: StoreRig) -> None:
    with pytest.raises(NotFound):
        rig.do(tokens.revoke_token, rig.user, Reach.PROJECT, "x" * 12)


def test_an_expiry_is_kept(rig: StoreRig) -> None:
    token, prefix = new(rig, "for a week", 604_800.0)
    who = found(rig, token)
    assert who is not None
    assert who.expires_at == rig.clock() + 604_800
    views = {v.prefix: v for v in rig.ask(tokens.tokens, rig.user, Reach.PROJECT).tokens}
    assert (views[prefix].note, views[prefix].expires_at) == ("for a week", who.expires_at)
    assert all(v.token is None for v in views.values())


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (NewToken(note="x" * 201), "note"),
        (NewToken(expires_in_s=0), "expires_in_s"),
        (NewToken(expires_in_s=-5), "expires_in_s"),
        (NewToken(expires_in_s=1e12), "expires_in_s"),
        (NewToken(expires_in_s=float("nan")), "expires_in_s"),
    ],
)
def test_tokens_that_are_refused(rig: StoreRig, body: NewToken, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        rig.do(tokens.create_token, rig.user, body)
    assert caught.value.field == field


def test_whom_each_kind_of_token_stands_for(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    pilot = site.add_pilot()
    agent, head = site.principal, pilot.principal
    assert (agent.scope, agent.site_id, agent.session_id) == ("site", site.id, None)
    assert (head.scope, head.site_id, head.session_id) == ("session", site.id, pilot.id)
    assert {t.split("_")[1] for t in (rig.token, site.token, pilot.token)} == {"u", "s", "p"}


@pytest.mark.parametrize("how", ["site", "delete", "session", "dead"])
def test_whoever_keeps_tokens_in_mind_is_told_which_are_revoked(rig: StoreRig, how: str) -> None:
    site = rig.add_site("paris")
    pilot = site.add_pilot()
    site_token, session_token = site.principal.token_prefix, pilot.principal.token_prefix
    told: set[str] = set()
    rig.store.writer.on_commit = lambda effects: told.update(effects.revoked)
    if how == "session":
        again = NewSession(pilot.id, pilot.batch_job)
        rig.do(sites.create_session, site.principal, again)
    else:
        site.end(pilot)
    if how == "site":
        rig.do(sites.create_site, rig.user, NewSite(site.id, "paris"))
    if how == "delete":
        rig.do(sites.delete_site, rig.user, site.id)
    assert told == {session_token} | ({site_token} if how in ("site", "delete") else set())


def test_a_session_that_gets_a_new_token_loses_the_old_one(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    pilot = site.add_pilot()
    body = NewSession(pilot.id, pilot.batch_job)
    made = rig.do(sites.create_session, site.principal, body)
    assert found(rig, pilot.token) is None
    again = found(rig, made.token)
    assert again is not None
    assert again.session_id == pilot.id


def test_a_site_that_gets_a_new_token_loses_the_old_one(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    pilot = site.add_pilot()
    made = rig.do(sites.create_site, rig.user, NewSite(site.id, "paris"))
    assert found(rig, site.token) is None
    assert found(rig, made.token) is not None
    # Its pilots have tokens of their own, which stay.
    assert found(rig, pilot.token) is not None


def test_tokens_that_ended_long_ago_are_forgotten_and_no_others(rig: StoreRig) -> None:
    _, revoked = new(rig)
    _, expiring = new(rig, expires_in_s=60.0)
    kept, _ = new(rig)
    pilot = rig.add_site("paris").add_pilot()
    rig.do(tokens.revoke_token, rig.user, Reach.PROJECT, revoked)
    rig.do(sites.end_session, rig.user, pilot.id, EndSession(may_run_twice=True))
    rig.clock.now += limits.TOKEN_KEPT_S
    assert rig.do(tokens.purge) == 0
    rig.clock.now += 1.0
    assert rig.do(tokens.purge) == 2, "revoked, and the dead session's"
    rig.clock.now += 60.0
    assert rig.do(tokens.purge) == 1, "expired"
    assert rig.do(tokens.purge) == 0
    left = {row["prefix"] for row in rig.sql("SELECT prefix FROM token")}
    assert not left & {revoked, expiring}
    assert found(rig, kept) is not None
    assert found(rig, rig.token) == rig.user
