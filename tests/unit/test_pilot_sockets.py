"""Where launchers listen, and what dead Sessions leave there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from chappe.link.clock import new_id
from chappe.pilot import sockets


@pytest.fixture
def base() -> Iterator[Path]:
    """A short one."""
    with tempfile.TemporaryDirectory(prefix="c-", dir="/tmp") as made:
        yield Path(made)


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def grow_old(*directories: Path) -> None:
    for directory in directories:
        os.utime(directory, (1.0, 1.0))


@pytest.mark.parametrize("length", [1, 10, 200])
def test_a_socket_s_path_is_short_and_its_directory_private(base: Path, length: int) -> None:
    long = base / ("x" * length)
    long.mkdir()
    session = new_id()
    made = sockets.new_socket(long, session)
    assert len(str(made)) < 108
    assert made.parent.stat().st_mode & 0o077 == 0
    listen(made)
    other = sockets.new_socket(long, session)
    assert other != made
    sockets.forget(made)
    sockets.forget(other)
    assert not made.parent.exists()


def test_what_dead_sessions_left_is_swept_and_nothing_else(base: Path) -> None:
    dead, mine, living, young = (sockets.new_socket(base, new_id()) for _ in range(4))
    for path in (dead, mine, living, young):
        listen(path)
    stranger = dead.parent.parent / "precious"
    stranger.mkdir()
    grow_old(dead.parent, mine.parent, living.parent, stranger)
    with subprocess.Popen(
        [sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        env=os.environ | {"CHAPPE_SESSION": living.parent.name},
    ) as process:
        assert sockets.sweep(base, keep=mine.parent.name) == 1
        process.communicate(b"\n")
    assert not dead.parent.exists()
    assert mine.exists()
    assert living.exists()
    assert young.exists()
    assert stranger.exists()


@pytest.mark.parametrize("how", ["open", "link", "file"])
def test_a_place_that_is_not_ours_alone_is_left_alone(base: Path, how: str) -> None:
    """In a directory that is everybody's, somebody else may be the first to make it."""
    elsewhere = base / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    place = sockets.new_socket(elsewhere, new_id()).parent.parent
    taken = base / place.name
    if how == "open":
        taken.mkdir()
        taken.chmod(0o777)
    elif how == "link":
        taken.symlink_to(place)
    else:
        taken.write_text("")
    session = new_id()
    made = sockets.new_socket(base, session)
    assert session not in str(made)
    assert made.parent.stat().st_mode & 0o077 == 0
    assert sockets.sweep(base, keep="") == 0
    listen(made)
    sockets.forget(made)
    assert not made.parent.exists()
