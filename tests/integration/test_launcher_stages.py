"""Hooks, scratch directories and counters in the launcher, with real processes."""

from __future__ import annotations

import os
import shlex
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from chappe.pilot.launch_wire import Care, Hook, HookEnd, Task
from chappe.pilot.procs import find_marked
from tests.integration.launcher_rig import Rig, alive, rig, until


@pytest.fixture
async def launcher() -> AsyncIterator[Rig]:
    async with rig(str(uuid.uuid4())) as made:
        yield made


def hook(name: str, text: str, limit_s: float = 30.0) -> Hook:
    return Hook(name, ["/bin/sh", "-c", text], limit_s)


def task(r: Rig, job: str, text: str, *hooks: Hook, scratch: str = "", **fields: Any) -> Task:
    verdict = str(r.directory / f"{job}.verdict")
    care = Care(list(hooks), verdict, scratch, fields.pop("io", False), str(r.directory))
    fields.setdefault("grace_s", 0.5)
    out = str(r.directory / f"{job}.log")
    return r.task(job, text, care=care, log="file", stdout=out, tail_bytes=1_000, **fields)


def said(r: Rig, job: str) -> list[str]:
    return (r.directory / f"{job}.log").read_text().split()


SAY = 'echo "$CHAPPE_HOOK:$CHAPPE_REASON:$CHAPPE_EXIT$CHAPPE_SIGNAL"'


@pytest.mark.parametrize(
    ("text", "fields", "expected", "end"),
    [
        ("echo run; exit 0", {}, ["preprocess::", "run", "postprocess:exit:0"], ("exit", 0)),
        ("echo run; exit 3", {}, ["preprocess::", "run", "on_error:exit:3"], ("exit", 3)),
        (
            "echo run; kill -9 $$",
            {},
            ["preprocess::", "run", "on_error:signal:9"],
            ("signal", None),
        ),
        (
            "echo run; exec sleep 1000",
            {"wall_limit_s": 0.3},
            ["preprocess::", "run", "on_timeout:timeout:15"],
            ("timeout", None),
        ),
    ],
)
async def test_the_hook_that_fits_runs_and_is_told_how_it_went(
    launcher: Rig,
    text: str,
    fields: dict[str, Any],
    expected: list[str],
    end: tuple[str, int | None],
) -> None:
    names = ("preprocess", "postprocess", "on_error", "on_timeout")
    found = await launcher.run(task(launcher, "j", text, *(hook(n, SAY) for n in names), **fields))
    assert said(launcher, "j") == expected
    assert (found.reason, found.exit) == end
    assert found.hook == HookEnd(expected[-1].partition(":")[0])
    assert len(launcher.started) == 1  # all of it is one run
    # What the hook wrote is not taken for the program's last words.
    assert found.tail in ("", "preprocess::\nrun\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("exit 7", "exited with 7"),
        ("kill -9 $$", "died of signal 9"),
        ("sleep 1000 & exec sleep 1000", "took longer than its limit of 0.3 s"),
        ("trap '' TERM; sleep 1000 & while :; do sleep 0.1; done", "took longer than"),
    ],
)
async def test_without_its_preprocess_hook_nothing_runs(
    launcher: Rig, text: str, problem: str
) -> None:
    first = hook("preprocess", text, 0.3)
    found = await launcher.run(task(launcher, "j", "echo run", first, hook("on_error", SAY)))
    assert (found.reason, found.exit, found.signal) == ("hook", None, None)
    assert found.hook is not None
    assert found.hook.problem.startswith(problem)
    assert said(launcher, "j") == []


async def test_a_hook_that_cannot_be_started_or_hangs_leaves_the_run_as_it_was(
    launcher: Rig,
) -> None:
    missing = Hook("postprocess", ["no-such-program"], 1.0)
    found = await launcher.run(task(launcher, "a", "exit 0", missing))
    assert (found.reason, found.exit) == ("exit", 0)
    assert found.hook is not None
    assert "not found in PATH" in found.hook.problem
    hangs = hook("on_error", "echo $$ > pid; setsid sleep 1000 & exec sleep 1000", 0.3)
    found = await launcher.run(task(launcher, "b", "exit 3", hangs))
    assert (found.reason, found.exit) == ("exit", 3)
    assert found.hook is not None
    assert "longer than its limit" in found.hook.problem
    assert not alive(int((launcher.directory / "pid").read_text()))


async def test_a_preprocess_hook_that_wants_something_is_for_the_head_to_hear(
    launcher: Rig,
) -> None:
    wants = hook("preprocess", 'echo {} > "$CHAPPE_VERDICT"; echo "$CHAPPE_SCRATCH" > "$S/f"')
    scratch = str(launcher.directory / "s" / "j.1")
    env = {"S": scratch}
    found = await launcher.run(task(launcher, "j", "echo run", wants, scratch=scratch, env=env))
    assert (found.reason, found.hook) == ("hook", HookEnd("preprocess"))
    assert said(launcher, "j") == []
    # Content, the head has the command started under the same key, where the hook left its files.
    await launcher.client.ack([found.key])
    launcher.ended.clear()
    again = task(launcher, "j", 'cat "$S/f"; echo run', scratch=scratch, env=env)
    assert (await launcher.run(again)).reason == "exit"
    assert said(launcher, "j") == ["run"]
    assert "j.1" not in os.listdir(launcher.directory / "s")


async def test_a_verdict_that_the_command_forged_is_gone_before_its_hook_runs(
    launcher: Rig,
) -> None:
    forge = f'echo forged > "{launcher.directory}/j.verdict"; exit 3'
    look = hook("on_error", '[ -e "$CHAPPE_VERDICT" ] && echo there || echo gone')
    await launcher.run(task(launcher, "j", forge, look))
    assert said(launcher, "j") == ["gone"]


@pytest.mark.parametrize("stage", ["preprocess", "command", "postprocess"])
async def test_a_cancel_ends_whatever_stage_it_meets(launcher: Rig, stage: str) -> None:
    texts = dict.fromkeys(("preprocess", "command", "postprocess"), "true")
    texts[stage] = f"echo {stage}; exec sleep 1000"
    made = task(
        launcher,
        "j",
        texts["command"],
        hook("preprocess", texts["preprocess"]),
        hook("postprocess", texts["postprocess"]),
        hook("on_error", SAY),
    )
    await launcher.start(made)
    await until(lambda: said(launcher, "j") == [stage])
    await launcher.client.kill([made.key], "cancelled", 5.0)
    found = await launcher.end_of("j")
    assert found.reason == "cancelled"
    assert said(launcher, "j") == [stage]


async def test_scratch_is_private_and_goes_with_all_that_is_in_it(launcher: Rig) -> None:
    scratch = launcher.directory / "scratch" / "j.1"
    found = await launcher.run(
        task(
            launcher,
            "j",
            'stat -c %a "$S"; mkdir -p "$S/a/b"; echo x > "$S/a/b/c"; ln -s / "$S/root"',
            hook("postprocess", 'cat "$S/a/b/c"'),
            scratch=str(scratch),
            env={"S": str(scratch)},
        )
    )
    assert (found.reason, found.exit) == ("exit", 0)
    assert said(launcher, "j") == ["700", "x"]
    assert not scratch.exists()  # and the link in it led nowhere that rm went


async def test_a_place_that_another_made_or_opened_is_not_used(launcher: Rig) -> None:
    (launcher.directory / "mine").mkdir(mode=0o777)
    (launcher.directory / "mine").chmod(0o777)
    (launcher.directory / "link").symlink_to("/")
    for at in ("mine/s/j.1", "link/s/j.1"):
        scratch = str(launcher.directory / at)
        job = at.partition("/")[0]
        found = await launcher.run(task(launcher, job, "echo run", scratch=scratch))
        assert (found.reason, found.started_at) == ("start_failed", None)
        assert "not ours alone" in found.tail


async def test_the_guard_removes_what_is_left_on_the_node() -> None:
    async with rig(str(uuid.uuid4()), head_grace_s=0.2) as r:
        scratch = r.directory / "scratch" / "j.1"
        made = task(
            r, "j", 'echo x > "$S/f"; sleep 1000', scratch=str(scratch), env={"S": str(scratch)}
        )
        await r.start(made)
        await until((scratch / "f").exists)
        r.client.close()
        await r.process.wait()
        assert not scratch.parent.exists()


async def test_what_the_processes_of_a_job_read_and_wrote_is_counted(launcher: Rig) -> None:
    (launcher.directory / "in").write_bytes(b"x" * 3_000_000)
    found = await launcher.run(
        task(
            launcher,
            "j",
            "dd if=in of=out bs=100000 2>&-; (cat in > out2); sh -c 'setsid cat in > out3 & sleep 0.3'",
            io=True,
        )
    )
    assert found.io is not None
    assert found.io.source == "proc"
    # Three times 3 MB, and besides it what the dynamic loader reads.
    assert 9_000_000 <= found.io.read_bytes < 12_000_000
    assert 9_000_000 <= found.io.written_bytes < 9_100_000
    assert found.io.read_calls >= 60
    assert found.io.write_calls >= 30
    plain = await launcher.run(task(launcher, "k", "cat in > out"))
    assert plain.io is None


async def test_many_counted_runs_end_each_with_its_own_count(launcher: Rig) -> None:
    tasks = [
        task(launcher, f"j{k}", f"head -c {k}00000 /dev/zero > out{k}", io=True)
        for k in range(1, 9)
    ]
    await launcher.client.start(tasks)
    for k in range(1, 9):
        found = await launcher.end_of(f"j{k}")
        assert found.io is not None
        assert k * 100_000 <= found.io.written_bytes < k * 100_000 + 50_000


BOMB = """
import os, time
made = 0
while made < 6 and len(os.listdir("/proc")) < LIMIT:
    try:
        child = os.fork()
    except OSError:  # this machine allows no more; the others of us are enough
        break
    if child == 0:
        made = 0 if os.urandom(1)[0] % 3 else made + 1
        if os.urandom(1)[0] % 4 == 0:
            os.setsid()
    else:
        made += 1
time.sleep(1000)
"""


async def test_a_fork_bomb_with_escapees_is_gone_when_its_end_is_told(launcher: Rig) -> None:
    # Bounded, so that this machine survives a failure of ours: 400 processes more than there are.
    limit = len(os.listdir("/proc")) + 400
    bomb = launcher.directory / "bomb.py"
    bomb.write_text(BOMB.replace("LIMIT", str(limit)))
    quick = task(launcher, "next", "echo fine")
    found = await launcher.run(
        task(
            launcher,
            "j",
            f"exec {shlex.quote(sys.executable)} -S {bomb}",
            hook("on_timeout", "true"),
            wall_limit_s=1.5,
        )
    )
    assert found.reason == "timeout", found
    left = [process.pid for process in find_marked(launcher.session) if process.job == "j"]
    assert left == []
    assert (await launcher.run(quick)).exit == 0
