"""Another project's object takes the way that one takes which never existed: the same statements, in the same
order, so that time tells as little as words do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from chappe.core.access import Reach
from chappe.core.errors import NotFound
from chappe.store import bulk, logins, principal, projects, queries, sites, tokens, why
from chappe.store.logins import Account
from chappe.store.principal import Principal, make_token
from chappe.testing.store import StoreRig, cores
from chappe.wire.bulk import NewAct, NewSelection
from chappe.wire.jobs import JobFilter
from chappe.wire.people import Login, NewProject
from chappe.wire.sites import EndSession


@contextlib.contextmanager
def statements(rig: StoreRig) -> Iterator[list[str]]:
    """What readers and the writer execute."""
    seen: list[str] = []

    def saw(_conn: Any, _cursor: Any, text: str, *_: Any) -> None:
        seen.append(text)

    watched = (rig.store._readers, rig.store.writer._line.connection())
    for one in watched:
        sa.event.listen(one, "before_cursor_execute", saw)
    try:
        yield seen
    finally:
        for one in watched:
            sa.event.remove(one, "before_cursor_execute", saw)


class Scene(NamedTuple):
    """Somebody in an empty project, and what there is in another."""

    rig: StoreRig
    stranger: Principal
    ids: dict[str, str]


@pytest.fixture
def scene(rig: StoreRig) -> Scene:
    site = rig.add_site("paris")
    pilot = site.add_pilot()
    job = rig.spec(site)
    rig.submit(job, signed=True)
    pilot.sync(capacity=cores(1))
    selection, act = rig.new_id(), rig.new_id()
    new = NewSelection(selection, JobFilter())
    rig.do(bulk.store_selection, rig.user, new, [])
    rig.do(bulk.begin_act, rig.user, NewAct(act, selection, "cancel"))
    rig.do(projects.create, rig.user, NewProject(rig.new_id(), "empty"))
    wish = Login("admin", "", project="empty")
    token = rig.do(logins.login, Account(1, "admin", None), wish, "").token
    ids = {
        "job": job.id,
        "site": site.id,
        "batch job": pilot.batch_job,
        "session": pilot.id,
        "selection": selection,
        "act": act,
        "token": rig.user.token_prefix,
    }
    return Scene(rig, rig.whoami(token), ids)


READS: list[tuple[str, Callable[..., Any]]] = [
    ("job", queries.get_job),
    ("job", queries.job_n),
    ("job", queries.signed),
    ("job", queries.result),
    ("job", lambda c, p, id: queries.parents(c, p, id, None)),
    ("job", lambda c, p, id: why.why(c, p, id, 0.0)),
    ("site", lambda c, p, id: queries.get_site(c, p, id, 0.0)),
    ("batch job", queries.batch_job_view),
    ("selection", bulk.get_selection),
    ("act", bulk.get_act),
]

WRITES: list[tuple[str, Callable[..., Any]]] = [
    ("site", sites.delete_site),
    ("site", sites.renew_token),
    ("batch job", sites.cancel_batch_job),
    ("session", lambda tx, p, id: sites.end_session(tx, p, id, EndSession(True))),
    ("selection", bulk.drop_selection),
    ("act", bulk.stop_act),
    ("token", lambda tx, p, id: tokens.revoke_token(tx, p, Reach.PROJECT, id)),
]


def way(scene: Scene, act: Callable[..., Any], fn: Callable[..., Any], id: str) -> list[str]:
    """The statements of an act of the stranger on an id, which is refused."""
    with statements(scene.rig) as seen, pytest.raises(NotFound):
        act(fn, scene.stranger, id)
    return seen


@pytest.mark.parametrize(("what", "fn"), READS)
def test_reads_take_the_same_way(scene: Scene, what: str, fn: Callable[..., Any]) -> None:
    rig = scene.rig
    theirs = way(scene, rig.ask, fn, scene.ids[what])
    assert theirs == way(scene, rig.ask, fn, rig.new_id())
    # The example is one: its own people find it, or at least come further.
    with contextlib.suppress(NotFound):
        rig.ask(fn, rig.user, scene.ids[what])
        return
    with pytest.raises(NotFound) as refused:
        rig.ask(fn, rig.user, scene.ids[what])
    assert refused.value.code == "no_result"


@pytest.mark.parametrize(("what", "fn"), WRITES)
def test_writes_take_the_same_way(scene: Scene, what: str, fn: Callable[..., Any]) -> None:
    rig = scene.rig
    nobodys = "zzzzyyyyxxxx" if what == "token" else rig.new_id()
    theirs = way(scene, rig.do, fn, scene.ids[what])
    assert theirs or what == "site"  # sites are looked up in memory
    assert theirs == way(scene, rig.do, fn, nobodys)


def test_a_wrong_secret_takes_the_way_of_an_unknown_token(rig: StoreRig) -> None:
    kind, prefix = rig.token.split("_")[1:3]
    altered = f"chp_{kind}_{prefix}_{'A' * 43}"
    with statements(rig) as known:
        assert rig.ask(principal.find, altered) is None
    with statements(rig) as unknown:
        assert rig.ask(principal.find, make_token("user")[0]) is None
    assert known == unknown
