"""Flux: `flux run` for ranks, `flux exec` for hands. Options as in flux-core's manual pages, 0.50 on."""

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

# flux-job: task(s) 3 exited with exit code 137
_EXIT = re.compile(r"task\(s\) (\d+)[-,\d]*:? .*?exited with exit code (\d+)")
# flux-shell[1]: ERROR: … Killed
_KILLED = re.compile(r"task\(s\) (\d+)[-,\d]*:? .*?(?:signal|Signal) (\d+)")


def _ranks(request: Ranks) -> Launch:
    if not request.even and len(used_hosts(request)) > 1:
        raise Invalid(
            "flux run spreads ranks evenly: give every node the same number of them",
            field="resources.ranks",
        )
    hosts = used_hosts(request)
    argv = [request.program, "run", f"--nodes={len(hosts)}", f"--ntasks={request.total}"]
    argv += [f"--cores-per-task={request.threads}", f"--requires=hosts:{','.join(hosts)}"]
    if request.gpus and request.gpus % request.counts[0] == 0:
        argv.append(f"--gpus-per-task={request.gpus // request.counts[0]}")
    affinity = {"none": "off", "core": "per-task", "numa": "on"}[request.binding]
    argv += ["-o", f"cpu-affinity={affinity}"]
    return Launch([*argv, *request.extra, *request.argv])


def _hand(request: HandRequest) -> list[str]:
    # Beside Flux's own accounts: a job of Flux would hold the cores that ranks are to have.
    return [request.program, "exec", f"--rank={request.position}", *request.argv]


def _failure(text: str) -> Failure | None:
    if found := _KILLED.search(text):
        return Failure(int(found.group(1)), signal=int(found.group(2)))
    if found := _EXIT.search(text):
        code = int(found.group(2))
        if code > 128:
            return Failure(int(found.group(1)), signal=code - 128)
        return Failure(int(found.group(1)), exit=code)
    return None


LAUNCHER = Launcher(
    name="flux",
    title="flux run",
    programs=("flux",),
    keeps=("FLUX_*",),
    quirks=(
        "every node gets the same number of ranks",
        "a hand is started by the rank of its broker, the node's position in the instance",
    ),
    ranks=_ranks,
    hand=_hand,
    failure=_failure,
)
