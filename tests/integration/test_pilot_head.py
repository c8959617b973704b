"""The pilot against a real Hub: Jobs from grant to verdict, cancels, drains, crashes of head and launcher."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from chappe.core.jobs import Resources
from chappe.testing.hub import RunningHub
from chappe.wire.sites import EndSession, Listing
from tests.integration.pilot_rig import RealSite, real_site, sockets_of, until


@pytest.fixture
async def site(shared_hub: RunningHub, tmp_path: Path) -> AsyncIterator[RealSite]:
    async with real_site(shared_hub, tmp_path) as made:
        yield made


async def test_a_job_runs_and_its_end_is_reported(site: RealSite) -> None:
    pilot = await site.session()
    await pilot.start()
    (good, bad) = await site.submit(
        [site.dir.spec("sh", text="echo hello"), site.dir.spec("sh", text="echo oh >&2; exit 3")]
    )
    view = await site.reaches(good, "JOB_FINISHED")
    assert view.attempt == 1
    assert view.outcome is not None
    assert view.outcome.usage is not None
    assert view.outcome.usage.max_rss_bytes > 0
    log = site.dir.path / "data" / "jobs" / good / "attempt-1" / "stdout.log"
    assert log.read_text() == "hello\n"
    failed = await site.reaches(bad, "FAILED")
    assert failed.outcome is not None
    assert (failed.outcome.exit, failed.outcome.tail) == (3, "oh\n")


async def test_many_short_jobs_each_run_once(site: RealSite) -> None:
    pilot = await site.session()
    await pilot.start()
    specs = [
        site.dir.spec("sh", text="echo x >> ../ran/$CHAPPE_JOB_ID", workdir=f"w{k % 7}")
        for k in range(300)
    ]
    for k in range(7):
        (site.dir.path / "data" / f"w{k}" / "ran").mkdir(parents=True)
    ids = await site.submit(specs)
    for ident in ids:
        view = await site.reaches(ident, "JOB_FINISHED")
        assert view.attempt == 1
    ran = {p.name: p.read_text() for p in (site.dir.path / "data").glob("w*/ran/*")}
    assert ran == dict.fromkeys(ids, "x\n")


async def test_cancel_kills_what_runs_and_returns_what_waits(site: RealSite) -> None:
    pilot = await site.session({"slots": 1})
    await pilot.start()
    (runs,) = await site.submit([site.dir.spec("sh", text="sleep 1000")])
    await site.reaches(runs, "RUNNING")
    (waits,) = await site.submit(
        [site.dir.spec("sh", text="echo no", resources=Resources(estimate_s=0.1))]
    )
    await site.cancel(waits)
    await site.cancel(runs)
    view = await site.reaches_final(runs)
    assert view.state == "CANCELLED"
    assert (await site.reaches_final(waits)).state == "CANCELLED"
    await until(lambda: not pilot.jobs(), "the processes end")
    assert not (site.dir.path / "data" / "jobs" / waits).exists()


async def test_wall_clock_limit_is_a_timeout(site: RealSite) -> None:
    pilot = await site.session()
    await pilot.start()
    (job,) = await site.submit(
        [site.dir.spec("sh", text="exec sleep 1000", resources=Resources(wall_s=0.2))]
    )
    view = await site.reaches_final(job)
    assert (view.state, view.outcome and view.outcome.reason) == ("FAILED", "timeout")


async def test_results_reach_the_hub_before_the_end_and_children_find_them(site: RealSite) -> None:
    pilot = await site.session()
    await pilot.start()
    parent = site.dir.spec("result", name="mother", text='echo \'{"x": 1}\' > "$CHAPPE_RESULT"')
    ident = msgspec.json.decode(parent)["id"]
    child = site.dir.spec("sh", text='cat "$CHAPPE_PARENTS"', parents=(ident,))
    (_, kid) = await site.submit([parent, child])
    await site.reaches(kid, "JOB_FINISHED")
    answer = await site.user.fetch("GET", f"/v1/jobs/{ident}/result")
    assert msgspec.json.decode(answer.data) == {"x": 1}
    told = (site.dir.path / "data/jobs" / kid / "attempt-1/stdout.log").read_bytes()
    (entry,) = msgspec.json.decode(told)
    assert (entry["id"], entry["name"], entry["state"]) == (ident, "mother", "JOB_FINISHED")
    assert entry["site"] == site.name
    assert entry["workdir"] == str(site.dir.path / "data/jobs" / ident / "attempt-1")
    assert entry["media"] == "application/json"
    assert entry["result"].startswith(str(pilot.directory / "parents" / kid))
    await until(
        lambda: not (pilot.directory / "parents" / kid).exists(), "fetched files are removed"
    )


async def test_an_app_without_its_result_has_failed(site: RealSite) -> None:
    pilot = await site.session()
    await pilot.start()
    none, bad = await site.submit(
        [
            site.dir.spec("result", text="true"),
            site.dir.spec("result", text='echo "{" > "$CHAPPE_RESULT"'),
        ]
    )
    for ident, word in ((none, "left no out.json"), (bad, "application/json")):
        view = await site.reaches_final(ident)
        assert view.state == "FAILED"
        assert view.outcome is not None
        assert view.outcome.reason == "exit"
        assert view.outcome.exit is None
        assert word in view.outcome.message


async def test_what_nobody_signed_is_refused_with_its_reason(site: RealSite) -> None:
    pilot = await site.session()
    await pilot.start()
    (site.dir.path / "trusted_keys").write_text("")
    (job,) = await site.submit([site.dir.spec("sh", text="touch /tmp/owned")])
    view = await site.reaches_final(job)
    assert view.state == "FAILED"
    assert view.outcome is not None
    assert view.outcome.message.startswith("untrusted_key")
    assert view.attempt == 0


async def test_sigterm_ends_what_runs_returns_what_waits_and_ends_the_session(
    site: RealSite,
) -> None:
    pilot = await site.session({"kill_s": 4.0, "drain_s": 4.0})
    await pilot.start()
    (job,) = await site.submit([site.dir.spec("sh", text="sleep 1000")])
    await site.reaches(job, "RUNNING")
    pilot.signal(signal.SIGTERM)
    assert await pilot.ended() == 0
    view = await site.job(job)
    assert view.outcome is not None
    assert (view.state, view.outcome.reason) == ("RESTART_READY", "allocation_cancelled")
    assert "cancelled or pre-empted" in view.outcome.message
    assert pilot.jobs() == []
    assert pilot.launcher() == 0
    assert not list((site.dir.path / "local").iterdir())
    assert sockets_of(pilot.session) == []
    listing = await site.user.request("GET", "/v1/sessions", reply=Listing)
    assert pilot.session not in [s.id for s in listing.sessions or [] if s.state != "dead"]


async def test_an_idle_pilot_ends_its_session(site: RealSite) -> None:
    pilot = await site.session({"idle_s": 0.3})
    (job,) = await site.submit([site.dir.spec("true")])
    await pilot.start()
    assert await pilot.ended() == 0
    assert (await site.job(job)).state == "JOB_FINISHED"


async def test_a_restarted_head_goes_on_where_the_first_was_killed(site: RealSite) -> None:
    pilot = await site.session()
    await pilot.start()
    go = site.dir.path / "go"
    text = f"while [ ! -e {go} ]; do sleep 0.05; done; echo $CHAPPE_ATTEMPT"
    (job,) = await site.submit([site.dir.spec("sh", text=text)])
    await site.reaches(job, "RUNNING")
    (process,) = {p for p in pilot.jobs() if os.getpgid(p) == p}
    launcher = pilot.launcher()
    await pilot.kill9()
    await pilot.start()
    await until(lambda: pilot.logged("adopted"), "the second head adopts the run")
    assert pilot.launcher() == launcher
    assert process in pilot.jobs()
    go.touch()
    view = await site.reaches(job, "JOB_FINISHED")
    assert view.attempt == 1
    assert view.outcome is not None
    assert view.outcome.usage is not None


async def test_what_ended_while_no_head_was_there_is_reported_by_the_next(site: RealSite) -> None:
    pilot = await site.session()
    await pilot.start()
    go, gone = site.dir.path / "go", site.dir.path / "gone"
    text = f"while [ ! -e {go} ]; do sleep 0.05; done; touch {gone}; exit 4"
    (job,) = await site.submit([site.dir.spec("sh", text=text)])
    await site.reaches(job, "RUNNING")
    await pilot.kill9()
    go.touch()
    await until(lambda: not pilot.jobs(), "the job ends by itself")
    await pilot.start()
    view = await site.reaches_final(job)
    assert view.outcome is not None
    assert (view.outcome.reason, view.outcome.exit) == ("exit", 4)


async def test_a_dead_launcher_is_replaced_and_its_jobs_are_lost_and_run_again(
    site: RealSite,
) -> None:
    pilot = await site.session()
    await pilot.start()
    text = '[ "$CHAPPE_ATTEMPT" = 2 ] || exec sleep 1000'
    (job,) = await site.submit([site.dir.spec("sh", text=text)])
    await site.reaches(job, "RUNNING")
    (process,) = pilot.jobs()
    launcher = pilot.launcher()
    os.kill(launcher, signal.SIGKILL)
    view = await site.reaches(job, "JOB_FINISHED")
    assert view.attempt == 2
    assert process not in pilot.jobs()
    assert pilot.launcher() not in (0, launcher)


async def test_head_and_launcher_both_killed(site: RealSite) -> None:
    pilot = await site.session()
    await pilot.start()
    text = '[ "$CHAPPE_ATTEMPT" = 2 ] || exec sleep 1000'
    (job,) = await site.submit([site.dir.spec("sh", text=text)])
    await site.reaches(job, "RUNNING")
    (process,) = pilot.jobs()
    launcher = pilot.launcher()
    pilot.signal(signal.SIGSTOP)
    os.kill(launcher, signal.SIGKILL)
    await pilot.kill9()
    assert process in pilot.jobs()
    await pilot.start()
    view = await site.reaches(job, "JOB_FINISHED")
    assert view.attempt == 2
    assert process not in pilot.jobs()


async def test_a_session_proven_dead_kills_what_it_holds(site: RealSite) -> None:
    pilot = await site.session()
    await pilot.start()
    (job,) = await site.submit([site.dir.spec("sh", text="exec sleep 1000")])
    await site.reaches(job, "RUNNING")
    await site.user.request(
        "POST", f"/v1/sessions/{pilot.session}/end", EndSession(may_run_twice=True)
    )
    assert await pilot.ended() == 3
    assert pilot.jobs() == []
    assert pilot.launcher() == 0
