"""Hydra, the mpiexec of MPICH and of what is made from it; Intel MPI's differs in a few words."""

from __future__ import annotations

import re

from chappe.pilot.launchers.base import Failure, Launch, Launcher, Ranks, host_lines

_BIND = {"none": "none", "core": "core", "numa": "numa"}
_KEEPS = (
    *("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CONF", "SLURM_JOB_NODELIST", "SLURM_NODELIST"),
    *("SLURM_NNODES", "SLURM_TASKS_PER_NODE", "PBS_JOBID", "PBS_NODEFILE", "PBS_ENVIRONMENT"),
    *("LSB_*", "LSF_*", "SGE_ROOT", "SGE_CELL", "ARC", "PE_HOSTFILE", "JOB_ID", "HYDRA_*"),
)

_PID = re.compile(r"PID \d+ RUNNING AT (\S+)")
_CODE = re.compile(r"EXIT CODE: (\d+)")
_SIGNAL = re.compile(r"EXIT STRING:.*\(signal (\d+)\)")
_INTEL = re.compile(r"rank (\d+) \(PID \d+\) (?:RUNNING AT|on) (\S+)")
_INTEL_KILLED = re.compile(r"KILLED BY SIGNAL: (\d+)")
_PROXY = re.compile(r"(?:connection to proxy|proxy).*?at host (\S+?) (?:failed|lost)", re.DOTALL)


def _ranks(request: Ranks) -> Launch:
    argv = [request.program, "-f", request.hostfile, "-n", str(request.total), "-genvall"]
    if request.binding == "core" and request.threads > 1:
        argv += ["-bind-to", f"core:{request.threads}"]
    else:
        argv += ["-bind-to", _BIND[request.binding]]
    return Launch([*argv, *request.extra, *request.argv], host_lines(request, "{host}:{count}"))


def _intel(request: Ranks) -> Launch:
    argv = [request.program, "-f", request.hostfile, "-n", str(request.total), "-genvall"]
    if request.binding == "none":
        argv += ["-genv", "I_MPI_PIN", "off"]
    else:
        domain = str(request.threads) if request.binding == "core" else "numa"
        argv += ["-genv", "I_MPI_PIN", "on", "-genv", "I_MPI_PIN_DOMAIN", domain]
    return Launch([*argv, *request.extra, *request.argv], host_lines(request, "{host}:{count}"))


def _failure(text: str) -> Failure | None:
    if found := _PROXY.search(text):
        return Failure(node=found.group(1), lost=True)
    rank, node = None, ""
    if found := _INTEL.search(text):
        rank, node = int(found.group(1)), found.group(2)
    elif found := _PID.search(text):
        node = found.group(1)
    else:
        return None
    if found := _SIGNAL.search(text) or _INTEL_KILLED.search(text):
        return Failure(rank, signal=int(found.group(1)), node=node)
    if found := _CODE.search(text):
        return Failure(rank, exit=int(found.group(1)), node=node)
    return None


LAUNCHER = Launcher(
    name="hydra",
    title="MPICH's mpiexec (Hydra)",
    programs=("mpiexec.hydra", "mpiexec.mpich", "mpiexec"),
    keeps=_KEEPS,
    quirks=("it says on which node a rank was killed, and not which rank it was",),
    ranks=_ranks,
    failure=_failure,
)

INTEL = Launcher(
    name="intelmpi",
    title="Intel MPI's mpiexec",
    programs=("mpiexec.hydra", "mpiexec"),
    keeps=(*_KEEPS, "I_MPI_*", "FI_*"),
    quirks=(
        "a host file is passed over inside some schedulers unless I_MPI_HYDRA_BOOTSTRAP and "
        "I_MPI_JOB_RESPECT_PROCESS_PLACEMENT=off are set: [pilot] env",
    ),
    ranks=_intel,
    failure=_failure,
)
