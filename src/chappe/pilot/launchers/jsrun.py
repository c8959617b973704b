"""IBM's jsrun, on LSF systems with JSM: hosts, CPUs and GPUs of each rank stand in an explicit resource file.

The file follows IBM's description of its format (Job Step Manager 10.3). Its hosts are numbers: the position
in the allocation, from 1 on.
"""

from __future__ import annotations

import re

from chappe.pilot.launchers.base import Failure, Launch, Launcher, Ranks

_RANK = re.compile(r"Rank\(?s?\)? (\d+).*?(?:signal|SIG) ?(\d+)", re.I)


def _ranks(request: Ranks) -> Launch:
    lines = ["overlapping_rs: allow", "cpu_index_using: logical"]
    rank = 0
    gpus = f" ; gpu: {{0-{request.gpus - 1}}}" if request.gpus else ""
    for host, count in zip(request.hosts, request.counts, strict=True):
        for k in range(count):
            first = k * request.threads
            cpus = f"{{{first}-{first + request.threads - 1}}}"
            lines.append(f"rank: {rank}: {{ hostname: {host} ; cpu: {cpus}{gpus} }} : app 0")
            rank += 1
    bind = {"none": "none", "core": "rs", "numa": "rs"}[request.binding]
    argv = [
        request.program,
        "--erf_input",
        request.hostfile,
        "--bind",
        bind,
        "--exit_on_error",
        "1",
    ]
    return Launch([*argv, *request.extra, *request.argv], "\n".join(lines) + "\n")


def _failure(text: str) -> Failure | None:
    found = _RANK.search(text)
    return Failure(int(found.group(1)), signal=int(found.group(2))) if found else None


LAUNCHER = Launcher(
    name="jsrun",
    title="IBM's jsrun",
    programs=("jsrun",),
    keeps=("LSB_*", "LSF_*", "JSM_*", "PMIX_*", "CSM_*"),
    quirks=(
        "it starts ranks only; hands are started by ssh",
        "CPUs in its file are counted from the first of each node",
    ),
    ranks=_ranks,
    failure=_failure,
)
