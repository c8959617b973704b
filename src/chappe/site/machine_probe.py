"""Looks at the machine: which scheduler's commands there are, and what they say. Asks each once.

A command that fails, hangs or prints nonsense is a fact not found, and no error.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import subprocess
from pathlib import Path

from chappe.link import pinned
from chappe.site import machine
from chappe.site.machine import Machine, Partition

_COMMAND_S = 20.0
_OUTPUT_CHARS = 1 << 20
#: What tells a scheduler by its commands. Slurm comes before PBS, whose commands it may offer as well.
_MARKS = (
    ("slurm", ("sinfo", "sbatch")),
    ("gridengine", ("qconf", "qsub")),
    ("pbs", ("qstat", "qsub")),
    ("lsf", ("bqueues", "bsub")),
    ("flux", ("flux",)),
)
_VERSION = {
    "slurm": ("sinfo", "--version"),
    "pbs": ("qstat", "--version"),
    "gridengine": ("qconf", "-help"),
    "lsf": ("bqueues", "-V"),
    "flux": ("flux", "version"),
}


def look() -> Machine:
    """What this machine is, as far as it says."""
    kind = next((kind for kind, names in _MARKS if all(map(shutil.which, names))), "")
    version = _version(kind)
    # PBS says `pbs_version = …` of itself, and Torque `Version: …`.
    torque = kind == "pbs" and version.startswith("Version:")
    return Machine(
        kind="torque" if torque else kind,
        version=version,
        partitions=_partitions(kind),
        interfaces=_interfaces(),
        modules=machine.modules(os.environ),
        shared=machine.shared_file_systems(_read(Path("/proc/mounts"))),
        scratch=machine.scratch(os.environ),
    )


def _partitions(kind: str) -> tuple[Partition, ...]:
    if kind == "slurm":
        nodes = _said("sinfo", "-h", "-o", "%P|%a|%l|%D|%c|%m|%G")
        return machine.slurm(nodes, _said("scontrol", "show", "partition", "--oneliner"))
    if kind == "pbs":
        return machine.pbs(_said("qstat", "-Q", "-f"))
    if kind == "gridengine":
        names = _said("qconf", "-sql").split()[: machine.PARTITIONS_MOST]
        return machine.grid_engine({name: _said("qconf", "-sq", name) for name in names})
    return ()


def _version(kind: str) -> str:
    """The first line of what the scheduler says of itself."""
    if kind not in _VERSION:
        return ""
    first = _said(*_VERSION[kind]).strip().partition("\n")[0]
    return first.removeprefix(kind).strip()[:60]


def _said(*argv: str) -> str:
    """What a command prints; nothing when it fails."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[:_OUTPUT_CHARS] if done.returncode == 0 else ""


def _interfaces() -> tuple[tuple[str, str], ...]:
    """Interfaces with a private IPv4 address, by which compute nodes may reach this one."""
    return tuple(
        (name, address)
        for _, name in socket.if_nameindex()
        for address in pinned.addresses(name)
        if ipaddress.ip_address(address).is_private
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[:_OUTPUT_CHARS]
    except OSError:
        return ""
