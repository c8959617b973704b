"""Parameters that a hook changed for the attempts to come, kept at the Site that ran the hook.

Not at the Hub: a Site runs what its user signed, or what its own owner's hook made of it, and nobody else's
word counts. So a Job may be given other parameters only when it can run at no other Site.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

from chappe.core import limits
from chappe.core.ids import check_id
from chappe.link.files import write_atomic

#: They outlive the longest time that a signature lasts unless its user says otherwise.
_KEEP_S = limits.NOT_AFTER_DEFAULT_S + 86_400.0


class _Changed(msgspec.Struct, frozen=True):
    """What the hook of attempt `after` wants the later ones to have."""

    after: int
    parameters: dict[str, Any]


class ChangedParameters:
    """One small file per Job, below a directory that only the Site's owner can write to."""

    def __init__(self, directory: Path) -> None:
        self._root = directory

    def put(self, job: str, attempt: int, parameters: dict[str, Any]) -> None:
        """Let the attempts after `attempt` have these beside the signed ones. Raises OSError."""
        before = self._read(job)
        merged = parameters if before is None else {**before.parameters, **parameters}
        path = self._path(job)
        for directory in (self._root, path.parent):
            directory.mkdir(mode=0o700, exist_ok=True)
        write_atomic(path, msgspec.json.encode(_Changed(attempt, merged)), durable=False)

    def get(self, job: str, attempt: int) -> dict[str, Any]:
        """What was changed for this attempt. Raises OSError, msgspec.DecodeError."""
        found = self._read(job)
        return found.parameters if found is not None and found.after < attempt else {}

    def prune(self, now: float) -> int:
        """Remove what is too old for any attempt to come; how many that was."""
        removed = 0
        for path in self._root.glob("??/*.json"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime + _KEEP_S < now:
                    path.unlink()
                    removed += 1
        return removed

    def _read(self, job: str) -> _Changed | None:
        try:
            return msgspec.json.decode(self._path(job).read_bytes(), type=_Changed)
        except FileNotFoundError:
            return None

    def _path(self, job: str) -> Path:
        name = check_id(job, "job")
        return self._root / name[-2:] / f"{name}.json"


def read_small(path: str, most: int) -> bytes | None:
    """At most `most` + 1 bytes of a regular file that a Job may have put there, None when there is none.

    No link is followed and no FIFO waited for. Raises OSError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, most + 1)
    finally:
        os.close(fd)
