"""Users, projects, members, log-ins, and what the audit keeps of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chappe.core.access import Party, Reach
from chappe.core.errors import (
    ChappeError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    TooLarge,
    Unauthenticated,
)
from chappe.store import audit, logins, people, projects, sites, tokens
from chappe.store.principal import Principal, find
from chappe.testing.store import StoreRig
from chappe.wire.people import (
    Join,
    Login,
    LoginReply,
    NewInvitation,
    NewProject,
    NewServiceToken,
    NewUser,
    SetMember,
)
from chappe.wire.sites import NewToken

HUB, PROJECT, OWN = Reach.HUB, Reach.PROJECT, Reach.OWN


def add(rig: StoreRig, name: str, role: str | None = None, **more: Any) -> str:
    """A user, perhaps a member of the default project; the invitation's code."""
    made = rig.do(people.add, rig.user, NewUser(name, **more))
    if role is not None:
        set_role(rig, name, role)
    return made.code


def set_role(rig: StoreRig, name: str, role: Any, project: str | None = None) -> None:
    rig.do(projects.set_member, rig.user, HUB, name, SetMember(role, project))


def join(rig: StoreRig, code: str, **wish: Any) -> LoginReply:
    return rig.do(logins.join, Join(code, "not looked at here", **wish), "hash", "10.0.0.1")


def login(rig: StoreRig, name: str, **wish: Any) -> LoginReply:
    account = rig.ask(logins.account, name)
    assert account is not None
    return rig.do(logins.login, account, Login(name, "", **wish), "10.0.0.1")


def member(rig: StoreRig, name: str, role: str) -> Principal:
    """A member's Principal, by a token of theirs."""
    return rig.whoami(join(rig, add(rig, name, role)).token)


def project(rig: StoreRig, name: str) -> str:
    return rig.do(projects.create, rig.user, NewProject(rig.new_id(), name)).id


def acts(rig: StoreRig) -> list[tuple[str, str]]:
    """What the audit has, oldest first."""
    entries = rig.ask(audit.page, rig.user, HUB, 1_000, None).entries
    return [(e.action, e.subject) for e in reversed(entries)]


# --- users


def test_a_user_joins_by_invitation_once_and_has_the_role_given(rig: StoreRig) -> None:
    code = add(rig, "ann", "operator")
    reply = join(rig, code)
    who = rig.whoami(reply.token)
    assert (who.account, who.role, who.is_admin) == ("ann", "operator", False)
    assert who.parties == {Party.OPERATOR, Party.PERSON}
    assert reply.expires_at == rig.clock() + logins.LOGIN_S
    with pytest.raises(Unauthenticated) as refused:
        join(rig, code)
    assert refused.value.code == "bad_invitation"


@pytest.mark.parametrize("how", ["later", "newer", "disabled", "altered", "password"])
def test_an_invitation_ends(rig: StoreRig, how: str) -> None:
    code = add(rig, "ann", "viewer")
    if how == "later":
        rig.clock.advance(people.INVITATION_S)
    elif how == "newer":
        rig.do(people.invite, rig.user, "ann", NewInvitation())
    elif how == "disabled":
        rig.do(people.disable, rig.user, "ann")
        rig.do(people.enable, rig.user, "ann")
    elif how == "password":
        who = rig.whoami(join(rig, code).token)
        code = rig.do(people.invite, rig.user, "ann", NewInvitation()).code
        rig.do(logins.set_password, who, "hash")
    else:
        code = code[:-1] + ("A" if code[-1] != "A" else "B")
    with pytest.raises(Unauthenticated):
        join(rig, code)


def test_an_invitation_is_not_used_up_by_a_log_in_that_fails(rig: StoreRig) -> None:
    code = add(rig, "ann")
    with pytest.raises(Forbidden) as refused:
        join(rig, code)
    assert refused.value.code == "no_project"
    set_role(rig, "ann", "viewer")
    assert join(rig, code).user == "ann"


def test_an_invitation_is_not_stored(rig: StoreRig) -> None:
    code = add(rig, "ann")
    assert code not in str([tuple(row) for row in rig.sql("SELECT * FROM account")])


def test_a_disabled_user_has_no_token_any_more_and_no_way_in(rig: StoreRig) -> None:
    who = member(rig, "ann", "owner")
    told: set[str] = set()
    rig.store.writer.on_commit = lambda effects: told.update(effects.revoked)
    rig.do(people.disable, rig.user, "ann")
    rig.do(people.disable, rig.user, "ann")
    assert told == {who.token_prefix}
    assert rig.ask(logins.account, "ann") is None
    with pytest.raises(Conflict):
        rig.do(people.invite, rig.user, "ann", NewInvitation())
    rig.do(people.enable, rig.user, "ann")
    assert rig.ask(logins.account, "ann") is not None
    revoked = rig.sql("SELECT revoked_at FROM token WHERE prefix = ?", who.token_prefix)
    assert revoked[0][0] == rig.clock()


def test_a_token_of_a_disabled_user_is_nobodys_even_if_it_was_not_revoked(rig: StoreRig) -> None:
    token = join(rig, add(rig, "ann", "owner")).token
    rig.place.change("UPDATE account SET disabled_at = 1 WHERE name = 'ann'")
    assert rig.ask(find, token) is None


def test_the_last_administrator_stays(rig: StoreRig) -> None:
    with pytest.raises(Conflict) as refused:
        rig.do(people.disable, rig.user, "admin")
    assert refused.value.code == "last_administrator"
    add(rig, "ann", administrator=True)
    rig.do(people.disable, rig.user, "admin")
    assert rig.ask(find, rig.token) is None


def test_a_password_that_changed_since_it_was_compared_opens_nothing(rig: StoreRig) -> None:
    who = member(rig, "ann", "viewer")
    before = rig.ask(logins.account, "ann")
    rig.do(logins.set_password, who, "another hash")
    assert before is not None
    with pytest.raises(Unauthenticated):
        rig.do(logins.login, before, Login("ann", ""), "")


@pytest.mark.parametrize("name", ["", "Ann", "a b", "-a", "x" * 65, "ann\n", "\u0430"])
def test_names_that_are_none(rig: StoreRig, name: str) -> None:
    with pytest.raises(Invalid) as refused:
        add(rig, name)
    assert refused.value.field == "name"


def test_a_name_is_given_once_and_users_are_bounded(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(rig, "ann")
    with pytest.raises(Conflict):
        add(rig, "ann")
    monkeypatch.setattr("chappe.core.limits.ACCOUNTS", 2)
    with pytest.raises(TooLarge):
        add(rig, "bob")


@pytest.mark.parametrize("seconds", [0, -1, 1e12, float("nan")])
def test_an_invitation_lives_neither_never_nor_for_ever(rig: StoreRig, seconds: float) -> None:
    with pytest.raises(Invalid) as refused:
        add(rig, "ann", expires_in_s=seconds)
    assert refused.value.field == "expires_in_s"


def test_users_are_listed_with_their_roles(rig: StoreRig) -> None:
    add(rig, "ann", "viewer")
    member(rig, "bob", "operator")
    found = {u.name: u for u in rig.ask(people.users).users}
    assert found["admin"].administrator
    assert found["ann"].projects == {"default": "viewer"}
    assert (found["ann"].has_password, found["bob"].has_password) == (False, True)
    assert found["ann"].invited_until == rig.clock() + people.INVITATION_S


# --- projects and members


def test_a_project_is_made_once_and_owned_by_who_makes_it(rig: StoreRig) -> None:
    new = NewProject(rig.new_id(), "ocean")
    made = rig.do(projects.create, rig.user, new)
    assert rig.do(projects.create, rig.user, new) == made
    for other in (NewProject(rig.new_id(), "ocean"), NewProject(new.id, "land")):
        with pytest.raises(Conflict):
            rig.do(projects.create, rig.user, other)
    names = [(p.name, p.role) for p in rig.ask(projects.projects, rig.user, HUB).projects]
    assert names == [("default", "owner"), ("ocean", "owner")]


def test_a_token_acts_in_the_project_that_was_named_at_log_in(rig: StoreRig) -> None:
    ocean = project(rig, "ocean")
    token = join(rig, add(rig, "ann", "viewer")).token
    set_role(rig, "ann", "operator", "ocean")
    with pytest.raises(Conflict, match="default, ocean") as refused:
        login(rig, "ann")
    assert refused.value.code == "which_project"
    for which in ("ocean", ocean):
        who = rig.whoami(login(rig, "ann", project=which).token)
        assert (who.project_name, who.role) == ("ocean", "operator")
    assert rig.whoami(token).role == "viewer"


def test_a_project_that_one_is_not_in_is_like_none(rig: StoreRig) -> None:
    project(rig, "secret")
    member(rig, "ann", "owner")
    with pytest.raises(NotFound) as theirs:
        login(rig, "ann", project="secret")
    with pytest.raises(NotFound) as nobodys:
        login(rig, "ann", project="nobody")
    assert theirs.value.message.replace("secret", "nobody") == nobodys.value.message


def test_an_administrator_enters_any_project_and_has_no_role_there(rig: StoreRig) -> None:
    who = rig.whoami(join(rig, add(rig, "ann", administrator=True)).token)
    assert who.parties == {Party.PERSON, Party.ADMINISTRATOR}
    assert [p.role for p in rig.ask(projects.projects, who, HUB).projects] == [None]


def test_a_role_that_changes_is_looked_up_anew(rig: StoreRig) -> None:
    reply = join(rig, add(rig, "ann", "viewer"))
    told: set[str] = set()
    rig.store.writer.on_commit = lambda effects: told.update(effects.revoked)
    set_role(rig, "ann", "operator")
    assert told == {rig.whoami(reply.token).token_prefix}
    assert rig.whoami(reply.token).role == "operator"


def test_who_is_removed_is_out_at_once_and_stays_in_elsewhere(rig: StoreRig) -> None:
    project(rig, "ocean")
    here = join(rig, add(rig, "ann", "operator")).token
    set_role(rig, "ann", "viewer", "ocean")
    there = login(rig, "ann", project="ocean").token
    rig.do(projects.remove_member, rig.user, PROJECT, "ann", None)
    assert rig.ask(find, here) is None
    assert rig.whoami(there).role == "viewer"
    with pytest.raises(NotFound):
        rig.do(projects.remove_member, rig.user, PROJECT, "ann", None)
    set_role(rig, "ann", "operator")
    assert rig.ask(find, here) is None  # whoever comes back logs in anew


def test_a_project_keeps_an_owner(rig: StoreRig) -> None:
    add(rig, "ann", "operator")
    with pytest.raises(Conflict) as refused:
        set_role(rig, "admin", "viewer")
    assert refused.value.code == "last_owner"
    with pytest.raises(Conflict):
        rig.do(projects.remove_member, rig.user, HUB, "admin", None)
    set_role(rig, "ann", "owner")
    set_role(rig, "admin", "viewer")


def test_only_the_reach_of_the_hub_names_other_projects(rig: StoreRig) -> None:
    project(rig, "ocean")
    owner = member(rig, "ann", "owner")
    add(rig, "bob")
    for which in ("ocean", "nobody"):
        words = f"there is no project '{which}'"
        with pytest.raises(NotFound, match=words):
            rig.do(projects.set_member, owner, PROJECT, "bob", SetMember("viewer", which))
        with pytest.raises(NotFound, match=words):
            rig.do(projects.remove_member, owner, PROJECT, "bob", which)
        with pytest.raises(NotFound, match=words):
            rig.ask(projects.members, owner, PROJECT, which)
    own = rig.ask(projects.members, owner, PROJECT, "default").members
    assert [(m.name, m.role) for m in own] == [("admin", "owner"), ("ann", "owner")]


# --- tokens


def test_a_service_token_has_a_role_and_no_user(rig: StoreRig) -> None:
    new = NewServiceToken("operator", "nightly")
    made = rig.do(tokens.create_service_token, rig.user, new)
    who = rig.whoami(str(made.token))
    assert (who.account, who.role) == (None, "operator")
    assert who.parties == {Party.OPERATOR}
    assert audit.actor_of(who) == f"service token {made.prefix}"
    assert [t.prefix for t in rig.ask(tokens.tokens, who, OWN).tokens] == [made.prefix]


def test_a_member_sees_and_revokes_only_their_own_tokens(rig: StoreRig) -> None:
    ann, bob = member(rig, "ann", "viewer"), member(rig, "bob", "viewer")
    assert {t.user for t in rig.ask(tokens.tokens, ann, OWN).tokens} == {"ann"}
    assert {t.user for t in rig.ask(tokens.tokens, rig.user, PROJECT).tokens} == {
        "admin",
        "ann",
        "bob",
    }
    with pytest.raises(NotFound):
        rig.do(tokens.revoke_token, ann, OWN, bob.token_prefix)
    rig.do(tokens.revoke_token, ann, OWN, ann.token_prefix)
    revoked = rig.sql("SELECT prefix FROM token WHERE revoked_at IS NOT NULL")
    assert [row[0] for row in revoked] == [ann.token_prefix]


def test_nobody_shuts_themselves_out(rig: StoreRig) -> None:
    with pytest.raises(Conflict) as refused:
        rig.do(tokens.revoke_token, rig.user, PROJECT, rig.user.token_prefix)
    assert refused.value.code == "no_password"
    rig.do(logins.set_password, rig.user, "hash")
    rig.do(tokens.revoke_token, rig.user, PROJECT, rig.user.token_prefix)


def test_a_token_does_not_outlive_the_one_that_made_it(rig: StoreRig) -> None:
    brief = rig.do(tokens.create_token, rig.user, NewToken("brief", 60.0))
    who = rig.whoami(str(brief.token))
    for wanted in (None, 1e6):
        made = rig.do(tokens.create_token, who, NewToken("further", wanted))
        assert made.expires_at == brief.expires_at
    assert rig.do(tokens.create_token, who, NewToken("short", 5.0)).expires_at == rig.clock() + 5


def test_valid_tokens_are_bounded_for_each(rig: StoreRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chappe.core.limits.TOKENS", 3)
    add(rig, "bob", "viewer")
    code = add(rig, "ann", "viewer")
    first = join(rig, code, expires_in_s=60.0)
    for _ in range(2):
        login(rig, "ann")
    for act in (
        lambda: login(rig, "ann"),
        lambda: rig.do(tokens.create_token, rig.whoami(first.token), NewToken()),
    ):
        with pytest.raises(TooLarge):
            act()
    for _ in range(3):
        rig.do(tokens.create_service_token, rig.user, NewServiceToken("viewer"))
    with pytest.raises(TooLarge):
        rig.do(tokens.create_service_token, rig.user, NewServiceToken("viewer"))
    # What has ended does not count.
    rig.clock.advance(60.0)
    login(rig, "ann")


# --- the audit


def test_every_act_leaves_a_row(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    rig.do(sites.renew_token, rig.user, site.id)
    rig.do(sites.delete_site, rig.user, site.id)
    member(rig, "ann", "viewer")
    set_role(rig, "ann", "owner")
    rig.do(people.invite, rig.user, "ann", NewInvitation())
    service = rig.do(tokens.create_service_token, rig.user, NewServiceToken("viewer"))
    rig.do(tokens.revoke_token, rig.user, PROJECT, service.prefix)
    rig.do(tokens.revoke_token, rig.user, PROJECT, service.prefix)
    project(rig, "ocean")
    rig.do(projects.remove_member, rig.user, HUB, "ann", None)
    rig.do(people.disable, rig.user, "ann")
    rig.do(people.enable, rig.user, "ann")
    rig.do(logins.set_password, rig.user, "hash")
    assert acts(rig) == [
        ("site.create", "paris"),
        ("site.token", "paris"),
        ("site.token", "paris"),
        ("site.delete", "paris"),
        ("user.add", "ann"),
        ("member.set", "ann"),
        ("user.join", "ann"),
        ("login", "ann"),
        ("member.set", "ann"),
        ("user.invite", "ann"),
        ("token.create", service.prefix),
        ("token.revoke", service.prefix),
        ("project.create", "ocean"),
        ("member.remove", "ann"),
        ("user.disable", "ann"),
        ("user.enable", "ann"),
        ("user.password", "admin"),
    ]


def test_a_row_says_who_when_from_where_and_how(rig: StoreRig) -> None:
    actor = replace(rig.user, address="10.1.2.3")
    rig.do(projects.set_member, actor, HUB, "admin", SetMember("owner"))  # no change, no row
    rig.do(tokens.create_token, actor, NewToken("laptop"))
    (entry,) = rig.ask(audit.page, rig.user, PROJECT, 10, None).entries
    assert (entry.actor, entry.token_prefix, entry.address) == (
        "admin",
        rig.user.token_prefix,
        "10.1.2.3",
    )
    assert (entry.at, entry.project, entry.no) == (rig.clock(), "default", 1)
    assert entry.details == {"note": "laptop"}


def test_what_is_refused_leaves_no_row(rig: StoreRig) -> None:
    before = acts(rig)
    for act in (
        lambda: rig.do(people.disable, rig.user, "nobody"),
        lambda: rig.do(people.disable, rig.user, "admin"),
        lambda: set_role(rig, "nobody", "viewer"),
        lambda: add(rig, "No"),
    ):
        with pytest.raises(ChappeError):
            act()
    assert acts(rig) == before


def test_an_owner_sees_and_counts_only_the_own_project(rig: StoreRig) -> None:
    owner = member(rig, "ann", "owner")
    before = rig.ask(audit.page, owner, PROJECT, 1_000, None)
    project(rig, "ocean")
    for name in ("bob", "cy"):
        add(rig, name)
        set_role(rig, name, "viewer", "ocean")
    assert rig.ask(audit.page, owner, PROJECT, 1_000, None) == before
    rig.do(tokens.create_token, owner, NewToken())
    numbers = [e.no for e in rig.ask(audit.page, owner, PROJECT, 1_000, None).entries]
    assert numbers == list(range(len(numbers), 0, -1))


@pytest.mark.parametrize("reach", [PROJECT, HUB])
def test_pages_hold_each_act_once(rig: StoreRig, reach: Reach) -> None:
    for i in range(7):
        rig.do(tokens.create_token, rig.user, NewToken(str(i)))
    seen, cursor = list[int](), None
    while True:
        page = rig.ask(audit.page, rig.user, reach, 3, cursor)
        seen += [e.no for e in page.entries]
        cursor = page.next
        if cursor is None:
            break
    assert seen == [7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("limit", "cursor"), [(0, None), (1_001, None), (1, "x"), (1, "-1"), (1, "²"), (1, "9" * 30)]
)
def test_pages_that_there_are_not(rig: StoreRig, limit: int, cursor: str | None) -> None:
    with pytest.raises(Invalid):
        rig.ask(audit.page, rig.user, HUB, limit, cursor)


@pytest.mark.parametrize("sql", ["UPDATE audit SET actor = 'x'", "DELETE FROM audit"])
def test_a_row_stays_as_it_was_written(rig: StoreRig, sql: str) -> None:
    rig.do(tokens.create_token, rig.user, NewToken())
    with pytest.raises(Exception, match="append-only"):
        rig.place.change(sql)
