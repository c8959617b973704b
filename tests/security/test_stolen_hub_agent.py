"""A stolen Hub and the agent: orders, Sessions and BatchJobs that are none, or another Site's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from chappe.link.clock import new_id
from chappe.site import daemon
from chappe.site.status import Presence
from chappe.testing.hub import RunningHub
from chappe.wire.sites import BatchJobIntent, BatchJobOrder, BatchJobView
from tests.security.evil_hub import plain_order, wishes
from tests.security.victim import Victim


@pytest.fixture
def quiet(tmp_path: Path, open_hub: RunningHub) -> Iterator[Victim]:
    """A Site that keeps no pilot of its own accord; its agent is not started yet."""
    made = Victim(tmp_path / "site", open_hub, settings="keep = 0")
    try:
        yield made
    finally:
        made.close()


def agent_lives(victim: Victim) -> None:
    """An honest order brings a pilot: the agent is well."""
    victim.hub.session_reply = lambda reply: reply
    seen = len(victim.hub.syncs)
    victim.hub.order(plain_order())
    victim.hub.wait(lambda: len(victim.hub.syncs) > seen, "a pilot")
    assert daemon.status(victim.paths.root).presence is Presence.RUNNING


def failed(victim: Victim, ident: str) -> str:
    """Why a BatchJob was given up by the agent."""
    hub = victim.hub
    report = hub.wait(
        lambda: (r := hub.agent_reports.get(ident)) and r.state == "failed" and r,
        f"{ident} fails",
    )
    return str(report.message)


def reported(victim: Victim, ident: str) -> None:
    """Return when the agent has said something about a BatchJob."""
    victim.hub.wait(lambda: ident in victim.hub.agent_reports, f"news of {ident}")


REPLIES: dict[str, dict[str, Any]] = {
    "another site": {"site": new_id()},
    "another project": {"project": new_id()},
    "another session": {"id": new_id()},
    "a path": {"id": "../../../evil"},
}


def test_who_the_site_is_the_hub_cannot_say(quiet: Victim, tmp_path: Path) -> None:
    """A pilot that believed it would run what was signed for another Site."""
    victim = quiet
    daemon.start(victim.paths.root)
    for changes in (*REPLIES.values(), {"id": str(tmp_path / "evil")}):
        made = partial(replace, **changes)
        victim.hub.session_reply = made
        order = plain_order()
        victim.hub.order(order)
        assert "not this site's" in failed(victim, order.id)
    assert not victim.hub.syncs
    assert not list(tmp_path.rglob("session.json"))
    assert not (tmp_path / "evil").exists()
    agent_lives(victim)


def test_tokens_that_are_none_do_no_harm(quiet: Victim) -> None:
    victim = quiet
    daemon.start(victim.paths.root)
    for token in ("", "a b", "x\r\nX-Evil: 1", "é", "x" * 1_000_000):
        victim.hub.session_reply = partial(replace, token=token)
        order = plain_order()
        victim.hub.order(order)
        reported(victim, order.id)
    agent_lives(victim)


def test_orders_under_names_that_are_none_are_passed_over(quiet: Victim) -> None:
    victim = quiet
    daemon.start(victim.paths.root)
    names = ("", "x y", "../../x", "x\n#SBATCH --uid=0", "--force", "x" * 10_000, "\0")
    for name in names:
        victim.hub.order(BatchJobOrder(name, wishes({})))
    agent_lives(victim)
    assert len(victim.sessions()) == 1
    log = (victim.paths.logs / "agent.log").read_text()
    assert log.count("an order with an id that is none is passed over") == len(names)


def test_intents_beyond_reason_start_nothing_else(quiet: Victim) -> None:
    """What an order may say is bounded by scheduler and pilot; nothing of it gets into a script as text."""
    victim = quiet
    daemon.start(victim.paths.root)
    intents: list[dict[str, Any]] = [
        {"nodes": 2},
        {"nodes": -1},
        {"nodes": 10**15},
        {"cores": -1},
        {"cores": 10**15},
        {"wall_s": -1.0},
        {"wall_s": 1e308},
        {"queue": "x\n#SBATCH --uid=0"},
        {"account": "\n#LOCAL mark A=B"},
        {"constraint": "a\n#LOCAL mark A=B"},
        {"job_extra_directives": ("--uid=0\n#SBATCH --x", "\n#LOCAL mark A=B")},
        {"job_extra_directives": ("mark A=B",)},
    ]
    for intent in intents:
        order = plain_order(**intent)
        victim.hub.order(order)
        reported(victim, order.id)
    scripts = [path.read_text() for path in victim.paths.sessions.rglob("batch.sh")]
    assert scripts
    assert not any("SBATCH" in text or "A=B" in text for text in scripts)
    agent_lives(victim)
    assert victim.witness() == []


def test_what_the_scheduler_runs_is_asked_of_the_scheduler(quiet: Victim, tmp_path: Path) -> None:
    """A BatchJob that the agent does not know, with the scheduler's id of somebody else's job."""
    victim = quiet
    view = BatchJobView(
        new_id(),
        victim.site,
        "running",
        BatchJobIntent(nodes=2),
        1.0,
        scheduler_id="../../precious",
        session=new_id(),
    )
    paths = [replace(view, id="../x"), replace(view, id=new_id(), session=str(tmp_path / "s"))]
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "session.json").write_text("{}")
    victim.hub.listed = [view, *paths]
    daemon.start(victim.paths.root)
    victim.hub.order(BatchJobOrder(view.id, wishes({}), cancel=True))
    reports = victim.hub.agent_reports
    victim.hub.wait(
        lambda: view.id in reports and reports[view.id].state in ("cancelled", "failed"),
        "it is given up",
    )
    assert "precious" not in (victim.paths.logs / "agent.log").read_text()
    assert (tmp_path / "s" / "session.json").exists()
    assert set(reports) == {view.id}
    agent_lives(victim)
