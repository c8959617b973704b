"""Run a Site (its agent and all that it starts) as if it were another machine.

As root, a sandbox has a uid, a file system, a /tmp, a process table and a host name of its own, and
a network with nothing in it but the port of the Hub. The file system holds the programs of this
machine and this Python, read-only; the Site's own directory, on real disk; and fresh memory
for the rest. Without root, user namespaces give the same except for the uid. Where the kernel
forbids even those, sandboxes are separate folders, and `Isolation.explanation` says so.

A sandbox lives in the process that made it: that process carries its traffic, and when it ends, in
whatever way, all in the sandbox is killed. The means are those of a test bench. They keep honest
programs apart, and are no defence against a hostile one (the kernel is shared; nothing is metered).
"""

import functools
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from chappe.testing import sandbox_init
from chappe.testing.relay import Relay

_START_S = 30.0
_STOP_S = 10.0
# The range that systemd keeps for users made on the fly: no account has one of these uids.
_FIRST_UID, _UID_COUNT = 61184, 4336
_made = itertools.count()

Stream = IO[bytes] | IO[str] | int | None


class SandboxError(Exception):
    """A sandbox cannot be made, or a command cannot be handed to it; the message says why."""

    transient = False


@dataclass(frozen=True)
class Isolation:
    """What separates sandboxes from each other and from the host; `explanation` is for people."""

    uid: bool
    mounts: bool
    network: bool
    explanation: str


MACHINES = Isolation(
    uid=True,
    mounts=True,
    network=True,
    explanation="Each site is like a machine of its own: own user, own processes, own files and "
    "/tmp, and a network that reaches only the hub.",
)
USER_NAMESPACES = Isolation(
    uid=False,
    mounts=True,
    network=True,
    explanation="Each site has its own processes, files and /tmp, and a network that reaches only "
    "the hub, but all sites run as one user: separate users need root.",
)
FOLDERS = Isolation(
    uid=False,
    mounts=False,
    network=False,
    explanation="Sites are plain separate folders: they share this machine's user, file system, "
    "/tmp and network.",
)


@functools.cache
def probe() -> Isolation:
    """Find the strongest isolation that works here, by making a sandbox of each kind."""
    reasons = []
    for isolation in (MACHINES, USER_NAMESPACES):
        if isolation.uid and os.geteuid() != 0:
            continue
        try:
            with (
                tempfile.TemporaryDirectory() as directory,
                Sandbox("probe", 9, directory, isolation=isolation) as sandbox,
            ):
                sandbox.run(["/bin/sh", "-c", ":"])
            return isolation
        except (SandboxError, OSError) as error:
            reasons.append(str(error))
    why = f"{FOLDERS.explanation} Namespaces cannot be made here ({'; '.join(reasons)})."
    return Isolation(uid=False, mounts=False, network=False, explanation=why)


class SandboxProcess:
    """A command in a sandbox, with the part of `subprocess.Popen` that makes sense across it.

    `pid` is its number inside the sandbox. `fileno()` becomes readable at its end, for event loops.
    """

    def __init__(self, argv: Sequence[str], pid: int, status: socket.socket) -> None:
        self.args = list(argv)
        self.pid = pid
        self.returncode: int | None = None
        self._status = status
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the command has ended."""
        return self._status.fileno()

    def poll(self) -> int | None:
        """Return the exit status (negative: the signal), or None while the command runs."""
        return self.returncode if self._ended(0.0) else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, at most `timeout` seconds; raises `subprocess.TimeoutExpired`."""
        if not self._ended(timeout) or self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the command (not to its children); no effect after its end."""
        with self._lock:
            if self.returncode is None:
                try:
                    self._status.send(str(int(number)).encode())
                except ConnectionError:
                    return  # it has ended, and nobody has asked yet

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Let go of the command, which goes on if it runs; no status can be learnt any more."""
        self._ended(0.0)
        self._status.close()

    def _ended(self, timeout: float | None) -> bool:
        if self.returncode is None:
            poller = select.poll()
            poller.register(self._status, select.POLLIN)
            if not poller.poll(None if timeout is None else timeout * 1000):
                return False
            # Several threads may wait: the first to come here reads, the others find it read.
            with self._lock:
                if self.returncode is None:
                    try:
                        message = self._status.recv(16)
                    except ConnectionResetError:
                        # It ended before it read our last signal; its status comes after this.
                        message = self._status.recv(16)
                    self.returncode = int(message) if message else -signal.SIGKILL
        return True


class Sandbox:
    """A place where commands run apart from the host; a context manager, ready once constructed.

    `directory` is the one place of the host that commands can write. It is made, and as root given
    to the sandbox's user, when needed: `uid`, else the directory's owner if that is not root, else
    one that no account has. `read_only` paths become visible besides the system, this Python and
    this package; all keep the paths they have on the host. Commands reach the hub (which
    listens on 127.0.0.1:`hub_port`) at 127.0.0.1:`port`: the same number wherever there is a
    network namespace, so that URLs and certificates hold. Raises SandboxError or OSError.
    """

    def __init__(
        self,
        name: str,
        hub_port: int,
        directory: str | Path,
        read_only: Sequence[str | Path] = (),
        *,
        uid: int | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        for path in read_only:
            os.stat(path)  # parts of the system may be absent, but not what the caller names
        self.name = name
        self.isolation = isolation or probe()
        self.directory = Path(directory).resolve()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.uid = self._own_directory(uid) if self.isolation.uid else os.getuid()
        self._processes: list[SandboxProcess] = []
        # The mount point of the new root; without one, the commands' TMPDIR.
        self._scratch = tempfile.TemporaryDirectory(prefix="chappe-")
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._relay: Relay | None = None
        with theirs:
            self._init = subprocess.Popen(
                [sys.executable, "-I", "-S", sandbox_init.__file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_kept_environment(),
                start_new_session=True,  # Ctrl-C is for the maker, which then closes in order
            )
        try:
            listener = self._set_up(hub_port, [os.path.abspath(path) for path in read_only])
        except BaseException:
            self.close()
            raise
        if self.isolation.mounts:
            self._scratch.cleanup()  # the new root has left its mount point
        self._relay = Relay(listener, hub_port)
        self.port = self._relay.address[1]

    def _own_directory(self, uid: int | None) -> int:
        owner = self.directory.stat().st_uid
        uid = uid or owner or _FIRST_UID + (os.getpid() * 16 + next(_made)) % _UID_COUNT
        try:
            os.chown(self.directory, uid, uid)
        except OSError as error:
            raise SandboxError(f"cannot give a directory to uid {uid}: {error.strerror}") from error
        return uid

    def _set_up(self, hub_port: int, read_only: list[str]) -> socket.socket:
        """Hand the plan to the first process; return the listening socket that it made."""
        python = [sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.executable]
        plan = {
            "name": self.name,
            "namespaces": self.isolation.mounts,
            "uid": self.uid if self.isolation.uid else None,
            "directory": str(self.directory),
            "read_only": [*python, str(Path(__file__).parents[2]), *read_only],
            "mount_point": self._scratch.name,
            "port": hub_port if self.isolation.network else 0,
        }
        self._control.settimeout(_START_S)
        try:
            self._control.send(json.dumps(plan).encode())
            message, descriptors, _, _ = socket.recv_fds(
                self._control, sandbox_init.MESSAGE_BYTES, 1
            )
        except OSError as error:
            raise SandboxError(f"sandbox {self.name}: its first process failed: {error}") from error
        if not descriptors:
            why = json.loads(message)["failed"] if message else "its first process died"
            raise SandboxError(f"sandbox {self.name}: {why}")
        listener = socket.socket(fileno=descriptors[0])
        listener.set_inheritable(False)
        return listener

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        stdout: Stream = None,
        stderr: Stream = None,
    ) -> SandboxProcess:
        """Start a command in a session of its own, and return once it runs.

        `env` is added to a small environment (PATH with this Python first, HOME, USER, TMPDIR,
        LANG); nothing else is inherited. `cwd` is the directory unless given. Streams are files,
        descriptors or DEVNULL; None is the caller's own; stdin is empty. Raises OSError as
        `subprocess.Popen` does, SandboxError once the sandbox is closed. The handle keeps one
        descriptor until it or the sandbox is closed.
        """
        request = {
            "argv": list(argv),
            "env": self._environment() | dict(env or {}),
            "cwd": str(cwd or self.directory),
        }
        status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        status.settimeout(_START_S)
        with theirs, open(os.devnull, "r+b") as null:
            streams = [
                null.fileno() if stream == subprocess.DEVNULL else _descriptor(stream, default)
                for stream, default in ((subprocess.DEVNULL, 0), (stdout, 1), (stderr, 2))
            ]
            try:
                payload = json.dumps(request).encode()
                socket.send_fds(self._control, [payload], [*streams, theirs.fileno()])
            except OSError as error:
                status.close()
                raise SandboxError(
                    f"sandbox {self.name}: cannot start {argv[0]}: {error}"
                ) from error
        reply = json.loads(status.recv(sandbox_init.MESSAGE_BYTES) or '{"errno": 3, "message": ""}')
        if "pid" not in reply:
            status.close()
            raise OSError(reply["errno"], reply["message"] or f"sandbox {self.name} has ended")
        process = SandboxProcess(argv, reply["pid"], status)
        self._processes.append(process)
        return process

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        timeout_s: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and return its status and output.

        Raises `subprocess.TimeoutExpired` after `timeout_s`, once the command is killed.
        """
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = self.popen(argv, env=env, cwd=cwd, stdout=out, stderr=err)
            try:
                code = process.wait(timeout_s)
            except BaseException:
                process.kill()
                process.wait()
                raise
            finally:
                process.close()
                self._processes.remove(process)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(process.args, code, out.read(), err.read())

    def cut(self, *, reset: bool = False) -> None:
        """Cut the road to the hub: held in silence, or with `reset` refused; see `Relay.cut`."""
        if self._relay:
            self._relay.cut(reset=reset)

    def restore(self) -> None:
        """Open the road to the hub again."""
        if self._relay:
            self._relay.restore()

    def close(self) -> None:
        """Kill all that runs inside, and wait for it. Idempotent; the directory stays."""
        self._control.close()
        try:
            self._init.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._init.kill()
            self._init.wait()
        if self._relay:
            self._relay.close()
        for process in self._processes:
            process.close()
        self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _environment(self) -> dict[str, str]:
        system = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        return _kept_environment() | {
            "PATH": f"{Path(sys.executable).parent}:{system}",
            "HOME": str(self.directory),
            "USER": self.name,
            "LOGNAME": self.name,
            "TMPDIR": "/tmp" if self.isolation.mounts else self._scratch.name,  # noqa: S108 - private
            "LANG": "C.UTF-8",
        }


def _kept_environment() -> dict[str, str]:
    """Return the one variable of ours without which a Python of environment modules cannot run."""
    path = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": path} if path else {}


def _descriptor(stream: Stream, default: int) -> int:
    if stream is None:
        return default
    return stream if isinstance(stream, int) else stream.fileno()
