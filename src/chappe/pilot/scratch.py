"""Scratch directories on the node: one below a Session's for each attempt whose App wants it.

The launcher makes and removes each. What a killed launcher or pilot left goes with the Session's directory:
when its launcher gives up waiting for a head, when a head finds its launcher dead, and when the Session
ends. When a whole allocation was killed, the next pilot on the node removes what is left of it.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from chappe.core.ids import is_uuid7
from chappe.pilot.procs import sessions_here

if TYPE_CHECKING:
    from chappe.pilot.session import Session

_NAME = "chappe-scratch"


def scratch_of(session: Session, node: str = "") -> str:
    """The directory of a Session's scratch directories on a node. It need not exist."""
    # Emulated nodes share a disk, and one must not clear another's.
    return str(_base(session.scratch_base) / session.session / node)


def sweep(base: Path, keep: str = "") -> int:
    """Remove what Sessions left below `base` of which no process lives here, `keep` excepted; how many.

    Where the directory is not ours alone, nothing is touched.
    """
    place = _base(base)
    try:
        status = os.lstat(place)
    except FileNotFoundError:
        return 0
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        return 0
    found = [name for name in os.listdir(place) if is_uuid7(name)]
    living = {keep, *sessions_here()} if found else set()
    return sum(remove(place / name) for name in found if name not in living)


def remove(path: str | Path) -> bool:
    """Remove a directory with all below it, also what was closed to ourselves; whether it is gone."""
    directory = Path(path)
    if not directory.is_dir() or directory.is_symlink():
        return False
    for where, names, _ in os.walk(directory):
        for name in names:
            inner = os.path.join(where, name)
            if not os.path.islink(inner):
                os.chmod(inner, 0o700)
    shutil.rmtree(directory, ignore_errors=True)
    return not directory.exists()


def _base(base: Path) -> Path:
    # The user's number: /tmp is everybody's, and the first to make a name there owns it. And that of the
    # process namespace: of what lives in another one we see nothing, so its directories are not ours to
    # judge.
    namespace = os.stat("/proc/self/ns/pid").st_ino
    return base / f"{_NAME}-{os.getuid()}-{namespace}"
