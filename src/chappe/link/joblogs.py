"""The outputs of Jobs as files of a Site: where they are, and a piece of one.

A wish comes from the Hub, so it is not believed: whatever it says, only regular files called `stdout.log` or
`stderr.log` (as the App of that name has them) below the data directory are read, and the log that a
Session's Jobs share. However long a file is, only the piece asked for is read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from chappe.core import limits
from chappe.core.errors import ChappeError, Invalid
from chappe.core.ids import check_id
from chappe.link.appdef import Files
from chappe.link.apps import AppProblem, load_app
from chappe.link.files import below
from chappe.link.functions import SHARED, FunctionRules
from chappe.link.ledger import Ledger
from chappe.wire.logs import LogPiece, LogStream, LogWish

_BLOCK = 64 * limits.KIB
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


class NoLog(ChappeError):
    """There is nothing to read; the message is for the reader. Codes: no_log, no_file, app_unknown."""

    default_code = "no_file"


class Found(NamedTuple):
    """A log file, and what its reader should know of it."""

    path: Path
    note: str = ""


class Names(NamedTuple):
    """The files of an attempt's outputs, relative to the data directory; `stdout` None: kept nowhere, or in
    the log that a Session's Jobs share; `stderr` None: with stdout."""

    stdout: str | None
    stderr: str | None


def names(job: str, attempt: int, workdir: str, files: Files) -> Names:
    """Where an attempt writes. The one place that knows it (see `pilot.tasks`)."""
    where = directory(workdir, attempt, files)
    # Without a directory of its own a Job's files bear its name.
    stem = "" if files.own_directory else f"{job}.{attempt}."
    return Names(
        f"{where}/{stem}stdout.log" if files.log == "file" else None,
        f"{where}/{stem}stderr.log" if files.separate_stderr else None,
    )


def directory(workdir: str, attempt: int, files: Files) -> str:
    """The directory of one attempt, relative to the data directory."""
    return f"{workdir}/attempt-{attempt}" if files.own_directory else workdir


class JobLogs:
    """Reads the logs below one Site's directory. Its methods block: they belong on a thread."""

    def __init__(self, site: Path, data: Path, functions: FunctionRules) -> None:
        self._site = site
        self._data = data
        self._functions = functions
        self._ledger = Ledger(site / "ledger")

    def find(self, wish: LogWish) -> Found:
        """The file that is meant. Raises NoLog."""
        try:
            check_id(wish.job, "job")
            files, workdir = self._files(wish), wish.workdir
            if wish.environment is not None and not files.own_directory:
                # The Hub does not know where functions work that have no directory of their own.
                workdir = SHARED if workdir == f"jobs/{wish.job}" else workdir
            at = names(wish.job, int(wish.attempt), workdir, files)
            if wish.stream is LogStream.STDERR and at.stderr is None:
                raise NoLog(
                    "this app writes stderr into the same log as stdout: ask for stdout",
                    code="no_log",
                )
            name = at.stderr if wish.stream is LogStream.STDERR else at.stdout
            if name is not None:
                # Of the file itself no link is followed: a Job may have put one there.
                where, _, file = name.rpartition("/")
                return Found(below(self._data, where) / file)
        except Invalid as e:
            raise NoLog(f"the site refuses to read that: {e.message}", code="no_log") from None
        if files.log == "none":
            raise NoLog('this app keeps no log (it says `log = "none"`)', code="no_log")
        return self._shared(wish)

    def read(self, found: Found, wish: LogWish) -> LogPiece:
        """The piece that is meant. Raises NoLog."""
        try:
            fd = os.open(found.path, _OPEN)
        except OSError as e:
            raise NoLog(f"{found.path} cannot be read at the site: {e.strerror}") from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise NoLog(f"{found.path} at the site is no regular file")
            size = status.st_size
            start = _tail(fd, size, wish.tail or 0) if wish.start is None else wish.start
            # A file that was cut short meanwhile is read from its present end on.
            start = min(start, size)
            data = os.pread(fd, min(limits.LOG_BYTES, size - start), start)
        except OSError as e:
            raise NoLog(f"{found.path} cannot be read at the site: {e.strerror}") from None
        finally:
            os.close(fd)
        return LogPiece(wish.no, start, size, data, note=found.note)

    def _files(self, wish: LogWish) -> Files:
        app = wish.app
        if wish.environment is not None:
            environment = self._functions.environment(wish.environment)
            if environment is not None:
                return environment.files
            app = wish.environment
        elif app is None:
            return Files()
        for path in sorted((self._site / "apps").glob("*.toml")):
            try:
                loaded = load_app(path)
            except AppProblem:
                continue
            if loaded.app.name == wish.app:
                return loaded.app.files
        raise NoLog(
            f"the site has no {(app or '')[:60]!r} any more, which would say where its jobs' logs are",
            code="app_unknown",
        )

    def _shared(self, wish: LogWish) -> Found:
        owner = self._ledger.claimed(wish.job, wish.attempt)
        if owner is None or not owner.session:
            raise NoLog("this site does not know (any more) which of its sessions ran the job")
        check_id(owner.session, "session")
        return Found(
            self._site / "sessions" / owner.session / "shared.log",
            "this app keeps one log for all jobs of a session: lines of other jobs are among these",
        )


def _tail(fd: int, size: int, lines: int) -> int:
    """Where the last `lines` lines begin, looking back at most LOG_TAIL_BYTES."""
    left, at = lines, size
    least = max(0, size - limits.LOG_TAIL_BYTES)
    if left <= 0:
        return size
    while at > least:
        begin = max(least, at - _BLOCK)
        block = os.pread(fd, at - begin, begin)
        end = len(block)
        # The line feed that ends the file ends its last line, and begins none.
        if at == size and block.endswith(b"\n"):
            end -= 1
        while (found := block.rfind(b"\n", 0, end)) >= 0:
            left -= 1
            if left == 0:
                return begin + found + 1
            end = found
        at = begin
    return at
