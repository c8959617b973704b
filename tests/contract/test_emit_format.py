"""One format, three writers, two readers: the producer in Python, its shell script under every shell there
is, C and Fortran over it; and the readers of the producer and of the agent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chappe.core import vocabulary
from chappe.core.messages import Message, decode
from chappe.emit import chappe_emit as emit
from chappe.ingest import mail
from chappe.link import emitted
from tests.conftest import Require

SOURCES = Path(emit.__file__).parent
SHELLS = {
    "sh": ["sh"],
    "dash": ["dash"],
    "bash": ["bash"],
    "posix bash": ["bash", "--posix"],
    "ksh93": ["ksh93"],
    "mksh": ["mksh"],
    "busybox": ["busybox", "sh"],
}
HOW_TO_GET = "./run test as root on Debian installs it"
SIMULATION = "sim\\\"'ulation $HOME `id` é"
CALLS = [
    ["simulation.started", 'name=a "quoted" \\ name', "model=éè ✓", "lines=one\ntwo\tthree\rfour"],
    ["metric", "name=energy", "value=1.5e-3", "step=12"],
    ["1001", "CumulPeriod=1", "PeriodDateBegin=18500101", "empty="],
    ["custom.note", "text=$(touch broken) `touch broken` ; touch broken", "a=b=c"],
    ["simulation.ended"],
]
Tell = Callable[..., None]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CHAPPE_")}
    return {
        **kept,
        "CHAPPE_EMIT_SPOOL": str(tmp_path / "spool"),
        "CHAPPE_EMIT_SIMULATION": SIMULATION,
        "CHAPPE_EMIT_CONFIG": str(tmp_path / "none"),
        "CHAPPE_EMIT_LIMIT_S": "60",
    }


def shell(name: str, require: Require) -> list[str]:
    """The command that runs the script under a shell."""
    require(shutil.which(SHELLS[name][0]), f"shell {SHELLS[name][0]}", HOW_TO_GET)
    return [*SHELLS[name], str(SOURCES / "chappe-emit.sh")]


def python() -> list[str]:
    return [sys.executable, str(SOURCES / "chappe_emit.py")]


def call(command: list[str], environ: dict[str, str], tmp_path: Path) -> str:
    done = subprocess.run(
        command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr == ""
    return done.stdout


def messages(tmp_path: Path) -> list[Message]:
    """What the one file in the spool folder holds, by both readers; its chain is whole."""
    (file,) = (tmp_path / "spool").glob("*.spool")
    piece = emitted.read(str(file), 0)
    assert piece.damaged == 0
    assert emit.unconfirmed(str(file), 0)[0] == piece.messages
    found = [decode(raw) for raw in piece.messages]
    assert [m.seq for m in found] == list(range(1, len(found) + 1))
    assert found[0].prev == ""
    for (raw, _), (_, after) in pairwise(zip(piece.messages, found, strict=True)):
        assert hashlib.sha256(raw).hexdigest() == after.prev
    header = emitted.read_header(str(file))
    assert header is not None
    assert {m.stream for m in found} == {header.stream}
    assert not emitted.writer_is_gone(header)  # it is this process, which started them all
    return found


def payload(call: list[str]) -> dict[str, Any]:
    return dict(pair.split("=", 1) for pair in call[1:])


def check(found: list[Message]) -> None:
    """They are the messages of CALLS, as the hub will read them."""
    assert [m.fields for m in found] == [payload(call) for call in CALLS]
    types = ["simulation.started", "metric", "job.period", "custom.note", "simulation.ended"]
    assert [m.type for m in found] == types
    assert [m.code for m in found] == ["0000", "", "1001", "", "0100"]
    assert {m.simulation for m in found} == {SIMULATION}
    assert {m.marks for m in found} == {()}
    assert {m.dialect for m in found} == {"chappe"}
    assert len({m.uid for m in found}) == len(found)
    times = [m.at_ns for m in found]
    assert times == sorted(times)


@pytest.mark.parametrize("name", SHELLS)
def test_every_shell_writes_what_python_writes(
    name: str, require: Require, environ: dict[str, str], tmp_path: Path
) -> None:
    for words in CALLS:
        assert call([*shell(name, require), *words], environ, tmp_path) == ""
    check(messages(tmp_path))
    assert not (tmp_path / "broken").exists()


def test_python_and_shells_take_turns_in_one_file(
    require: Require, environ: dict[str, str], tmp_path: Path
) -> None:
    writers = [python(), shell("sh", require), python(), shell("bash", require), python()]
    for writer, words in zip(writers, CALLS, strict=True):
        call([*writer, *words], environ, tmp_path)
    check(messages(tmp_path))


@pytest.mark.parametrize("name", ["sh", "bash"])
def test_calls_at_the_same_time_lose_nothing(
    name: str, require: Require, environ: dict[str, str], tmp_path: Path
) -> None:
    command = shell(name, require)
    running = [
        subprocess.Popen([*(command if n % 3 else python()), "log", f"n={n}"], env=environ)
        for n in range(12)
    ]
    assert [process.wait(120) for process in running] == [0] * 12
    pieces = [emitted.read(str(f), 0) for f in (tmp_path / "spool").glob("*.spool")]
    found = [decode(raw) for piece in pieces for raw in piece.messages]
    assert sorted(int(m.fields["n"]) for m in found) == list(range(12))
    # One that could not wait for its turn has a stream of its own; within each the numbers are whole.
    streams: dict[str, list[int]] = {}
    for m in found:
        streams.setdefault(m.stream, []).append(m.seq)
    assert all(sorted(seqs) == list(range(1, len(seqs) + 1)) for seqs in streams.values())


@pytest.mark.parametrize("writer", ["python", "sh"])
def test_behind_a_damaged_end_a_new_file_begins(
    writer: str, require: Require, environ: dict[str, str], tmp_path: Path
) -> None:
    command = python() if writer == "python" else shell("sh", require)
    call([*command, "log", "n=1"], environ, tmp_path)
    (file,) = (tmp_path / "spool").glob("*.spool")
    with file.open("ab") as damaged:
        damaged.write(b"0123456789abcdef {torn")
    call([*command, "log", "n=2"], environ, tmp_path)
    files = list((tmp_path / "spool").glob("*.spool"))
    found = [decode(m) for f in files for m in emitted.read(str(f), 0).messages]
    assert sorted((m.fields["n"], m.seq) for m in found) == [("1", 1), ("2", 1)]


def test_a_lock_of_a_dead_process_holds_nobody(
    require: Require, environ: dict[str, str], tmp_path: Path
) -> None:
    call([*python(), "log", "n=1"], environ, tmp_path)
    (file,) = (tmp_path / "spool").glob("*.spool")
    gone = subprocess.Popen(["true"])
    gone.wait()
    Path(f"{file}.lock").write_text(f"{gone.pid}\n")
    call([*python(), "log", "n=2"], environ, tmp_path)
    call([*shell("sh", require), "log", "n=3"], environ, tmp_path)
    files = (tmp_path / "spool").glob("*.spool")
    found = [decode(m).fields["n"] for f in files for m in emitted.read(str(f), 0).messages]
    assert sorted(found) == ["1", "2", "3"]


def test_both_writers_know_the_same_codes(require: Require, environ: dict[str, str]) -> None:
    script = (SOURCES / "chappe-emit.sh").read_text()
    for type, code in emit.CODES.items():
        assert f"    {code} | {type}) type={type} code={code} ;;" in script
    known = {kind.type: kind.code for kind in vocabulary.BY_TYPE.values() if kind.code}
    assert {t: c for t, c in emit.CODES.items() if known.get(t) != c} == {}


@pytest.mark.parametrize("writer", ["python", "sh"])
@pytest.mark.parametrize("words", [[], ["--help"], ["--wrong", "x"], ["drain"], ["--job"]])
def test_the_status_is_0_whatever_is_asked(
    writer: str, words: list[str], require: Require, environ: dict[str, str], tmp_path: Path
) -> None:
    command = python() if writer == "python" else shell("sh", require)
    done = subprocess.run([*command, *words], env=environ, capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("writer", ["python", "sh"])
def test_a_full_disk_fails_nobody(
    writer: str, require: Require, environ: dict[str, str], tmp_path: Path
) -> None:
    command = python() if writer == "python" else shell("sh", require)
    (tmp_path / "spool").write_text("a file where the folder should be")
    done = subprocess.run([*command, "log"], env=environ, capture_output=True, check=False)
    assert done.returncode == 0
    assert done.stderr


@pytest.mark.parametrize("text", ["short", "long " * 400])
def test_the_hub_believes_the_mail_that_a_producer_signed(tmp_path: Path, text: str) -> None:
    token = "chp_u_abcdefgh2345_" + "s" * 43
    settings = emit.Settings(
        spool=str(tmp_path / "spool"), transports="mail", token=token, mail_to="hub@example.org"
    )
    emitter = emit.Emitter(emit.Settings(spool=str(tmp_path / "spool"), transports="spool"))
    for n in range(3):
        emitter.message("log", "sim", n=n, text=text)
    emitter.close()
    (file,) = (tmp_path / "spool").glob("*.spool")
    messages = emitted.read(str(file), 0).messages
    raw = emit.letter(settings, messages).replace(b"\n", b"\r\n")
    letter = mail.parse(raw)
    assert [item.raw for item in letter.lines] == messages
    digest = hashlib.sha256(token.encode()).hexdigest()
    assert mail.genuine(letter, digest)
    assert not mail.genuine(mail.parse(raw.replace(b"hmac=", b"hmac=0", 1)), digest)
    assert not mail.genuine(letter, digest[::-1])


def test_c_and_fortran_tell_the_same(
    require: Require, environ: dict[str, str], tmp_path: Path
) -> None:
    require(shutil.which("gcc"), "gcc", HOW_TO_GET)
    require(shutil.which("gfortran"), "gfortran", HOW_TO_GET)
    call([*python(), "copy", "."], environ, tmp_path)
    (tmp_path / "model.f90").write_text(
        """program model
  use chappe_emit_module
  implicit none
  call emit('simulation.started', 'name=it''s "quoted"', 'model=shallow')
  call emit_metric('energy', 0.1d0, step=12, time='1850-01-13')
  call emit_metric('single', 0.5)
  call emit_period('18500101', '18500131')
  call emit('simulation.ended')
end program model
"""
    )
    strict = ["-Wall", "-Wextra", "-Werror"]
    call(["gcc", "-std=c11", "-pedantic", *strict, "-c", "chappe_emit.c"], environ, tmp_path)
    sources = ["chappe_emit.f90", "model.f90", "chappe_emit.o"]
    call(["gfortran", "-std=f2008", *strict, *sources, "-o", "model"], environ, tmp_path)
    for words in ([], ["0"]):  # the second: its command is not there, and the model does not notice
        environ["CHAPPE_EMIT"] = str(tmp_path / "chappe-emit.sh") if not words else "/no/command"
        subprocess.run(["./model"], env=environ, cwd=tmp_path, check=True, timeout=120)
    (file,) = (tmp_path / "spool").glob("*.spool")
    found = [decode(raw) for raw in emitted.read(str(file), 0).messages]
    assert [m.type for m in found] == [
        "simulation.started", "metric", "metric", "job.period", "simulation.ended",
    ]  # fmt: skip
    assert found[0].fields == {"name": 'it\'s "quoted"', "model": "shallow"}
    assert float(found[1].fields["value"]) == 0.1
    assert found[1].fields["step"] == "12"
    assert found[2].fields == {"name": "single", "value": "0.5"}
    assert json.loads(emitted.read(str(file), 0).messages[0])["msgSeq"] == 1
