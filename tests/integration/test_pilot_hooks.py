"""Hooks, cleanup, scratch and counters of real Apps, from the Hub to the process and back."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chappe.core.jobs import Resources, Retries, RetryOn
from chappe.core.states import legal
from chappe.testing.hub import RunningHub
from chappe.wire.events import EventPage
from chappe.wire.jobs import JobView
from tests.integration.pilot_rig import Pilot, RealSite, until

APP = """\
name = "{name}"
version = "1"
shell = '''{shell}'''
[parameters.dt]
type = "float"
default = 8.0
min = 1.0
[files]
{files}
[hooks]
{hooks}
"""


@pytest.fixture
async def site(shared_hub: RunningHub, tmp_path: Path) -> AsyncIterator[RealSite]:
    """A Site of this test's own; its pilot starts with the first Job."""
    hub = shared_hub
    made = RealSite(tmp_path / "site", hub.url, hub.token, hub.project, hub.ca_file or None)
    made.dir.path.joinpath("scratch").mkdir()
    await made.register(f"hooks-{made.dir.site}")
    yield made
    await made.close()


async def pilot_of(site: RealSite) -> Pilot:
    if not site.pilots:
        await (await site.session(scratch=str(site.dir.path / "scratch"))).start()
    return site.pilots[0]


async def submit(
    site: RealSite, shell: str, hooks: str = "", files: str = "", name: str = "model", **fields: Any
) -> str:
    """Submit a Job of an App made for it."""
    text = APP.format(name=name, shell=shell, hooks=hooks, files=files)
    (site.dir.path / "apps" / f"{name}.toml").write_text(text)
    await site.publish()
    await pilot_of(site)
    (job,) = await site.submit([site.dir.spec(name, **fields)])
    return job


def directory(site: RealSite, job: str, attempt: int = 1) -> Path:
    return site.dir.path / "data" / "jobs" / job / f"attempt-{attempt}"


async def states(site: RealSite, job: str) -> list[str]:
    """The states that the Job's Events tell of; each step is legal."""
    page = await site.user.request("GET", f"/v1/jobs/{job}/events", reply=EventPage)
    changes = [e for e in page.events if e.kind == "job"]
    assert all(legal(e.old, e.new) for e in changes)  # type: ignore[arg-type]
    return [str(e.new) for e in changes]


def hook_of(view: JobView) -> dict[str, Any]:
    assert view.outcome is not None
    found: dict[str, Any] = msgspec.to_builtins(view.outcome.hook)
    return found


async def test_an_error_hook_restarts_its_job_with_other_parameters(site: RealSite) -> None:
    (site.dir.path / "apps" / "halve.py").write_text(
        "import json, os, sys\n"
        "assert os.environ['CHAPPE_HOOK'] == 'on_error' and os.environ['CHAPPE_EXIT'] == '3'\n"
        "dt = float(open('dt').read()) / 2\n"
        "verdict = {'state': 'RESTART_READY', 'parameters': {'dt': dt}, 'data': {'dt': dt},\n"
        "           'message': f'unstable: dt is {dt} now'}\n"
        "json.dump(verdict, open(os.environ['CHAPPE_VERDICT'], 'w'))\n"
    )
    shell = "echo {{ dt }} | tee dt; test {{ dt }} = 2.0 || exit 3"
    job = await submit(site, shell, 'on_error = "halve.py"', retries=Retries(5))
    view = await site.reaches_final(job)
    assert (view.state, view.attempt, view.data) == ("JOB_FINISHED", 3, {"dt": 2.0})
    assert view.spec is not None
    assert view.spec.parameters == {}  # what was signed stays what it was
    ran = [directory(site, job, k).joinpath("dt").read_text().strip() for k in (1, 2, 3)]
    assert ran == ["8.0", "4.0", "2.0"]
    again = ["RUNNING", "RUN_ERROR", "RESTART_READY"]
    assert await states(site, job) == [
        "PREPROCESSED",
        *again,
        *again,
        *("RUNNING", "RUN_DONE", "JOB_FINISHED"),
    ]
    # The hook asks for less than the App allows: that counts for nothing, and the Job has failed.
    low = await submit(
        site, "echo {{ dt }} > dt; exit 3", 'on_error = "halve.py"', retries=Retries(9)
    )
    view = await site.reaches_final(low)
    assert (view.state, view.attempt) == ("FAILED", 4)
    assert "left a verdict that cannot be: parameters.dt" in hook_of(view)["problem"]


async def test_hooks_around_a_run_and_what_is_told_of_them(site: RealSite) -> None:
    hooks = """
preprocess = ["sh", "-c", "echo in > input"]
postprocess = ["sh", "-c", 'echo "{\\"data\\": {\\"mean\\": $(cat output)}}" > $CHAPPE_VERDICT']
"""
    job = await submit(site, "wc -c < input > output", hooks)
    view = await site.reaches_final(job)
    assert (view.state, view.data) == ("JOB_FINISHED", {"mean": 3})
    assert hook_of(view) == {"name": "postprocess", "data": {"mean": 3}}
    told = await states(site, job)
    assert told[-4:] == ["RUNNING", "RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"]


async def test_a_preprocess_hook_sets_parameters_for_its_run_or_sees_that_none_is_needed(
    site: RealSite,
) -> None:
    write = "preprocess = ['sh', '-c', '''echo '{verdict}' > $CHAPPE_VERDICT; echo hook''']"
    chosen = await submit(
        site,
        "echo {{ dt }}",
        write.format(verdict='{"parameters": {"dt": 4.5}}'),
        "scratch = true\ncount_io = true",
    )
    assert (await site.reaches_final(chosen)).state == "JOB_FINISHED"
    assert directory(site, chosen).joinpath("stdout.log").read_text() == "hook\n4.5\n"
    skipped = await submit(
        site, "echo never", write.format(verdict='{"state": "JOB_FINISHED", "message": "was done"}')
    )
    view = await site.reaches_final(skipped)
    assert view.state == "JOB_FINISHED"
    assert view.outcome is not None
    assert (view.outcome.reason, view.outcome.message) == ("hook", "was done")
    assert directory(site, skipped).joinpath("stdout.log").read_text() == "hook\n"


@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        ("preprocess = ['sh', '-c', 'exit 5']", "its preprocess hook exited with 5"),
        ("postprocess = ['sh', '-c', 'exec sleep 1000']\nlimit_s = 0.3", "longer than its limit"),
        ("postprocess = ['sh', '-c', 'echo { > $CHAPPE_VERDICT']", "not understood"),
        ("postprocess = ['sh', '-c', 'mkfifo $CHAPPE_VERDICT']", "its postprocess hook"),
        ("postprocess = ['sh', '-c', 'ln -s /etc/passwd $CHAPPE_VERDICT']", "cannot be used"),
        ("postprocess = ['sh', '-c', 'mkdir $CHAPPE_VERDICT']", "cannot be used"),
    ],
)
async def test_a_hook_gone_wrong_is_a_typed_outcome(site: RealSite, hooks: str, words: str) -> None:
    view = await site.reaches_final(await submit(site, "true", hooks))
    assert view.state == "FAILED"
    assert view.outcome is not None
    assert view.outcome.reason == "hook"
    assert words in view.outcome.message


async def test_a_timeout_hook_may_call_the_job_finished(site: RealSite) -> None:
    hooks = (
        """on_timeout = ['sh', '-c', '''echo '{"state": "JOB_FINISHED"}' > $CHAPPE_VERDICT''']"""
    )
    job = await submit(site, "exec sleep 1000", hooks, resources=Resources(wall_s=0.3))
    view = await site.reaches_final(job)
    assert view.state == "JOB_FINISHED"
    assert (await states(site, job))[-3:] == ["RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"]


async def test_leftovers_go_after_the_last_attempt_and_counts_are_told(site: RealSite) -> None:
    files = 'cleanup = ["*.tmp", "sub/*"]\ncount_io = true'
    make = "mkdir sub; head -c 100000 /dev/zero > a.tmp; cp a.tmp sub/b; echo x > kept"
    job = await submit(site, make, files=files)
    view = await site.reaches_final(job)
    assert view.outcome is not None
    assert view.outcome.usage is not None
    io = view.outcome.usage.io
    assert io is not None
    assert 200_000 <= io.written_bytes < 210_000
    assert io.files == 3
    where = directory(site, job)

    def left() -> set[str]:
        return {str(p.relative_to(where)) for p in where.rglob("*") if p.is_file()}

    await until(lambda: left() == {"kept", "stdout.log"}, "leftovers go")
    again = await submit(
        site,
        "[ $CHAPPE_ATTEMPT = 1 ] || ls ../attempt-1/a.tmp; echo x > a.tmp; kill -9 $$",
        files=files,
        retries=Retries(1, (RetryOn.ERROR,)),
    )
    await site.reaches_final(again)
    for attempt in (1, 2):
        leftover = directory(site, again, attempt) / "a.tmp"
        await gone(leftover)


async def gone(path: Path) -> None:
    await until(lambda: not path.exists(), f"{path} goes")


def scratches(site: RealSite) -> Sequence[Path]:
    return [p for p in (site.dir.path / "scratch").glob("chappe-scratch-*/*/*") if p.is_dir()]


@pytest.mark.parametrize("killed", ["head", "launcher", "both"])
async def test_scratch_is_removed_whoever_is_killed(site: RealSite, killed: str) -> None:
    shell = (
        'cd "$CHAPPE_SCRATCH"; echo x > x; mkdir closed; chmod 0 closed; '
        "[ $CHAPPE_ATTEMPT -gt 1 ] || sleep 1000"
    )
    job = await submit(site, shell, files="scratch = true")
    pilot = await pilot_of(site)
    await until(lambda: any(p.joinpath("closed").exists() for p in scratches(site)), "it is made")
    (first,) = scratches(site)
    launcher = pilot.launcher()
    if killed in ("head", "both"):
        await pilot.kill9()
    if killed in ("launcher", "both"):
        os.kill(launcher, signal.SIGKILL)
    if killed in ("head", "both"):
        await pilot.start()
    if killed == "head":
        assert first.exists()  # its Job runs on
        await site.cancel(job)
        await site.reaches_final(job)
    else:
        view = await site.reaches_final(job)
        assert (view.state, view.attempt) == ("JOB_FINISHED", 2)
    await until(lambda: not first.exists(), "it is gone")
    pilot.signal(signal.SIGTERM)
    await pilot.ended()
    assert scratches(site) == []


def modes(*paths: Path) -> list[str]:
    return [oct(path.stat().st_mode & 0o777) for path in paths]


async def test_jobs_have_the_umask_of_their_site_and_secrets_have_none(site: RealSite) -> None:
    pilot = await site.session({"umask": 0o027})
    await pilot.start()
    (job,) = await site.submit([site.dir.spec("sh", text="umask; mkdir d; echo x > f")])
    await site.reaches_final(job)
    where = directory(site, job)
    assert where.joinpath("stdout.log").read_text().strip() == "0027"
    found = modes(where.parent, where, where / "d", where / "f", where / "stdout.log")
    assert found == ["0o750", "0o750", "0o750", "0o640", "0o640"]
    private = modes(pilot.directory / "launcher.json", pilot.directory / "session.json")
    assert private == ["0o600", "0o600"]
    assert modes(*(site.dir.path / "ledger").iterdir()) == ["0o700"]


async def test_a_head_killed_while_a_hook_runs_is_followed_by_one_that_hears_its_verdict(
    site: RealSite, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    hooks = f"""postprocess = ["sh", "-c", '''
echo in > in; while [ ! -e {gate} ]; do sleep 0.05; done
echo '{{"data": {{"seen": true}}}}' > $CHAPPE_VERDICT''']"""
    job = await submit(site, "true", hooks)
    pilot = await pilot_of(site)
    await until(directory(site, job).joinpath("in").exists, "the hook runs")
    await pilot.kill9()
    gate.touch()
    await pilot.start()
    view = await site.reaches_final(job)
    assert (view.state, view.attempt, view.data) == ("JOB_FINISHED", 1, {"seen": True})
