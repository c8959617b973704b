"""One suite for every scheduler adapter: what the agent relies on, done with the real commands.

An adapter joins by adding a bench: how to make the adapter, and how its commands are run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from chappe.core.errors import Invalid
from chappe.link.clock import new_id
from chappe.site.schedulers import make
from chappe.site.schedulers.base import (
    OVER,
    Batch,
    BatchState,
    Phase,
    Scheduler,
    SubmitRefused,
    SubmitUnclear,
)

DEADLINE_S = 60.0
REAL = ("local", "slurm", "torque", "gridengine")
TELL_ONLY_THE_END = ("torque", "gridengine")
PILOT = '#!/bin/sh\nexec /bin/sh "$5/pilot.sh"\n'


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


class Bench:
    """One adapter, its commands run for real, and scripts in place of pilots."""

    def __init__(self, kind: str, root: Path, environ: dict[str, str] | None = None) -> None:
        self.root = root
        self.environ = {**os.environ, **(environ or {})}
        self.records = root / "records"
        self.scheduler: Scheduler = make(kind, str(self.records))
        self.python = root / "python"
        self.python.write_text(PILOT)
        self.python.chmod(0o755)
        self.sessions: list[str] = []

    def call(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self.environ,
            cwd=self.root,
        )

    def cancel(self, ident: str) -> None:
        done = self.call(self.scheduler.cancel_command([ident]))
        self.scheduler.parse_cancel(done.stdout, done.stderr, done.returncode)

    def ends_as(self, ident: str, phase: Phase) -> bool:
        """Whether it ends so; Slurm's commands in the guise of PBS, and Grid Engine's queue, tell only that
        it has ended."""
        seen = self.await_over(ident).phase
        if self.scheduler.kind not in TELL_ONLY_THE_END:
            return seen is phase
        # And they tell it while the processes are being ended: therefore an end must be seen twice.
        wait_until(lambda: marked(self.sessions) == [], "the end of all processes")
        return True

    def states(self, idents: list[str]) -> dict[str, BatchState]:
        """What the agent would know after one look."""
        done = self.call(self.scheduler.status_command(idents))
        found = self.scheduler.parse_status(done.stdout, done.stderr, done.returncode)
        unseen = [i for i in idents if i not in found]
        history = self.scheduler.history_command(unseen) if unseen else []
        if history:
            done = self.call(history)
            found |= self.scheduler.parse_history(done.stdout, done.stderr, done.returncode)
        return found

    def batch(self, pilot: str, **options: object) -> Batch:
        session = new_id()
        self.sessions.append(session)
        directory = self.root / session
        directory.mkdir()
        (directory / "pilot.sh").write_text(pilot)
        return Batch(
            name=f"chappe-{new_id()}",
            session=session,
            site_dir=str(self.root),
            session_dir=str(directory),
            python=str(self.python),
            cores=1,
            **options,  # type: ignore[arg-type]
        )

    def submit(self, batch: Batch) -> str:
        script = Path(batch.session_dir) / "batch.sh"
        script.write_text(self.scheduler.render_script(batch))
        argv = self.scheduler.submit_command(str(script), batch.name)
        done = self.call(argv)
        return self.scheduler.parse_submit(done.stdout, done.stderr, done.returncode)

    def state(self, ident: str) -> BatchState:
        return self.states([ident]).get(ident, BatchState(Phase.UNKNOWN))

    def find(self, name: str) -> list[str]:
        found = {}
        for argv in self.scheduler.find_commands(name):
            done = self.call(argv)
            parsed = self.scheduler.parse_find(done.stdout, name, done.stderr, done.returncode)
            found.update(dict.fromkeys(parsed))
        return list(found)

    def await_over(self, ident: str) -> BatchState:
        wait_until(lambda: self.state(ident).phase in OVER, f"the end of {ident}")
        return self.state(ident)

    def kill_all(self) -> None:
        for pid in marked(self.sessions):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def marked(sessions: list[str]) -> list[int]:
    wanted = {f"CHAPPE_SESSION={s}".encode() for s in sessions}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted & set((entry / "environ").read_bytes().split(b"\0")):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def of_kind(kind: str, request: pytest.FixtureRequest, root: Path) -> Iterator[Bench]:
    environ = {} if kind == "local" else request.getfixturevalue(kind).environ
    made = Bench(kind, root, environ)
    yield made
    made.kill_all()


@pytest.fixture(params=REAL)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    yield from of_kind(request.param, request, tmp_path)


def test_a_job_is_submitted_seen_running_and_seen_ended(bench: Bench) -> None:
    batch = bench.batch("while [ ! -e go ]; do sleep 0.05; done")
    ident = bench.submit(batch)
    wait_until(lambda: bench.state(ident).phase is Phase.RUNNING, "running")
    (bench.root / "go").touch()
    assert bench.ends_as(ident, Phase.ENDED)
    assert marked(bench.sessions) == []
    ours = {"go", "python", "records", batch.session}
    assert {path.name for path in bench.root.iterdir()} <= ours, "nothing is left where we submit"


def test_a_job_is_found_by_its_exact_name_also_after_its_end(bench: Bench) -> None:
    batch = bench.batch("exit 0")
    ident = bench.submit(batch)
    bench.await_over(ident)
    wait_until(lambda: bench.find(batch.name) == [ident], "the job by its name")
    assert bench.find(batch.name[:-1]) == []


def test_one_status_command_tells_of_all_and_an_unknown_id_is_no_end(bench: Bench) -> None:
    idents = [bench.submit(bench.batch("exit 0")) for _ in range(3)]
    for ident in idents:
        bench.await_over(ident)
    states = bench.states([*idents, "987654321"])
    assert all(states[ident].phase in OVER for ident in idents)
    assert states.get("987654321", BatchState(Phase.UNKNOWN)).phase is Phase.UNKNOWN


def test_every_process_has_the_mark_and_the_environment(bench: Bench) -> None:
    batch = bench.batch(
        'printf %s "$CHAPPE_SESSION $GREETING" >said', env={"GREETING": "it's $HOME"}
    )
    bench.await_over(bench.submit(batch))
    assert (bench.root / "said").read_text() == f"{batch.session} it's $HOME"


def test_a_cancelled_job_gets_term_and_reports_that_it_was_cancelled(bench: Bench) -> None:
    pilot = "trap 'echo term >got; exit 0' TERM; touch up; while :; do sleep 0.05; done"
    ident = bench.submit(bench.batch(pilot))
    wait_until((bench.root / "up").exists, "the pilot's start")
    bench.cancel(ident)
    assert bench.ends_as(ident, Phase.CANCELLED)
    assert (bench.root / "got").read_text() == "term\n"


def test_whoever_ignores_term_is_killed_with_all_that_it_started(bench: Bench) -> None:
    # Slurm follows what leaves its session only by cgroups, which the cluster of the tests does not have.
    other = "(setsid sleep 1000 &)" if bench.scheduler.kind == "local" else "sleep 1000 &"
    pilot = f"trap '' TERM; {other}; touch up; while :; do sleep 0.05; done".replace("&;", "&")
    ident = bench.submit(bench.batch(pilot, kill_s=0.3))
    wait_until((bench.root / "up").exists, "the pilot's start")
    bench.cancel(ident)
    assert bench.ends_as(ident, Phase.CANCELLED)
    assert marked(bench.sessions) == []


def test_the_wall_clock_limit_ends_a_job(local: Bench) -> None:
    ident = local.submit(local.batch("while :; do sleep 0.05; done", wall_s=0.3, kill_s=0.3))
    state = local.await_over(ident)
    assert state.phase is Phase.ENDED
    assert "limit" in state.message


def test_a_dead_pilot_is_started_again_at_most_three_times(bench: Bench) -> None:
    ident = bench.submit(bench.batch("echo x >>starts; kill -9 $$"))
    assert bench.ends_as(ident, Phase.FAILED)
    assert (bench.root / "starts").read_text() == "x\n" * 4


def test_a_restarted_pilot_may_succeed(bench: Bench) -> None:
    ident = bench.submit(bench.batch("[ -e once ] && exit 0; touch once; exit 1"))
    assert bench.ends_as(ident, Phase.ENDED)


def test_a_pilot_whose_session_is_over_is_not_started_again(bench: Bench) -> None:
    ident = bench.submit(bench.batch("echo x >>starts; exit 3"))
    assert bench.ends_as(ident, Phase.FAILED)
    assert (bench.root / "starts").read_text() == "x\n"


def test_a_session_has_one_allocation_however_often_it_is_submitted(bench: Bench) -> None:
    batch = bench.batch("echo x >>starts; while [ ! -e go ]; do sleep 0.05; done")
    first = bench.submit(batch)
    wait_until((bench.root / "starts").exists, "the pilot's start")
    second = bench.submit(batch)
    said = Path(batch.session_dir) / "pilot.out"
    wait_until(lambda: "an allocation already" in said.read_text(), "the end of the second")
    assert bench.state(first).phase is Phase.RUNNING
    (bench.root / "go").touch()
    assert bench.ends_as(first, Phase.ENDED)
    assert bench.await_over(second)
    assert (bench.root / "starts").read_text() == "x\n"


def test_an_answer_that_makes_no_sense_is_unclear_not_refused(bench: Bench) -> None:
    for stdout, code in (("", 0), ("Segmentation fault", 139), ("what?", 1)):
        with pytest.raises(SubmitUnclear):
            bench.scheduler.parse_submit(stdout, "", code)


def test_more_than_the_machine_has_is_refused_before_it_is_submitted() -> None:
    with pytest.raises(Invalid, match="nodes"):
        make("local", "/nowhere").render_script(Batch("n", "s", "/", "/", "p", nodes=65))


# --- what only the local scheduler promises


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Bench]:
    made = Bench("local", tmp_path)
    yield made
    made.kill_all()


def test_an_allocation_lives_as_long_as_a_process_that_left_everything_behind(local: Bench) -> None:
    pilot = "(setsid sh -c 'while [ ! -e go ]; do sleep 0.05; done' >/dev/null 2>&1 &); exit 0"
    ident = local.submit(local.batch(pilot))
    wait_until(lambda: not local_script_runs(local, ident), "the end of the script")
    assert local.state(ident).phase is Phase.RUNNING
    (local.root / "go").touch()
    assert local.await_over(ident).phase is Phase.ENDED


CHARGE = "CHAPPE_JOB_ID=j setsid sh -c 'touch up; while :; do sleep 0.05; done' >/dev/null 2>&1 &"
"""What a launcher would look after."""


def test_what_nobody_looks_after_ends_with_the_script(local: Bench) -> None:
    ident = local.submit(local.batch(f"{CHARGE} until [ -e up ]; do sleep 0.05; done; exit 0"))
    assert local.await_over(ident).phase is Phase.ENDED
    assert marked(local.sessions) == []


def test_what_nobody_looks_after_is_ended_by_the_status_query_too(local: Bench) -> None:
    """Guard, script and pilot are killed at once. What is left would hold the allocation for ever."""
    ident = local.submit(local.batch(f"{CHARGE} touch on; while :; do sleep 0.05; done"))
    wait_until(lambda: all((local.root / f).exists() for f in ("up", "on")), "the pilot's start")
    charges = [p for p in marked(local.sessions) if local_charge(p)]
    assert local.state(ident).phase is Phase.RUNNING
    assert charges
    while others := [p for p in marked(local.sessions) if not local_charge(p)]:
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert local.await_over(ident).phase in OVER
    assert marked(local.sessions) == []


def local_charge(pid: int) -> bool:
    with suppress(OSError):
        return b"\0CHAPPE_JOB_ID=j" in Path(f"/proc/{pid}/environ").read_bytes()
    return True  # it is gone


def local_script_runs(bench: Bench, ident: str) -> bool:
    return "\nexit " not in (bench.records / ident).read_text()


def test_without_its_guard_an_allocation_still_runs_and_can_be_cancelled(local: Bench) -> None:
    ident = local.submit(local.batch("touch up; while :; do sleep 0.05; done"))
    wait_until((local.root / "up").exists, "the pilot's start")
    guard = local.state(ident).watch_pid
    os.kill(guard, signal.SIGKILL)
    wait_until(lambda: local.state(ident).watch_pid != guard, "the end of the guard")
    state = local.state(ident)
    assert state.phase is Phase.RUNNING
    assert state.watch_pid in marked(local.sessions), "the next process to watch"
    local.cancel(ident)
    assert local.await_over(ident).phase is Phase.CANCELLED


def test_without_its_guard_the_limit_is_kept_by_the_status_query(local: Bench) -> None:
    ident = local.submit(
        local.batch("touch up; while :; do sleep 0.05; done", wall_s=1, kill_s=0.1)
    )
    wait_until((local.root / "up").exists, "the pilot's start")
    os.kill(local.state(ident).watch_pid, signal.SIGKILL)
    assert local.await_over(ident).phase in OVER
    assert marked(local.sessions) == []


def test_a_submission_that_died_before_it_started_anything_has_ended(local: Bench) -> None:
    ident = local.submit(local.batch("exit 0"))
    local.await_over(ident)
    whole = (local.records / ident).read_text().splitlines()
    kept = [line for line in whole if line.split()[0] not in ("guard", "exit", "ended")]
    (local.records / "dead-1").write_text("\n".join(kept) + "\n")
    assert local.state("dead-1").phase is Phase.ENDED


def test_another_machine_s_allocations_are_unknown_here(local: Bench) -> None:
    ident = local.submit(local.batch("exit 0"))
    local.await_over(ident)
    lines = (local.records / ident).read_text().splitlines()
    changed = ["host elsewhere" if line.startswith("host ") else line for line in lines]
    (local.records / "far-1").write_text("\n".join(x for x in changed if x != "ended") + "\n")
    assert local.state("far-1").phase is Phase.UNKNOWN


def test_an_allocation_of_an_earlier_boot_has_ended(local: Bench) -> None:
    ident = local.submit(local.batch("exit 0"))
    local.await_over(ident)
    lines = (local.records / ident).read_text().splitlines()
    changed = ["boot before" if line.startswith("boot ") else line for line in lines]
    (local.records / "old-1").write_text("\n".join(x for x in changed if x != "ended") + "\n")
    assert local.state("old-1").phase in OVER


def test_a_script_without_a_mark_is_refused(local: Bench) -> None:
    script = local.root / "plain.sh"
    script.write_text("#!/bin/sh\nexit 0\n")
    argv = local.scheduler.submit_command(str(script), "plain")
    done = local.call(argv)
    assert done.returncode == 1
    assert "mark" in done.stderr
    script.write_text("#LOCAL mark A=b\n#LOCAL sing loudly\n")
    done = local.call(argv)
    with pytest.raises(SubmitRefused, match="sing loudly"):
        local.scheduler.parse_submit(done.stdout, done.stderr, done.returncode)


def test_many_records_of_the_past_are_pruned(local: Bench) -> None:
    from chappe.site import localctl

    first = local.submit(local.batch("exit 0"))
    local.await_over(first)
    text = (local.records / first).read_text()
    for n in range(localctl.KEEP_RECORDS + 10):
        (local.records / f"0-{n:04d}").write_text(text)
    local.await_over(local.submit(local.batch("exit 0")))
    assert len(list(local.records.iterdir())) <= localctl.KEEP_RECORDS + 2
    assert (local.records / first).exists()
