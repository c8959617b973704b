"""The launcher's end of the unix socket: one listener, one head at a time.

The socket lies in a private directory (0700), and only our own user is let in. A head is gone when its
connection ends, or when its process does (seen by a pidfd: a process that the head started may hold a copy
of the connection open). Frames that it wrote before its death are still read, so that a snapshot for the
next head leaves nothing out.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from chappe.core.errors import Invalid, Unavailable
from chappe.pilot.launch_wire import (
    FrameReader,
    HeadFrame,
    LauncherFrame,
    decode_head,
    encode,
)

_READ_BYTES = 64 * 1024
_READS_PER_TURN = 64
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_PATH_BYTES = 107


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`. A dead launcher's leftover is replaced, a live one's refused.

    Raises Invalid (path too long, directory not private) or Unavailable (a launcher is there).
    """
    if len(os.fsencode(path)) > _PATH_BYTES:
        raise Invalid(f"{path} is too long for a unix socket ({_PATH_BYTES} bytes)", field="socket")
    directory = path.parent.stat()
    if directory.st_uid != os.getuid() or stat.S_IMODE(directory.st_mode) & 0o077:
        raise Invalid(f"{path.parent} must be ours alone: chmod 700 it", field="socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except FileNotFoundError:
            pass
        else:
            raise Unavailable(f"a launcher listens at {path}: connect to it, or let it end first")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        listener.listen(8)
    except OSError:
        listener.close()
        raise
    return listener


def peer(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end when it connected."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    return pid, uid


class HeadLink:
    """One head's connection; never blocks."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._reader = FrameReader()
        self._unsent = memoryview(b"")
        self.fd = connection.fileno()
        self.closed = False
        self.pid, _ = peer(connection)
        self.pidfd = -1
        # Without pidfds (Linux before 5.3), or from another pid namespace, the connection alone must tell.
        with suppress(OSError):
            self.pidfd = os.pidfd_open(self.pid)

    @property
    def blocked(self) -> bool:
        """Whether a frame is still being written; send no other."""
        return len(self._unsent) > 0

    def receive(self) -> Iterator[HeadFrame]:
        """The frames that have arrived; sets `closed` at the end of the stream.

        One turn reads up to 4 MiB, more than a socket holds: after it nothing is left of a dead head.
        Raises FrameError when the head does not speak the protocol.
        """
        for _ in range(_READS_PER_TURN):
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self.closed = True
                return
            for payload in self._reader.feed(data):
                yield decode_head(payload)
            if len(data) < _READ_BYTES // 2:
                return

    def send(self, frame: LauncherFrame) -> bool:
        """Write `frame`; False when the socket took only a part of it: `flush` when it takes more."""
        self._unsent = memoryview(encode(frame))
        return self.flush()

    def flush(self) -> bool:
        """Write what is unsent; whether nothing is left."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            # The head is gone; reading will say so, after what it had written before.
            self._unsent = memoryview(b"")
        return True

    def close(self) -> None:
        """Let the head go."""
        self._socket.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
