"""Messages in files: lines of JSON, a mail, an mbox, a Maildir, a directory of such, or what stdin gives."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from chappe.core import limits
from chappe.core.errors import Invalid

#: How an mbox begins, and each mail in it after a blank line.
_FROM = b"From "
_MAIL = re.compile(rb"From |[A-Za-z0-9-]+:")


class Found(NamedTuple):
    """A mail, or one message; `name` is for people."""

    name: str
    is_mail: bool
    raw: bytes


def read(path: str) -> Iterator[Found]:
    """What a file or directory holds, or stdin (`-`), in order.

    Raises Invalid for what is not there, or holds a mail or message that no hub takes.
    """
    if path == "-":
        yield from _stream("-", sys.stdin.buffer)
        return
    found = Path(path)
    for file in _files(found) if found.is_dir() else [found]:
        yield from _file(file)


def _files(directory: Path) -> list[Path]:
    """A Maildir's mails (those not seen yet come last), or the files of any other directory."""
    if (directory / "cur").is_dir() and (directory / "new").is_dir():
        return [f for part in ("cur", "new") for f in sorted((directory / part).iterdir())]
    return sorted(f for f in directory.iterdir() if f.is_file() and not f.name.startswith("."))


def _file(path: Path) -> Iterator[Found]:
    try:
        with path.open("rb") as file:
            yield from _stream(str(path), file)
    except OSError as e:
        raise Invalid(f"cannot read {path}: {e.strerror}", field="file") from None


def _stream(name: str, file: IO[bytes]) -> Iterator[Found]:
    first = file.readline(limits.MAIL_BYTES + 1)
    while first and not first.strip():
        first = file.readline(limits.MAIL_BYTES + 1)
    if first.startswith(_FROM):
        yield from _mbox(name, file)
    elif _MAIL.match(first):
        raw = first + file.read(limits.MAIL_BYTES + 1 - len(first))
        yield Found(name, True, _bounded(name, raw))
    else:
        yield from _lines(name, first, file)


def _lines(name: str, line: bytes, file: IO[bytes]) -> Iterator[Found]:
    """A message in each line."""
    number = 1
    while line:
        text = line.strip()
        if len(text) > limits.MESSAGE_BYTES:
            raise _too_large(f"{name}:{number}", "message", limits.MESSAGE_BYTES)
        if text:
            yield Found(f"{name}:{number}", False, text)
        number += 1
        line = file.readline(limits.MAIL_BYTES + 1)


def _mbox(name: str, file: IO[bytes]) -> Iterator[Found]:
    number, lines, size, blank = 1, list[bytes](), 0, False
    while line := file.readline(limits.MAIL_BYTES + 1):
        if blank and line.startswith(_FROM):
            yield Found(f"{name}:{number}", True, b"".join(lines))
            number, lines, size = number + 1, [], 0
            continue
        blank = line in (b"\n", b"\r\n")
        # Writers of an mbox put a > in front of lines that look like the beginning of a mail.
        lines.append(line[1:] if line.lstrip(b">").startswith(_FROM) and line[:1] == b">" else line)
        size += len(line)
        if size > limits.MAIL_BYTES:
            raise _too_large(f"{name}:{number}", "mail", limits.MAIL_BYTES)
    yield Found(f"{name}:{number}", True, b"".join(lines))


def _bounded(name: str, raw: bytes) -> bytes:
    if len(raw) > limits.MAIL_BYTES:
        raise _too_large(name, "mail", limits.MAIL_BYTES)
    return raw


def _too_large(name: str, what: str, most: int) -> Invalid:
    return Invalid(
        f"{name}: this {what} has more than {most} bytes", field="file", code="too_large"
    )
