"""The first process of a sandbox: makes its namespaces, then starts, signals and reaps commands.

`chappe.testing.sandbox` runs this file as a program (`python -I -S sandbox_init.py FD`, standard
library only) and talks to it over FD, a SEQPACKET socket of JSON messages:

    maker → init   the plan (see `main`)
    init → maker   {} with the listening socket, or {"failed": why}
    maker → init   {"argv", "env", "cwd"} with four descriptors: stdin, stdout, stderr, status
                   on `status`: init answers {"pid"} or {"errno", "message"}, and the return code
                   as decimal text at the end; the maker may write signal numbers to it

End of file on FD is the order to end: then everything in the sandbox is killed. So nothing
outlives the maker, however the maker dies.
"""

import ctypes
import errno
import fcntl
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

MESSAGE_BYTES = 1 << 18  # above the kernel's default limit for one packet (208 KiB)

_libc = ctypes.CDLL(None, use_errno=True)

# From the kernel's headers; Python has names for few of them, and os.unshare only since 3.12.
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER = 0x20000, 0x4000000, 0x8000000, 0x10000000
_NEWPID, _NEWNET = 0x20000000, 0x40000000
_NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_DETACH = 2
_MOUNT_SETATTR, _PIVOT_ROOT_CWD, _AT_RECURSIVE = 442, b".", 0x8000
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_PDEATHSIG, _CAPBSET_DROP, _SUBREAPER, _NO_NEW_PRIVS = 1, 24, 36, 38
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1

# What programs need of a machine. Whatever is absent is left out, links stay links.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/opt", "/nix", "/sys")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_DEV_LINKS = {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}


def _checked(what: str, result: int) -> None:
    """Raise OSError, naming the step, when a C call has failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    encoded_kind = kind.encode() if kind else None
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        encoded_kind,
        ctypes.c_ulong(flags),
        options.encode(),
    )
    _checked(f"mount {source} on {target}", result)


def _restrict(path: str, attributes: int, flags: int = _AT_RECURSIVE) -> None:
    """Add attributes to a mount, and with the default flags to all mounts below (Linux 5.12)."""
    attr = struct.pack("=4Q", attributes, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_long(-100),
        os.fsencode(path),
        ctypes.c_long(flags),
        attr,
        ctypes.c_long(len(attr)),
    )
    _checked(f"restrict the mount {path}", result)


def _expose(root: str, path: str) -> None:
    """Make a host path visible, read-only, at the same place under the new root.

    The directories above it are made anew, open to all, so that it can be reached even when it
    lies in somebody's private home. Links on the way are copied and followed.
    """
    for place in [*reversed(Path(path).parents), Path(path)]:
        if place.is_symlink():
            copy = Path(root + str(place))
            if not os.path.lexists(copy):
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.symlink_to(place.readlink())
            rest = Path(path).relative_to(place)
            _expose(root, os.path.normpath(place.parent / place.readlink() / rest))
            return
    if os.path.exists(path) and not os.path.lexists(root + path):
        _bind(root, path, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)


def _bind(root: str, path: str, attributes: int) -> None:
    target = Path(root + path)
    if os.path.isdir(path):
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(path, str(target), None, _BIND | _REC)
    _restrict(str(target), attributes)


def _build_root(root: str, directory: str, read_only: list[str]) -> None:
    """Build a file system of its own at `root` and move into it; the host's is gone after this."""
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "mode=755")
    for name in ("proc", "tmp", "dev/shm", "run", "var"):
        os.makedirs(f"{root}/{name}")
    _mount("proc", root + "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    for name in ("tmp", "dev/shm"):
        _mount("tmpfs", f"{root}/{name}", "tmpfs", _NOSUID | _NODEV, "mode=1777")
    os.symlink("../tmp", f"{root}/var/tmp")  # noqa: S108 - private
    for name in _DEVICES:
        _bind(root, f"/dev/{name}", _ATTR_NOSUID)
    for name, entry in _DEV_LINKS.items():
        os.symlink(f"/proc/self/fd{entry}", f"{root}/dev/{name}")
    # Outer before inner: a directory that is made anew hides what the host has in it.
    for path in [*_SYSTEM, *sorted(read_only)]:
        _expose(root, path)
    _bind(root, directory, _ATTR_NOSUID | _ATTR_NODEV)
    os.chdir(root)
    # Both arguments the same: the old root ends up on top of the new one, and is taken off.
    _checked("pivot_root", _libc.pivot_root(b".", b"."))
    _checked("unmount the host's files", _libc.umount2(b".", _DETACH))
    os.chdir("/")
    _restrict("/", _ATTR_RDONLY, flags=0)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


def _drop_privileges(uid: int | None) -> None:
    """Become `uid` (None: stay who we are) and give up every capability for good."""
    for capability in range(64):
        if _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # the kernel knows no more of them
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header, none = struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", *[0] * 6)
    _checked("drop capabilities", _libc.capset(header, none))
    _checked("no_new_privs", _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    # Only now: a change of uid clears it. Whoever kills our parent kills the whole sandbox.
    _checked("pdeathsig", _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def _leave_host(own_user: bool) -> None:
    """Enter new namespaces; without root, a user namespace with our own uid and gid in it."""
    uid, gid = os.getuid(), os.getgid()
    flags = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET | (_NEWUSER if own_user else 0)
    _checked("make namespaces", _libc.unshare(flags))
    if own_user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


class _Keeper:
    """Starts, signals and reaps commands until its maker hangs up."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._running: dict[int, tuple[subprocess.Popen[bytes], socket.socket]] = {}
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Serve until end of file on the control socket."""
        woken, waker = socket.socketpair()
        woken.setblocking(False)
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Not ignored, which commands would inherit: the first process is spared the default.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._selector.register(woken, selectors.EVENT_READ)
        self._selector.register(self._control, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is woken:
                    woken.recv(4096)
                    self._reap()
                elif key.fileobj is not self._control:
                    self._signal(key.fileobj, key.data)
                elif not self._start():
                    signal.set_wakeup_fd(-1)
                    return

    def _start(self) -> bool:
        try:
            message, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 4)
        except ConnectionResetError:
            return False  # the maker went without reading our answer
        if not message:
            return False
        request = json.loads(message)
        *streams, status_fd = descriptors
        status = socket.socket(fileno=status_fd)
        try:
            command = subprocess.Popen(
                request["argv"],
                env=request["env"],
                cwd=request["cwd"],
                stdin=streams[0],
                stdout=streams[1],
                stderr=streams[2],
                start_new_session=True,
            )
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in a word, "=" in a name
            number = error.errno if isinstance(error, OSError) else errno.EINVAL
            self._tell(status, json.dumps({"errno": number, "message": str(error)}))
            status.close()
        else:
            self._tell(status, json.dumps({"pid": command.pid}))
            self._running[command.pid] = command, status
            self._selector.register(status, selectors.EVENT_READ, command)
        for descriptor in streams:
            os.close(descriptor)
        return True

    def _signal(self, status: Any, command: subprocess.Popen[bytes]) -> None:
        if command.returncode is not None:
            return  # reaped, and its socket closed, since the selector reported this
        try:
            message = status.recv(16)
        except ConnectionResetError:
            message = b""  # the maker went without reading our answer
        if message:
            # We alone reap, and the command is not reaped: the pid is still its own.
            os.kill(command.pid, int(message))
        else:
            self._selector.unregister(status)

    def _reap(self) -> None:
        """Reap all that has ended: commands, and orphans that became our children."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._running:
                command, status = self._running.pop(pid)
                command.returncode = os.waitstatus_to_exitcode(wait_status)
                if status in self._selector.get_map():
                    self._selector.unregister(status)
                self._tell(status, str(command.returncode))
                status.close()

    @staticmethod
    def _tell(status: socket.socket, message: str) -> None:
        try:
            status.send(message.encode())
        except BrokenPipeError:
            return  # the maker has closed its handle: it does not want to know


def _kill_descendants() -> None:
    """Kill all that is below us. Orphans come to us (subreaper), so every round is one deeper."""
    while True:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == os.getpid():
                os.kill(int(stat.parent.name), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _enter(plan: dict[str, Any]) -> socket.socket:
    """In the first process: build what the plan says; return the socket that leads to the hub."""
    if plan["namespaces"]:
        name = plan["name"].encode()
        _checked("set the host name", _libc.sethostname(name, ctypes.c_size_t(len(name))))
        _build_root(plan["mount_point"], plan["directory"], plan["read_only"])
        _loopback_up()
    listener = socket.create_server(("127.0.0.1", plan["port"]))
    if plan["namespaces"]:
        _drop_privileges(plan["uid"])
    else:
        _checked("subreaper", _libc.prctl(_SUBREAPER, 1, 0, 0, 0))
    return listener


def main() -> int:
    """Run as the program described above; the plan's keys are those that `Sandbox` writes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    plan = json.loads(control.recv(MESSAGE_BYTES))
    try:
        if plan["namespaces"]:
            _leave_host(own_user=plan["uid"] is None)
            # A PID namespace begins with the next child. This process is fresh, with one thread.
            if first := os.fork():
                control.close()
                return os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
        listener = _enter(plan)
    except OSError as error:
        control.send(json.dumps({"failed": str(error)}).encode())
        return 1
    with listener:
        socket.send_fds(control, [b"{}"], [listener.fileno()])
    _Keeper(control).serve()
    if not plan["namespaces"]:
        _kill_descendants()
    return 0  # the first process of a PID namespace takes all others with it


if __name__ == "__main__":
    sys.exit(main())
