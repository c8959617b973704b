"""Brings on what producers leave in spool folders: reads their files and posts the messages, in order.

A folder is looked through several times a second, which finds what any machine wrote to a shared file
system; inotify, where it tells anything, only makes the next look come at once. A file is read from its
mark on, and the mark moves when the Hub has confirmed: so a death in between repeats messages, which the Hub
recognises, and loses none. A file that was truncated or replaced is read from its beginning.

A drained file whose writer is done, dead or silent for days is renamed first and removed a minute later, when
it did not grow: so no writer loses a line by being late.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Iterable
from glob import glob
from pathlib import Path
from typing import NamedTuple

import structlog

from chappe.core.errors import ChappeError
from chappe.link import emitted
from chappe.link.http import HubClient
from chappe.link.retry import NO_RETRY
from chappe.site.inotify import Inotify
from chappe.site.paths import SitePaths
from chappe.site.spool_config import SpoolConfig
from chappe.site.spool_marks import Mark, Marks, tail_of
from chappe.site.wakeup import Wakeups

log = structlog.get_logger()

BATCH_MESSAGES = 500
BATCH_BYTES = 1024 * 1024
FILES_MOST = 20_000
"""Files that are looked at; of more, those that come later in the order of names wait."""
QUIET_S = 600.0
QUIET_EVERY_S = 30.0
DIRECT_S = 60.0
"""How long a writer that sends by itself has, before its messages are taken from it."""
LATE_S = 60.0
FIRST_DELAY_S, MOST_DELAY_S = 0.5, 15.0
DRAINED = ".drained"

_MEDIA = "application/x-ndjson"
_DAY_S = 86_400.0


class _Seen(NamedTuple):
    """A spool file as a look found it."""

    size: int
    changed_at: float


class _Part(NamedTuple):
    """What a batch takes from one file, and its mark afterwards."""

    messages: list[bytes]
    mark: Mark


class Spools:
    """Follows the spool folders of a Site; `run` does, for ever."""

    def __init__(
        self, paths: SitePaths, config: SpoolConfig, hub: HubClient, wakeups: Wakeups
    ) -> None:
        self._paths = paths
        self._config = config
        self._hub = hub
        self._wakeups = wakeups
        self._files: dict[str, _Seen] = {}
        self._done: dict[str, _Seen] = {}
        self._complained: set[str] = set()
        self._quiet_at = 0.0
        self._marks: Marks

    async def run(self) -> None:
        """Forward what there is, and wait for more. Raises OSError."""
        changed = asyncio.Event()
        self._paths.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._marks = await asyncio.to_thread(Marks, self._paths.spool_marks)
        notify = Inotify(changed)
        try:
            while True:
                changed.clear()
                folders = await asyncio.to_thread(self._look)
                for folder in folders:
                    notify.watch(folder)
                await self._forward()
                await asyncio.to_thread(self._tidy)
                try:
                    async with asyncio.timeout(self._config.scan_s):
                        await changed.wait()
                except TimeoutError:
                    continue
        finally:
            notify.close()
            self._marks.close()

    # -- looking

    def _look(self) -> list[str]:
        """Find the files; the folders there are. Those long quiet are looked at now and then only."""
        now = time.time()
        all_of_them = now - self._quiet_at > QUIET_EVERY_S or now < self._quiet_at
        if all_of_them:
            self._quiet_at = now
        files: dict[str, _Seen] = {}
        folders = self._folders()
        for folder in folders:
            for path in _spool_files(folder):
                before = self._files.get(path)
                if before and not all_of_them and now - before.changed_at > QUIET_S:
                    files[path] = before
                elif (seen := _seen(path)) is not None:
                    files[path] = seen
        self._files = files
        self._done = {path: seen for path, seen in self._done.items() if path in files}
        if all_of_them:
            here = tuple(folder + "/" for folder in folders)
            gone = [p for p in self._marks.paths() if p.startswith(here) and p not in files]
            if gone:
                self._marks.put([Mark(path, -1, "") for path in gone])
        return folders

    def _folders(self) -> list[str]:
        """The folders that exist."""
        wanted = [str(self._paths.spool)]
        for pattern in (*self._config.folders, os.environ.get("CHAPPE_SPOOL", "")):
            if pattern:
                path = os.path.join(self._paths.root, os.path.expanduser(pattern))
                wanted += sorted(glob(path)) if "*" in path else [path]
        return [folder for folder in dict.fromkeys(wanted) if os.path.isdir(folder)]

    # -- forwarding

    async def _forward(self) -> None:
        """Post what stands behind the marks, batch by batch. Waits while the Hub is away."""
        delay_s = FIRST_DELAY_S
        while parts := await asyncio.to_thread(self._collect):
            messages = [message for part in parts for message in part.messages]
            if messages:
                await self._wakeups.online.wait()
                body = b"\n".join(messages) + b"\n"
                try:
                    await self._hub.request(
                        "POST", "/v1/messages", body, retry=NO_RETRY, media=_MEDIA
                    )
                except ChappeError as e:
                    log.warning("messages wait in their spools", error=e.message, code=e.code)
                    await asyncio.sleep(delay_s)
                    delay_s = min(MOST_DELAY_S, 2 * delay_s)
                    continue
                delay_s = FIRST_DELAY_S
            await asyncio.to_thread(self._marks.put, [part.mark for part in parts])

    def _collect(self) -> list[_Part]:
        """The next batch: from each file in its order, of as many files as fit."""
        parts: list[_Part] = []
        room, room_bytes = BATCH_MESSAGES, BATCH_BYTES
        for path, seen in self._files.items():
            if room <= 0 or room_bytes <= 0:
                break
            if self._done.get(path) == seen:
                continue
            try:
                # Anew: a batch may read further than the look that found the file.
                part = self._part(path, now, room) if (now := _seen(path)) else None
            except OSError as e:
                self._complain(path, str(e))
                part = None
            if part is None:
                continue
            parts.append(part)
            room -= len(part.messages)
            room_bytes -= sum(map(len, part.messages))
        return parts

    def _part(self, path: str, seen: _Seen, most: int) -> _Part | None:
        """What is new in a file; None when nothing is, or nothing yet. Raises OSError."""
        header = emitted.read_header(path)
        if header is None:
            if seen.size:
                self._complain(path, "it does not begin as a spool file")
            return None
        start = self._start(path, seen)
        if header.direct and start < seen.size:
            if not self._may_take(path, seen, header):
                return None
            start = max(start, min(emitted.sent(path), seen.size))
        piece = emitted.read(path, start, most)
        if piece.damaged:
            self._complain(path, f"{piece.damaged} lines are damaged, before byte {piece.end}")
        if piece.end == start:
            self._done[path] = seen
            return None
        return _Part(piece.messages, Mark(path, piece.end, tail_of(path, piece.end)))

    def _start(self, path: str, seen: _Seen) -> int:
        """Where to go on: at the mark, if the file is still the one that was read."""
        mark = self._marks.get(path)
        if mark.offset and (mark.offset > seen.size or tail_of(path, mark.offset) != mark.tail):
            log.warning("a spool file was replaced; it is read from its beginning", file=path)
            return 0
        return mark.offset

    def _may_take(self, path: str, seen: _Seen, header: emitted.Header) -> bool:
        return time.time() - seen.changed_at > DIRECT_S or self._is_over(path, seen, header)

    def _complain(self, path: str, problem: str) -> None:
        """Say it once for each file, and remember a bounded number of files."""
        if path not in self._complained:
            if len(self._complained) > FILES_MOST:
                self._complained.clear()
            self._complained.add(path)
            log.warning("a spool file is not as it should be", file=path, problem=problem)

    # -- tidying

    def _tidy(self) -> None:
        """Remove, or put into the archive, what is drained and will not grow."""
        for path, seen in list(self._done.items()):
            try:
                header = emitted.read_header(path)
                over = header is not None and self._is_over(path, seen, header)
                if over and _seen(path) == seen:
                    os.rename(path, f"{path}.{seen.size}{DRAINED}")
                    self._marks.put([Mark(path, -1, "")])
                    self._done.pop(path, None)
                    self._files.pop(path, None)
            except OSError as e:
                self._complain(path, str(e))
        for folder in self._folders():
            for name in os.listdir(folder):
                if name.endswith(DRAINED):
                    self._finish(Path(folder, name))

    def _is_over(self, path: str, seen: _Seen, header: emitted.Header) -> bool:
        """Whether the writer said that it is done, is dead, or has been silent for days."""
        if time.time() - seen.changed_at > self._config.keep_days * _DAY_S:
            return True
        return emitted.writer_is_gone(header) or _ends(path)

    def _finish(self, path: Path) -> None:
        """Remove a drained file a minute after it was renamed; one that grew is read again."""
        try:
            found = path.stat()
            if 0 <= time.time() - found.st_ctime < LATE_S:
                return
            name, _, size = path.name.removesuffix(DRAINED).rpartition(".")
            original = path.with_name(name)
            if size != str(found.st_size):
                path.rename(
                    path.with_name(f"{name.removesuffix(emitted.SUFFIX)}-late{emitted.SUFFIX}")
                )
                return
            if self._config.archive:
                archive = self._paths.root / os.path.expanduser(self._config.archive)
                archive.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.rename(archive / name)
            else:
                path.unlink()
            Path(f"{original}{emitted.SENT_SUFFIX}").unlink(missing_ok=True)
            Path(f"{original}.lock").unlink(missing_ok=True)
        except OSError as e:
            self._complain(str(path), str(e))


def _spool_files(folder: str) -> Iterable[str]:
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(emitted.SUFFIX))
    except OSError as e:
        log.warning("a spool folder cannot be read", folder=folder, error=str(e))
        return []
    return [os.path.join(folder, name) for name in names[:FILES_MOST]]


def _seen(path: str) -> _Seen | None:
    """A regular file; None for what is none, or is gone."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return _Seen(found.st_size, found.st_mtime) if stat.S_ISREG(found.st_mode) else None


def _ends(path: str) -> bool:
    """Whether the last line says that nothing will follow. Raises OSError."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 5))
        return file.read() == b"\nend\n"
