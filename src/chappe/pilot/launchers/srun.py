"""Slurm's srun. Options as in its manual page, 20.11 to 24.05."""

from __future__ import annotations

import re

from chappe.pilot.launchers.base import (
    Failure,
    HandRequest,
    Launch,
    Launcher,
    Ranks,
    one_per_rank,
    used_hosts,
)

_BIND = {"none": "none", "core": "cores", "numa": "ldoms"}
_OVERLAP_SINCE = (20, 11)

# srun: error: n1: task 3: Killed
_TASK = re.compile(r"srun: error: (\S+?): tasks? (\d+)[-,\d]*: (.+)")
_NODE = re.compile(r"srun: error: Node failure on (\S+)")
_EXIT = re.compile(r"Exited with exit code (\d+)")
_SIGNALS = {"Killed": 9, "Segmentation fault": 11, "Aborted": 6, "Bus error": 7, "Terminated": 15}


def _ranks(request: Ranks) -> Launch:
    hosts = used_hosts(request)
    argv = [
        request.program,
        f"--nodes={len(hosts)}",
        f"--ntasks={request.total}",
        "--kill-on-bad-exit=1",
    ]
    env: dict[str, str] = {}
    hostfile = ""
    if request.even:
        argv += [f"--nodelist={','.join(hosts)}", f"--ntasks-per-node={request.even}"]
    else:
        # Only a list of hosts, one for each rank, can say how many each gets.
        argv.append("--distribution=arbitrary")
        env["SLURM_HOSTFILE"] = request.hostfile
        hostfile = one_per_rank(request)
    argv += [f"--cpus-per-task={request.threads}", f"--cpu-bind={_BIND[request.binding]}"]
    if request.gpus:
        argv.append(f"--gpus-per-node={request.gpus}")
    argv += [*_shared(request.version), "--export=ALL", *request.extra, *request.argv]
    return Launch(argv, hostfile, env)


def _hand(request: HandRequest) -> list[str]:
    # Of all that the node has, and beside the steps that will be started there.
    return [
        request.program,
        "--nodes=1",
        "--ntasks=1",
        f"--nodelist={request.node}",
        "--cpu-bind=none",
        "--mem=0",
        "--overlap",
        "--kill-on-bad-exit=0",
        "--export=ALL",
        *request.argv,
    ]


def _shared(version: tuple[int, ...]) -> list[str]:
    """Beside the steps that are the hands'. Before 20.11 that was so without being asked for."""
    return [] if version and version < _OVERLAP_SINCE else ["--overlap"]


def _failure(text: str) -> Failure | None:
    if found := _NODE.search(text):
        return Failure(node=found.group(1), lost=True)
    found = _TASK.search(text)
    if found is None:
        return None
    node, rank, what = found.group(1), int(found.group(2)), found.group(3)
    if code := _EXIT.search(what):
        return Failure(rank, exit=int(code.group(1)), node=node)
    signal = next((n for words, n in _SIGNALS.items() if words in what), None)
    return Failure(rank, signal=signal, node=node) if signal else None


LAUNCHER = Launcher(
    name="srun",
    title="Slurm's srun",
    programs=("srun",),
    # Not all of SLURM_*: what sbatch was given would be taken for options of the step.
    keeps=(
        *("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CONF", "SLURM_CLUSTER_NAME", "SLURM_MPI_TYPE"),
        *("SLURM_JOB_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NUM_NODES", "SLURM_NNODES"),
        *("SLURM_JOB_CPUS_PER_NODE", "SLURM_WORKING_CLUSTER", "SLURM_JOB_UID"),
    ),
    quirks=(
        "ranks find each other only when srun speaks the PMI of their MPI library: [launch] args = "
        '["--mpi=pmix"], or another that `srun --mpi=list` names',
        "before 20.11 there is no --overlap, and steps share cores without it",
        "memory limits need cgroups in slurm.conf",
    ),
    ranks=_ranks,
    hand=_hand,
    failure=_failure,
)
