"""Parameters that hooks changed: for later attempts, merged, and removed when nothing can follow."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from chappe.core.errors import Invalid
from chappe.link.changed import ChangedParameters, read_small
from chappe.link.clock import new_id


def test_what_was_changed_is_for_later_attempts_only_and_adds_up(tmp_path: Path) -> None:
    changed, job = ChangedParameters(tmp_path / "changed"), new_id()
    assert changed.get(job, 1) == {}
    changed.put(job, 1, {"dt": 4.0, "n": 1})
    assert (changed.get(job, 1), changed.get(job, 2)) == ({}, {"dt": 4.0, "n": 1})
    changed.put(job, 2, {"dt": 2.0})
    assert changed.get(job, 3) == {"dt": 2.0, "n": 1}
    assert changed.get(new_id(), 3) == {}


def test_nobody_else_may_write_there_and_no_name_leads_elsewhere(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        changed = ChangedParameters(tmp_path / "changed")
        changed.put(new_id(), 1, {"dt": 1})
    finally:
        os.umask(before)
    made = [tmp_path / "changed", *(tmp_path / "changed").rglob("*")]
    assert len(made) == 3
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in made)
    with pytest.raises(Invalid):
        changed.get("../../etc/passwd", 1)


def test_the_old_are_removed(tmp_path: Path) -> None:
    changed, job = ChangedParameters(tmp_path / "changed"), new_id()
    assert changed.prune(1e12) == 0
    changed.put(job, 1, {"dt": 1})
    (path,) = (tmp_path / "changed").rglob("*.json")
    written = path.stat().st_mtime
    assert changed.prune(written + 30 * 86_400) == 0
    assert changed.prune(written + 32 * 86_400) == 1
    assert changed.get(job, 2) == {}


def test_a_small_file_is_read_and_nothing_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "verdict"
    assert read_small(str(path), 10) is None
    path.write_bytes(b"x" * 100)
    assert read_small(str(path), 10) == b"x" * 11
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        read_small(str(path), 10)
