"""Sites, their Apps and agents, BatchJobs and Sessions."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest
from msgspec import structs

from chappe.core import limits
from chappe.core.access import Reach
from chappe.core.errors import Conflict, Forbidden, Invalid, NotFound, TooLarge
from chappe.core.jobs import AppRef
from chappe.core.parameters import Kind, Parameter
from chappe.store import audit, principal, queries, sites
from chappe.store.dialect import sql
from chappe.store.tx import Effects
from chappe.testing.store import TRUE, PilotRig, SiteRig, StoreRig, cores, held
from chappe.wire.people import AuditEntry
from chappe.wire.sites import (
    AgentHello,
    AgentSync,
    AppView,
    BatchJobReport,
    EndSession,
    NewBatchJob,
    NewSession,
    NewSite,
    PublishApps,
    StrictIntent,
)


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris")


def batch(rig: StoreRig, id: str) -> Any:
    return rig.ask(queries.batch_job_view, rig.user, id)


# -- sites ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a b", "-a", ".a", "é", "a/b", "x" * 65, "a\n"])
def test_names_that_are_refused(rig: StoreRig, name: str) -> None:
    with pytest.raises(Invalid) as caught:
        rig.do(sites.create_site, rig.user, NewSite(rig.new_id(), name))
    assert caught.value.field == "name"


@pytest.mark.parametrize("name", ["a", "0", "HPC-2.fr_x", "x" * 64])
def test_names_that_are_taken(rig: StoreRig, name: str) -> None:
    made = rig.do(sites.create_site, rig.user, NewSite(rig.new_id(), name))
    assert (made.name, made.project) == (name, rig.user.project_id)


def test_a_name_and_an_id_are_used_once(rig: StoreRig, site: SiteRig) -> None:
    with pytest.raises(Conflict, match="a site named paris"):
        rig.do(sites.create_site, rig.user, NewSite(rig.new_id(), "paris"))
    with pytest.raises(Conflict, match="is named paris"):
        rig.do(sites.create_site, rig.user, NewSite(site.id, "rome"))
    with pytest.raises(Invalid):
        rig.do(sites.create_site, rig.user, NewSite("1", "rome"))


def test_a_site_sees_only_itself(rig: StoreRig, site: SiteRig) -> None:
    rome = rig.add_site("rome")
    for call in (
        lambda: rig.do(sites.publish_apps, site.principal, rome.id, PublishApps([])),
        lambda: rig.do(sites.hello, site.principal, rome.id, AgentHello(site.agent, "x")),
        lambda: rig.do(sites.agent_sync, site.principal, rome.id, AgentSync(rome.agent)),
        lambda: rig.do(sites.create_batch_job, site.principal, NewBatchJob(rig.new_id(), rome.id)),
    ):
        with pytest.raises(NotFound):
            call()


def test_apps_are_replaced_as_a_whole(rig: StoreRig, site: SiteRig) -> None:
    model = AppView("model", "1", "0" * 64, parameters={"n": Parameter(Kind.INT)}, unsigned=True)
    rig.do(sites.publish_apps, site.principal, site.id, PublishApps([model]))
    (view,) = rig.ask(queries.list_apps, rig.user, "paris")
    assert (view.name, view.site, view.parameters) == ("model", site.id, model.parameters)
    with pytest.raises(Invalid, match="it has: model"):
        rig.submit(rig.spec(site))
    rig.submit(rig.spec(site, app=AppRef("model"), parameters={"n": 3}))
    rig.restart()
    with pytest.raises(Invalid, match="a number"):
        rig.submit(rig.spec(site, app=AppRef("model"), parameters={"n": "x"}))


def test_a_sites_key_is_kept_and_another_one_is_told_and_audited(
    rig: StoreRig, site: SiteRig
) -> None:
    def shown() -> str:
        return rig.ask(queries.get_site, rig.user, "paris", rig.clock.now).key

    def tell(key: str) -> None:
        rig.do(sites.publish_apps, site.principal, site.id, PublishApps([TRUE], key))

    one, other = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
    assert shown() == ""
    tell(one)
    tell("")  # an agent that cannot read it, or is of an earlier version
    tell(one)
    assert shown() == one
    assert "site.key" not in [act.action for act in _audit(rig)]
    for nonsense in ("x", one[:-4], "é" * 43 + "="):
        with pytest.raises(Invalid, match="32 bytes"):
            tell(nonsense)
    tell(other)
    assert shown() == other
    (act,) = [act for act in _audit(rig) if act.action == "site.key"]
    assert (act.actor, act.subject) == ("site paris", "paris")
    assert act.details == {"before": one, "key": other}


def _audit(rig: StoreRig) -> list[AuditEntry]:
    return rig.ask(audit.page, rig.user, Reach.PROJECT, 100, None).entries


@pytest.mark.parametrize(
    ("apps", "kind"),
    [
        ([TRUE, TRUE], Invalid),
        ([TRUE] * (limits.APPS_PER_SITE + 1), TooLarge),
        ([AppView("x", "1", "0", parameters={"n": Parameter(Kind.CHOICE)})], Invalid),
    ],
    ids=["twice", "many", "schema"],
)
def test_apps_that_are_refused_leave_the_old_ones(
    rig: StoreRig, site: SiteRig, apps: list[AppView], kind: type[Invalid]
) -> None:
    with pytest.raises(kind):
        rig.do(sites.publish_apps, site.principal, site.id, PublishApps(apps))
    rig.submit(rig.spec(site))


@pytest.mark.parametrize("what", ["session", "job", "job elsewhere", "nothing"])
def test_a_site_that_holds_something_is_not_deleted(
    rig: StoreRig, site: SiteRig, what: str
) -> None:
    rome = rig.add_site("rome")
    if what == "session":
        site.add_pilot()
    if what.startswith("job"):
        rig.submit(rig.spec(rome if what == "job elsewhere" else site))
    if what in ("session", "job"):
        with pytest.raises(Conflict) as caught:
            rig.do(sites.delete_site, rig.user, site.id)
        assert caught.value.code == "site_busy"
        assert rig.ask(queries.get_site, rig.user, site.id, rig.clock()).name == "paris"
        return
    rig.do(sites.delete_site, rig.user, site.id)
    assert rig.ask(principal.find, site.token) is None
    with pytest.raises(NotFound):
        rig.do(sites.delete_site, rig.user, site.id)
    assert [s.name for s in rig.ask(queries.list_sites, rig.user, rig.clock())] == ["rome"]


def test_a_deleted_site_comes_back(rig: StoreRig, site: SiteRig) -> None:
    """Under its old id, with the Shapes that still name it; its past Jobs are not its own again."""
    rome = rig.add_site("rome")
    shared, past = rig.spec(site, rome), rig.spec(site)
    rig.submit(shared, past)
    rig.cancel(past)
    rig.do(sites.delete_site, rig.user, site.id)
    made = rig.do(sites.create_site, rig.user, NewSite(site.id, "paris"))
    again = SiteRig(rig, made.id, "paris", made.token)
    again.hello()
    (grant,) = again.add_pilot().sync(capacity=cores(4)).grants
    assert grant.job == shared.id
    assert rig.job(past.id).site is None
    view = rig.ask(queries.get_site, rig.user, "paris", rig.clock())
    assert (view.waiting, len(view.sessions)) == (1, 1)
    rig.restart()
    assert rig.job(shared.id).site == site.id


# -- the agent --------------------------------------------------------------------------------------


def test_a_second_agent_is_refused_while_the_first_is_heard(rig: StoreRig, site: SiteRig) -> None:
    rig.clock.advance(limits.SESSION_TTL_S - 1)
    second = AgentHello(rig.new_id(), "elsewhere")
    with pytest.raises(Conflict, match=r"paris\.example and was heard 59 s ago") as caught:
        rig.do(sites.hello, site.principal, site.id, second)
    assert caught.value.code == "agent_present"
    site.sync()


@pytest.mark.parametrize("how", ["previous", "itself", "silence"])
def test_an_agent_is_accepted_when_the_first_is_gone(
    rig: StoreRig, site: SiteRig, how: str
) -> None:
    """It says that its own last process is dead, or it is the same, or the first was not heard."""
    old = site.agent
    if how != "itself":
        site.agent = rig.new_id()
    if how == "silence":
        rig.clock.advance(limits.SESSION_TTL_S)
    site.hello(previous=old if how == "previous" else None)
    site.sync()
    if how != "itself":
        with pytest.raises(Conflict) as caught:
            rig.do(sites.agent_sync, site.principal, site.id, AgentSync(old))
        assert caught.value.code == "agent_superseded"


def test_a_site_is_online_while_its_agent_is_heard(rig: StoreRig, site: SiteRig) -> None:
    def online() -> bool:
        return rig.ask(queries.get_site, rig.user, site.id, rig.clock()).online

    assert online()
    rig.clock.advance(limits.SESSION_TTL_S - 1)
    site.sync()
    rig.clock.advance(limits.SESSION_TTL_S - 1)
    assert online()
    rig.clock.advance(1)
    assert not online()


# -- batch jobs -------------------------------------------------------------------------------------


def test_the_life_of_a_batch_job(rig: StoreRig, site: SiteRig) -> None:
    told = Effects()
    rig.store.writer.on_commit = lambda effects: told.agents.update(effects.agents)
    intent = StrictIntent(cores=8, wall_s=3_600)
    id = rig.new_id()
    view = rig.do(sites.create_batch_job, rig.user, NewBatchJob(id, site.id, intent))
    assert (view.state, structs.asdict(view.intent), view.site) == (
        "requested",
        structs.asdict(intent),
        site.id,
    )
    assert told.agents == {site.principal.site_n}
    (order,) = site.sync().orders
    assert (order.id, bytes(order.intent), order.cancel) == (id, msgspec.json.encode(intent), False)
    assert not site.sync(known=[id]).orders
    # What it does not know any more, it is told again: a report or its outbox was lost.
    assert [o.id for o in site.sync().orders] == [id]
    reply = site.sync(BatchJobReport(id, "submitted", "4711"), known=[id])
    assert reply.accepted == [id]
    site.sync(BatchJobReport(id, "running"), known=[id])
    view = batch(rig, id)
    assert (view.state, view.scheduler_id) == ("running", "4711")
    site.sync(BatchJobReport(id, "ended", message="done"), known=[id])
    view = batch(rig, id)
    assert (view.state, view.message, view.scheduler_id) == ("ended", "done", "4711")
    assert not site.sync().orders


def test_what_another_version_was_asked_for_is_shown_and_ordered_as_it_was(
    rig: StoreRig, site: SiteRig
) -> None:
    """A row with a wish that nobody knows here any more, or yet, spoils no sync and no listing."""
    strange, plain = site.add_batch_job(), site.add_batch_job()
    old = '{"nodes":2,"options":{"qos":"low"}}'
    rig.do(
        lambda tx: tx.write(
            sql("UPDATE batch_job SET intent = :old WHERE id = :id"), old=old, id=strange
        )
    )
    assert {o.id: bytes(o.intent) for o in site.sync().orders} == {
        strange: old.encode(),
        plain: b"{}",
    }
    assert batch(rig, strange).intent.nodes == 2


def test_asking_again_is_harmless(rig: StoreRig, site: SiteRig) -> None:
    id = site.add_batch_job()
    site.sync(BatchJobReport(id, "submitted"), known=[id])
    head = rig.store.head(rig.user.project_n)
    again = rig.do(sites.create_batch_job, rig.user, NewBatchJob(id, site.id))
    assert again.state == "submitted"
    assert rig.store.head(rig.user.project_n) == head
    rome = rig.add_site("rome")
    with pytest.raises(Conflict):
        rig.do(sites.create_batch_job, rig.user, NewBatchJob(id, rome.id))


@pytest.mark.parametrize(
    ("intent", "field"),
    [
        (StrictIntent(nodes=0), "intent.nodes"),
        (StrictIntent(cores=-1), "intent.cores"),
        (StrictIntent(queue="q\n#SBATCH --uid=0"), "intent.queue"),
        (StrictIntent(wall_s=0), "intent.wall_s"),
        (StrictIntent(wall_s=limits.WALL_MAX_S + 1), "intent.wall_s"),
    ],
)
def test_allocations_that_are_refused(
    rig: StoreRig, site: SiteRig, intent: StrictIntent, field: str
) -> None:
    with pytest.raises(Invalid) as caught:
        rig.do(sites.create_batch_job, rig.user, NewBatchJob(rig.new_id(), site.id, intent))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("reports", "state"),
    [
        (["running", "submitted"], "running"),  # a late report does not lead back
        (["ended", "running"], "ended"),
        (["failed", "ended"], "failed"),
        (["cancelled"], "cancelled"),
        (["submitted", "submitted"], "submitted"),
    ],
)
def test_reports_in_any_order(rig: StoreRig, site: SiteRig, reports: list[str], state: str) -> None:
    id = site.add_batch_job()
    for report in reports:
        assert site.sync(BatchJobReport(id, report), known=[id]).accepted == [id]
    assert batch(rig, id).state == state


def test_reports_of_what_is_not_the_sites_are_accepted_and_change_nothing(
    rig: StoreRig, site: SiteRig
) -> None:
    rome = rig.add_site("rome")
    theirs, unknown = rome.add_batch_job(), rig.new_id()
    reports = [BatchJobReport(theirs, "ended"), BatchJobReport(unknown, "ended")]
    assert site.sync(*reports).accepted == [theirs, unknown]
    assert batch(rig, theirs).state == "requested"


def test_a_state_that_is_none_is_refused(site: SiteRig) -> None:
    id = site.add_batch_job()
    with pytest.raises(Invalid):
        site.sync(BatchJobReport(id, "requested"))


def test_a_batch_job_that_is_cancelled(rig: StoreRig, site: SiteRig) -> None:
    id = site.add_batch_job()
    for _ in range(2):
        rig.do(sites.cancel_batch_job, rig.user, id)
    # The order to take it back comes whether the agent knows it or not.
    (order,) = site.sync(known=[id]).orders
    assert (order.id, order.cancel) == (id, True)
    site.sync(BatchJobReport(id, "cancelled"), known=[id])
    assert batch(rig, id).state == "cancelled"
    assert not site.sync().orders
    assert rig.do(sites.cancel_batch_job, rig.user, id).state == "cancelled"
    with pytest.raises(NotFound):
        rig.do(sites.cancel_batch_job, rig.add_site("rome").principal, id)
    with pytest.raises(NotFound):
        rig.do(sites.cancel_batch_job, rig.user, rig.new_id())


def test_the_pilot_of_a_cancelled_batch_job_is_woken(rig: StoreRig, site: SiteRig) -> None:
    pilot = site.add_pilot()
    told: set[str] = set()
    rig.store.writer.on_commit = lambda effects: told.update(effects.kill)
    rig.do(sites.cancel_batch_job, rig.user, pilot.batch_job)
    assert told == {pilot.id}
    assert pilot.sync().drain


# -- sessions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["ended", "failed", "cancelled"])
def test_the_end_of_a_batch_job_is_proof_of_death(rig: StoreRig, site: SiteRig, state: str) -> None:
    started, granted = rig.spec(site), rig.spec(site)
    rig.submit(started, granted)
    pilot = site.add_pilot()
    grants = pilot.sync(capacity=cores(2)).grants
    pilot.sync(held=[held(g) for g in grants], reports=[pilot.start(grants[0])])
    site.end(pilot, state)
    for job in (started, granted):
        view = rig.job(job.id)
        assert (view.state, view.attempt, view.session) == ("RESTART_READY", 1, None)
        assert view.outcome is not None
        assert (view.outcome.reason, view.outcome.message) == (
            "session_dead",
            "its allocation ended",
        )
    (session,) = rig.ask(lambda c, p: queries.list_sessions(c, p, all_=True), rig.user)
    assert (session.state, session.held) == ("dead", 0)
    again = site.add_pilot().sync(capacity=cores(2)).grants
    assert {(g.epoch, g.attempt) for g in again} == {(2, 2)}


def test_a_session_needs_an_open_batch_job_of_its_site(rig: StoreRig, site: SiteRig) -> None:
    rome = rig.add_site("rome")
    ended = site.add_batch_job()
    site.sync(BatchJobReport(ended, "ended"))
    taken = site.add_pilot()

    def refused(batch_job: str, id: str | None = None) -> Any:
        with pytest.raises((Conflict, NotFound)) as caught:
            rig.do(sites.create_session, site.principal, NewSession(id or rig.new_id(), batch_job))
        return caught.value

    assert isinstance(refused(rig.new_id()), NotFound)
    assert isinstance(refused(rome.add_batch_job()), NotFound)
    assert refused(ended).code == "batch_job_ended"
    assert refused(taken.batch_job).code == "session_exists"
    assert refused(site.add_batch_job(), taken.id).field == "id"


def test_a_session_that_is_asked_for_again_goes_on_under_a_new_token(
    rig: StoreRig, site: SiteRig
) -> None:
    job = rig.spec(site)
    rig.submit(job)
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=cores(1)).grants
    made = rig.do(sites.create_session, site.principal, NewSession(pilot.id, pilot.batch_job))
    assert rig.ask(principal.find, pilot.token) is None
    successor = PilotRig(site, made.id, pilot.batch_job, made.token)
    successor.request_no, successor.seen = pilot.request_no, pilot.seen
    successor.run(grant)
    assert rig.job(job.id).state == "JOB_FINISHED"


def test_a_dead_session_does_not_come_back(rig: StoreRig, site: SiteRig) -> None:
    pilot = site.add_pilot()
    rig.do(sites.end_session, pilot.principal, pilot.id, EndSession())
    with pytest.raises(Conflict):
        rig.do(sites.create_session, site.principal, NewSession(pilot.id, pilot.batch_job))


def test_who_may_end_a_session(rig: StoreRig, site: SiteRig) -> None:
    rome = rig.add_site("rome")
    a, b, c = site.add_pilot(), site.add_pilot(), site.add_pilot()

    def end(who: Any, id: str, *, twice: bool = False) -> None:
        rig.do(sites.end_session, who, id, EndSession(twice))

    def states() -> dict[str, str]:
        return {r[0]: r[1] for r in rig.sql("SELECT id, state FROM session")}

    with pytest.raises(Forbidden) as caught:
        end(rig.user, a.id)
    assert caught.value.code == "may_run_twice"
    for who in (rome.principal, b.principal):
        with pytest.raises(NotFound):
            end(who, a.id)
    with pytest.raises(NotFound):
        end(rig.user, rig.new_id(), twice=True)
    assert set(states().values()) == {"live"}
    end(rig.user, a.id, twice=True)
    end(b.principal, b.id)
    end(site.principal, c.id)
    end(site.principal, c.id)
    assert states() == {a.id: "dead", b.id: "dead", c.id: "dead"}
    messages = [
        r[0]
        for r in rig.sql(
            "SELECT data->>'message' FROM event WHERE kind = 'session' AND data->>'state' = 'dead'"
            " ORDER BY seq"
        )
    ]
    assert messages == ["ended by an operator", "its pilot ended", "its site says that it ended"]
