"""The user's Ed25519 key: what binds a Job to the person who wrote it.

The file holds one line, `ed25519 <base64 seed>`, is readable by its owner only, and is never sent anywhere.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chappe.core.errors import Invalid
from chappe.link import files

_LONGEST = 4096


class KeyProblem(Invalid):
    """The key file is not fit for use: others can read it, it is somebody else's, or it is no key."""

    default_code = "key"


class SigningKey:
    """An Ed25519 key that can sign. Its representation never shows the secret."""

    __slots__ = ("_key", "public_b64")

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        #: The public key: base64 of 32 bytes, as in `trusted_keys` and in statements.
        self.public_b64 = base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    def sign(self, data: bytes) -> bytes:
        """The signature (64 bytes) of `data`."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        return f"SigningKey(public_b64={self.public_b64!r})"


def default_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the user's key is: CHAPPE_KEY, or `~/.config/chappe/key`."""
    named = environ.get("CHAPPE_KEY")
    return Path(named).expanduser() if named else Path("~/.config/chappe/key").expanduser()


def load_or_create(path: Path) -> SigningKey:
    """The key at `path`, made at first use.

    Two processes that make it at once end up with the same key: a complete file is linked into place,
    and the second link fails. Raises KeyProblem with a remedy.
    """
    try:
        return load(path)
    except FileNotFoundError:
        pass
    line = b"ed25519 " + base64.b64encode(os.urandom(32)) + b"\n"
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_new(temporary, line, 0o600)
        try:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            temporary.unlink()
        files.sync_directory(path.parent)
    except OSError as e:
        raise KeyProblem(
            f"cannot create the key {path}: {e.strerror}; CHAPPE_KEY can name another place",
            field="CHAPPE_KEY",
        ) from e
    return load(path)


def load(path: Path) -> SigningKey:
    """The key at `path`. Raises FileNotFoundError, or KeyProblem with a remedy."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as e:
        raise KeyProblem(
            f"cannot read the key {path}: {e.strerror}; CHAPPE_KEY can name another place",
            field="CHAPPE_KEY",
        ) from e
    try:
        check_private(path, os.fstat(fd))
        text = os.read(fd, _LONGEST)
    finally:
        os.close(fd)
    return SigningKey(_seed(path, text))


def check_private(path: Path, found: os.stat_result) -> None:
    """Raise KeyProblem unless this is a plain file, the user's own, that nobody else may open."""
    if not stat.S_ISREG(found.st_mode):
        raise KeyProblem(f"{path} is not a plain file", field="CHAPPE_KEY")
    if found.st_uid != os.geteuid():
        raise KeyProblem(
            f"{path} belongs to user {found.st_uid}, not to you ({os.geteuid()}): "
            "use a key of your own",
            field="CHAPPE_KEY",
        )
    if found.st_mode & 0o077:
        raise KeyProblem(
            f"{path} may be opened by others (mode {stat.S_IMODE(found.st_mode):04o}): "
            f"run `chmod 600 {path}`, and if anybody could have read it, make a new key",
            field="CHAPPE_KEY",
        )


def _seed(path: Path, text: bytes) -> bytes:
    words = text.split()
    if len(words) == 2 and words[0] == b"ed25519":
        with contextlib.suppress(binascii.Error):
            seed = base64.b64decode(words[1], validate=True)
            if len(seed) == 32:
                return seed
    raise KeyProblem(
        f"{path} holds no key (one line: `ed25519 <base64 of 32 bytes>`): move it away, "
        "and a new key is made",
        field="CHAPPE_KEY",
    )
