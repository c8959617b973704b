"""Removing leftovers: what matches, and never anything else, wherever links lead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chappe.link.cleanup import Cleanup, clean


@pytest.fixture
def job(tmp_path: Path) -> Path:
    directory = tmp_path.resolve() / "jobs" / "one"
    (directory / "restart" / "deep").mkdir(parents=True)
    for name in ("a.tmp", "b.tmp", ".hidden.tmp", "keep.dat", "out.tmp", "restart/x.nc"):
        (directory / name).write_text(name)
    (directory / "restart" / "deep" / "y.nc").write_text("y")
    (directory / "dir.tmp").mkdir()
    return directory


def left(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if not p.is_dir()}


def test_only_what_matches_goes_and_never_the_result(job: Path) -> None:
    removed = clean(Cleanup([str(job)], ["*.tmp", "restart/*.nc", "no/such/*"], keep="out.tmp"))
    assert removed == 3
    assert left(job) == {".hidden.tmp", "keep.dat", "out.tmp", "restart/deep/y.nc"}
    assert (job / "dir.tmp").is_dir()
    assert clean(Cleanup([str(job)], [".*.tmp"])) == 1


def test_a_link_goes_and_what_it_leads_to_stays(job: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.tmp").write_text("p")
    (job / "link.tmp").symlink_to(outside / "precious.tmp")
    (job / "away").symlink_to(outside)
    (job / "restart" / "loop").symlink_to(job)
    clean(Cleanup([str(job)], ["*.tmp", "away/*.tmp", "*/*.tmp", "restart/loop/keep.dat"]))
    assert (outside / "precious.tmp").exists()
    assert not (job / "link.tmp").is_symlink()
    assert (job / "keep.dat").exists()


def test_a_directory_that_became_a_link_is_not_entered(job: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "one").mkdir(parents=True)
    (outside / "one" / "precious.tmp").write_text("p")
    job.parent.rename(tmp_path / "moved")
    job.parent.symlink_to(outside)  # jobs/ itself leads elsewhere now
    assert clean(Cleanup([str(job)], ["*.tmp"])) == 0
    assert (outside / "one" / "precious.tmp").exists()


def test_what_is_closed_to_us_stays_and_no_descriptor_is_left_open(job: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    clean(Cleanup([str(job)], ["*.tmp", "keep.dat/x", "dir.tmp/*"]))
    assert clean(Cleanup([str(job / "gone" / "far")], ["*"])) == 0
    assert len(os.listdir("/proc/self/fd")) == before
