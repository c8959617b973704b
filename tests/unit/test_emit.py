"""The producer, in process: what it writes, and that nothing it meets reaches the simulation."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chappe.core.messages import decode
from chappe.emit import chappe_emit as emit
from chappe.link import emitted

SOURCE = Path(emit.__file__)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A spool folder that this process emits to."""
    for name in [name for name in os.environ if name.startswith("CHAPPE_EMIT")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CHAPPE_EMIT_CONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("CHAPPE_JOB_ID", raising=False)
    emit.configure(spool=str(tmp_path / "spool"))
    yield tmp_path / "spool"
    emit.configure(spool=str(tmp_path / "after"))


def told(folder: Path) -> list[dict[str, Any]]:
    """What all files in the folder hold, in order."""
    files = sorted(folder.glob("*.spool"))
    return [json.loads(m) for f in files for m in emitted.read(str(f), 0).messages]


def run(code: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """A simulation of its own, with the one file copied beside it."""
    (folder / "chappe_emit.py").write_bytes(SOURCE.read_bytes())
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "CHAPPE_EMIT_SPOOL": str(folder / "spool"), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_is_one_file_for_python_3_6_and_the_standard_library() -> None:
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 6))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            imported.add(node.module.partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"pika"}  # used where it is, wanted nowhere


def test_a_life_of_a_simulation(folder: Path) -> None:
    with emit.simulation("sim-1", "job-1", name="test", model="shallow") as sim:
        sim.metric("energy", 0.1, step=1, time="1850-01-01")
        sim.period("18500101", "18500131", 1)
        emit.metric("mass", 2)
        emit.message("custom.note", text="é ✓")
    messages = told(folder)
    assert [m["msgType"] for m in messages] == [
        "simulation.started", "metric", "job.period", "metric", "custom.note", "simulation.ended",
    ]  # fmt: skip
    assert [m.get("msgCode") for m in messages] == ["0000", None, "1001", None, None, "0100"]
    assert {(m["simuid"], m["jobuid"]) for m in messages} == {("sim-1", "job-1")}
    assert messages[1]["value"] == 0.1
    assert len({m["msgUID"] for m in messages}) == 6


def test_messages_are_numbered_and_chained(folder: Path) -> None:
    for n in range(5):
        emit.metric("x", n)
    (file,) = folder.glob("*.spool")
    raw = emitted.read(str(file), 0).messages
    header = emitted.read_header(str(file))
    before = ""
    for n, message in enumerate(map(decode, raw), 1):
        assert header is not None
        assert (message.stream, message.seq, message.prev) == (header.stream, n, before)
        before = hashlib.sha256(raw[n - 1]).hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_has_not_is_text(folder: Path, value: float) -> None:
    emit.metric("cfl", value)
    assert told(folder)[0]["value"] == str(value)
    decode(emitted.read(str(next(folder.glob("*.spool"))), 0).messages[0])


def test_numpy_numbers_are_numbers(folder: Path) -> None:
    numpy = pytest.importorskip("numpy")
    emit.metric("single", numpy.float32(0.1), step=numpy.int64(3))
    emit.metric("broken", numpy.float32("nan"))
    first, second = told(folder)
    assert first["value"] == float(numpy.float32(0.1))
    assert first["step"] == 3
    assert second["value"] == "nan"


def test_a_message_without_bounds_is_cut(folder: Path) -> None:
    emit.message("log", text="x" * 10_000_000, other=7)
    (message,) = told(folder)
    assert len(message["text"]) < 3000
    assert message["other"] == 7


def test_standard_fields_cannot_be_forged(folder: Path) -> None:
    emit.message("log", simulation="mine", simuid="other", msgUID="1", msgSeq=99)
    (message,) = told(folder)
    assert message["simuid"] == "mine"
    assert message["msgUID"] != "1"
    assert message["msgSeq"] == 1


def test_what_cannot_be_told_is_said_and_nothing_is_raised(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Bad:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    emit.message("log", bad=Bad())
    assert "no words" in capsys.readouterr().err


def test_a_full_disk_keeps_messages_in_memory_until_there_is_room(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emit.metric("x", 0)
    real, room = os.write, [10]

    def write(fd: int, data: bytes) -> int:
        """The rest of the disk takes ten bytes, and then none."""
        written = real(fd, data[: room[0]])
        room[0] = 0
        if not written:
            raise OSError(28, "No space left on device")
        return written

    monkeypatch.setattr(os, "write", write)
    for n in range(1, 4):
        emit.metric("x", n)
    assert len(told(folder)) == 1
    monkeypatch.setattr(os, "write", real)
    emit.metric("x", 4)
    assert [m["value"] for m in told(folder)] == [0, 1, 2, 3, 4]
    assert [m["msgSeq"] for m in told(folder)] == [1, 2, 3, 4, 5]
    (file,) = folder.glob("*.spool")
    assert emitted.read(str(file), 0).damaged == 1  # the ten bytes


def test_a_folder_that_cannot_be_made_is_survived(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    emit.configure(spool=str(tmp_path / "file" / "spool"))
    with emit.simulation("s"):
        emit.metric("x", 1)
    assert "cannot write" in capsys.readouterr().err


def test_a_disk_that_hangs_holds_nobody_for_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emit.configure(spool=str(folder), limit_s="0.2")
    monkeypatch.setattr(os, "fsync", lambda fd: time.sleep(30))
    began = time.monotonic()
    emit.message("simulation.started", simulation="s")
    assert time.monotonic() - began < 20
    assert told(folder)[0]["msgCode"] == "0000"


def test_an_exception_is_told_as_fatal_and_passes_through(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), emit.simulation("s"):
        _ = 1 / 0
    assert told(folder)[-1]["msgCode"] == "1999"
    assert told(folder)[-1]["error"] == "ZeroDivisionError: division by zero"


def test_parts_of_a_simulation_start_and_end_jobs(folder: Path) -> None:
    with emit.simulation("s", "j2", continues=True, ends=False):
        pass
    assert [m["msgCode"] for m in told(folder)] == ["1000", "1100"]


def test_a_signal_is_told_and_still_kills(tmp_path: Path) -> None:
    code = """
import os, signal, chappe_emit as emit
with emit.simulation("s", "j"):
    os.kill(os.getpid(), signal.SIGTERM)
    while True: emit.metric("x", 1)
"""
    done = run(code, tmp_path)
    assert done.returncode == -signal.SIGTERM, done.stderr
    last = told(tmp_path / "spool")[-1]
    assert (last["msgCode"], last["signal"]) == ("1999", "SIGTERM")


def test_a_signal_while_it_appends_is_told_as_well(tmp_path: Path) -> None:
    code = """
import os, signal, chappe_emit as emit
real = os.write
def write(fd, data):
    if b'"metric"' in data:
        os.kill(os.getpid(), signal.SIGTERM)
    return real(fd, data)
with emit.simulation("s", "j"):
    emit.os.write = write
    emit.metric("x", 1)
"""
    done = run(code, tmp_path)
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert [m.get("msgCode") for m in told(tmp_path / "spool")] == ["0000", None, "1999"]


def test_a_fork_has_a_file_of_its_own(tmp_path: Path) -> None:
    code = """
import os, chappe_emit as emit
emit.metric("x", 1)
if os.fork() == 0:
    emit.metric("x", 2)
else:
    os.wait()
    emit.metric("x", 3)
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    files = list((tmp_path / "spool").glob("*.spool"))
    found = [[json.loads(m) for m in emitted.read(str(f), 0).messages] for f in files]
    assert sorted([m["value"] for m in part] for part in found) == [[1, 3], [2]]
    assert all([m["msgSeq"] for m in part] == list(range(1, len(part) + 1)) for part in found)
    assert all(emitted.read(str(f), 0).ended for f in files)


def test_heartbeats_come_by_themselves(tmp_path: Path) -> None:
    code = """
import time, chappe_emit as emit
with emit.simulation("s", "j"):
    deadline = time.monotonic() + 30
    while b"heartbeat" not in open(emit.emitter()._spool.path, "rb").read():
        assert time.monotonic() < deadline
        time.sleep(0.01)
"""
    done = run(code, tmp_path, CHAPPE_EMIT_HEARTBEAT_S="0.05")
    assert done.returncode == 0, done.stderr


def test_inside_of_a_job_it_bears_the_jobs_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attempt, name in (("1", "job"), ("2", "job.2")):
        monkeypatch.setenv("CHAPPE_JOB_ID", "job")
        monkeypatch.setenv("CHAPPE_ATTEMPT", attempt)
        settings = emit.Settings()
        message = emit.frame(settings, "1001", "", "", {})
        assert (message["simuid"], message["jobuid"]) == ("job", name)


def test_a_file_says_what_the_environment_does_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "emit.conf"
    config.write_text("# ours\nurl = https://hub.example\nlimit_s=7\nspool = /from/file\n")
    monkeypatch.setenv("CHAPPE_EMIT_CONFIG", str(config))
    monkeypatch.setenv("CHAPPE_EMIT_SPOOL", "/from/environment")
    settings = emit.Settings()
    assert (settings.url, settings.limit_s) == ("https://hub.example", 7.0)
    assert (settings.spool, settings.transports) == ("/from/environment", ["https"])
