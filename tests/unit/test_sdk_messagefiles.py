"""Messages in files of all kinds."""

from __future__ import annotations

import io
import mailbox
from pathlib import Path

import pytest

from chappe.core import limits
from chappe.core.errors import Invalid
from chappe.sdk import messagefiles
from chappe.testing import mails

ONE = mails.mail([mails.message("1000")]).replace(b"\r\n", b"\n")
TWO = b"Subject: x\n\nFrom here on\n\nFrom there on\n>From the start\n"


def read(path: Path) -> list[bytes]:
    return [found.raw for found in messagefiles.read(str(path))]


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
    named = list(messagefiles.read(str(tmp_path / "box")))
    assert [found.name.rpartition(":")[2] for found in named] == ["1", "2", "3"]
    # The library quotes lines with From, and ends each mail with a blank line of its own.
    assert [raw.rstrip(b"\n") + b"\n" for _, _, raw in named[::2]] == [ONE, ONE]
    assert named[1].raw.startswith(b"Subject: x\n\nFrom here on\n\nFrom there on\n")


def test_a_maildir_keeps_what_it_is(tmp_path: Path) -> None:
    box = mailbox.Maildir(tmp_path / "box")
    box.add(ONE)
    box.add(TWO)
    before = sorted((tmp_path / "box").rglob("*"))
    assert sorted(read(tmp_path / "box")) == sorted([ONE, TWO])
    assert sorted((tmp_path / "box").rglob("*")) == before


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(ONE)))
    assert list(messagefiles.read("-")) == [("-", True, ONE)]


def test_lines_are_messages_also_those_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b'\n{"msgUID":"a"}\n\n  {"msgUID":"b"}\r\nnonsense')
    found = list(messagefiles.read(str(tmp_path / "a")))
    assert [f.raw for f in found] == [b'{"msgUID":"a"}', b'{"msgUID":"b"}', b"nonsense"]
    assert not any(f.is_mail for f in found)
    (tmp_path / "empty").touch()
    assert read(tmp_path / "empty") == []
    (tmp_path / "large").write_bytes(b"{" + b" " * limits.MESSAGE_BYTES + b"}")
    with pytest.raises(Invalid, match="this message has more than"):
        read(tmp_path / "large")


def test_what_no_hub_takes_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    for begin in (b"Subject: x\n\n", b"From x\nSubject: x\n\n"):
        (tmp_path / "large").write_bytes(begin + b"x\n" * limits.MAIL_BYTES)
        with pytest.raises(Invalid, match="more than"):
            read(tmp_path / "large")
    with pytest.raises(Invalid, match="cannot read"):
        read(tmp_path / "nothing")
