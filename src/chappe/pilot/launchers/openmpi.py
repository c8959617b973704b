"""Open MPI's mpiexec, 3 to 5. From 5 on it is PRRTE's, whose options have other names."""

from __future__ import annotations

import re

from chappe.pilot.launchers.base import Failure, Launch, Launcher, Ranks, host_lines

# Where the hosts are shares of one machine nobody answers a remote shell: it is one of this machine's, which
# notes the name of the node, and gives its daemon a directory of its own (two that make the same one at the
# same time fail). Open MPI cuts the agent at its spaces and knows no quotes; `env -S` does.
_SHELL = (
    "CHAPPE_NODE=$0;TMPDIR=$(mktemp -d);export CHAPPE_NODE TMPDIR;"
    '/bin/sh -c "$*";code=$?;rm -rf "$TMPDIR";exit $code'
)
_AGENT = "/usr/bin/env -S/bin/sh\\_-c\\_'" + _SHELL.replace(" ", "${IFS}") + "'"

_RANK = re.compile(
    r"process rank (\d+) with PID \S+ on node (\S+) exited on\s+signal (\d+)", re.DOTALL
)
_EXIT = re.compile(r"Process name:\s*\[\[[^\]]*\],\s*(\d+)\]\s+Exit code:\s*(\d+)")
_LOST = re.compile(
    r"lost communication with a remote daemon.*?Remote daemon:\s*\[\S+\] on node (\S+)", re.DOTALL
)


def _ranks(request: Ranks) -> Launch:
    new = request.version >= (5,)
    argv = [request.program, "--hostfile", request.hostfile, "-n", str(request.total)]
    mapping = "slot"
    if request.binding == "core" and request.threads > 1:
        mapping += f":PE={request.threads}"
    if request.emulated:
        mapping += ":OVERSUBSCRIBE"
        agent = ("--prtemca", "plm_ssh_agent") if new else ("--mca", "plm_rsh_agent")
        tree = ("--prtemca", "plm_ssh_no_tree_spawn") if new else ("--mca", "plm_rsh_no_tree_spawn")
        argv += [*agent, _AGENT, *tree, "1"]
        argv += ["--prtemca" if new else "--mca", "plm", "ssh" if new else "rsh"]
        # A daemon that goes to the background and fails there is waited for, for ever.
        argv.append("--leave-session-attached")
        # Ranks of one machine would take shared memory, whatever the names of their nodes.
        argv += ["--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"]
        argv += ["--prtemca" if new else "--mca", "oob_tcp_if_include", "lo"]
    argv += ["--map-by", mapping, "--bind-to", request.binding]
    if request.root:
        argv.append("--allow-run-as-root")
    for name in request.env:
        argv += ["-x", name]
    return Launch(
        [*argv, *request.extra, *request.argv], host_lines(request, "{host} slots={count}")
    )


def _failure(text: str) -> Failure | None:
    if found := _LOST.search(text):
        return Failure(node=found.group(1), lost=True)
    if found := _RANK.search(text):
        return Failure(int(found.group(1)), signal=int(found.group(3)), node=found.group(2))
    if found := _EXIT.search(text):
        return Failure(int(found.group(1)), exit=int(found.group(2)))
    return None


LAUNCHER = Launcher(
    name="openmpi",
    title="Open MPI's mpiexec",
    programs=("mpiexec.openmpi", "mpiexec"),
    # How it finds the scheduler, by whose means it reaches the other nodes; without one it uses ssh.
    keeps=(
        *("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CONF", "SLURM_JOB_NODELIST", "SLURM_NODELIST"),
        *("SLURM_JOB_NUM_NODES", "SLURM_NNODES", "SLURM_TASKS_PER_NODE", "SLURM_JOB_CPUS_PER_NODE"),
        *("PBS_JOBID", "PBS_NODEFILE", "PBS_ENVIRONMENT", "LSB_*", "LSF_*"),
        *("SGE_ROOT", "SGE_CELL", "ARC", "PE_HOSTFILE", "JOB_ID"),
        *("OMPI_MCA_*", "PRTE_MCA_*", "PMIX_MCA_*", "OPAL_PREFIX"),
    ),
    quirks=(
        "as root it needs --allow-run-as-root, which it gets",
        "variables reach ranks on other nodes only by name (-x), which they do",
        "on emulated nodes ranks speak TCP over the loopback interface",
    ),
    verified="Open MPI 4.1.4 (Debian 12), on emulated nodes",
    ranks=_ranks,
    failure=_failure,
)
