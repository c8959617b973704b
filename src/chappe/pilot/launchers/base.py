"""What a launcher is: a machine's own command that starts processes on the nodes of an allocation.

Each module beside this one describes one of them as pure functions: from a typed request to the words of
its command, and from its last words to what went wrong. Two uses: a hand on a node (`hand`), and the ranks
of one Job (`ranks`). What a launcher cannot do is None. `verified` says with what it was run by the tests;
empty: it follows its documentation, and was not verified on a real system.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Binding = Literal["none", "core", "numa"]
"""What a rank is bound to: nothing, so many cores as it has threads, or a NUMA domain."""

Version = tuple[int, ...]

UNVERIFIED = "not verified on a real system"


class Ranks(NamedTuple):
    """The ranks of one Job, to be started by `program`. `counts` are those of each host, `threads` those of
    each rank, `gpus` whole ones of each host. `env` names the variables that must reach every rank,
    `hostfile` is a path that may be written. `emulated`: the hosts are shares of this machine, whose names
    nobody can resolve."""

    program: str
    argv: Sequence[str]
    hosts: Sequence[str]
    counts: Sequence[int]
    threads: int = 1
    gpus: int = 0
    binding: Binding = "none"
    env: Sequence[str] = ()
    hostfile: str = ""
    extra: Sequence[str] = ()
    version: Version = ()
    emulated: bool = False
    root: bool = False

    @property
    def total(self) -> int:
        """How many ranks there are."""
        return sum(self.counts)

    @property
    def even(self) -> int:
        """The number of ranks on each host when all have the same, else 0."""
        return self.counts[0] if len(set(self.counts)) == 1 else 0


class Launch(NamedTuple):
    """The command, what its host file must hold ("": it needs none), and what it wants in its environment."""

    argv: list[str]
    hostfile: str = ""
    env: Mapping[str, str] = {}


class HandRequest(NamedTuple):
    """A hand to start by `program` on `node`, `position` (from 0) in the scheduler's own list, with these
    variables."""

    program: str
    node: str
    position: int
    argv: Sequence[str]
    env: Mapping[str, str]


class Failure(NamedTuple):
    """What a launcher said of the rank that took the others with it; what it did not say is None or "".
    `lost`: it was not the rank but its node."""

    rank: int | None = None
    signal: int | None = None
    exit: int | None = None
    node: str = ""
    lost: bool = False

    def words(self) -> str:
        """For people."""
        if self.lost:
            return f"its node {self.node} was lost" if self.node else "one of its nodes was lost"
        who = "a rank" if self.rank is None else f"rank {self.rank}"
        where = f" on node {self.node}" if self.node else ""
        if self.signal is not None:
            return f"{who}{where} was killed by signal {self.signal}"
        return f"{who}{where} exited with {self.exit}"


def _silent(_: str) -> Failure | None:
    return None


@dataclass(frozen=True)
class Launcher:
    """One launcher. `programs` are looked for in PATH, the first that is there is used; `keeps` are the
    names (or beginnings, with `*`) of the allocation's variables without which the command does not work."""

    name: str
    title: str
    programs: tuple[str, ...]
    keeps: tuple[str, ...] = ()
    quirks: tuple[str, ...] = ()
    verified: str = ""
    ranks: Callable[[Ranks], Launch] | None = None
    hand: Callable[[HandRequest], list[str]] | None = None
    failure: Callable[[str], Failure | None] = _silent

    def kept(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What of the allocation's environment the command must find."""
        exact = {name for name in self.keeps if not name.endswith("*")}
        begins = tuple(name[:-1] for name in self.keeps if name.endswith("*"))
        return {
            name: value
            for name, value in environ.items()
            if name in exact or (begins and name.startswith(begins))
        }


_VERSION = re.compile(r"\b(\d+(?:\.\d+)+)\b")


def version_of(text: str) -> Version:
    """The first version number in what a command printed; empty when there is none."""
    found = _VERSION.search(text)
    return tuple(int(part) for part in found.group(1).split(".")) if found else ()


def host_lines(request: Ranks, form: str) -> str:
    """A line for each host that has ranks: `form` with {host} and {count}."""
    return "".join(
        form.format(host=host, count=count) + "\n"
        for host, count in zip(request.hosts, request.counts, strict=True)
        if count > 0
    )


def one_per_rank(request: Ranks) -> str:
    """A line with the host of each rank."""
    return "".join(
        f"{host}\n" * count for host, count in zip(request.hosts, request.counts, strict=True)
    )


def used_hosts(request: Ranks) -> list[str]:
    """The hosts that have ranks."""
    return [h for h, count in zip(request.hosts, request.counts, strict=True) if count > 0]
