"""`qstat` and `qdel`: their flags, and what `qstat` prints of Jobs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from chappe.sdk.batch.flags import Flag, noted, quiet, refused
from chappe.sdk.batch.seen import ACTIVE, Seen, printable
from chappe.sdk.batch.squeue import Context, Row, base_name, elapsed_s
from chappe.sdk.batch.squeue import rows as _rows

_QUEUES = "there are no queues: `chappe site ls` lists the sites"

QSTAT: tuple[Flag, ...] = (
    Flag("", "1", "nothing"),
    Flag("", "F"),
    Flag("", "H", "nothing"),
    Flag("", "a", "nothing"),
    Flag("", "f", "nothing"),
    Flag("", "i", "nothing"),
    Flag("", "r", "nothing"),
    Flag("", "t", "nothing"),
    Flag("", "u"),
    Flag("", "w", "nothing"),
    Flag("", "x", "nothing"),
    Flag("version", "", "nothing"),
    *quiet("|n", "|s", "|E", "|J", "|p", "|T"),
    *refused(_QUEUES, "|Q", "|q", "|B", takes="nothing"),
)
QDEL: tuple[Flag, ...] = (
    Flag("", "W"),
    Flag("version", "", "nothing"),
    *quiet("|x", "|f"),
    *noted("it ends at once", "|m"),
    *refused("name the jobs", "|p", takes="nothing"),
)


class Line(NamedTuple):
    """A line of qstat: a job, a task, or (with `tasks`) an array as a whole."""

    seen: Seen
    id: str
    state: str


def lines(jobs: Iterable[Seen], *, each: bool) -> list[Line]:
    """One line a job; an array is one (state B once a task has begun), unless `each` task has its own."""
    found: list[Line] = []
    arrays: dict[int, list[Seen]] = {}
    for row in _rows(jobs, each=True):
        seen = row.seen
        if seen.task is None or each:
            found.append(Line(seen, job_id(seen), letter(seen)))
            continue
        if seen.number not in arrays:
            found.append(Line(seen, f"{seen.number}[].chappe", ""))
        arrays.setdefault(seen.number, []).append(seen)
    return [
        line if line.state else line._replace(state=_of_array(arrays[line.seen.number]))
        for line in found
    ]


def job_id(seen: Seen) -> str:
    """`123.chappe` or `123[7].chappe`."""
    task = "" if seen.task is None else f"[{seen.task}]"
    return f"{seen.number}{task}.chappe"


def letter(seen: Seen) -> str:
    """PBS's letter for a state."""
    if seen.state == "PENDING":
        return "H" if seen.waits_for in ("JobHeldUser", "Dependency") else "Q"
    return {"RUNNING": "R", "COMPLETING": "E"}.get(seen.state, "F")


def _of_array(tasks: Sequence[Seen]) -> str:
    letters = {letter(seen) for seen in tasks}
    return letters.pop() if len(letters) == 1 and letters <= {"Q", "H", "F"} else "B"


_HEAD = (
    "Job id            Name             User              Time Use S Queue",
    "----------------  ---------------- ----------------  -------- - -----",
)
_ALL_HEAD = (
    "                                                            Req'd  Req'd   Elap",
    "Job ID          Username Queue    Jobname    SessID NDS TSK Memory Time  S Time",
    "--------------- -------- -------- ---------- ------ --- --- ------ ----- - -----",
)


def table(found: Sequence[Line], context: Context) -> list[str]:
    """The default form."""
    body = [
        f"{line.id:<17} {_cut(base_name(line.seen), 16):<16} {_cut(line.seen.shown.user, 16):<16}  "
        f"{_used(line.seen, context):>8} {line.state} {line.seen.shown.queue or 'chappe'}"
        for line in found
    ]
    return [*_HEAD, *body] if body else []


def wide(found: Sequence[Line], context: Context) -> list[str]:
    """The form of -a and -u."""
    body = []
    for line in found:
        s = line.seen.shown
        memory = f"{s.mem_bytes >> 20}mb" if s.mem_bytes else "--"
        elapsed = _hhmm(_wall(line.seen, context)) if line.state in "REF" else "--"
        limit = "--" if s.wall_s is None else _hhmm(s.wall_s)
        body.append(
            f"{line.id:<15} {_cut(s.user, 8):<8} {_cut(s.queue or 'chappe', 8):<8} "
            f"{_cut(base_name(line.seen), 10):<10} {'--':>6} {s.nodes:>3} {s.cores * s.nodes:>3} "
            f"{memory:>6} {limit:>5} {line.state} {elapsed:>5}"
        )
    return ["", "chappe:", *_ALL_HEAD, *body] if body else []


def full(found: Sequence[Line], context: Context) -> list[str]:
    """The form of -f: `Job Id: 123.chappe` and indented attributes."""
    printed: list[str] = []
    for line in found:
        printed.append(f"Job Id: {line.id}")
        printed += [f"    {name} = {value}" for name, value in _flat(attributes(line, context))]
        printed.append("")
    return printed


def document(found: Sequence[Line], context: Context) -> dict[str, Any]:
    """The form of -f -F json."""
    jobs = {line.id: attributes(line, context) for line in found}
    return {
        "timestamp": int(context.now),
        "pbs_version": "chappe",
        "pbs_server": "chappe",
        "Jobs": jobs,
    }


def attributes(line: Line, context: Context) -> dict[str, Any]:
    """What -f tells of a job."""
    seen, s, view = line.seen, line.seen.shown, line.seen.view
    listed: dict[str, Any] = {"ncpus": s.cores * s.nodes, "nodect": s.nodes}
    if s.mem_bytes:
        listed["mem"] = f"{s.mem_bytes >> 10}kb"
    if s.gpus:
        listed["ngpus"] = s.gpus * s.nodes
    if s.wall_s is not None:
        listed["walltime"] = _hms(s.wall_s)
    said: dict[str, Any] = {
        "Job_Name": base_name(seen),
        "Job_Owner": f"{s.user}@chappe",
        "job_state": line.state,
        "queue": s.queue or "chappe",
        "server": "chappe",
        "ctime": time.ctime(view.created_at),
        "mtime": time.ctime(view.changed_at),
        "Priority": view.priority,
        "Resource_List": listed,
    }
    if s.account:
        said["Account_Name"] = s.account
    if seen.task is not None and line.id.endswith("[].chappe"):
        return said | {"array": "True"}
    if seen.state != "PENDING":
        said["resources_used"] = {"walltime": _hms(_wall(seen, context))}
        said["exec_host"] = f"{context.sites.get(view.site or '', view.site or '')}/0"
    if seen.state not in ACTIVE and seen.exit_status is not None:
        said["Exit_status"] = seen.exit_status
    said["comment"] = f"{seen.state} {seen.waits_for if seen.state == 'PENDING' else view.id}"
    return said


def _flat(attributes: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for name, value in attributes.items():
        if isinstance(value, dict):
            found += [(f"{name}.{inner}", str(one)) for inner, one in value.items()]
        else:
            found.append((name, _cut(str(value), 10_000)))
    return found


def _cut(text: str, most: int) -> str:
    return printable(text)[:most]


def _wall(seen: Seen, context: Context) -> float:
    return elapsed_s(Row(seen), context)


def _used(seen: Seen, context: Context) -> str:
    return _hms(_wall(seen, context)) if seen.state != "PENDING" else "0"


def _hms(seconds: float) -> str:
    minutes, second = divmod(max(0, int(seconds)), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}"


def _hhmm(seconds: float) -> str:
    minutes = max(0, int(seconds)) // 60
    return f"{minutes // 60:02}:{minutes % 60:02}"
