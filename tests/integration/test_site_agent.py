"""The agent as a real process, with real local allocations, against a Hub that misbehaves on demand."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Raw

from chappe.core.errors import ChappeError, Conflict
from chappe.core.leases import Outcome, Reason
from chappe.link import journal, spool
from chappe.link.clock import new_id
from chappe.link.ledger import Ledger
from chappe.site import agent, daemon
from chappe.site.check import check_site
from chappe.site.daemon import StartFailed
from chappe.site.finding import Level
from chappe.site.init import DirectoryInUse, HubAccess, init_site
from chappe.site.status import AgentRunning, Presence
from chappe.wire.sites import BatchJobIntent
from chappe.wire.sync import Grant, HeldJob, JobEpoch
from tests.integration.site_rig import KEY, Refusal, Site, StubHub, stub_hub, wait_until

# A pilot that says that it began, and ends when it is told to.
PATIENT = """\
session=$1
echo "$(basename "$session")" >>starts
trap 'echo term >>terms; exit 0' TERM
while [ ! -e "$session/go" ]; do sleep 0.05; done
exit 0
"""
MSG = b"\x93\x01\x02\x03"  # a result: [1, 2, 3] in msgpack


@pytest.fixture
def hub() -> Iterator[StubHub]:
    with stub_hub() as made:
        yield made


@pytest.fixture
def site(tmp_path: Path, hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.chdir(tmp_path)  # where PATIENT writes when it is started as another program
    made = Site(tmp_path / "lyon", hub, PATIENT)
    yield made
    made.clean()


def running(site: Site) -> tuple[str, str]:
    """(BatchJob, Session) of the first pilot that runs and that the Hub knows to run."""
    ident = wait_until(lambda: site.hub.states("running"), "a running batch job")[0]
    session = site.hub.sessions[ident]
    wait_until(lambda: session in site.lines("starts"), "the pilot's start")
    return ident, session


def let_end(site: Site, session: str) -> None:
    (site.paths.session(session) / "go").touch()


# --- init and check


def test_init_lays_out_a_private_directory(site: Site) -> None:
    modes = {
        path: stat.S_IMODE(path.stat().st_mode)
        for path in (site.paths.secrets, site.paths.token, site.paths.sessions, site.paths.outbox)
    }
    assert list(modes.values()) == [0o700, 0o600, 0o700, 0o700]
    assert KEY in site.paths.trusted_keys.read_text()
    assert not site.paths.init_record.exists()


def test_a_used_directory_is_refused(tmp_path: Path, site: Site, hub: StubHub) -> None:
    access = HubAccess(hub.url, "t")
    with pytest.raises(DirectoryInUse, match="a site already"):
        init_site(site.paths.root, "again", access, KEY)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(DirectoryInUse, match="not empty"):
        init_site(tmp_path / "full", "full", access, KEY)
    assert list(hub.sites.values()) == ["lyon"]


def test_an_interrupted_init_is_completed_under_the_same_id(tmp_path: Path, hub: StubHub) -> None:
    access = HubAccess(hub.url, "t")
    hub.refuse["/sites"] = Refusal(422, "invalid", "not now")
    with pytest.raises(ChappeError):
        init_site(tmp_path / "metz", "metz", access, KEY)
    hub.refuse.clear()
    with pytest.raises(DirectoryInUse, match="interrupted"):
        init_site(tmp_path / "metz", "nancy", access, KEY)
    begun = json.loads((tmp_path / "metz" / ".init.json").read_text())["id"]
    assert init_site(tmp_path / "metz", "metz", access, KEY).id == begun


def test_check_finds_nothing_wrong_with_a_new_site(site: Site) -> None:
    daemon.start(site.paths.root)
    assert [f for f in check_site(site.paths.root) if f.level is not Level.OK] == []


def test_check_names_each_fault_and_a_remedy(site: Site) -> None:
    site.paths.token.chmod(0o644)
    site.paths.trusted_keys.write_text("rsa AAAA me\n")
    (site.paths.apps / "bad.toml").write_text('name = "bad"\nversion = 1\n')
    found = {f.what: f.remedy for f in check_site(site.paths.root) if f.level is Level.ERROR}
    text = "\n".join(found)
    for fault in ("site.token has mode 0644", "trusted_keys:1", "bad.toml:2"):
        assert fault in text
    assert all(found.values())


def test_check_starts_each_environment_for_functions(site: Site) -> None:
    assert not [f for f in check_site(site.paths.root) if "functions: " in f.what]
    config = site.paths.config.read_text().replace("# allowed = false", "allowed = true")
    # The pilots of this Site are no Python.
    default = f'[functions.environments.default]\npython = "{sys.executable}"\n'
    broken = f'[functions.environments.broken]\npython = "{sys.executable}"\n'
    broken += 'preload = ["json", "no_such_module"]\n'
    missing = '[functions.environments.missing]\npython = "/no/such/python"\n'
    site.paths.config.write_text(config + default + broken + missing)
    found = [f for f in check_site(site.paths.root) if "functions: " in f.what]
    assert [f.level for f in found] == [Level.ERROR, Level.OK, Level.ERROR]
    assert "No module named 'no_such_module'" in found[0].what
    assert "environment 'default': Python 3." in found[1].what
    assert "/no/such/python" in found[2].what
    assert found[0].remedy
    assert found[2].remedy


@pytest.mark.parametrize(
    ("fault", "says"), [("away", "out of reach"), ("token", "refuses the site's token")]
)
def test_check_tells_an_absent_hub_from_a_bad_token(site: Site, fault: str, says: str) -> None:
    if fault == "away":
        site.hub.stop()
    else:
        site.hub.refuse["/whoami"] = Refusal(401, "unauthenticated")
    wrong = [f for f in check_site(site.paths.root) if f.level is Level.ERROR]
    assert len(wrong) == 1
    assert says in wrong[0].what
    assert wrong[0].remedy


# --- the life of an allocation


def test_a_pilot_is_kept_alive_and_its_end_is_reported(site: Site) -> None:
    daemon.start(site.paths.root)
    ident, session = running(site)
    secret = site.paths.session(session) / "session.json"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    told = json.loads(secret.read_text())
    assert (told["session"], told["site_name"]) == (session, "lyon")
    assert site.hub.apps == ["hello"]
    let_end(site, session)
    wait_until(lambda: ident in site.hub.states("ended"), "the report of the end")
    assert [r.session for r in site.hub.syncs] == [session] * 2
    assert not secret.exists()
    again = wait_until(lambda: site.hub.states("running"), "the next pilot")
    assert again != [ident]


def test_an_order_is_submitted_once_and_a_cancel_ends_it(site: Site) -> None:
    site.setting("# keep = 1", "keep = 0")
    daemon.start(site.paths.root)
    ident = new_id()
    site.hub.order(ident)
    _, session = running(site)
    site.hub.cancel(ident)
    wait_until(lambda: ident in site.hub.states("cancelled"), "the report of the cancel")
    assert site.lines("terms") == ["term"]
    assert site.lines("starts") == [session]


def test_an_order_for_what_is_over_is_answered_and_not_carried_out_again(site: Site) -> None:
    """The hub was restored from a copy in which the allocation is still wanted, or still runs."""
    site.setting("# keep = 1", "keep = 0")
    daemon.start(site.paths.root)
    ident = new_id()
    site.hub.order(ident)
    _, session = running(site)
    let_end(site, session)
    wait_until(lambda: ident in site.hub.states("ended"), "the report of the end")
    for state in ("requested", "running"):
        # A poll that waits was sent when it was known: only the next one, half a minute later, would tell.
        daemon.stop(site.paths.root)
        site.hub.change(lambda state=state: site.hub.batch_jobs.update({ident: state}))  # type: ignore[misc]
        daemon.start(site.paths.root)
        wait_until(lambda: ident in site.hub.states("ended"), "the end is told again")
    assert site.lines("starts") == [session]


def test_what_was_cancelled_before_it_was_submitted_never_starts(site: Site) -> None:
    site.setting("# keep = 1", "keep = 0")
    ident = new_id()
    site.hub.order(ident)
    site.hub.cancel(ident)
    daemon.start(site.paths.root)
    wait_until(lambda: ident in site.hub.states("cancelled"), "the report of the cancel")
    assert site.lines("starts") == []


def test_what_this_machine_cannot_give_fails_with_a_reason(site: Site) -> None:
    site.setting("# keep = 1", "keep = 0")
    daemon.start(site.paths.root)
    ident = new_id()
    site.hub.order(ident, BatchJobIntent(nodes=65))
    wait_until(lambda: ident in site.hub.states("failed"), "the report of the failure")
    assert "65 nodes" in site.hub.messages[ident]


def test_pilots_that_die_at_once_are_not_asked_for_as_fast_as_they_die(
    tmp_path: Path, hub: StubHub
) -> None:
    site = Site(tmp_path / "ajaccio", hub, "exit 3\n")
    try:
        daemon.start(site.paths.root)
        wait_until(lambda: len(hub.states("failed")) >= 2, "two dead pilots")
        delays = [entry["in_s"] for entry in site.said("waiting before the next pilot")]
        assert delays[:2] == [2.0, 4.0]
    finally:
        site.clean()


def test_new_and_broken_apps_are_noticed(site: Site) -> None:
    daemon.start(site.paths.root)
    running(site)
    (site.paths.apps / "broken.toml").write_text("name = \n")
    (site.paths.apps / "second.toml").write_text(
        'name = "second"\nversion = "1"\ncommand = ["true"]\n'
    )
    site.hub.order(new_id())  # the agent hears of it, and looks at apps/ before it listens again
    wait_until(lambda: site.hub.apps == ["hello", "second"], "the new app")
    assert "broken.toml:1" in json.dumps(site.said("an app is wrong"))


# --- stopping, crashing, a second agent


def test_the_end_of_the_agent_touches_no_pilot_and_the_next_goes_on(site: Site) -> None:
    started = daemon.start(site.paths.root)
    ident, session = running(site)
    assert daemon.stop(site.paths.root).presence is Presence.STOPPED
    assert daemon.stop(site.paths.root).presence is Presence.STOPPED
    let_end(site, session)
    again = daemon.start(site.paths.root)
    assert again.presence is Presence.RUNNING
    wait_until(lambda: ident in site.hub.states("ended"), "the report of the end")
    assert site.lines("terms") == []
    assert site.hub.hellos[-1].previous == started.agent


@pytest.mark.parametrize("point", agent.CRASH_POINTS)
def test_killed_at_any_point_each_batch_job_is_submitted_once(
    tmp_path: Path, site: Site, point: str
) -> None:
    once = tmp_path / "crashed"
    crash = {"CHAPPE_CRASH_AT": point, "CHAPPE_CRASH_ONCE": str(once)}
    late = point not in ("agent.before_report", "agent.after_report")
    first = site.agent(**crash)
    try:
        wait_until(lambda: once.exists() or site.lines("starts"), "a pilot, or the crash")
        if late and not once.exists():
            # The later points are reached when a pilot has ended.
            let_end(site, site.lines("starts")[0])
        assert first.wait(60) == -signal.SIGKILL, "the crash point was reached"
    finally:
        first.kill()
        first.wait()
    second = site.agent(**crash)
    try:
        session = wait_until(lambda: site.lines("starts"), "a pilot")[0]
        ident = next(i for i, s in site.hub.sessions.items() if s == session)
        let_end(site, session)
        wait_until(lambda: ident in site.hub.states("ended"), "the report of the end")
        assert site.lines("starts").count(session) == 1
        assert len(site.lines("starts")) == len(set(site.lines("starts")))
    finally:
        second.terminate()
        assert second.wait(30) == 0


def test_a_second_agent_on_this_machine_is_refused_before_it_does_anything(site: Site) -> None:
    daemon.start(site.paths.root)
    hellos = len(site.hub.hellos)
    with pytest.raises(AgentRunning, match="process"):
        daemon.start(site.paths.root)
    assert len(site.hub.hellos) == hellos


def test_an_agent_elsewhere_is_named_and_nothing_is_touched(site: Site) -> None:
    site.hub.agent = new_id()
    with pytest.raises(StartFailed, match="faraway"):
        daemon.start(site.paths.root)
    assert not site.paths.pid_file.exists()
    assert not site.paths.book.exists()


def test_an_agent_that_was_superseded_ends_and_leaves_its_pilots(site: Site) -> None:
    daemon.start(site.paths.root)
    _, session = running(site)
    site.hub.change(lambda: setattr(site.hub, "agent", new_id()))
    wait_until(
        lambda: daemon.status(site.paths.root).presence is Presence.STOPPED, "the agent's end"
    )
    wait_until(lambda: site.said("agent_superseded"), "the log's words")
    assert site.lines("terms") == []
    assert site.lines("starts") == [session]


def test_an_agent_of_another_machine_is_not_stopped_from_here(site: Site) -> None:
    started = {"agent": new_id(), "pid": 1, "start": 1, "host": "far", "boot": "x", "since": 1.0}
    site.paths.pid_file.write_text(json.dumps(started))
    with pytest.raises(Conflict, match="far"):
        daemon.stop(site.paths.root)
    site.paths.pid_file.unlink()


def test_without_its_book_the_agent_finds_its_allocations_again(site: Site) -> None:
    daemon.start(site.paths.root)
    ident, session = running(site)
    daemon.stop(site.paths.root)
    site.paths.book.unlink()
    daemon.start(site.paths.root)
    wait_until(lambda: site.said("found at the scheduler"), "the allocation")
    assert site.lines("starts") == [session], "neither submitted again nor doubled"
    let_end(site, session)
    wait_until(lambda: ident in site.hub.states("ended"), "the report of the end")


# --- the Hub is away, or does not know us


def test_while_the_hub_is_away_ends_are_kept_and_nothing_new_is_submitted(site: Site) -> None:
    daemon.start(site.paths.root)
    ident, session = running(site)
    site.hub.stop()
    wait_until(lambda: site.said("no contact with the hub"), "the agent's notice")
    let_end(site, session)
    wait_until(lambda: site.said("allocation over"), "the agent's notice of the end")
    assert daemon.stop(site.paths.root).presence is Presence.STOPPED
    daemon.start(site.paths.root)
    assert site.lines("starts") == [session]
    site.hub.start()
    wait_until(lambda: ident in site.hub.states("ended"), "the report of the end")
    wait_until(lambda: len(site.lines("starts")) == 2, "the next pilot")


def test_a_revoked_token_is_said_clearly_and_tried_again_slowly(site: Site) -> None:
    site.hub.refuse["/v1"] = Refusal(401, "unauthenticated", "this token was revoked")
    daemon.start(site.paths.root)
    said = wait_until(lambda: site.said("does not know this site's token"), "the log's words")
    assert said[0]["again_in_s"] >= 60
    assert daemon.status(site.paths.root).presence is Presence.RUNNING


# --- the last words of a dead pilot


def test_finished_work_is_not_lost_and_unstarted_work_costs_nothing(site: Site) -> None:
    daemon.start(site.paths.root)
    ident, session = running(site)
    finished, unfinished, unstarted = (new_id() for _ in range(3))
    ledger = Ledger(site.paths.ledger)
    for job in (finished, unfinished):
        ledger.claim(job, 1, session, 4)
    result = site.paths.data / "result.msgpack"
    result.write_bytes(MSG)
    digest = hashlib.sha256(MSG).hexdigest()
    outcome = Outcome(Reason.EXIT, exit=0)  # a pilot hashes a result when it sends it
    end = journal.End(finished, 4, 1, "end", 9.0, outcome, 8.0, result=str(result))
    grants = [Grant(j, 4, 1, Raw(b"{}")) for j in (finished, unfinished, unstarted)]
    with spool.SpoolWriter(site.paths.session(session) / journal.FILE) as writer:
        records: list[journal.Record] = [
            journal.Numbers(50, 60),
            journal.Granted(3, (1, 9), grants),
            journal.Ended([end]),
        ]
        writer.append(journal.encode(records))
    site.hub.refuse["/v1/sync"] = Refusal(503, "unavailable")
    let_end(site, session)
    wait_until(lambda: ("POST", "/v1/sync") in site.hub.calls, "the first try")
    assert ident in site.hub.states("running"), "an end is not reported before the last words"
    site.hub.refuse.clear()
    wait_until(lambda: ident in site.hub.states("ended"), "the report of the end")
    assert site.hub.results == {f"{finished}?epoch=4&sha256={digest}": MSG}
    first = site.hub.syncs[0]
    assert [(r.no, r.job, r.epoch) for r in first.reports] == [(61, finished, 4)]
    told = first.reports[0].outcome
    assert told is not None
    assert told.result_sha256 == digest
    assert first.held == [HeldJob(unfinished, 4, started=True)]
    assert first.returned == [JobEpoch(unstarted, 4)]
    assert site.hub.syncs[-1].answered == first.request_no
    put = next(n for n, (method, _) in enumerate(site.hub.calls) if method == "PUT" and n > 3)
    assert put < max(n for n, call in enumerate(site.hub.calls) if call == ("POST", "/v1/sync"))


def test_a_session_that_the_hub_has_ended_already_is_no_obstacle(site: Site) -> None:
    daemon.start(site.paths.root)
    ident, session = running(site)
    site.hub.refuse["/v1/sync"] = Refusal(409, "session_dead")
    let_end(site, session)
    wait_until(lambda: ident in site.hub.states("ended"), "the report of the end")


def test_the_death_of_a_whole_allocation_is_noticed(site: Site) -> None:
    daemon.start(site.paths.root)
    ident, session = running(site)
    mark = f"CHAPPE_SESSION={session}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue
    wait_until(lambda: site.hub.batch_jobs[ident] in ("ended", "failed"), "the report of the end")
