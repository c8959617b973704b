"""A node of its own network, joined to this machine by one wire that can be pulled.

The node is a network namespace; the wire is a pair of virtual interfaces, one end here and one there, with
an address each and nothing behind: no route, no other address, not even this machine's loopback. What runs
there reaches exactly what listens at `here`. To pull the wire is to take the interface down: packets vanish
and nobody is told. It needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN.

This file is also the program that keeps the namespace: `python -I -S far_node.py NAME ADDRESS MASK`.
"""

import ctypes
import fcntl
import itertools
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
_IFF_UP = 1
_MASK = "255.255.255.252"
_made = itertools.count()

# From the kernel's rtnetlink.h, if_link.h and veth.h.
_RTM_NEWLINK, _NLMSG_ERROR = 16, 2
_REQUEST_ACK_CREATE_EXCL = 0x1 | 0x4 | 0x400 | 0x200
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_NET_NS_PID = 3, 18, 19
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_NO_INTERFACE = bytes(16)


class FarNode:
    """One such node; a context manager. Raises OSError where the kernel allows no such thing."""

    def __init__(self) -> None:
        number = next(_made)
        self._name = f"chp{os.getpid()}.{number}"
        # The range for tests of network devices (RFC 2544), a subnet of four addresses for each.
        subnet = (198 << 24) + (18 << 16) + ((os.getpid() * 8 + number) % (1 << 15)) * 4
        self.here, self.there = (socket.inet_ntoa(struct.pack(">I", subnet + k)) for k in (1, 2))
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self._name, self.there, _MASK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self._heard("apart")
            _make_wire(self._name, self._keeper.pid)
            _bring_up(self._name, self.here, _MASK)
            self._tell("joined")
            self._heard("ready")
        except BaseException:
            self.close()
            raise
        self.command = ["nsenter", f"--net=/proc/{self._keeper.pid}/ns/net"]
        """What runs there whatever follows it."""

    def program(self, path: Path, command: str) -> Path:
        """Make `path` a program that runs `command` there, with its own arguments."""
        path.write_text(f'#!/bin/sh\nexec {" ".join(self.command)} {command} "$@"\n')
        path.chmod(0o755)
        return path

    def pull(self) -> None:
        """Pull the wire."""
        _set_up(self._name, up=False)

    def plug(self) -> None:
        """Plug it in again."""
        _set_up(self._name, up=True)

    def close(self) -> None:
        """Take the wire away; what still runs there reaches nothing. Idempotent."""
        # Ending its input ends the keeper; with the last process of the namespace the wire goes too.
        self._keeper.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _tell(self, word: str) -> None:
        assert self._keeper.stdin is not None  # noqa: S101 - a pipe was asked for
        self._keeper.stdin.write(word + "\n")
        self._keeper.stdin.flush()

    def _heard(self, word: str) -> None:
        assert self._keeper.stdout is not None  # noqa: S101 - a pipe was asked for
        said = self._keeper.stdout.readline().strip()
        if said != word:
            raise OSError(f"no network of its own can be made: {said or 'its keeper ended'}")


def _make_wire(name: str, there: int) -> None:
    """A pair of interfaces of this name, one here and one in the namespace of process `there`."""
    named = _attribute(_IFLA_IFNAME, name.encode() + b"\0")
    peer = _NO_INTERFACE + named + _attribute(_IFLA_NET_NS_PID, struct.pack("=I", there))
    kind = _attribute(_INFO_KIND, b"veth\0")
    data = _attribute(_INFO_DATA, _attribute(_VETH_INFO_PEER, peer))
    body = _NO_INTERFACE + named + _attribute(_IFLA_LINKINFO, kind + data)
    header = struct.pack("=IHHII", 16 + len(body), _RTM_NEWLINK, _REQUEST_ACK_CREATE_EXCL, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.send(header + body)
        answer = kernel.recv(65536)
    code = -struct.unpack_from("=i", answer, 16)[0]
    if struct.unpack_from("=IH", answer)[1] != _NLMSG_ERROR or code:
        raise OSError(code, f"make a pair of interfaces: {os.strerror(code)}")


def _attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def _bring_up(name: str, address: str, mask: str) -> None:
    """Give an interface its address, and take it up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, mask)):
            packed = struct.pack(
                "=16sHH4s8x", name.encode(), socket.AF_INET, 0, socket.inet_aton(value)
            )
            fcntl.ioctl(any_socket, request, packed)
    _set_up(name, up=True)


def _set_up(name: str, *, up: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16s16x", name.encode()))
        (flags,) = struct.unpack_from("=h", answer, 16)
        flags = flags | _IFF_UP if up else flags & ~_IFF_UP
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("=16sh14x", name.encode(), flags))


def main() -> int:
    """Keep a namespace until the end of the input."""
    name, address, mask = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEWNET) != 0:
        print(os.strerror(ctypes.get_errno()), flush=True)
        return 1
    print("apart", flush=True)
    if not sys.stdin.readline():
        return 1
    _bring_up(name, address, mask)
    print("ready", flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
