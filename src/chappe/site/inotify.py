"""Which directories changed, told by the kernel: `inotify` through the C library.

Only a hint, and only for what this machine itself writes: a shared file system tells nothing of other
machines' writes, and a system without it (or with too many watches) tells nothing at all. Whoever uses it
looks by himself as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os

_IN_MODIFY = 0x002
_IN_MOVED_TO = 0x080
_IN_CREATE = 0x100
_MASK = _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE


class Inotify:
    """Sets `changed` when something happens in a watched directory. For one event loop; close it."""

    def __init__(self, changed: asyncio.Event) -> None:
        self._changed = changed
        self._watched: set[str] = set()
        self._fd = -1
        try:
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, AttributeError):
            return
        if self._fd >= 0:
            asyncio.get_running_loop().add_reader(self._fd, self._told)

    def watch(self, directory: str) -> None:
        """Watch a directory, once; one that cannot be watched is left to those who look by themselves."""
        if self._fd >= 0 and directory not in self._watched:
            number = self._libc.inotify_add_watch(self._fd, os.fsencode(directory), _MASK)
            if number >= 0:
                self._watched.add(directory)

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _told(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 65_536)  # which file it was is found out by looking
        self._changed.set()
