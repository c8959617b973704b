"""Where launchers listen: sockets in directories of our own on the node, one for each Session.

Who stops in peace removes its socket; what a killed allocation left, the next pilot on the node removes.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from chappe.core.ids import is_uuid7
from chappe.pilot.procs import sessions_here
from chappe.pilot.scratch import remove

_BASE_BYTES = 28
"""What a directory's path may take, so that a socket's fits into 107 bytes."""
_YOUNG_S = 60.0
"""Between the making of a directory and the process that lives there may be a moment."""


def new_socket(base: Path, session: str) -> Path:
    """The path of a new socket, in a directory (0700) of the Session's. Raises OSError."""
    place = _place(base)
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    if not _ours(place):
        # Somebody else was the first to use this name: there is always another.
        return Path(tempfile.mkdtemp(prefix="chappe-", dir=place.parent)) / "launcher"
    directory = place / session
    directory.mkdir(mode=0o700, exist_ok=True)
    os.utime(directory)
    return directory / secrets.token_hex(4)


def sweep(base: Path, keep: str) -> int:
    """Remove the directories of Sessions of which no process lives here, `keep` excepted; how many."""
    place = _place(base)
    if not _ours(place):
        return 0
    old = [d for d in place.iterdir() if is_uuid7(d.name) and _old(d)]
    living = {keep, *sessions_here()} if old else set()
    return sum(remove(directory) for directory in old if directory.name not in living)


def forget(socket: Path) -> None:
    """Remove a socket, and its directory when it was the last there."""
    with suppress(OSError):
        socket.unlink(missing_ok=True)
        socket.parent.rmdir()


def _place(base: Path) -> Path:
    """The directory of all Sessions; see `scratch` for its name."""
    if len(os.fsencode(base)) > _BASE_BYTES:
        base = Path("/tmp")  # noqa: S108 - what is made there is private
    return base / f"chappe-{os.getuid()}-{os.stat('/proc/self/ns/pid').st_ino}"


def _old(directory: Path) -> bool:
    try:
        return directory.lstat().st_mtime < time.time() - _YOUNG_S
    except FileNotFoundError:
        return False  # another pilot was quicker


def _ours(place: Path) -> bool:
    try:
        status = os.lstat(place)
    except FileNotFoundError:
        return False
    return (
        stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
    )
