"""`qsub` of PBS Professional, OpenPBS and Torque: its flags and its `#PBS` lines as a Request."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from chappe.sdk.batch.flags import Flag, Read, Usage, noted, quiet, read, refused
from chappe.sdk.batch.request import Depends, Request, exports, memory_bytes, wall_s
from chappe.sdk.batch.sbatch import dependency, directives, whole

FLAGS: tuple[Flag, ...] = (
    Flag("", "A"),
    Flag("", "C"),
    Flag("", "F"),
    Flag("", "J"),
    Flag("", "N"),
    Flag("", "P"),
    Flag("", "S"),
    Flag("", "V", "nothing"),
    Flag("", "W", "value", "join"),
    Flag("", "a"),
    Flag("", "d"),
    Flag("", "e"),
    Flag("", "j"),
    Flag("", "l", "value", "join"),
    Flag("", "o"),
    Flag("", "p"),
    Flag("", "q"),
    Flag("", "r"),
    Flag("", "t"),
    Flag("", "v", "value", "join"),
    Flag("", "w"),
    Flag("", "z", "nothing"),
    Flag("version", "", "nothing"),
    *quiet("|f", "|n", "|x"),
    *noted("nothing is mailed; `chappe events -f` follows", "|m", "|M"),
    *noted("outputs are written where they go, at once", "|k", "|R"),
    *noted("a Job that writes checkpoints says so with `chappe run --warn`", "|c"),
    *refused("use -a, or `chappe job hold`", "|h", takes="nothing"),
    *refused("there is no terminal in a Job", "|I", "|X", "|G", takes="nothing"),
    *refused("Jobs run as the owner of their site", "|u"),
    *refused("give -d a directory at the site", "|D"),
)

_NOTED = frozenset(
    [
        "cput",
        "pcput",
        "file",
        "nice",
        "place",
        "vmem",
        "pvmem",
        "arch",
        "host",
        "qos",
        "software",
        "naccesspolicy",
    ]
)
_SIZES = ("mem", "pmem")


class Qsub(NamedTuple):
    """What to submit, and how to answer."""

    request: Request
    quiet: bool
    wait: bool


class Command(NamedTuple):
    """The command line before its script is read: flags, the script's path (None: stdin, or `argv`), the
    command behind two dashes."""

    found: Read
    path: str | None
    argv: tuple[str, ...]


def command(argv: Sequence[str]) -> Command:
    """Read the command line. Raises Usage."""
    found = read(FLAGS, argv)
    if found.dashes and found.words:
        return Command(found, None, tuple(found.words))
    if len(found.words) > 1:
        raise Usage(f"{found.words[1][:40]!r}: flags stand before the script, its arguments in -F")
    return Command(found, found.words[0] if found.words else None, ())


def submission(
    line: Command, script: bytes, environ: Mapping[str, str], directory: str, now: float
) -> Qsub:
    """A Request of the command line and the script. Raises Invalid, Usage. See sbatch.submission."""
    if line.argv:
        script = b'#!/bin/sh\nexec "$@"\n'
    if b"\r\n" in script:
        raise Usage("script is in DOS format: its lines must end with a line feed alone")
    if not script.strip():
        raise Usage("the script is empty")
    mark = line.found.values.get("C", "#PBS")
    head = read(FLAGS, directives(script, mark) if mark else [])
    if head.words:
        raise Usage(f"{head.words[0][:40]!r} in the script's directives is no flag")
    values = {**head.values, **line.found.values}
    resources = _listed(head.values.get("l", "")) | _listed(line.found.values.get("l", ""))
    size, notes = _size(resources)
    attributes = _attributes(values.get("W", ""))
    env, unsent = exports(_export(values), script, environ)
    queue, _, site = values.get("q", "").partition("@")
    name = values.get("N") or (line.path or "STDIN").rsplit("/", 1)[-1]
    request = Request(
        dialect="pbs",
        script=script,
        args=line.argv or tuple(_split(values.get("F", ""))),
        name=name,
        site=site or None,
        array=values.get("J", values.get("t")),
        depends=_depends(attributes),
        submitted_in=directory,
        enter=values.get("d", values.get("w", "")),
        must_enter="d" in values or "w" in values,
        out=values.get("o"),
        err=values.get("e"),
        joined=values.get("j", "n") != "n",
        shell=_shell(values, script),
        env=env,
        queue=queue,
        account=values.get("A", values.get("P", "")),
        priority=_priority(values.get("p")),
        not_before=_at(values["a"], now) if "a" in values else None,
        restarts=values.get("r") != "n",
        notes=tuple(dict.fromkeys([*line.found.notes, *head.notes, *notes, *unsent])),
        **size,
    )
    return Qsub(request, "z" in values, attributes.get("block") == "true")


def _shell(values: Mapping[str, str], script: bytes) -> str:
    """What runs the script. One that does not say so itself is run by bash, as by most login shells."""
    shell = values.get("S", "").partition("@")[0]
    if shell and not re.fullmatch(r"[A-Za-z0-9_./+-]{1,200}", shell, re.ASCII):
        raise Usage(f"-S {shell[:40]!r}: the path of a shell")
    return shell or ("" if script.startswith(b"#!") else "bash")


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as e:
        raise Usage(f"-F: {e}") from None


def _export(values: Mapping[str, str]) -> str:
    listed = values.get("v", "")
    return ",".join(filter(None, ("ALL" if "V" in values else "", listed))) or "NONE"


def _attributes(text: str) -> dict[str, str]:
    """`-W depend=afterok:1,block=true` as names and values. Raises Usage for what changes what is run."""
    found = {}
    for part in filter(None, re.split(r",(?=[a-z_]+=)", text)):
        name, _, value = part.partition("=")
        if name in (
            "stagein",
            "stageout",
            "sandbox",
            "group_list",
            "run_count",
            "release_nodes_on_stageout",
        ):
            raise Usage(f"-W {name} is not possible here: do it in the script")
        found[name.strip()] = value.strip()
    return found


def _depends(attributes: Mapping[str, str]) -> Depends | None:
    text = attributes.get("depend")
    if not text:
        return None
    return dependency(re.sub(r"\b(afterok|afterany)array\b", r"\1", text))


def _listed(text: str) -> dict[str, str]:
    """The resources of -l: names and values."""
    found = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.strip().partition("=")
        found[name] = value
    return found


def _size(resources: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The fields of a Request that -l is about, and notes."""
    left = dict(resources)
    notes = [
        f"-l {name} is ignored: nothing is done by it here"
        for name in sorted(_NOTED & left.keys())
        if left.pop(name) is not None
    ]
    chunk, nodes = _chunk(left.pop("select", None), left.pop("nodes", left.pop("nodect", None)))
    chunk |= {
        name: left.pop(name)
        for name in ("ncpus", "procs", "gpus", "ngpus", *_SIZES)
        if name in left
    }
    cores = whole(chunk, "ncpus", 1, 1)
    if "ppn" in chunk:
        cores = whole(chunk, "ppn")
    elif "procs" in chunk:
        cores = whole(chunk, "procs")
    elif "mpiprocs" in chunk and "ncpus" not in chunk:
        cores = whole(chunk, "mpiprocs") * whole(chunk, "ompthreads")
    mem = memory_bytes(chunk["mem"], "b") if "mem" in chunk else 0
    if "pmem" in chunk:
        mem = max(mem, memory_bytes(chunk["pmem"], "b") * cores)
    fields: dict[str, Any] = {
        "cores": cores,
        "tasks": cores * nodes,
        "nodes": nodes,
        "gpus": whole(chunk, "ngpus" if "ngpus" in chunk else "gpus", 0, 0),
        "mem_bytes": mem,
    }
    if "walltime" in left:
        fields["wall_s"] = wall_s(left.pop("walltime"), 1)
    fields["named"] = {name: whole(left, name) for name in left}
    return fields, notes


def _chunk(select: str | None, nodes: str | None) -> tuple[dict[str, str], int]:
    """What one node is asked for by `select=2:ncpus=4` or `nodes=2:ppn=4`, and how many there are."""
    text = select if select is not None else nodes or "1"
    chunks = [chunk.split(":") for chunk in text.split("+")]
    if any(chunk[1:] != chunks[0][1:] for chunk in chunks):
        raise Usage("chunks that differ are not possible here: ask for the same on all nodes")
    count = 0
    for chunk in chunks:
        given = chunk[0] if re.fullmatch(r"[0-9]+", chunk[0], re.ASCII) else "1"
        count += whole({"l": given}, "l")
    found = {}
    for word in chunks[0]:
        name, equals, value = word.partition("=")
        if equals:
            found[name] = value
    unknown = found.keys() - {
        "ncpus",
        "mpiprocs",
        "ompthreads",
        "mem",
        "ngpus",
        "gpus",
        "ppn",
        "pmem",
    }
    if unknown - _NOTED:
        raise Usage(f"{min(unknown)[:40]!r} cannot be asked of a chunk here")
    return found, count


def _priority(text: str | None) -> int:
    if text is None:
        return 0
    if not re.fullmatch(r"[+-]?[0-9]{1,4}", text, re.ASCII):
        raise Usage("-p is a whole number, -1024 to 1023")
    return int(text)


def _at(text: str, now: float) -> float:
    """`[[[[CC]YY]MM]DD]hhmm[.SS]`, in the submitter's own zone; the next such time."""
    found = re.fullmatch(r"((?:[0-9]{2}){2,6})(?:\.([0-9]{2}))?", text, re.ASCII)
    if found is None:
        raise Usage(f"-a {text[:20]!r} is no time: [[[[CC]YY]MM]DD]hhmm[.SS]")
    here = datetime.fromtimestamp(now).astimezone()
    digits = found[1]
    head = here.strftime("%Y%m%d%H%M")[: 12 - len(digits)]
    try:
        at = datetime.strptime(head + digits + (found[2] or "00"), "%Y%m%d%H%M%S").astimezone()
    except ValueError:
        raise Usage(f"-a {text[:20]!r} is no time") from None
    seconds = at.timestamp()
    return seconds + 86_400 if seconds < now and len(digits) == 4 else seconds
