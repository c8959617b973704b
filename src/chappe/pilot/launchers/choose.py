"""Which launcher is used, and why: the owner's word, or what the allocation and the machine show.

Pure: what is there is asked of `Machine`, so that the login node can be told to answer as an allocation
would.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from typing import NamedTuple

from chappe.pilot.launchers import LAUNCHERS, named
from chappe.pilot.launchers.base import Launcher, Version, version_of

AUTO = "auto"

_SCHEDULERS = {
    "slurm": "SLURM_JOB_ID",
    "pbs": "PBS_JOBID",
    "lsf": "LSB_JOBID",
    "gridengine": "PE_HOSTFILE",
    "flux": "FLUX_URI",
}
_VERSION_S = 20.0


class Machine(NamedTuple):
    """What can be asked: the environment, where a program is (None: nowhere), and what a command prints."""

    environ: Mapping[str, str]
    which: Callable[[str], str | None]
    said: Callable[[str], str]


class Choice(NamedTuple):
    """A launcher, its program and version as far as they are known, and why it was chosen."""

    launcher: Launcher
    program: str
    version: Version
    why: str


def this_machine(scheduler: str = "") -> Machine:
    """The machine that this process runs on; with `scheduler` as if in an allocation of that one."""
    environ = dict(os.environ)
    if scheduler in _SCHEDULERS:
        environ.setdefault(_SCHEDULERS[scheduler], "?")
    return Machine(environ, shutil.which, _said)


def _said(program: str) -> str:
    """What `PROGRAM --version` prints, empty when it fails."""
    try:
        ran = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return (ran.stdout + ran.stderr).decode(errors="replace")


def for_hands(wanted: str, machine: Machine) -> Choice:
    """Which launcher starts hands. Raises Invalid for a name that is none."""
    if wanted != AUTO:
        return _given(wanted, machine, "[launch] hands")
    for variable, name in (
        ("FLUX_URI", "flux"),
        ("SLURM_JOB_ID", "srun"),
        ("PBS_JOBID", "pbsdsh"),
    ):
        if variable in machine.environ and (path := _program(name, machine)):
            why = f"the allocation has {variable}, and {path} is there"
            return Choice(LAUNCHERS[name], path, _version(name, path, machine), why)
    path = _program("ssh", machine)
    why = "no scheduler's own command was found" + ("" if path else ", nor ssh")
    return Choice(LAUNCHERS["ssh"], path or "ssh", (), why)


def for_ranks(wanted: str, machine: Machine) -> Choice:
    """Which launcher starts the ranks of a Job. Raises Invalid for a name that is none."""
    if wanted != AUTO:
        return _given(wanted, machine, "[launch] ranks")
    for variable, name in (("LSB_JOBID", "jsrun"), ("FLUX_URI", "flux"), ("SLURM_JOB_ID", "srun")):
        if variable in machine.environ and (path := _program(name, machine)):
            why = f"the allocation has {variable}, and {path} is there"
            return Choice(LAUNCHERS[name], path, _version(name, path, machine), why)
    mpiexec = machine.which("mpiexec")
    if mpiexec is None:
        return Choice(
            LAUNCHERS["fork"], "", (), "no launcher of a scheduler, and no mpiexec in PATH"
        )
    if machine.which("palstat"):
        return Choice(LAUNCHERS["pals"], mpiexec, (), f"{mpiexec} is there, and PALS' palstat")
    said = machine.said(mpiexec)
    name = kind_of_mpiexec(said)
    if not name:
        first = said.strip().splitlines()[:1]
        why = f"{mpiexec} is of an unknown kind: it says {first[0][:80] if first else 'nothing'!r}"
        return Choice(LAUNCHERS["fork"], "", (), why)
    return Choice(LAUNCHERS[name], mpiexec, version_of(said), f"{mpiexec} says that it is one")


def kind_of_mpiexec(said: str) -> str:
    """The name of the launcher that calls itself so; empty for an unknown one."""
    if "Open MPI" in said or "OpenRTE" in said or "PRRTE" in said:
        return "openmpi"
    if "Intel(R) MPI" in said:
        return "intelmpi"
    return "hydra" if "HYDRA" in said else ""


def _given(wanted: str, machine: Machine, field: str) -> Choice:
    launcher = named(wanted, field)
    path = _program(wanted, machine)
    missing = "" if path or not launcher.programs else "; its command is not in PATH here"
    version = _version(wanted, path, machine) if path else ()
    return Choice(launcher, path, version, f"{field} names it{missing}")


def _program(name: str, machine: Machine) -> str:
    """Where the launcher's command is, empty when it is not there."""
    for program in LAUNCHERS[name].programs:
        if path := machine.which(program):
            return path
    return ""


def _version(name: str, path: str, machine: Machine) -> Version:
    # Only where options depend on it: a command can take a second to say so.
    return version_of(machine.said(path)) if name in ("srun", "openmpi") else ()
