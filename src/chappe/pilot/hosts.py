"""The nodes of an allocation: what they are called, and how a hand is started on each.

The head runs on the first. How the others are reached is the machine's business, and behind one interface:
by a launcher that we know (the scheduler's own `srun`, or `ssh`), by a command of the Site's own, or, with
the `local` scheduler, not at all: then each node is a share of this machine, with a name and a loopback
address of its own.
"""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Literal, Protocol

import msgspec

from chappe.core.errors import Invalid, Unavailable
from chappe.pilot.launchers.allocation import Found, nodes
from chappe.pilot.launchers.base import HandRequest
from chappe.pilot.launchers.choose import AUTO, Choice, for_hands, this_machine
from chappe.pilot.procs import find_marked
from chappe.pilot.topology import Topology

_LIST_S = 60.0
_HAND_ENV = ("CHAPPE_SESSION", "CHAPPE_NODE", "PATH", "LD_LIBRARY_PATH")
"""What a hand is given where its launcher takes no variables along."""


class HostsOptions(msgspec.Struct, frozen=True):
    """The `hosts` of session.json. `kind` "": one node. For `command`, `names` prints the names of all
    nodes, one to a line, and `start` runs what follows it on `{node}`. For `launcher` the scheduler's
    variables name them, and `launcher` reaches them ("auto": the one that is found)."""

    kind: Literal["", "emulated", "command", "launcher"] = ""
    launcher: str = AUTO
    nodes: int = 1
    names: tuple[str, ...] = ()
    start: tuple[str, ...] = ()


class Hosts(Protocol):
    """The nodes of one allocation; `names[0]` is the head's own."""

    names: Sequence[str]

    async def start(self, node: str, argv: Sequence[str], log: IO[bytes]) -> Process:
        """Start a hand on `node`. Raises OSError. That this process ends proves nothing."""

    def gone(self, node: str) -> bool:
        """Whether it is proven that nothing of this Session is left on `node`."""

    def share(self, node: str, found: Topology) -> Topology:
        """The part of a machine's topology that is this node."""

    def address(self, node: str) -> str | None:
        """The address that a hand on `node` must use; None for any."""


async def find(options: HostsOptions, session: str) -> Hosts | None:
    """The nodes of this allocation; None when there is one. Raises Invalid, Unavailable."""
    if options.kind == "emulated" and options.nodes > 1:
        return Emulated(session, options.nodes)
    if options.kind == "launcher":
        found = nodes(os.environ, _read)
        return (
            Launched(found, for_hands(options.launcher, this_machine())) if len(found) > 1 else None
        )
    if options.kind != "command":
        return None
    names = await _list(options.names)
    return Commanded(names, options.start) if len(names) > 1 else None


def known(options: HostsOptions, session: str, node: str) -> Hosts:
    """The same, for a hand, which knows only its own name."""
    if options.kind == "emulated":
        return Emulated(session, options.nodes)
    return Remote([node])


class Emulated:
    """Shares of this machine, for tests and for trying things out."""

    def __init__(self, session: str, nodes: int) -> None:
        self._session = session
        self.names: Sequence[str] = [f"n{k}" for k in range(nodes)]

    async def start(self, node: str, argv: Sequence[str], log: IO[bytes]) -> Process:
        """As a process of its own session."""
        return await _start(argv, _env(node), log)

    def gone(self, node: str) -> bool:
        """No process bears the node's mark."""
        return not find_marked(self._session, node)

    def share(self, node: str, found: Topology) -> Topology:
        """Every n-th CPU and GPU, but at least one CPU, which nodes then share."""
        k, n = self.names.index(node), len(self.names)
        cpus = [cpu for domain in found.domains for cpu in domain]
        mine = set(cpus[k::n] or [cpus[k % len(cpus)]])
        domains = [tuple(cpu for cpu in domain if cpu in mine) for domain in found.domains]
        return Topology(tuple(filter(None, domains)), found.gpus[k::n], found.mem_bytes // n)

    def address(self, node: str) -> str | None:
        """One of the loopback network's."""
        return f"127.0.0.{2 + self.names.index(node) % 250}"


class Remote:
    """Machines of their own; as a hand sees them, which starts no others."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    async def start(self, node: str, argv: Sequence[str], log: IO[bytes]) -> Process:
        """Not for a hand. Raises OSError."""
        raise OSError(f"nothing here reaches {node}")

    def gone(self, node: str) -> bool:
        """The scheduler alone could say so."""
        return False

    def share(self, node: str, found: Topology) -> Topology:
        """All that a hand finds."""
        return found

    def address(self, node: str) -> str | None:
        """Whichever reaches the head."""
        return None


class Commanded(Remote):
    """Nodes that a command of the Site's own reaches."""

    def __init__(self, names: Sequence[str], start: Sequence[str]) -> None:
        if not any("{node}" in word for word in start):
            raise Invalid("the command that starts hands must name the {node}", field="pilot.hands")
        super().__init__(names)
        self._start = start

    async def start(self, node: str, argv: Sequence[str], log: IO[bytes]) -> Process:
        """By the command, with the hand's own behind it."""
        words = [word.replace("{node}", node) for word in self._start]
        return await _start([*words, *argv], _env(node), log)


class Launched(Remote):
    """Nodes that a launcher reaches."""

    def __init__(self, found: Sequence[Found], choice: Choice) -> None:
        super().__init__(_own_first([one.name for one in found]))
        self._positions = {one.name: one.position for one in found}
        self._choice = choice
        if choice.launcher.hand is None:
            raise Invalid(
                f"{choice.launcher.title} starts no hands: srun, pbsdsh, flux, pals and ssh do",
                field="launch.hands",
            )

    async def start(self, node: str, argv: Sequence[str], log: IO[bytes]) -> Process:
        """By the launcher, with the marks of our Session."""
        hand = self._choice.launcher.hand
        if hand is None:
            raise OSError(f"{self._choice.launcher.title} starts no hands")
        env = _env(node)
        marks = {name: env[name] for name in _HAND_ENV if name in env}
        request = HandRequest(self._choice.program, node, self._positions[node], argv, marks)
        return await _start(hand(request), env, log)


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")


def _own_first(names: Sequence[str]) -> list[str]:
    """The node that we are on before the others."""
    own = os.uname().nodename
    mine = next((n for n in names if n == own or n.split(".")[0] == own.split(".")[0]), names[0])
    return [mine, *(name for name in names if name != mine)]


def _env(node: str) -> Mapping[str, str]:
    return {**os.environ, "CHAPPE_NODE": node}


async def _start(argv: Sequence[str], env: Mapping[str, str], log: IO[bytes]) -> Process:
    return await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=env,
        start_new_session=True,
    )


async def _list(command: Sequence[str]) -> list[str]:
    """The names that a command prints, our own first."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(_LIST_S):
            out, _ = await process.communicate()
    except (OSError, TimeoutError, IndexError, TypeError) as e:
        raise Unavailable(f"the names of the nodes cannot be had by {list(command)}: {e}") from e
    names = list(dict.fromkeys(out.decode(errors="replace").split()))
    if process.returncode != 0 or not names:
        raise Unavailable(f"{list(command)} ended with {process.returncode} and named {names}")
    return _own_first(names)
