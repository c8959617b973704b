"""What a node is made of: CPUs by NUMA domain, and GPUs with the domain that each is attached to.

Read from /sys and /proc, where the kernel tells it to everybody; no vendor's tool or library is asked. GPUs
go by UUID, because their numbers change with what a process may see: CUDA_VISIBLE_DEVICES and
ROCR_VISIBLE_DEVICES take UUIDs, whatever the batch system had set them to. A file in the Site's directory can
say instead what there is (`[pilot] topology`): for a machine that does not tell, and for tests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from chappe.core.errors import Invalid

NVIDIA = "nvidia"
AMD = "amd"
VARIABLES = {NVIDIA: "CUDA_VISIBLE_DEVICES", AMD: "ROCR_VISIBLE_DEVICES"}
"""The variable that says which GPUs a process may use, by vendor."""


class TopologyProblem(Invalid):
    """The file that describes a node cannot be used; the message names it."""

    default_code = "topology_problem"


class Gpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One GPU. `numa` is the domain that it is attached to, -1 when that is not known."""

    uuid: str
    vendor: str = NVIDIA
    numa: int = -1


class Topology(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node: the CPUs of each NUMA domain, its GPUs, and its memory (0: what the kernel says)."""

    domains: tuple[tuple[int, ...], ...]
    gpus: tuple[Gpu, ...] = ()
    mem_bytes: int = 0


def load(path: Path) -> Topology:
    """The node as a JSON file describes it. Raises TopologyProblem."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Topology)
    except (OSError, msgspec.MsgspecError) as e:
        raise TopologyProblem(f"{path}: {e}", field="pilot.topology") from e
    cpus = [cpu for domain in found.domains for cpu in domain]
    uuids = [gpu.uuid for gpu in found.gpus]
    if not cpus or len(set(cpus)) < len(cpus) or len(set(uuids)) < len(uuids):
        raise TopologyProblem(
            f"{path}: it needs CPUs, and each CPU and each GPU once", field="pilot.topology"
        )
    return found


def read(allowed: Collection[int], environ: Mapping[str, str], root: Path = Path("/")) -> Topology:
    """This node as far as this process may use it: `allowed` are its CPUs, `environ` may name its GPUs.

    `root` is where sys/ and proc/ are found.
    """
    left = set(allowed)
    domains: dict[int, tuple[int, ...]] = {}
    for directory in _numbered(root / "sys/devices/system/node", "node"):
        cpus = sorted(left.intersection(_cpu_list(_text(directory / "cpulist"))))
        if cpus:
            domains[_number(directory.name)] = tuple(cpus)
            left.difference_update(cpus)
    if left:  # a kernel without NUMA, or CPUs that it does not place
        domains[max(domains, default=-1) + 1] = tuple(sorted(left))
    place = {number: index for index, number in enumerate(domains)}
    gpus = [
        msgspec.structs.replace(gpu, numa=place.get(gpu.numa, -1))
        for gpu in (*_nvidia(root, environ), *_amd(root, environ))
    ]
    return Topology(tuple(domains.values()), tuple(gpus), _memory(root))


def limit(found: Topology, cores: int) -> Topology:
    """The same node with at most so many CPUs, taken from the first domains on."""
    domains = []
    for cpus in found.domains:
        if cores > 0:
            domains.append(cpus[:cores])
            cores -= len(domains[-1])
    return msgspec.structs.replace(found, domains=tuple(domains))


def _nvidia(root: Path, environ: Mapping[str, str]) -> list[Gpu]:
    """In the order of their PCI addresses, which is how the batch system numbers them."""
    found = []
    for directory in _entries(root / "proc/driver/nvidia/gpus"):
        named = re.search(r"GPU UUID:\s*(GPU-[0-9a-f-]+)", _text(directory / "information"))
        if named:
            device = root / "sys/bus/pci/devices" / directory.name.lower()
            found.append(Gpu(named.group(1), NVIDIA, _integer(_text(device / "numa_node"))))
    return _visible(found, environ.get(VARIABLES[NVIDIA]))


def _amd(root: Path, environ: Mapping[str, str]) -> list[Gpu]:
    found = []
    for directory in _numbered(root / "sys/class/kfd/kfd/topology/nodes", ""):
        said = dict(
            pair
            for line in _text(directory / "properties").splitlines()
            if len(pair := line.split()) == 2
        )
        unique = _integer(said.get("unique_id", ""))
        if unique > 0 and _integer(said.get("simd_count", "")) > 0:
            minor = said.get("drm_render_minor", "")
            device = root / f"sys/class/drm/renderD{minor}/device"
            numa = _integer(_text(device / "numa_node"))
            found.append(Gpu(f"GPU-{unique:016x}", AMD, numa))
    return _visible(found, environ.get(VARIABLES[AMD]))


def _visible(found: list[Gpu], allowed: str | None) -> list[Gpu]:
    """Those that the batch system left to us, by number or by (the beginning of) their UUID."""
    if allowed is None:
        return found
    kept = []
    for word in filter(None, (part.strip() for part in allowed.split(","))):
        if word.isdigit():
            kept += found[int(word) : int(word) + 1]
        else:
            kept += [gpu for gpu in found if gpu.uuid.startswith(word)][:1]
    return list(dict.fromkeys(kept))


def _memory(root: Path) -> int:
    named = re.search(r"MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo"))
    if named:
        return int(named.group(1)) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _entries(directory: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(directory.iterdir())
    return []


def _numbered(directory: Path, prefix: str) -> list[Path]:
    """The entries called `prefix` and a number, by number."""
    named = [e for e in _entries(directory) if re.fullmatch(rf"{prefix}\d+", e.name)]
    return sorted(named, key=lambda entry: _number(entry.name))


def _number(name: str) -> int:
    return int(re.sub(r"\D", "", name))


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _integer(text: str) -> int:
    with suppress(ValueError):
        return int(text)
    return -1


def _cpu_list(text: str) -> list[int]:
    """The numbers of a list like `0-3,8`."""
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus
