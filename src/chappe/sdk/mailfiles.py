"""Mails in files: one in a file of its own, an mbox, a Maildir, a directory of files, or what stdin gives."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from chappe.core import limits
from chappe.core.errors import Invalid

#: How an mbox begins, and each mail in it after a blank line.
_FROM = b"From "


def read(path: str) -> Iterator[tuple[str, bytes]]:
    """The mails of a file or directory, or of stdin (`-`), each with a name for people.

    Raises Invalid for what is not there, or holds a mail that no hub takes.
    """
    if path == "-":
        yield from _stream("-", sys.stdin.buffer)
        return
    found = Path(path)
    if found.is_dir():
        for file in _files(found):
            yield from _file(file)
    else:
        yield from _file(found)


def _files(directory: Path) -> list[Path]:
    """A Maildir's mails (those not seen yet come last), or the files of any other directory."""
    if (directory / "cur").is_dir() and (directory / "new").is_dir():
        return [f for part in ("cur", "new") for f in sorted((directory / part).iterdir())]
    return sorted(f for f in directory.iterdir() if f.is_file() and not f.name.startswith("."))


def _file(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with path.open("rb") as file:
            yield from _stream(str(path), file)
    except OSError as e:
        raise Invalid(f"cannot read {path}: {e.strerror}", field="path") from None


def _stream(name: str, file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """One mail, or those of an mbox."""
    first = file.readline(limits.MAIL_BYTES + 1)
    if not first.startswith(_FROM):
        yield name, _bounded(name, first + file.read(limits.MAIL_BYTES + 1 - len(first)))
        return
    number, lines, size, blank = 1, list[bytes](), 0, False
    while line := file.readline(limits.MAIL_BYTES + 1):
        if blank and line.startswith(_FROM):
            yield f"{name}:{number}", b"".join(lines)
            number, lines, size = number + 1, [], 0
            continue
        blank = line in (b"\n", b"\r\n")
        # Writers of an mbox put a > in front of lines that look like the beginning of a mail.
        lines.append(line[1:] if line.lstrip(b">").startswith(_FROM) else line)
        size += len(line)
        if size > limits.MAIL_BYTES:
            raise _too_large(f"{name}:{number}")
    yield f"{name}:{number}", b"".join(lines)


def _bounded(name: str, raw: bytes) -> bytes:
    if len(raw) > limits.MAIL_BYTES:
        raise _too_large(name)
    return raw


def _too_large(name: str) -> Invalid:
    return Invalid(
        f"{name}: this mail has more than {limits.MAIL_BYTES} bytes", field="path", code="too_large"
    )
