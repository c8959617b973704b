"""`trusted_keys`: whose signed Jobs a Site runs. The file is edited at the Site only.

Lines are `ed25519 <base64 public key> <comment>`; `#` begins a comment line. A file that others may write is
refused, because whoever writes it decides what runs under this account.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import stat
from pathlib import Path

from chappe.core.errors import Invalid, Unavailable
from chappe.link import files
from chappe.link.clock import now

_LONGEST = 1 << 20
#: A file changed within the last so many seconds is read anew each time: two changes may share one mtime.
_UNSETTLED_S = 10.0


class TrustProblem(Invalid):
    """The file is wrong: the message says where and how to mend it."""

    default_code = "trusted_keys"


class TrustedKeys:
    """The keys of one file, read again when it changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys: frozenset[str] = frozenset()
        self._read_as: tuple[int, ...] | None = None

    def current(self) -> frozenset[str]:
        """The trusted public keys (base64). One stat(2); call it once per batch of grants.

        No file means that nobody is trusted. Raises TrustProblem (`file:line: …`), or Unavailable when
        the file system does not answer; nothing must be started on either.
        """
        try:
            found = self.path.stat()
            seen = _identity(found)
            if seen != self._read_as:
                self._keys = _read(self.path, found)
                settled = abs(now() - found.st_mtime) > _UNSETTLED_S
                self._read_as = seen if settled else None
        except FileNotFoundError:
            self._keys, self._read_as = frozenset(), None
        except OSError as e:
            raise Unavailable(f"cannot read {self.path}: {e.strerror}") from e
        return self._keys


def add(path: Path, key: str, comment: str) -> bool:
    """Trust a public key (base64) from now on; False when it already was.

    The file is replaced atomically and keeps its other lines. Two people who do this at the same second
    may lose one of the lines: it is done by hand, at the Site. Raises TrustProblem, OSError.
    """
    _check_key(key, str(path))
    if not comment.isprintable():
        raise TrustProblem("a comment is one line of printable text", field="comment")
    text = ""
    with contextlib.suppress(FileNotFoundError):
        if key in _read(path, path.stat()):
            return False
        text = path.read_text()
    if text and not text.endswith("\n"):
        text += "\n"
    files.write_atomic(path, f"{text}ed25519 {key} {comment}".rstrip().encode() + b"\n", 0o644)
    return True


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return (
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_mode,
        found.st_uid,
    )


def _read(path: Path, found: os.stat_result) -> frozenset[str]:
    if not stat.S_ISREG(found.st_mode) or found.st_size > _LONGEST:
        raise TrustProblem(f"{path} is not a plain file of at most {_LONGEST} bytes")
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise TrustProblem(
            f"{path} may be changed by others (owner {found.st_uid}, mode "
            f"{stat.S_IMODE(found.st_mode):04o}): run `chmod 644 {path}` as its owner"
        )
    keys = set()
    lines = path.read_bytes().decode(errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] != "ed25519" or len(words) < 2:
            raise TrustProblem(
                f"{path}:{number}: write `ed25519 <base64 public key> <comment>`", field=str(number)
            )
        keys.add(_check_key(words[1], f"{path}:{number}"))
    return frozenset(keys)


def _check_key(key: str, where: str) -> str:
    with contextlib.suppress(binascii.Error, ValueError):
        if len(base64.b64decode(key, validate=True)) == 32:
            return key
    raise TrustProblem(f"{where}: {key[:60]!r} is not the base64 of a 32-byte key", field="key")
