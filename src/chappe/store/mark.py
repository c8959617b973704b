"""How far the Hub of a database has come, kept beside the database and not in it.

A copy that is put in the database's place by hand does not bring this along. So a Hub that starts with
fewer commits than are marked here knows at once that its past was replaced. Elsewhere (another machine, the
mark gone) it learns that from the first pilot that was shown more; but by then it may have made as many
commits as were lost, and none can tell the two pasts apart.
"""

from __future__ import annotations

import os

import structlog

log = structlog.get_logger("chappe.store.mark")

_BYTES = 42


class Mark:
    """(incarnation, commit_no) in an open file. Written after each commit, so never ahead of the database."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> tuple[int, int]:
        """What is marked; (0, 0) when nothing is, or nothing that can be read."""
        words = os.pread(self._fd, _BYTES, 0).split()
        if len(words) != 2 or not all(word.isdigit() for word in words):
            return 0, 0
        return int(words[0]), int(words[1])

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def write(self, incarnation: int, commit_no: int) -> None:
        """Mark a commit. Without an fsync: it need not outlive the machine's power, only the Hub."""
        line = f"{incarnation:>20} {commit_no:>20}\n".encode()
        try:
            os.pwrite(self._fd, line, 0)
        except OSError as e:
            # The commit stands, and pilots still tell a restored Hub that it is one.
            log.warning("cannot mark a commit", error=str(e))
