"""What a pilot is told by the agent that asked for its allocation: `session.json` in the Session's directory.

The file is private (0600), because it may hold the Session's token. It is read anew by a restarted pilot;
whatever belongs to the allocation and not to one process (when it began) is kept beside it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from chappe.core import limits
from chappe.core.errors import Invalid
from chappe.core.hidden import HidesToken
from chappe.core.ids import check_id
from chappe.link.files import write_atomic
from chappe.link.functions import FunctionRules
from chappe.link.relayed import RelayFiles
from chappe.pilot.hosts import HostsOptions

FILE = "session.json"
_BEGAN = "began"

Seconds = Annotated[float, Meta(ge=0, le=limits.WALL_MAX_S)]


class SessionProblem(Invalid):
    """session.json cannot be used; the message names the file, the field and the remedy."""

    default_code = "session_problem"


class LaunchOptions(msgspec.Struct, frozen=True):
    """How the ranks of Jobs are started (`[launch]` in site.toml): by which launcher ("auto": the one that is
    found), bound to what on nodes that are a Job's alone, with which words more. Without a name the command
    of a Job is started once, on one node."""

    ranks: str = ""
    binding: Literal["none", "core", "numa"] = "none"
    args: tuple[str, ...] = ()


class Options(msgspec.Struct, frozen=True):
    """How a pilot uses its node (`[pilot]` in site.toml). 0 means: as much as there is, or never.

    `slots` overrides the number of cores, and Jobs then share them without affinity. `idle_s` without any
    Job end the allocation. `drain_s` before its end Jobs are ended (TERM, then KILL) and reported. After
    SIGTERM the allocation ends within `kill_s`; 0: when its Jobs have ended. `head_grace_s` is how long the
    launcher keeps Jobs for a restarted pilot. `topology` names a file that says what the node is made of
    (empty: the kernel is asked); `named` is all that the Site has of its own countable resources. `ranks` is
    the Site's own command that starts the ranks of a Job, with a host file of a `host_line` for each node.
    `umask` is that of Jobs, and of the directories made for them. With `hold_memory` a Job that uses more
    than it asked for is killed. `urgent_cores` of each node are kept for Jobs of a priority of
    `urgent_priority` or more. No file of a Job grows beyond `file_bytes`, and none starts a process while
    the account has `processes` of them on the node (0: no bound). `node_tags` sets so many nodes of an
    allocation apart, by tag.
    """

    cores: Annotated[int, Meta(ge=0, le=limits.CORES_MAX)] = 0
    mem_bytes: Annotated[int, Meta(ge=0)] = 0
    slots: Annotated[int, Meta(ge=0, le=100_000)] = 0
    idle_s: Seconds = 0.0
    drain_s: Seconds = limits.KILL_TIME_S
    kill_s: Seconds = limits.KILL_TIME_S
    head_grace_s: Seconds = limits.HEAD_GRACE_S
    topology: str = ""
    named: dict[str, int] = {}
    ranks: tuple[str, ...] = ()
    host_line: str = "{node}:{ranks}"
    umask: Annotated[int, Meta(ge=0, le=0o777)] = 0o077
    launch: LaunchOptions = LaunchOptions()
    hold_memory: bool = False
    node_tags: dict[str, int] = {}
    urgent_cores: Annotated[int, Meta(ge=0, le=limits.CORES_MAX)] = 0
    urgent_priority: Annotated[int, Meta(ge=-limits.PRIORITY_ABS, le=limits.PRIORITY_ABS)] = 100
    file_bytes: Annotated[int, Meta(ge=0)] = 0
    processes: Annotated[int, Meta(ge=0)] = 0


class Session(HidesToken, msgspec.Struct, frozen=True):
    """One allocation. Directories are absolute; `site_dir` holds apps/, trusted_keys and ledger/.

    The token stands here, or in `token_file`. `data_dir` is `site_dir`/data unless given; `node_local` is a
    directory on the node itself, for sockets ($TMPDIR or /tmp unless given), `scratch` one for what Jobs need
    there (`node_local` unless given). The allocation ends at `ends_at` (seconds since 1970), or `wall_s`
    after its pilot first began; without both it has no known end.
    With `relay` the Hub is reached through the Site's agent, and `url` is where that finds it.
    With `spool` the agent brings on what Jobs leave in the spool folder of `data_dir`.
    `functions` says whether signed Python functions may run, and in which environments.
    """

    session: str
    project: str
    site: str
    site_name: str
    url: str
    site_dir: str
    token: str = ""
    token_file: str = ""
    ca_file: str | None = None
    data_dir: str = ""
    node_local: str = ""
    scratch: str = ""
    ends_at: float | None = None
    wall_s: float | None = None
    options: Options = Options()
    functions: FunctionRules = FunctionRules()
    hosts: HostsOptions = HostsOptions()
    relay: RelayFiles | None = None
    spool: bool = False

    @property
    def data(self) -> Path:
        """The directory below which all Jobs work."""
        return Path(self.data_dir or os.path.join(self.site_dir, "data"))

    @property
    def local(self) -> Path:
        """The directory on the node itself."""
        return Path(self.node_local or os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 - a private one is made in it

    @property
    def scratch_base(self) -> Path:
        """The directory on the node in which Jobs' scratch directories are made."""
        return Path(self.scratch) if self.scratch else self.local


def load(directory: Path) -> Session:
    """Read and check `directory`/session.json. Raises SessionProblem."""
    path = directory / FILE
    try:
        session = msgspec.json.decode(path.read_bytes(), type=Session)
        check_id(session.session, "session")
    except OSError as e:
        raise SessionProblem(
            f"{path}: {e.strerror}; --dir names a directory that a site agent made for a session"
        ) from e
    except (msgspec.DecodeError, Invalid) as e:
        raise SessionProblem(f"{path}: {e}") from e
    if path.stat().st_mode & 0o077:
        raise SessionProblem(f"{path} holds a token and others may read it: chmod 600 it")
    for field in ("site_dir", "data_dir", "node_local", "scratch", "token_file"):
        value: str = getattr(session, field)
        if value and not os.path.isabs(value):
            raise SessionProblem(f"{path}: {field} must be an absolute path", field=field)
    return session


def read_token(session: Session) -> str:
    """The Session's token. Raises SessionProblem when there is none to be read."""
    if session.token:
        return session.token
    try:
        token = Path(session.token_file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise SessionProblem(
            f"the session's token ({session.token_file!r}) cannot be read: {e}"
        ) from e
    if not token:
        raise SessionProblem(f"{session.token_file} is empty; it must hold the session's token")
    return token


def ends_at(session: Session, directory: Path, now: float) -> float | None:
    """When the allocation ends (seconds since 1970), None for never. `now` counts on its first call.

    The beginning is written down once, so that a restarted pilot does not take itself for a new one.
    """
    if session.ends_at is not None or session.wall_s is None:
        return session.ends_at
    path = directory / _BEGAN
    try:
        began = float(path.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        began = now
        write_atomic(path, f"{began!r}\n".encode())
    return began + session.wall_s
