"""Reading a piece of a Job's log: the right bytes, few of them, and nothing but logs of Jobs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chappe.core import limits
from chappe.link.clock import new_id
from chappe.link.functions import FunctionEnvironment, FunctionRules
from chappe.link.joblogs import JobLogs, NoLog
from chappe.link.ledger import Ledger
from chappe.wire.logs import LogPiece, LogStream, LogWish

JOB = new_id()
SHARED = 'name = "lean"\nversion = "1"\ncommand = ["true"]\n[files]\nown_directory = false\nlog = "shared"\n'


class Site:
    """A Site's directory with one finished attempt of one Job."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.job = root / "data" / "jobs" / JOB / "attempt-1"
        self.job.mkdir(parents=True)
        (root / "apps").mkdir()
        self.log = self.job / "stdout.log"
        flat = FunctionEnvironment(own_directory=False)
        rules = FunctionRules(allowed=True, environments={"flat": flat})
        self.logs = JobLogs(root, root / "data", rules)

    def app(self, name: str, files: str) -> None:
        text = f'name = "{name}"\nversion = "1"\ncommand = ["true"]\n[files]\n{files}\n'
        (self.root / "apps" / f"{name}.toml").write_text(text)

    def read(self, **fields: object) -> LogPiece:
        wish = LogWish(**{"no": 1, "job": JOB, "attempt": 1, "workdir": f"jobs/{JOB}", **fields})  # type: ignore[arg-type]
        return self.logs.read(self.logs.find(wish), wish)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize(
    ("text", "lines", "expected"),
    [
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\n\n", 1, b"\n"),
        (b"\n\n\n", 2, b"\n\n"),
        (b"a\nb\n", 9, b"a\nb\n"),
        (b"a\nb\n", 0, b""),
        (b"", 5, b""),
        (b"one", 1, b"one"),
    ],
)
def test_the_last_lines(site: Site, text: bytes, lines: int, expected: bytes) -> None:
    site.log.write_bytes(text)
    piece = site.read(tail=lines)
    assert piece.data == expected
    assert piece.start == len(text) - len(expected)


def test_lines_are_found_across_blocks(site: Site) -> None:
    lines = [b"%d " % k + b"x" * 5_000 + b"\n" for k in range(100)]
    site.log.write_bytes(b"".join(lines))
    piece = site.read(tail=60)
    assert piece.start == sum(map(len, lines[:40]))
    assert piece.data == b"".join(lines)[piece.start :][: limits.LOG_BYTES]


def test_of_a_huge_file_only_a_window_is_read(site: Site) -> None:
    with site.log.open("wb") as file:
        file.truncate(10 * 2**30)
        file.seek(0, os.SEEK_END)
        file.write(b"the end\n")
    piece = site.read(tail=1_000)  # no line feed for 10 GiB: it looks back 4 MiB and no further
    assert piece.size - piece.start <= limits.LOG_TAIL_BYTES + limits.MIB
    assert len(piece.data) == limits.LOG_BYTES
    last = site.read(start=piece.size - 8)
    assert last.data == b"the end\n"


def test_a_reader_goes_on_where_a_piece_ended(site: Site) -> None:
    text = os.urandom(3 * limits.LOG_BYTES + 17)
    site.log.write_bytes(text)
    at, read = 0, b""
    while at < len(text):
        piece = site.read(start=at)
        assert 0 < len(piece.data) <= limits.LOG_BYTES
        read, at = read + piece.data, piece.start + len(piece.data)
    assert read == text


def test_a_file_that_was_cut_short_is_read_from_its_new_end(site: Site) -> None:
    site.log.write_bytes(b"short\n")
    piece = site.read(start=1_000)
    assert (piece.start, piece.data) == (6, b"")


@pytest.mark.parametrize("workdir", ["../..", "/etc", "jobs/../../secrets", "~root", "a\0b"])
def test_nothing_outside_data_is_read(site: Site, workdir: str) -> None:
    with pytest.raises(NoLog, match="refuses"):
        site.read(workdir=workdir)


def test_links_out_of_data_are_not_followed(site: Site, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "stdout.log").write_text("token")
    (site.root / "data" / "out").symlink_to(secret)
    with pytest.raises(NoLog, match="leads out"):
        site.read(workdir="out", start=0)
    (site.root / "data" / "mine").write_text("no log")
    os.symlink("../../../mine", site.log)
    with pytest.raises(NoLog):
        site.read(start=0)


def test_a_fifo_in_its_place_holds_nobody_up(site: Site) -> None:
    os.mkfifo(site.log)
    with pytest.raises(NoLog, match="no regular file"):
        site.read(start=0)


def test_each_way_to_keep_logs_is_said(site: Site) -> None:
    site.app("apart", "separate_stderr = true")
    (site.job / "stderr.log").write_text("oh\n")
    assert site.read(app="apart", stream=LogStream.STDERR, start=0).data == b"oh\n"
    with pytest.raises(NoLog, match="same log"):
        site.read(stream=LogStream.STDERR, start=0)
    site.app("mute", 'log = "none"')
    with pytest.raises(NoLog, match="keeps no log"):
        site.read(app="mute", start=0)
    with pytest.raises(NoLog, match="no 'gone' any more"):
        site.read(app="gone", start=0)


def test_a_shared_log_says_that_it_is_one(site: Site) -> None:
    (site.root / "apps" / "lean.toml").write_text(SHARED)
    with pytest.raises(NoLog, match="does not know"):
        site.read(app="lean", start=0)
    session = new_id()
    Ledger(site.root / "ledger").claim(JOB, 1, session, 1)
    (site.root / "sessions" / session).mkdir(parents=True)
    (site.root / "sessions" / session / "shared.log").write_text("of all\n")
    piece = site.read(app="lean", start=0)
    assert (piece.data, "other jobs" in piece.note) == (b"of all\n", True)


def test_functions_have_logs_where_their_environment_says(site: Site) -> None:
    site.log.write_text("of its own\n")
    assert site.read(environment="default", start=0).data == b"of its own\n"
    together = site.root / "data" / "functions"
    together.mkdir()
    (together / f"{JOB}.1.stdout.log").write_text("together\n")
    assert site.read(environment="flat", start=0).data == b"together\n"
    with pytest.raises(NoLog, match="'gone' any more"):
        site.read(environment="gone", start=0)
