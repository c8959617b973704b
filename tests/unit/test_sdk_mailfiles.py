"""Mails in files of all kinds."""

from __future__ import annotations

import io
import mailbox
from pathlib import Path

import pytest

from chappe.core import limits
from chappe.core.errors import Invalid
from chappe.sdk import mailfiles
from chappe.testing import mails

ONE = mails.mail([mails.message("1000")]).replace(b"\r\n", b"\n")
TWO = b"Subject: x\n\nFrom here on\n\nFrom there on\n>From the start\n"


def read(path: Path) -> list[bytes]:
    return [raw for _, raw in mailfiles.read(str(path))]


def test_a_file_of_its_own_and_a_directory_of_such(tmp_path: Path) -> None:
    (tmp_path / "b.eml").write_bytes(TWO)
    (tmp_path / "a.eml").write_bytes(ONE)
    (tmp_path / ".hidden").write_bytes(b"x")
    assert read(tmp_path / "a.eml") == [ONE]
    assert read(tmp_path) == [ONE, TWO]


def test_an_mbox_as_the_library_writes_it(tmp_path: Path) -> None:
    box = mailbox.mbox(tmp_path / "box")
    for each in (ONE, TWO, ONE):
        box.add(each)
    box.close()
    named = list(mailfiles.read(str(tmp_path / "box")))
    assert [name.rpartition(":")[2] for name, _ in named] == ["1", "2", "3"]
    # The library quotes lines with From, and ends each mail with a blank line of its own.
    assert [raw.rstrip(b"\n") + b"\n" for _, raw in named[::2]] == [ONE, ONE]
    assert named[1][1].startswith(b"Subject: x\n\nFrom here on\n\nFrom there on\n")


def test_a_maildir_keeps_what_it_is(tmp_path: Path) -> None:
    box = mailbox.Maildir(tmp_path / "box")
    box.add(ONE)
    box.add(TWO)
    before = sorted((tmp_path / "box").rglob("*"))
    assert sorted(read(tmp_path / "box")) == sorted([ONE, TWO])
    assert sorted((tmp_path / "box").rglob("*")) == before


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(ONE)))
    assert list(mailfiles.read("-")) == [("-", ONE)]


def test_what_no_hub_takes_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    for begin in (b"Subject: x\n\n", b"From x\nSubject: x\n\n"):
        (tmp_path / "large").write_bytes(begin + b"x\n" * limits.MAIL_BYTES)
        with pytest.raises(Invalid, match="more than"):
            read(tmp_path / "large")
    with pytest.raises(Invalid, match="cannot read"):
        read(tmp_path / "nothing")
