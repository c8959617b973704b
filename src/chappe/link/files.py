"""Files that are there entirely or not at all, and paths that stay below their base."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

from chappe.core.errors import Invalid
from chappe.core.jobs import check_relative

#: What a full disk, a used-up quota or a size limit looks like.
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class PathEscape(Invalid):
    """A relative path leads, through `..` or a symbolic link, out of the directory it belongs to."""

    default_code = "path_escape"


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable (fsync). OSError when it cannot."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, mode: int = 0o600, *, durable: bool = True) -> None:
    """Replace `path` by `data`: a reader sees the old file or the new one, also after a crash.

    `mode` holds whatever the umask says. With `durable` the data and the name survive a power cut.
    Raises OSError, and then leaves nothing behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        write_new(temporary, data, mode, durable=durable)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    if durable:
        sync_directory(path.parent)


def read_private(path: Path, field: str) -> str:
    """The one line of a file that only its owner may read, such as a password.

    Raises Invalid, naming `field`, when it cannot be read, is open to others, or holds no line.
    """
    try:
        with path.open(encoding="utf-8") as file:
            open_to_others = os.fstat(file.fileno()).st_mode & 0o077
            line = file.read(4_096).strip()
    except (OSError, UnicodeDecodeError) as e:
        raise Invalid(f"{path} cannot be read: {e}", field=field) from e
    if open_to_others:
        raise Invalid(f"{path} is open to others: chmod 600 {path}", field=field)
    if not line or "\n" in line:
        raise Invalid(f"{path} must hold one line", field=field)
    return line


def write_new(path: Path, data: bytes, mode: int, *, durable: bool = True) -> None:
    """Write a file that must not exist yet (FileExistsError). Not atomic: for temporary names."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(fd, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def below(base: Path, relative: str) -> Path:
    """The real path of `relative` below `base`, whether or not it exists.

    Symbolic links are followed, and refused when they lead out of `base`: a Job may leave a link behind,
    and the next one must not be led out by it. Raises PathEscape, or Invalid for a path that is no
    relative path. Somebody who changes links at the same moment under the same account is not kept out.
    """
    check_relative(relative, "path")
    root = os.path.realpath(base)
    real = os.path.realpath(os.path.join(root, relative))
    if real != root and not real.startswith(root.rstrip("/") + "/"):
        raise PathEscape(
            f"{relative!r} leads out of {root} (to {real}): remove the symbolic link", field="path"
        )
    return Path(real)


def make_below(base: Path, relative: str, mode: int | None = None) -> Path:
    """Like `below`, and the directory exists afterwards. Those that were made for it have `mode`, whatever
    the umask (None: what that leaves). PathEscape, OSError."""
    path = below(base, relative)
    missing = []
    while not path.is_dir() and path not in missing:
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        if mode is not None:
            directory.chmod(mode)
    return below(base, relative) if missing else path
