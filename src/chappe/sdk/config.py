"""Where the Hub is and who the user is: explicit arguments, else a file of mode 0600.

The file is `$CHAPPE_CONFIG`, else `~/.config/chappe/client.json`; the Hub writes it at its first start.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from chappe.core.hidden import HidesToken
from chappe.sdk.errors import ConfigMissing, Invalid


class Settings(HidesToken, msgspec.Struct, frozen=True, omit_defaults=True):
    """How to reach a Hub. `ca_file` is the certificate to trust (PEM), None for the system's.

    `key` is the file of the Ed25519 key that signs submissions, None for `$CHAPPE_KEY` or
    `~/.config/chappe/key`.
    """

    url: str
    token: str
    project: str | None = None
    ca_file: str | None = None
    key: str | None = None


class _File(HidesToken, msgspec.Struct, frozen=True):
    url: str | None = None
    token: str | None = None
    project: str | None = None
    ca_file: str | None = None
    key: str | None = None


def config_path() -> Path:
    """The file that holds the settings, whether it exists or not."""
    given = os.environ.get("CHAPPE_CONFIG")
    return Path(given) if given else Path.home() / ".config/chappe/client.json"


def load(
    *,
    url: str | None = None,
    token: str | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    project: str | None = None,
    key: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
) -> Settings:
    """The settings: what is given, completed from the file. Raises ConfigMissing or Invalid.

    With an explicit `url` nothing but the key's place is taken from elsewhere: one Hub's token is
    never sent to another.
    """
    path = Path(config) if config is not None else config_path()
    file = _File() if url is not None else _read(path)
    found_url, found_token = url or file.url, token or file.token
    if not found_url or not found_token:
        what = "token" if found_url else "url"
        where = "argument" if url is not None else f"argument or entry of {path}"
        raise ConfigMissing(
            f"the client needs the hub's {what} ({where}). `chappe login URL` writes that file, and "
            "`chappe hub start` does where the hub runs; CHAPPE_CONFIG may name another",
            field=what,
        )
    return Settings(
        url=found_url.rstrip("/"),
        token=found_token,
        project=project or file.project,
        ca_file=_path(ca_file) or file.ca_file,
        key=_path(key) or file.key,
    )


def place(
    path: Path, url: str | None, ca_file: str | os.PathLike[str] | None, *, replace: bool
) -> tuple[str, str | None]:
    """The (url, certificate's file) to log in with, completed from the file at `path` that is to be written.

    Raises ConfigMissing when nothing says where the hub is, Invalid when the file is for another hub, unless
    that may be replaced.
    """
    file = _File() if replace and url is not None else _read(path)
    if not (url or file.url):
        raise ConfigMissing("say where the hub is: chappe login URL", field="url")
    wanted = (url or file.url or "").rstrip("/")
    if file.url is not None and file.url.rstrip("/") != wanted:
        raise Invalid(
            f"{path} is for {file.url}: name another file in CHAPPE_CONFIG, or replace it with --replace",
            field="url",
        )
    return wanted, file.ca_file if ca_file is None else str(Path(ca_file).absolute())


def _read(path: Path) -> _File:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        return _File()
    except OSError as e:
        raise ConfigMissing(f"{path} cannot be read: {e.strerror}") from None
    except msgspec.MsgspecError as e:
        raise Invalid(f"{path} is no client configuration: {e}", field="config") from None


def _path(given: str | os.PathLike[str] | None) -> str | None:
    return None if given is None else os.fspath(given)
