"""Removing what an ended Job is not to leave, and nothing else.

The directory was resolved before the Job ran; the Job, or another, may have put links anywhere since. So each
part of the way is opened by its own name without following a link, and files are removed by the directory
that is open: what is reached is what was meant, whatever changes at the same moment.
"""

from __future__ import annotations

import os
from contextlib import suppress
from fnmatch import fnmatchcase

import msgspec

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Cleanup(msgspec.Struct, frozen=True, omit_defaults=True):
    """Patterns of files, relative to each of these directories (absolute, without links); `keep` is not
    removed."""

    directories: list[str]
    patterns: list[str]
    keep: str = ""


def clean(what: Cleanup) -> int:
    """Remove the files that match; how many. Directories stay, and of links the link goes. As in a shell,
    `*` matches no name that begins with a dot. What cannot be removed stays, and so does all in a directory
    that is gone, or that links lead to by now."""
    removed = 0
    for directory in what.directories:
        with suppress(OSError):
            fd = _open(directory)
            try:
                removed += sum(_remove(fd, p.split("/"), "", what.keep) for p in what.patterns)
            finally:
                os.close(fd)
    return removed


def _open(path: str) -> int:
    fd = os.open("/", _FLAGS)
    for part in path.split("/"):
        if part:
            inner = -1
            try:
                inner = os.open(part, _FLAGS, dir_fd=fd)
            finally:
                os.close(fd)
            fd = inner
    return fd


def _remove(fd: int, parts: list[str], above: str, keep: str) -> int:
    pattern, rest = parts[0], parts[1:]
    removed = 0
    for name in sorted(os.listdir(fd)):
        hidden = name.startswith(".") and not pattern.startswith(".")
        if hidden or not fnmatchcase(name, pattern) or above + name == keep:
            continue
        with suppress(OSError):  # a directory, another's file, or gone: it stays
            if not rest:
                os.unlink(name, dir_fd=fd)
                removed += 1
                continue
            inner = os.open(name, _FLAGS, dir_fd=fd)
            try:
                removed += _remove(inner, rest, f"{above}{name}/", keep)
            finally:
                os.close(inner)
    return removed
