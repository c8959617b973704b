"""The crc'd record log: appending, recovery, full disks, compaction."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from chappe.core.errors import Invalid
from chappe.link import spool
from chappe.link.spool import SpoolCorrupt, SpoolFull, SpoolWriter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_records_come_back_in_order(path: Path) -> None:
    with SpoolWriter(path) as writer:
        assert writer.recovered == []
        writer.append([b"one", b""])
        writer.append([])
        writer.append([b"\0" * 100], sync=True)
        assert writer.size == path.stat().st_size
    assert spool.read(path) == [b"one", b"", b"\0" * 100]
    with SpoolWriter(path) as writer:
        assert writer.recovered == [b"one", b"", b"\0" * 100]
        writer.append([b"four"])
    assert spool.read(path)[3:] == [b"four"]


def test_the_file_is_private(path: Path) -> None:
    SpoolWriter(path).close()
    assert path.stat().st_mode & 0o077 == 0


def test_a_torn_tail_is_cut_off_and_written_over(path: Path) -> None:
    with SpoolWriter(path) as writer:
        writer.append([b"good"])
        good = writer.size
        writer.append([b"torn" * 10])
    os.truncate(path, path.stat().st_size - 1)
    assert spool.read(path) == [b"good"]
    with SpoolWriter(path) as writer:
        assert writer.size == good
        assert path.stat().st_size == good
        writer.append([b"next"])
    assert spool.read(path) == [b"good", b"next"]


def test_zeros_at_the_end_are_a_torn_tail(path: Path) -> None:
    """What some file systems leave after a power cut: the length is new, the blocks are not."""
    with SpoolWriter(path) as writer:
        writer.append([b"good"])
    os.truncate(path, path.stat().st_size + 5_000)
    assert spool.read(path) == [b"good"]


def test_damage_in_the_middle_names_its_offset_and_keeps_what_was_before(path: Path) -> None:
    with SpoolWriter(path) as writer:
        writer.append([b"first"])
        offset = writer.size
        writer.append([b"second", b"third"])
    data = bytearray(path.read_bytes())
    data[offset + 13] ^= 1
    path.write_bytes(data)
    for read in (lambda: spool.read(path), lambda: SpoolWriter(path)):
        with pytest.raises(SpoolCorrupt, match=f"at byte {offset}") as caught:
            read()
        assert caught.value.offset == offset
        assert caught.value.records == [b"first"]
    assert path.read_bytes() == data  # nothing was cut


def test_another_kind_of_file_is_not_written_to(path: Path) -> None:
    path.write_bytes(b"this is somebody's text")
    with pytest.raises(SpoolCorrupt, match="at byte 0"):
        SpoolWriter(path)
    assert path.read_bytes() == b"this is somebody's text"


def test_a_damaged_file_is_set_aside(path: Path) -> None:
    path.write_bytes(b"damaged one")
    assert spool.set_aside(path).name == "journal.corrupt-1"
    path.write_bytes(b"damaged two")
    assert spool.set_aside(path).name == "journal.corrupt-2"
    assert not path.exists()


def test_the_files_limit_is_a_transient_refusal(path: Path) -> None:
    with SpoolWriter(path, limit_bytes=100) as writer:
        writer.append([b"x" * 50])
        with pytest.raises(SpoolFull, match="limit") as caught:
            writer.append([b"x" * 50])
        assert caught.value.transient
        writer.append([b"small"])
    assert spool.read(path) == [b"x" * 50, b"small"]


def test_a_record_that_is_too_long_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chappe.link.spool.RECORD_BYTES", 10)
    with SpoolWriter(path) as writer:
        with pytest.raises(Invalid, match="11 bytes"):
            writer.append([b"x" * 11])
        writer.append([b"x" * 10])
    assert spool.read(path) == [b"x" * 10]


def test_what_is_to_last_is_on_the_disk_when_append_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int]] = []

    def fsync(fd: int) -> None:
        synced.append((os.fstat(fd).st_ino, os.fstat(fd).st_size))

    with SpoolWriter(path) as writer:
        monkeypatch.setattr("chappe.link.spool.os.fsync", fsync)
        writer.append([b"may be lost"])
        assert synced == []
        writer.append([b"must not be"], sync=True)
        assert synced == [(path.stat().st_ino, path.stat().st_size)]


class Disk:
    """os.write that has room for so many bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 0
        self._write = os.write
        monkeypatch.setattr("chappe.link.spool.os.write", self.write)

    def write(self, fd: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(fd, data[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 12, 13])
def test_a_full_disk_leaves_no_half_record(
    path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    with SpoolWriter(path) as writer:
        writer.append([b"before"])
        disk = Disk(monkeypatch)
        disk.room = room
        with pytest.raises(SpoolFull) as caught:
            writer.append([b"lost" * 5])
        assert caught.value.transient
        assert spool.read(path) == [b"before"]
        disk.room = 1_000
        writer.append([b"after"])
    assert spool.read(path) == [b"before", b"after"]


def test_a_tail_that_could_not_be_cut_is_cut_before_the_next_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SpoolWriter(path) as writer, monkeypatch.context() as patch:
        disk = Disk(patch)
        disk.room = 5

        def fail(fd: int, size: int) -> None:
            raise OSError(errno.EIO, "io")

        patch.setattr("chappe.link.spool.os.ftruncate", fail)
        with pytest.raises(SpoolFull):
            writer.append([b"lost"])
        disk.room = 1_000
        with pytest.raises(OSError, match="io"):
            writer.append([b"not yet"])
        patch.undo()
        writer.append([b"kept"])
    assert spool.read(path) == [b"kept"]


def test_a_full_disk_at_the_first_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch)
    with pytest.raises(SpoolFull):
        SpoolWriter(path)
    monkeypatch.undo()
    with SpoolWriter(path) as writer:
        writer.append([b"later"])
    assert spool.read(path) == [b"later"]


def test_rewriting_replaces_the_file_and_goes_on_in_the_new_one(path: Path) -> None:
    with SpoolWriter(path) as writer:
        writer.append([b"x" * 1_000 for _ in range(10)])
        writer.rewrite([b"kept"])
        assert writer.size == path.stat().st_size < 100
        writer.append([b"new"])
    assert spool.read(path) == [b"kept", b"new"]
    assert os.listdir(path.parent) == ["journal"]


def test_when_rewriting_fails_the_old_file_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with SpoolWriter(path) as writer:
        writer.append([b"old"])
        with monkeypatch.context() as patch:
            patch.setattr("chappe.link.files.os.fsync", full)
            with pytest.raises(SpoolFull):
                writer.rewrite([b"new"])
        writer.append([b"more"])
    assert spool.read(path) == [b"old", b"more"]
    assert os.listdir(path.parent) == ["journal"]


def test_closing_twice_is_harmless(path: Path) -> None:
    writer = SpoolWriter(path)
    writer.close()
    writer.close()
