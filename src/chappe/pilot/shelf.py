"""What the Jobs of a Session have in common: the Site's Apps, its interpreters, the code of functions."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from chappe.core.errors import ChappeError
from chappe.link.apps import LoadedApp, load_apps
from chappe.link.files import write_atomic
from chappe.link.functions import DEFAULT
from chappe.pilot.launch_wire import Environment
from chappe.pilot.session import Session


class Shelf:
    """The Site's Apps, read again when a file in their directory changes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._apps: dict[str, LoadedApp] = {}
        self._read_as: object = None

    def current(self) -> dict[str, LoadedApp]:
        """The Apps by name. While the files are wrong, the last good ones stay; raises AppProblem, OSError
        when there were none yet."""
        try:
            with os.scandir(self._directory) as entries:
                seen = sorted(
                    (entry.name, stat.st_mtime_ns, stat.st_size, stat.st_ino)
                    for entry in entries
                    if entry.name.endswith(".toml") and (stat := entry.stat())
                )
        except FileNotFoundError:
            return self._apps
        if seen == self._read_as:
            return self._apps
        try:
            self._apps = load_apps(self._directory)
        except ChappeError:
            if self._read_as is None:
                raise
        self._read_as = seen
        return self._apps


class Codes:
    """The pickled functions and the scripts of one Session: a file each, which the workers load."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "code"
        self._kept: set[str] = set()

    def keep(self, sha256: str, code: bytes) -> str:
        """The file that holds `code`, which was found to have this sha256. Raises OSError."""
        path = self._directory / sha256
        if sha256 not in self._kept:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            write_atomic(path, code, 0o700, durable=False)
            self._kept.add(sha256)
        return str(path)


def environments(session: Session) -> dict[str, Environment]:
    """The interpreters in which the Session's functions run, as the launcher wants them."""
    rules = session.functions
    found = {name: rules.environment(name) for name in (DEFAULT, *rules.environments)}
    return {
        name: Environment(
            e.python or sys.executable, list(e.preload), e.env, e.recycle_calls, e.recycle_bytes
        )
        for name, e in found.items()
        if e is not None and rules.allowed
    }
