"""The launcher with real processes: how they are started, watched, ended and told of."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.launcher_rig import Rig, alive, boot_in, rig, until

if TYPE_CHECKING:
    from tests.conftest import Require


@pytest.fixture
async def launcher() -> AsyncIterator[Rig]:
    async with rig(str(uuid.uuid4())) as made:
        yield made


def status_number(launcher: Rig, name: str) -> int:
    words = Path(f"/proc/{launcher.client.pid}/status").read_text().split()
    return int(words[words.index(name) + 1])


async def test_exit_codes_and_signals_are_told_apart(launcher: Rig) -> None:
    tasks = [
        launcher.task("fine", "exit 0"),
        launcher.task("seven", "exit 7"),
        launcher.task("segv", "kill -SEGV $$"),
        launcher.task("true", "true", ""),  # found in PATH
    ]
    await launcher.client.start(tasks)
    ends = {task.job: await launcher.end_of(task.job) for task in tasks}
    assert {job: (e.reason, e.exit, e.signal) for job, e in ends.items()} == {
        "fine": ("exit", 0, None),
        "seven": ("exit", 7, None),
        "segv": ("signal", None, signal.SIGSEGV),
        "true": ("exit", 0, None),
    }
    assert all(e.started_at is not None and e.ended_at >= e.started_at for e in ends.values())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"argv": ["no-such-program"]}, "'no-such-program' is not found in PATH"),
        ({"argv": ["/no/such/program"]}, "cannot execute '/no/such/program': No such file"),
        ({"argv": []}, "the command is empty"),
        ({"argv": ["/bin/true", "a\0b"]}, "cannot execute '/bin/true': embedded null"),
        ({"argv": ["/bin/true", "x" * 200_000]}, "Argument list too long"),
        ({"cwd": "/no/such/place"}, "cannot enter the directory '/no/such/place': No such file"),
        ({"log": "file", "stdout": "/no/such/log"}, "cannot open the log '/no/such/log'"),
        ({"cores": [9999]}, "cannot be placed on cores [9999]"),
    ],
)
async def test_what_cannot_start_says_why_and_harms_no_other(
    launcher: Rig, fields: dict[str, object], words: str
) -> None:
    bad = launcher.task("bad", "/bin/true", "", **fields)
    await launcher.client.start([bad, launcher.task("good", "exit 0")])
    end = await launcher.end_of("bad")
    assert (end.reason, end.exit, end.signal, end.started_at) == ("start_failed", None, None, None)
    assert words in end.tail
    assert (await launcher.end_of("good")).exit == 0


async def test_a_fifo_in_place_of_a_log_holds_nothing_up(launcher: Rig) -> None:
    fifo = launcher.directory / "fifo"
    os.mkfifo(fifo)
    end = await launcher.run(launcher.task("fifo", "exit 0", log="file", stdout=str(fifo)))
    assert end.reason == "start_failed"
    assert "cannot open the log" in end.tail


async def test_a_full_disk_fails_the_task_whose_log_it_cannot_hold(
    launcher: Rig, require: Require
) -> None:
    disk = launcher.directory / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "nr_inodes=1", "none", str(disk)]
    mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0  # noqa: ASYNC221
    require(mounted, "file system that is full", "run as root with CAP_SYS_ADMIN")
    try:
        full = launcher.task("full", "exit 0", log="file", stdout=str(disk / "log"))
        await launcher.client.start([full, launcher.task("other", "exit 0", log="shared")])
        end = await launcher.end_of("full")
        assert end.reason == "start_failed"
        assert end.tail == f"cannot open the log '{disk / 'log'}': No space left on device"
        assert (await launcher.end_of("other")).exit == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)  # noqa: ASYNC221


async def test_logs_go_where_the_task_says(launcher: Rig) -> None:
    out, err = launcher.directory / "out", launcher.directory / "err"
    both = "echo to-out; echo to-err >&2"
    own = launcher.task("own", both, log="file", stdout=str(out), stderr=str(err))
    await launcher.run(own)
    assert (out.read_text(), err.read_text()) == ("to-out\n", "to-err\n")
    merged = launcher.directory / "merged"
    await launcher.run(launcher.task("merged", both, log="file", stdout=str(merged)))
    assert merged.read_text() == "to-out\nto-err\n"
    await launcher.run(launcher.task("shared-1", both, log="shared"))
    await launcher.run(launcher.task("shared-2", both, log="shared"))
    assert launcher.shared_log.read_text() == "to-out\nto-err\n" * 2
    await launcher.run(launcher.task("none", both))
    assert "to-out" not in launcher.log.read_text()


async def test_the_tail_of_stderr_comes_with_a_failure_only(launcher: Rig) -> None:
    def talk(job: str, code: int, tail_bytes: int) -> str:
        return f"printf %06000d 1 >&2; printf the-end-é >&2; exit {code}"

    err = {job: str(launcher.directory / job) for job in ("bad", "good", "off", "merged")}
    own = {"tail_bytes": 4096, "log": "none"}
    bad = await launcher.run(launcher.task("bad", talk("bad", 3, 1), stderr=err["bad"], **own))
    assert bad.tail.endswith("0001the-end-é")
    assert len(bad.tail.encode()) == 4096
    good = await launcher.run(launcher.task("good", talk("good", 0, 1), stderr=err["good"], **own))
    assert good.tail == ""
    off = await launcher.run(launcher.task("off", talk("off", 3, 0), stderr=err["off"]))
    assert off.tail == ""
    merged = launcher.task(
        "merged", "echo why; exit 1", log="file", stdout=err["merged"], tail_bytes=3
    )
    assert (await launcher.run(merged)).tail == "hy\n"


async def test_a_job_sees_its_environment_and_no_descriptor_of_ours(launcher: Rig) -> None:
    out = launcher.directory / "out"
    show = "env; ls -l /proc/self/fd | grep -c socket; ps -o sid=,pgid=,pid= -p $$"
    end = await launcher.run(
        launcher.task("sees", show, log="file", stdout=str(out), env={"OWN": "yes"}, attempt=3)
    )
    assert end.exit == 0, out.read_text()
    *env, sockets, ids = out.read_text().splitlines()
    assert sockets == "0"
    assert len(set(ids.split())) == 1, "leader of a session and a group of its own"
    seen = dict(line.split("=", 1) for line in env)
    expected = {
        "OWN": "yes",
        "LANG": "C.UTF-8",
        "CHAPPE_SESSION": launcher.session,
        "CHAPPE_JOB_ID": "sees",
        "CHAPPE_EPOCH": "1",
        "CHAPPE_ATTEMPT": "3",
    }
    assert expected.items() <= seen.items()
    assert "HOME" not in seen, "nothing of the launcher's own environment"


async def test_signals_have_their_usual_meaning_in_a_job(launcher: Rig) -> None:
    out = launcher.directory / "status"
    await launcher.run(
        launcher.task("signals", "grep ^Sig /proc/self/status", log="file", stdout=str(out))
    )
    masks = dict(line.split(":\t") for line in out.read_text().splitlines())
    ignored = int(masks["SigIgn"], 16)
    for signum in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGTERM):
        assert not ignored & 1 << (signum - 1)
    assert int(masks["SigBlk"], 16) == 0


async def test_affinity_is_honoured_and_not_passed_on(launcher: Rig) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    ask = (sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))")
    logs = [launcher.directory / f"log{i}" for i in range(3)]
    tasks = [
        launcher.task(f"job{i}", *ask, cores=cores, log="file", stdout=str(logs[i]))
        for i, cores in enumerate(([cpus[-1]], [cpus[0]], []))
    ]
    await launcher.client.start(tasks)
    for task in tasks:
        await launcher.end_of(task.job)
    assert [log.read_text().strip() for log in logs] == [f"[{cpus[-1]}]", f"[{cpus[0]}]", str(cpus)]
    assert sorted(os.sched_getaffinity(launcher.client.pid)) == cpus


async def test_usage_is_that_of_the_run(launcher: Rig) -> None:
    work = (
        "import time; block = bytearray(64 << 20)\n"
        "while time.process_time() < 0.2: block[::4096] = bytes(16384)"
    )
    end = await launcher.run(launcher.task("work", sys.executable, "-S", "-c", work))
    assert end.exit == 0
    assert end.user_s + end.system_s >= 0.2
    assert end.wall_s >= 0.1
    assert 64 << 20 <= end.max_rss_bytes < 1 << 30
    idle = await launcher.run(launcher.task("idle", "exit 0"))
    assert idle.user_s + idle.system_s < end.user_s + end.system_s
    assert idle.max_rss_bytes < 64 << 20


async def test_many_short_jobs_are_each_told_exactly_once(launcher: Rig) -> None:
    count, lanes = 5_000, 4
    tasks = [
        launcher.task(f"job-{i}", "/bin/true", "", lane=1 + i % lanes, log="shared")
        for i in range(count)
    ]
    await launcher.client.start(tasks)
    await launcher.hear(lambda: len(launcher.ended) >= count)
    assert Counter(end.job for end in launcher.ended) == {task.job: 1 for task in tasks}
    assert all(end.exit == 0 for end in launcher.ended)
    assert launcher.refused == []
    assert launcher.frames < count, "told in batches"
    await launcher.client.ack([end.key for end in launcher.ended])
    launcher.client.close()
    assert (await launcher.connect()).ended == []


async def test_a_lane_runs_one_at_a_time_in_order(launcher: Rig) -> None:
    trace = launcher.directory / "trace"
    tasks = [
        launcher.task(f"{lane}{i}", f"echo +{lane}{i} >> {trace}; echo -{lane}{i} >> {trace}",
                      lane=lane)
        for i in range(5)
        for lane in (1, 2)
    ]  # fmt: skip
    await launcher.client.start(tasks)
    await launcher.hear(lambda: len(launcher.ended) == len(tasks))
    lines = trace.read_text().split()
    for lane in "12":
        own = [line for line in lines if line[1] == lane]
        assert own == [f"{sign}{lane}{i}" for i in range(5) for sign in "+-"]


async def test_a_known_task_is_never_started_twice(launcher: Rig) -> None:
    go, count = launcher.directory / "go", launcher.directory / "count"
    os.mkfifo(go)
    task = launcher.task("once", f"echo x >> {count}; read line < {go}")
    waiting = launcher.task("waits", f"echo y >> {count}", lane=7)
    await launcher.start(task)
    holder = launcher.task("holds", "sleep 600", lane=7)
    await launcher.start(holder)
    await launcher.client.start([waiting])
    first = launcher.started[0]
    await launcher.client.start([task, waiting, task])
    await launcher.hear(lambda: launcher.started.count(first) >= 2)
    go.write_text("now\n")
    end = await launcher.end_of("once")
    await launcher.client.start([task])
    await launcher.hear(lambda: launcher.ended.count(end) == 2)
    await launcher.client.kill([holder.key], "cancelled", 0)
    await launcher.end_of("waits")
    assert count.read_text() == "x\ny\n"


async def test_a_late_start_is_refused(launcher: Rig) -> None:
    mark = launcher.directory / "mark"
    late = launcher.task("late", f"touch {mark}", start_by=boot_in(-0.001))
    taken = launcher.task("taken", f"touch {mark}", takeover_deadline=boot_in(-0.001))
    await launcher.client.start([late, taken, launcher.task("next", "exit 0")])
    await launcher.end_of("next")
    assert [(r.job, r.reason) for r in launcher.refused] == [("late", "late"), ("taken", "late")]
    assert not mark.exists()
    # Refused is forgotten: the same key may come again with time left.
    assert (await launcher.run(launcher.task("late", "exit 0"))).exit == 0


async def test_cancel_takes_the_group_and_spares_the_deaf_no_longer_than_the_grace(
    launcher: Rig,
) -> None:
    ready = launcher.directory / "ready"
    deaf = launcher.task("deaf", f"trap '' TERM; touch {ready}; sleep 600 & wait; sleep 600")
    polite = launcher.task("polite", "sleep 600")
    await launcher.start(deaf, polite)
    await until(ready.exists)
    await launcher.client.kill([deaf.key, polite.key], "cancelled", 0.2)
    end = await launcher.end_of("deaf")
    assert (end.reason, end.exit, end.signal) == ("cancelled", None, signal.SIGKILL)
    end = await launcher.end_of("polite")
    assert (end.reason, end.exit, end.signal) == ("cancelled", None, signal.SIGTERM)


async def test_the_wall_limit_asks_and_then_kills(launcher: Rig) -> None:
    deaf = launcher.task("deaf", "trap '' TERM; sleep 600; sleep 600", wall_limit_s=2, grace_s=0.1)
    polite = launcher.task(
        "polite", "trap 'exit 5' TERM; sleep 600 & wait", wall_limit_s=2, grace_s=600
    )
    await launcher.start(deaf, polite)
    end = await launcher.end_of("deaf")
    assert (end.reason, end.signal) == ("timeout", signal.SIGKILL)
    end = await launcher.end_of("polite")
    assert (end.reason, end.exit) == ("timeout", 5)
    assert end.wall_s >= 2


async def test_a_warning_comes_before_the_end_and_then_any_end_is_a_timeout(launcher: Rig) -> None:
    usr1 = int(signal.SIGUSR1)
    trap = "trap 'exit 7' USR1; while :; do sleep 0.05; done"
    ends = launcher.task("ends", trap, ends_at=boot_in(600), warn_s=599.9, warn_signal=usr1)
    limit = launcher.task("limit", trap, wall_limit_s=600, warn_s=599.5, warn_signal=usr1)
    fine = launcher.task(
        "fine", trap.replace("7", "0"), wall_limit_s=600, warn_s=599.5, warn_signal=usr1
    )
    deaf = launcher.task(
        "deaf", "trap '' USR1; sleep 600; sleep 600", wall_limit_s=2, warn_s=1, warn_signal=usr1
    )
    endless = launcher.task("endless", "exit 3", warn_s=5, warn_signal=usr1)
    await launcher.start(ends, limit, fine, deaf)
    for job, told in (("ends", ("timeout", 7)), ("limit", ("timeout", 7)), ("fine", ("exit", 0))):
        end = await launcher.end_of(job)
        assert (end.reason, end.exit) == told
    assert (await launcher.end_of("deaf")).reason == "timeout"
    await launcher.client.start([endless])
    assert (await launcher.end_of("endless")).reason == "exit"


async def test_a_stopped_job_hears_the_signal_too(launcher: Rig) -> None:
    task = launcher.task("stopped", "kill -STOP $$; sleep 600")
    await launcher.start(task)
    pid = launcher.started[0].pid
    await until(lambda: ") T " in Path(f"/proc/{pid}/stat").read_text())
    await launcher.client.kill([task.key], "cancelled", 600)
    assert (await launcher.end_of("stopped")).signal == signal.SIGTERM


async def test_a_takeover_deadline_kills_at_once_unless_renewed(launcher: Rig) -> None:
    kept = launcher.task("kept", "sleep 600", takeover_deadline=boot_in(600))
    lost = launcher.task("lost", "trap '' TERM; sleep 600", takeover_deadline=boot_in(600))
    queued = launcher.task("queued", "sleep 600", takeover_deadline=boot_in(600), lane=1)
    holder = launcher.task("holder", "sleep 600", lane=1)
    await launcher.start(kept, lost, holder)
    await launcher.client.start([queued])
    await launcher.client.renew(
        {kept.key: boot_in(900), lost.key: boot_in(0.01), queued.key: boot_in(-1), ("no", 1): 0.0}
    )
    end = await launcher.end_of("lost")
    assert (end.reason, end.signal) == ("takeover", signal.SIGKILL)
    await launcher.client.kill([holder.key], "cancelled", 0)
    await launcher.hear(lambda: [r.job for r in launcher.refused] == ["queued"])
    assert alive(next(s.pid for s in launcher.started if s.job == "kept"))


async def test_killing_what_waits_withdraws_it(launcher: Rig) -> None:
    mark = launcher.directory / "mark"
    holder = launcher.task("holder", "sleep 600", lane=1)
    waits = [launcher.task(f"waits{i}", f"touch {mark}", lane=1) for i in range(2)]
    last = launcher.task("last", "exit 0", lane=1)
    await launcher.start(holder)
    await launcher.client.start([*waits, last])
    await launcher.client.kill([task.key for task in waits] + [("unknown", 1)], "cancelled", 0)
    await launcher.hear(lambda: len(launcher.refused) == 2)
    assert {(r.job, r.reason) for r in launcher.refused} == {
        ("waits0", "withdrawn"),
        ("waits1", "withdrawn"),
    }
    await launcher.client.kill([holder.key], "cancelled", 0)
    assert (await launcher.end_of("last")).exit == 0
    assert not mark.exists()


async def test_withdrawing_leaves_what_runs(launcher: Rig) -> None:
    runs, waits = (launcher.task(job, "sleep 600", lane=1) for job in ("runs", "waits"))
    await launcher.start(runs)
    await launcher.client.start([waits])
    await launcher.client.withdraw([runs.key, waits.key, ("unknown", 1)])
    await launcher.hear(lambda: launcher.refused)
    assert [(r.job, r.reason) for r in launcher.refused] == [("waits", "withdrawn")]
    await launcher.client.kill([runs.key], "cancelled", 0)
    assert (await launcher.end_of("runs")).reason == "cancelled"


async def test_stop_refuses_what_waits_and_lets_what_runs_end(launcher: Rig) -> None:
    go = launcher.directory / "go"
    os.mkfifo(go)
    await launcher.start(launcher.task("runs", f"read line < {go}", lane=1))
    await launcher.client.start([launcher.task("waits", "exit 0", lane=1)])
    await launcher.client.stop()
    await launcher.client.start([launcher.task("new", "exit 0")])
    await launcher.hear(lambda: len(launcher.refused) == 2)
    assert {r.reason for r in launcher.refused} == {"stopping"}
    assert not launcher.client.gone.done()
    go.write_text("now\n")
    await launcher.client.gone
    assert [end.exit for end in launcher.ended] == [0]
    assert await launcher.process.wait() == 0


@pytest.mark.parametrize("how", ["stop", "SIGTERM"])
async def test_stop_with_kill_ends_all_and_tells(launcher: Rig, how: str) -> None:
    await launcher.start(*(launcher.task(f"job{i}", "sleep 600") for i in range(3)))
    if how == "stop":
        await launcher.client.stop(kill=True, reason="allocation_end", grace_s=5)
    else:
        launcher.process.terminate()
    await launcher.client.gone
    assert [(e.reason, e.signal) for e in launcher.ended] == [("allocation_end", 15)] * 3
    assert await launcher.process.wait() == 0
    assert not any(alive(started.pid) for started in launcher.started)


async def test_a_head_that_reads_slowly_misses_nothing(launcher: Rig) -> None:
    count = 400
    transport = launcher.client._transport
    assert transport is not None
    transport.pause_reading()
    talk = "head -c 4096 /dev/zero | tr '\\0' e >&2; exit 1"
    await launcher.client.start(
        [
            launcher.task(
                f"job{i}",
                talk,
                stderr=f"{launcher.directory}/err{i}",
                tail_bytes=4096,
                lane=1 + i % 2,
            )
            for i in range(count)
        ]
    )
    await until((launcher.directory / f"err{count - 1}").exists)
    transport.resume_reading()
    await launcher.hear(lambda: len(launcher.ended) >= count)
    assert Counter(end.job for end in launcher.ended) == {f"job{i}": 1 for i in range(count)}
    assert {len(end.tail) for end in launcher.ended} == {4096}


async def test_it_is_small(launcher: Rig) -> None:
    await launcher.run(launcher.task("one", "exit 0"))
    assert status_number(launcher, "VmRSS:") <= 20 * 1024
    assert status_number(launcher, "Threads:") == 1


async def test_it_waits_without_waking(launcher: Rig) -> None:
    """No polling: with a job running and a deadline ahead it is not scheduled at all."""
    await launcher.start(launcher.task("sleeps", "sleep 600", wall_limit_s=3600))

    before = status_number(launcher, "voluntary_ctxt_switches:")
    await asyncio.to_thread(subprocess.run, ["sleep", "0.5"], check=True)
    assert status_number(launcher, "voluntary_ctxt_switches:") - before <= 2
