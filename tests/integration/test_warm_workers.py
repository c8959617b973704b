"""Warm workers with real processes: calls, crashes, kills, and what a function can do to its worker."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cloudpickle
import msgspec
import pytest

from chappe.link import values
from chappe.link.values import RemoteException, SiteFileRef
from chappe.pilot.launch_wire import Call, Ended, Environment, Task
from tests.integration.launcher_rig import BASE_ENV, Rig, alive, boot_in, rig, until

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
ENVIRONMENTS = {
    "default": Environment(sys.executable, [], {}, 1000, 1 << 30),
    "twice": Environment(sys.executable, [], {}, 2, 1 << 30),
    "small": Environment(sys.executable, [], {}, 1000, 32 << 20),
    "broken": Environment(sys.executable, ["no_such_module"], {}, 1000, 1 << 30),
    "numbers": Environment(sys.executable, ["numpy"], {"ADDED": "1"}, 1000, 1 << 30),
    "missing": Environment("/no/such/python", [], {}, 1000, 1 << 30),
}


@pytest.fixture
async def launcher() -> AsyncIterator[Rig]:
    async with rig(str(uuid.uuid4()), connect=False) as made:
        await connect(made)
        yield made


async def connect(made: Rig) -> None:
    await made.connect()
    await made.client.base_env(BASE_ENV, made.shared_log, ENVIRONMENTS)


def task(
    launcher: Rig,
    job: str,
    function: Callable[..., Any],
    *args: Any,
    environment: str = "default",
    own: bool = False,
    result_bytes: int = 64 << 20,
    **fields: Any,
) -> Task:
    """A task that calls `function`, which travels as any other would."""
    code = cloudpickle.dumps(function)
    path = launcher.directory / hashlib.sha256(code).hexdigest()
    path.write_bytes(code)
    call = Call(
        environment,
        job,
        str(path),
        path.name,
        cloudpickle.dumps((args, {})),
        VERSION,
        f"{launcher.directory}/{job}.result",
        f"jobs/{job}",
        result_bytes,
        own,
    )
    fields.setdefault("log", "file")
    fields.setdefault("stdout", f"{launcher.directory}/{job}.log")
    fields.setdefault("tail_bytes", 4096)
    return launcher.task(job, "-", "-", call=call, **fields)


def opened(ended: Ended) -> tuple[str, bytes]:
    return values._resolve(ended.result)


def value(ended: Ended) -> Any:
    assert (ended.reason, ended.exit) == ("exit", 0), ended
    media, body = opened(ended)
    return cloudpickle.loads(body) if media == values.PICKLE else msgspec.msgpack.decode(body)


def raised(ended: Ended) -> RemoteException:
    assert (ended.reason, ended.exit) == ("exit", 1), ended
    media, body = opened(ended)
    assert media == values.EXCEPTION
    return msgspec.msgpack.decode(body, type=RemoteException)


async def test_calls_share_one_warm_process_and_keep_nothing_of_each_other(launcher: Rig) -> None:
    def look(mark: str) -> dict[str, Any]:
        import os

        print("printed by", mark)
        before = os.environ.get("LEFT")
        os.environ["LEFT"] = mark
        os.chdir("/")
        return {"pid": os.getpid(), "before": before, "job": os.environ["CHAPPE_JOB_ID"]}

    first = value(await launcher.run(task(launcher, "one", look, "a")))
    second = value(await launcher.run(task(launcher, "two", look, "b")))
    assert first["pid"] == second["pid"]
    assert (first["before"], second["before"]) == (None, None)
    assert (first["job"], second["job"]) == ("one", "two")
    assert (launcher.directory / "one.log").read_text() == "printed by a\n"
    assert (launcher.directory / "two.log").read_text() == "printed by b\n"


async def test_an_own_process_is_another_one_for_each_call(launcher: Rig) -> None:
    calls = [task(launcher, f"own{i}", os.getpid, own=True) for i in range(3)]
    pids = [value(await launcher.run(one)) for one in calls]
    assert len(set(pids)) == 3
    await until(lambda: not any(alive(pid) for pid in pids))


async def test_a_worker_is_replaced_after_its_calls_and_when_it_leaks(launcher: Rig) -> None:
    def leak() -> int:
        import builtins
        import os

        builtins.__dict__.setdefault("_leak", []).append(b"x" * (40 << 20))
        return os.getpid()

    few = [
        value(await launcher.run(task(launcher, f"few{i}", os.getpid, environment="twice")))
        for i in range(4)
    ]
    assert few[0] == few[1] != few[2] == few[3]
    leaky = [
        value(await launcher.run(task(launcher, f"leak{i}", leak, environment="small")))
        for i in range(2)
    ]
    assert leaky[0] != leaky[1]


async def test_values_travel_as_what_they_are(launcher: Rig) -> None:
    def give(what: str) -> Any:
        import numpy as np

        return {
            "plain": {"a": [1, 2.5, None, True, "ä", b"\0"]},
            "tuple": (1, {2, 3}),
            "array": np.arange(6).reshape(2, 3),
            "objects": np.array([{}, []], dtype=object),
            "large": b"x" * 100_000,
            "huge": b"x" * (2 << 20),
        }[what]

    found = {
        what: await launcher.run(task(launcher, what, give, what, environment="numbers"))
        for what in ("plain", "tuple", "array", "objects", "large", "huge")
    }
    assert {what: opened(end)[0] for what, end in found.items()} == {
        "plain": values.MSGPACK,
        "tuple": values.PICKLE,
        "array": values.NPY,
        "objects": values.PICKLE,
        "large": values.MSGPACK,
        "huge": values.REFERENCE,
    }
    assert value(found["plain"]) == {"a": [1, 2.5, None, True, "ä", b"\0"]}
    assert value(found["tuple"]) == (1, {2, 3})
    assert value(found["large"]) == b"x" * 100_000
    reference = msgspec.msgpack.decode(opened(found["huge"])[1], type=SiteFileRef)
    kept = launcher.directory / "huge.result.msgpack"
    assert reference.path == "jobs/huge.msgpack"
    assert reference.size_bytes == kept.stat().st_size
    assert reference.sha256 == hashlib.sha256(kept.read_bytes()).hexdigest()


async def test_what_cannot_be_sent_is_an_error_of_a_type_and_the_worker_lives(
    launcher: Rig,
) -> None:
    def odd(how: str) -> Any:
        import os
        import threading

        if how == "value":
            return threading.Lock()
        if how == "large":
            return b"x" * (20 << 20)
        if how == "endless":
            return (object(), [b"y" * (20 << 20)])
        return os.getpid()

    pid = value(await launcher.run(task(launcher, "before", odd, "")))
    errors = {
        how: raised(await launcher.run(task(launcher, how, odd, how, result_bytes=8 << 20)))
        for how in ("value", "large", "endless")
    }
    for how in ("large", "endless"):
        assert f"larger than {8 << 20} bytes: write it to files" in errors[how].message
    assert {how: error.type for how, error in errors.items()} == {
        "value": "chappe.pilot.encode.ResultNotPicklable",
        "large": "chappe.pilot.encode.ResultTooLarge",
        "endless": "chappe.pilot.encode.ResultTooLarge",
    }
    assert value(await launcher.run(task(launcher, "after", odd, ""))) == pid
    assert not list(launcher.directory.glob("*.result*"))


async def test_odd_exceptions_are_told_with_their_traceback(launcher: Rig) -> None:
    def fail(how: str) -> None:
        import sys
        import threading

        class Silent(Exception):
            def __str__(self) -> str:
                raise ValueError("no words")

        class Holds(Exception):
            pass

        if how == "exit":
            sys.exit(3)
        if how == "silent":
            raise Silent
        if how == "lock":
            raise Holds(threading.Lock())
        if how == "interrupt":
            raise KeyboardInterrupt
        raise ValueError("plainly", how)

    found = {
        how: raised(await launcher.run(task(launcher, how, fail, how)))
        for how in ("exit", "silent", "lock", "interrupt", "plain")
    }
    assert {how: error.type.rpartition(".")[2] for how, error in found.items()} == {
        "exit": "SystemExit",
        "silent": "Silent",
        "lock": "Holds",
        "interrupt": "KeyboardInterrupt",
        "plain": "ValueError",
    }
    assert found["lock"].pickle is None
    assert found["plain"].pickle is not None
    assert "in fail" in found["plain"].traceback
    assert "worker.py" not in found["plain"].traceback
    assert "ValueError: ('plainly', 'plain')" in (launcher.directory / "plain.log").read_text()


async def test_a_worker_that_dies_is_the_end_of_its_call_and_of_no_other(launcher: Rig) -> None:
    def die(how: str) -> None:
        import os
        import signal

        if how == "exit":
            os._exit(5)
        if how == "zero":
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    killed, left, zero = [
        await launcher.run(task(launcher, how, die, how)) for how in ("kill", "exit", "zero")
    ]
    assert (killed.reason, killed.signal) == ("signal", signal.SIGKILL)
    assert (left.reason, left.exit) == ("exit", 5)
    # It is for the head to say that a success without a value is none.
    assert (zero.reason, zero.exit, zero.result) == ("exit", 0, "")
    assert value(await launcher.run(task(launcher, "after", os.getppid))) == launcher.client.pid


async def test_a_cancel_and_a_limit_end_the_worker_with_all_it_started(launcher: Rig) -> None:
    def hang(marker: str) -> None:
        import os
        import subprocess
        import sys
        import time

        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open(marker + ".new", "w") as file:
            file.write(f"{os.getpid()} {child.pid}")
        os.rename(marker + ".new", marker)
        time.sleep(600)

    cancelled, late = launcher.directory / "cancelled", launcher.directory / "late"
    one = task(launcher, "cancel", hang, str(cancelled))
    await launcher.start(one)
    await until(cancelled.exists)
    await launcher.client.kill([one.key], "cancelled", 5.0)
    ended = await launcher.end_of("cancel")
    assert (ended.reason, ended.signal, ended.result) == ("cancelled", signal.SIGTERM, "")
    await launcher.run(task(launcher, "limit", hang, str(late), wall_limit_s=1.0, own=True))
    assert (await launcher.end_of("limit")).reason == "timeout"
    for marker in (cancelled, late):
        assert not any(alive(int(pid)) for pid in marker.read_text().split())


async def test_what_a_call_leaves_behind_is_ended_before_its_end_is_told(launcher: Rig) -> None:
    def leave() -> list[int]:
        import os
        import subprocess
        import sys

        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        near = subprocess.Popen(sleep)
        far = subprocess.Popen(sleep, start_new_session=True)
        return [os.getpid(), near.pid, far.pid]

    pids = value(await launcher.run(task(launcher, "leave", leave)))
    assert not any(alive(pid) for pid in pids)


async def test_a_killed_zygote_is_replaced_and_no_call_notices(launcher: Rig) -> None:
    def wait(gate: str) -> int:
        import os
        import time

        while not os.path.exists(gate):
            time.sleep(0.01)
        return os.getpid()

    gate = launcher.directory / "gate"
    running = task(launcher, "running", wait, str(gate))
    await launcher.start(running)
    worker = launcher.started[-1].pid
    (zygote,) = set(_named("chappe.pilot.zygote", launcher.client.pid)) - {worker}
    os.kill(zygote, signal.SIGKILL)
    await until(lambda: not alive(zygote))
    gate.touch()
    assert value(await launcher.end_of("running")) == worker
    os.kill(worker, signal.SIGKILL)
    await until(lambda: not alive(worker))
    other = value(await launcher.run(task(launcher, "other", os.getpid)))
    assert other != worker
    again = [pid for pid in _named("chappe.pilot.zygote", launcher.client.pid) if pid != other]
    assert again
    assert zygote not in again


async def test_an_environment_that_cannot_start_says_why(launcher: Rig) -> None:
    for name, words in (
        ("broken", "cannot import no_such_module: ModuleNotFoundError"),
        ("missing", "/no/such/python"),
        ("unknown", "knows no such environment"),
    ):
        ended = await launcher.run(task(launcher, name, os.getpid, environment=name, lane=7))
        assert ended.reason == "start_failed"
        assert words in ended.tail


async def test_code_that_is_not_what_was_signed_is_not_loaded(launcher: Rig) -> None:
    made = task(launcher, "swapped", os.getpid)
    assert made.call is not None
    with open(made.call.code, "wb") as file:  # noqa: ASYNC230
        file.write(cloudpickle.dumps(os.getppid))
    error = raised(await launcher.run(made))
    assert "is not the code that was signed" in error.message
    other = task(launcher, "other", os.getpid)
    assert other.call is not None
    other.call.python = "2.7"
    other.call.code = "/no/such/file"
    assert "was pickled by Python 2.7" in raised(await launcher.run(other)).message


async def test_a_waiting_call_can_be_withdrawn_and_a_late_one_is_refused(launcher: Rig) -> None:
    first = task(launcher, "first", os.getpid, environment="numbers")
    late = task(launcher, "late", os.getpid, environment="numbers", start_by=boot_in(-1))
    await launcher.client.start([first, late])
    await launcher.client.withdraw([first.key])
    await launcher.hear(lambda: len(launcher.refused) + len(launcher.ended) == 2)
    assert ("late", "late") in {(r.job, r.reason) for r in launcher.refused}
    assert value(await launcher.run(task(launcher, "next", os.getpid, environment="numbers")))


async def test_a_new_head_finds_running_calls_and_told_values(launcher: Rig) -> None:
    def wait(gate: str) -> str:
        import os
        import time

        while not os.path.exists(gate):
            time.sleep(0.01)
        return "over"

    gate = launcher.directory / "gate"
    await launcher.run(task(launcher, "before", os.getpid))
    running = task(launcher, "running", wait, str(gate))
    await launcher.start(running)
    launcher.client.close()
    launcher.ended.clear()
    await connect(launcher)
    assert [r.job for r in launcher.snapshot.running] == ["running"]
    assert [e.job for e in launcher.snapshot.ended if e.result] == ["before"]
    gate.touch()
    assert value(await launcher.end_of("running")) == "over"


async def test_many_calls_in_lanes(launcher: Rig) -> None:
    calls = [task(launcher, f"n{i}", int, str(i), lane=1 + i % 2, log="shared") for i in range(300)]
    await launcher.client.start(calls)
    await launcher.hear(lambda: len(launcher.ended) == 300)
    assert sorted(value(end) for end in launcher.ended) == list(range(300))
    assert len({s.pid for s in launcher.started}) <= 2


async def test_the_end_of_the_launcher_is_the_end_of_its_workers(launcher: Rig) -> None:
    pid = value(await launcher.run(task(launcher, "one", os.getpid)))
    zygotes = _named("chappe.pilot.zygote", launcher.client.pid)
    await launcher.client.stop()
    await launcher.process.wait()
    await until(lambda: not any(alive(one) for one in [pid, *zygotes]))


def _named(word: str, parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().decode()
            stat = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if word in line and int(stat[1]) == parent and stat[0] not in "ZX":
            found.append(int(path.name))
    return found
