"""HPE's PALS, on Cray EX systems with PBS: its mpiexec."""

from __future__ import annotations

import re

from chappe.core.errors import Invalid
from chappe.pilot.launchers.base import (
    Failure,
    HandRequest,
    Launch,
    Launcher,
    Ranks,
    used_hosts,
)

# x1000c0s0b0n0.hostmgmt: rank 3 died from signal 9
_RANK = re.compile(r"^(\S+?): rank (\d+) (?:died from signal (\d+)|exited with code (\d+))", re.M)


def _ranks(request: Ranks) -> Launch:
    hosts = used_hosts(request)
    counts = [count for count in request.counts if count > 0]
    # It fills one node after the other: all but the last must have the same.
    if len(set(counts[:-1])) > 1 or counts[-1] > counts[0]:
        raise Invalid(
            "PALS gives every node the same number of ranks: set `ranks_per_node`, so that only the "
            "last node has fewer",
            field="resources.ranks_per_node",
        )
    argv = [request.program, "-n", str(request.total), "--ppn", str(counts[0])]
    argv += ["--hosts", ",".join(hosts), "--envall"]
    argv += ["--depth", str(request.threads)]
    bind = {"none": "none", "core": "depth", "numa": "numa"}[request.binding]
    argv += ["--cpu-bind", bind]
    return Launch([*argv, *request.extra, *request.argv])


def _hand(request: HandRequest) -> list[str]:
    argv = [request.program, "-n", "1", "--ppn", "1", "--hosts", request.node]
    return [*argv, "--envall", "--cpu-bind", "none", *request.argv]


def _failure(text: str) -> Failure | None:
    found = _RANK.search(text)
    if found is None:
        return None
    node, rank, signal, code = found.groups()
    if signal is not None:
        return Failure(int(rank), signal=int(signal), node=node)
    return Failure(int(rank), exit=int(code), node=node)


LAUNCHER = Launcher(
    name="pals",
    title="HPE's PALS mpiexec",
    programs=("mpiexec",),
    keeps=("PBS_*", "PALS_*", "SLURM_JOB_ID", "MPICH_*"),
    quirks=(
        "every node gets the same number of ranks, the last one the rest",
        "GPUs are chosen by the ranks themselves, from their local rank",
    ),
    ranks=_ranks,
    hand=_hand,
    failure=_failure,
)
