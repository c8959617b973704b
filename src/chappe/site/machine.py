"""What kind of machine a Site is made on, read from what its own commands print, and written into site.toml.

Pure: texts in, facts and texts out; `machine_probe` runs the commands. What is found is set where the file
has a key for it, and otherwise said in comments: the owner edits the file, and knows the machine better.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from chappe.core import limits
from chappe.core.batchjobs import check_word
from chappe.core.errors import Invalid

PARTITIONS_MOST = 50
"""Partitions that are written down; a machine with more has reasons that we do not know."""
_SHARED_TYPES = frozenset(
    ["lustre", "gpfs", "beegfs", "ceph", "panfs", "wekafs", "daosfs", "orangefs", "nfs", "nfs4"]
)
_LIMIT = re.compile(r"(?:([0-9]{1,4})-)?([0-9]{1,9})(?::([0-9]{2}))?(?::([0-9]{2}))?", re.ASCII)
_SCRATCH = ("SCRATCH", "PSCRATCH", "WORK", "WORKDIR", "SCRATCHDIR", "LOCAL_SCRATCH")


class Partition(NamedTuple):
    """A partition or queue. 0: no limit that is known; `mem_mib` and `cores` are of one node."""

    name: str
    default: bool = False
    open: bool = True
    nodes: int = 0
    cores: int = 0
    mem_mib: int = 0
    gpus: str = ""
    nodes_max: int = 0
    wall_s_max: float = 0.0


class Machine(NamedTuple):
    """What was found. `kind` is the scheduler's name with us, "" without any; `interfaces` are names and
    private addresses, `shared` directories and the types of their file systems."""

    kind: str = ""
    version: str = ""
    partitions: tuple[Partition, ...] = ()
    interfaces: tuple[tuple[str, str], ...] = ()
    modules: str = ""
    shared: tuple[tuple[str, str], ...] = ()
    scratch: tuple[tuple[str, str], ...] = ()


def slurm(sinfo: str, scontrol: str) -> tuple[Partition, ...]:
    """Partitions by `sinfo -h -o %P|%a|%l|%D|%c|%m|%G` and `scontrol show partition --oneliner`."""
    found: dict[str, Partition] = {}
    for line in sinfo.splitlines():
        fields = line.strip().split("|")
        if len(fields) != 7:
            continue
        name, state, wall, nodes, cores, mem, gres = fields
        part = Partition(
            name.removesuffix("*"),
            default=name.endswith("*"),
            open=state == "up",
            nodes=_number(nodes),
            cores=_number(cores),
            mem_mib=_number(mem),
            gpus=gres.partition("(")[0] if gres.startswith("gpu") else "",
            wall_s_max=_seconds(wall),
        )
        # Nodes that are not alike have lines of their own.
        old = found.get(part.name)
        if old is not None:
            part = part._replace(
                default=old.default or part.default,
                nodes=old.nodes + part.nodes,
                cores=max(old.cores, part.cores),
                mem_mib=max(old.mem_mib, part.mem_mib),
                gpus=old.gpus or part.gpus,
            )
        found[part.name] = part
    for line in scontrol.splitlines():
        said = dict(word.split("=", 1) for word in line.split() if "=" in word)
        name = said.get("PartitionName", "")
        if name in found:
            found[name] = found[name]._replace(nodes_max=_number(said.get("MaxNodes", "")))
    return tuple(found.values())


def pbs(qstat: str) -> tuple[Partition, ...]:
    """Execution queues by `qstat -Q -f` of PBS Professional, OpenPBS or Torque."""
    found: list[Partition] = []
    for block in re.split(r"^Queue: ", qstat, flags=re.MULTILINE)[1:]:
        name, _, rest = block.partition("\n")
        said = {
            key.strip().lower(): value.strip()
            for key, equals, value in (line.partition("=") for line in rest.splitlines())
            if equals
        }
        if said.get("queue_type", "").lower() not in ("execution", "e"):
            continue
        found.append(
            Partition(
                name.strip(),
                open=said.get("enabled") == "True" and said.get("started") == "True",
                nodes_max=_number(said.get("resources_max.nodect", "")),
                wall_s_max=_seconds(said.get("resources_max.walltime", "")),
            )
        )
    return tuple(found)


def grid_engine(queues: Mapping[str, str]) -> tuple[Partition, ...]:
    """Cluster queues by what `qconf -sq NAME` prints of each."""
    found = []
    for name, text in queues.items():
        said = dict(words for line in text.splitlines() if len(words := line.split(None, 1)) == 2)
        closed = said.get("initial_state", "").strip() == "disabled"
        wall = _seconds(said.get("h_rt", ""))
        found.append(Partition(name, open=not closed, wall_s_max=wall))
    return tuple(found)


def shared_file_systems(mounts: str) -> tuple[tuple[str, str], ...]:
    """Directories and types of parallel and network file systems in the text of /proc/mounts."""
    found = []
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] in _SHARED_TYPES:
            place = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[1])
            found.append((place, fields[2]))
    return tuple(dict.fromkeys(found))[:PARTITIONS_MOST]


def scratch(environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Variables by which machines tell their users where scratch space is, and what they say."""
    return tuple((name, environ[name]) for name in _SCRATCH if environ.get(name))


def modules(environ: Mapping[str, str]) -> str:
    """What `module` is here: `Lmod 8.7`, `environment modules 5.2`, or nothing."""
    if environ.get("LMOD_VERSION") or environ.get("LMOD_CMD"):
        return f"Lmod {environ.get('LMOD_VERSION', '')}".strip()
    if environ.get("MODULESHOME"):
        return f"environment modules {environ.get('MODULES_VERSION', '')}".strip()
    return ""


def _number(text: str) -> int:
    """A number, `128+` (at least) too; 0 for what is unlimited or unknown."""
    found = re.fullmatch(r"([0-9]{1,9})\+?", text.strip(), re.ASCII)
    return int(found[1]) if found else 0


def _seconds(text: str) -> float:
    """A limit as `1-00:00:00`, `24:00:00`, `30:00` or seconds; 0 for what is unlimited or unknown."""
    found = _LIMIT.fullmatch(text.strip())
    if found is None:
        return 0.0
    days = int(found[1] or 0)
    parts = [int(part) for part in found.groups()[1:] if part is not None]
    total = 0
    for part in parts:
        total = total * 60 + part
    # Hours alone stand behind days.
    if days and len(parts) < 3:
        total *= 60 ** (3 - len(parts))
    seconds = float(days * 86_400 + total)
    return seconds if seconds <= limits.WALL_MAX_S else 0.0


# --- into site.toml


def settings(machine: Machine, kinds: Sequence[str]) -> dict[str, dict[str, object]]:
    """What is set: section → key → value. Only what this version's adapters (`kinds`) can use."""
    if machine.kind not in kinds:
        return {}
    usable = [part for part in machine.partitions if part.open and _usable(part.name)]
    found: dict[str, dict[str, object]] = {"scheduler": {"kind": machine.kind}}
    for part in usable:
        if part.default:
            found["scheduler"]["queue"] = part.name
    if usable and len(usable) <= PARTITIONS_MOST:
        found["policy"] = {"queues": {part.name: _limits(part) for part in usable}}
    if machine.modules:
        found["scheduler"]["shell"] = "/bin/bash -l"
    return found


def _usable(name: str) -> bool:
    try:
        check_word(name, "queue")
    except Invalid:
        return False
    return bool(name)


def _limits(part: Partition) -> dict[str, float | int]:
    rule: dict[str, float | int] = {}
    if part.nodes_max:
        rule["nodes_max"] = part.nodes_max
    if part.wall_s_max:
        rule["wall_s_max"] = part.wall_s_max
    return rule


def remarks(machine: Machine, kinds: Sequence[str]) -> dict[str, list[str]]:
    """What is said in comments: section → lines."""
    found: dict[str, list[str]] = {}
    if not machine.kind:
        found["scheduler"] = ["No batch system was found here."]
    elif machine.kind not in kinds:
        found["scheduler"] = [
            f"{machine.kind} was found here, and this version has no adapter for it: pilots that run on",
            'this machine itself ("local") should not do so on a login node.',
        ]
    else:
        found["scheduler"] = [f"Found: {machine.kind} {machine.version}".rstrip() + "."]
    if machine.modules:
        found["scheduler"].append(
            f"`module` is {machine.modules}: load what Jobs need in `prologue`, or in an App's preamble."
        )
    found["policy"] = [_described(part) for part in machine.partitions[:PARTITIONS_MOST]]
    found["relay"] = [f"{name} has the address {address}" for name, address in machine.interfaces]
    found["pilot"] = [f"{place} is shared ({kind})" for place, kind in machine.shared]
    found["pilot"] += [f"${name} is {place}" for name, place in machine.scratch]
    return {section: lines for section, lines in found.items() if lines}


def _described(part: Partition) -> str:
    facts = [
        f"{part.nodes} nodes" if part.nodes else "",
        f"{part.cores} cores" if part.cores else "",
        f"{part.mem_mib} MiB" if part.mem_mib else "",
        part.gpus,
        f"at most {part.nodes_max} nodes a job" if part.nodes_max else "",
        f"at most {part.wall_s_max / 3600:g} h" if part.wall_s_max else "no limit of time",
        "" if part.open else "closed now",
        "the default" if part.default else "",
    ]
    return f"{part.name}: {', '.join(filter(None, facts))}"


def written(text: str, machine: Machine, kinds: Sequence[str]) -> str:
    """A commented site.toml with what was found: settings in the place of their defaults, and remarks."""
    values, comments = settings(machine, kinds), remarks(machine, kinds)
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        header = re.fullmatch(r"\[([a-z]+)\]", line)
        if header:
            section = header[1]
            lines += [line, *(f"# {_plain(remark)}" for remark in comments.get(section, ()))]
            continue
        key = re.match(r"# ([a-z_]+) = ", line)
        if key and key[1] in values.get(section, {}):
            lines.append(f"{key[1]} = {toml(values[section][key[1]])}")
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def toml(value: object) -> str:
    """A text, a number or a table of such in TOML, on one line."""
    if isinstance(value, dict):
        items = ", ".join(f"{toml(str(k))} = {toml(v)}" for k, v in value.items())
        return f"{{ {items} }}" if items else "{}"
    return msgspec.json.encode(value).decode()


def _plain(text: str) -> str:
    """A remark is one line, whatever a machine's names hold."""
    return "".join(c if c.isprintable() else "?" for c in text)[:200]
