"""`squeue` and `scancel`: their flags, and what `squeue` prints of Jobs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from chappe.sdk.batch.flags import Flag, Usage, noted, quiet, read, refused
from chappe.sdk.batch.seen import ACTIVE, SHORT, Seen, clock, printable, ranges

SQUEUE: tuple[Flag, ...] = (
    Flag("account", "A"),
    Flag("array", "r", "nothing"),
    Flag("clusters", "M"),
    Flag("format", "o"),
    Flag("Format", "O"),
    Flag("help", "", "nothing"),
    Flag("jobs", "j", "value"),
    Flag("json", "", "maybe"),
    Flag("long", "l", "nothing"),
    Flag("me", "", "nothing"),
    Flag("name", "n"),
    Flag("noheader", "h", "nothing"),
    Flag("partition", "p"),
    Flag("states", "t"),
    Flag("user", "u"),
    Flag("version", "V", "nothing"),
    *quiet(
        "all|a", "verbose|v", "hide", "local", "federation", "sibling", "noconvert", "priority|P"
    ),
    *quiet("array-unique", "start", "expand-patterns", "only-job-state", "notme"),
    *noted("jobs are listed by their numbers", "sort|S"),
    *refused("run it again, or follow `chappe events -f`", "iterate|i"),
    *refused("a Job here has no steps and chooses no nodes", "steps|s", "nodelist|w", "qos|q"),
    *refused("use --json", "yaml", takes="maybe"),
    *refused("use --name, --partition or --states", "reservation|R", "licenses|L"),
)
SCANCEL: tuple[Flag, ...] = (
    Flag("account", "A"),
    Flag("clusters", "M"),
    Flag("help", "", "nothing"),
    Flag("jobname", "n"),
    Flag("name"),
    Flag("me", "", "nothing"),
    Flag("partition", "p"),
    Flag("quiet", "Q", "nothing"),
    Flag("state", "t"),
    Flag("user", "u"),
    Flag("version", "V", "nothing"),
    *quiet("verbose|v", "full|f", "batch|b", "ctld", "hurry|H", "admin-comment"),
    *refused("a cancelled Job gets TERM, then KILL", "signal|s", "cron"),
    *refused(
        "nothing is asked here: `chappe job cancel` shows and asks",
        "interactive|i",
        takes="nothing",
    ),
    *refused("name the jobs", "nodelist|w", "qos|q", "reservation|R", "wckey", "sibling"),
)


class Asked(NamedTuple):
    """Which Jobs are asked about: names as typed, and conditions (None: any). Upper-case `states`."""

    names: tuple[str, ...]
    user: str | None
    states: frozenset[str] | None
    queues: frozenset[str] | None
    accounts: frozenset[str] | None
    job_names: frozenset[str] | None
    site: str | None

    @property
    def some(self) -> bool:
        """Whether any condition is given."""
        return any(part is not None for part in self[1:])

    def holds(self, seen: Seen) -> bool:
        """Whether a Job meets the conditions that a list from the Hub does not."""
        return (
            (self.states is None or seen.state in self.states)
            and (self.queues is None or seen.shown.queue in self.queues)
            and (self.accounts is None or seen.shown.account in self.accounts)
            and (self.job_names is None or base_name(seen) in self.job_names)
        )


def asked(values: Mapping[str, str], words: Sequence[str], me: str) -> Asked:
    """What the flags of squeue or scancel ask for. Raises Usage."""
    listed = list(comma(values.get("jobs")))
    return Asked(
        names=(*listed, *words),
        user=me if "me" in values else values.get("user"),
        states=_states(values.get("states", values.get("state"))),
        queues=_set(values.get("partition")),
        accounts=_set(values.get("account")),
        job_names=_set(values.get("name", values.get("jobname"))),
        site=values.get("clusters"),
    )


def comma(text: str | None) -> list[str]:
    """At commas, but not at those within brackets: `1_[2,3],4`."""
    if text is None:
        return []
    return [part.strip() for part in re.findall(r"(?:[^,\[]|\[[^\]]*\]?)+", text) if part.strip()]


def _set(text: str | None) -> frozenset[str] | None:
    return None if text is None else frozenset(comma(text))


def _states(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    long = {short: state for state, short in SHORT.items()}
    # States that Jobs never are in here are known too: who asks for them finds none.
    known = {*long.values(), *_OTHER}
    found = set()
    for part in comma(text):
        name = long.get(part.upper(), part.upper())
        if name == "ALL":
            return frozenset(long.values())
        if name not in known and part.upper() not in _OTHER_SHORT:
            raise Usage(f"Invalid job state specified: {part[:40]}")
        found.add(name)
    return frozenset(found)


_OTHER = frozenset(
    [
        "CONFIGURING",
        "SUSPENDED",
        "PREEMPTED",
        "BOOT_FAIL",
        "OUT_OF_MEMORY",
        "REQUEUED",
        "REQUEUE_HOLD",
        "RESIZING",
        "REVOKED",
        "SIGNALING",
        "SPECIAL_EXIT",
        "STAGE_OUT",
        "STOPPED",
    ]
)
_OTHER_SHORT = frozenset(
    ["CF", "S", "PR", "BF", "OOM", "RQ", "RH", "RS", "RV", "SI", "SE", "SO", "ST"]
)


def base_name(seen: Seen) -> str:
    """A Job's name without the index of its array."""
    name, index = seen.view.name, seen.task
    return name if index is None else name.removesuffix(f"[{index}]")


class Row(NamedTuple):
    """A line of squeue: a Job, or the pending tasks of an array, which share one."""

    seen: Seen
    tasks: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        """`123`, `123_7` or `123_[1-9]`."""
        if self.tasks:
            return f"{self.seen.number}_[{ranges(self.tasks)}]"
        if self.seen.task is None:
            return str(self.seen.number)
        return f"{self.seen.number}_{self.seen.task}"


def rows(jobs: Iterable[Seen], *, each: bool) -> list[Row]:
    """Lines by their numbers; unless `each` task has its own, those that wait alike are put together."""
    together: dict[tuple[int, str], list[Seen]] = {}
    found: list[Row] = []
    for seen in sorted(jobs, key=lambda one: (one.number, one.task or 0)):
        if seen.task is None or each or seen.state != "PENDING":
            found.append(Row(seen))
        else:
            together.setdefault((seen.number, seen.waits_for), []).append(seen)
    for some in together.values():
        tasks = tuple(one.task for one in some if one.task is not None)
        found.append(Row(some[0], tasks) if len(tasks) > 1 else Row(some[0]))
    return sorted(found, key=lambda row: (row.seen.number, not row.tasks, row.seen.task or 0))


class Context(NamedTuple):
    """What a line is told beside its Job: the time (seconds since 1970), and Sites' names by their ids."""

    now: float
    sites: Mapping[str, str]


def elapsed_s(row: Row, c: Context) -> float:
    """How long a job has run, in seconds."""
    view = row.seen.view
    if row.seen.state == "PENDING":
        return 0.0
    if view.phase == "running":
        return c.now - view.changed_at
    usage = None if view.outcome is None else view.outcome.usage
    return 0.0 if usage is None else usage.wall_s


def _left(row: Row, c: Context) -> str:
    limit = row.seen.shown.wall_s
    return clock(None if limit is None else limit - elapsed_s(row, c))


def _moment(at: float | None) -> str:
    return "N/A" if at is None else time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(at))


def _place(row: Row, c: Context) -> str:
    site = row.seen.view.site
    return c.sites.get(site, site) if site and row.seen.state != "PENDING" else ""


def _reason(row: Row, c: Context) -> str:
    pending = row.seen.state == "PENDING"
    return f"({row.seen.waits_for})" if pending else _place(row, c)


def _started(row: Row, c: Context) -> str:
    return _moment(c.now - elapsed_s(row, c) if row.seen.view.phase == "running" else None)


def _mem(row: Row, _c: Context) -> str:
    return f"{row.seen.shown.mem_bytes >> 20}M"


_FIELDS: dict[str, tuple[str, str, Callable[[Row, Context], str]]] = {
    # letter: (its header, the name for --Format, the value)
    "i": ("JOBID", "jobarrayid", lambda r, _: r.id),
    "A": ("JOBID", "jobid", lambda r, _: str(r.seen.number)),
    "F": ("ARRAY_JOB_ID", "arrayjobid", lambda r, _: str(r.seen.number)),
    "K": ("ARRAY_TASK_ID", "arraytaskid", lambda r, _: _task(r)),
    "j": ("NAME", "name", lambda r, _: base_name(r.seen)),
    "t": ("ST", "statecompact", lambda r, _: SHORT[r.seen.state]),
    "T": ("STATE", "state", lambda r, _: r.seen.state),
    "u": ("USER", "username", lambda r, _: r.seen.shown.user),
    "a": ("ACCOUNT", "account", lambda r, _: r.seen.shown.account or "(null)"),
    "P": ("PARTITION", "partition", lambda r, _: r.seen.shown.queue or "chappe"),
    "q": ("QOS", "qos", lambda _r, _c: "normal"),
    "M": ("TIME", "timeused", lambda r, c: clock(elapsed_s(r, c))),
    "l": ("TIME_LIMIT", "timelimit", lambda r, _: clock(r.seen.shown.wall_s)),
    "L": ("TIME_LEFT", "timeleft", _left),
    "D": ("NODES", "numnodes", lambda r, _: str(r.seen.shown.nodes)),
    "C": ("CPUS", "numcpus", lambda r, _: str(r.seen.shown.cores * r.seen.shown.nodes)),
    "m": ("MIN_MEMORY", "minmemory", _mem),
    "b": ("TRES_PER_NODE", "tres-per-node", lambda r, _: _gpus(r)),
    "r": ("REASON", "reason", lambda r, _: r.seen.waits_for),
    "R": ("NODELIST(REASON)", "reasonlist", _reason),
    "N": ("NODELIST", "nodelist", _place),
    "B": ("EXEC_HOST", "batchhost", lambda r, c: _place(r, c) or "n/a"),
    "S": ("START_TIME", "starttime", _started),
    "e": ("END_TIME", "endtime", lambda r, _: _moment(_ended(r))),
    "V": ("SUBMIT_TIME", "submittime", lambda r, _: _moment(r.seen.view.created_at)),
    "Z": ("WORK_DIR", "workdir", lambda r, _: r.seen.shown.directory),
    "Q": ("PRIORITY", "prioritylong", lambda r, _: str(r.seen.view.priority)),
    "p": ("PRIORITY", "priority", lambda r, _: str(r.seen.view.priority)),
    "E": ("DEPENDENCY", "dependency", lambda r, _: r.seen.shown.depends or "(null)"),
    "k": ("COMMENT", "comment", lambda _r, _c: "(null)"),
}
_BY_NAME = {long: (header, value) for header, long, value in _FIELDS.values()}


def _task(row: Row) -> str:
    if row.tasks:
        return ranges(row.tasks)
    return "N/A" if row.seen.task is None else str(row.seen.task)


def _gpus(row: Row) -> str:
    return f"gres/gpu:{row.seen.shown.gpus}" if row.seen.shown.gpus else "N/A"


def _ended(row: Row) -> float | None:
    return None if row.seen.state in ACTIVE else row.seen.view.changed_at


DEFAULT = "%.18i %.9P %.8j %.8u %.2t %.10M %.6D %R"
LONG = "%.18i %.9P %.8j %.8u %.8T %.10M %.9l %.6D %R"
_FORMAT = re.compile(r"%(\.?)([0-9]{0,4})([A-Za-z%])")


def text(rows: Sequence[Row], form: str, context: Context, *, header: bool) -> list[str]:
    """The lines of `squeue -o`. Raises Usage for a letter that is not known."""
    for found in _FORMAT.finditer(form):
        if found[3] not in _FIELDS and found[3] != "%":
            raise Usage(f"--format: %{found[3]} is not known (known are {''.join(_FIELDS)})")

    def line(row: Row | None) -> str:
        def fill(found: re.Match[str]) -> str:
            right, width, letter = found.groups()
            if letter == "%":
                return letter
            head, _, value = _FIELDS[letter]
            return _fit(head if row is None else printable(value(row, context)), width, right)

        return _FORMAT.sub(fill, form)

    return [line(row) for row in ([None] if header else []) + list(rows)]


def _fit(value: str, width: str, right: str) -> str:
    if not width:
        return value
    cut = value[: int(width)]
    return cut.rjust(int(width)) if right else cut.ljust(int(width))


def columns(rows: Sequence[Row], form: str, context: Context, *, header: bool) -> list[str]:
    """The lines of `squeue -O name:width,…`. Raises Usage."""
    fields: list[tuple[str, Callable[[Row, Context], str], str, str]] = []
    for part in form.split(","):
        name, _, width = part.strip().partition(":")
        found = re.fullmatch(r"(\.?)([0-9]{0,4})", width)
        known = _BY_NAME.get(name.lower())
        if known is None or found is None:
            raise Usage(f"--Format: {part[:40]!r} is not known (known are {', '.join(_BY_NAME)})")
        fields.append((*known, found[2] or "20", found[1]))
    lines = (
        ["".join(_fit(head, width, right) for head, _, width, right in fields)] if header else []
    )
    return lines + [
        "".join(
            _fit(printable(value(row, context)), width, right) for _, value, width, right in fields
        )
        for row in rows
    ]


def document(jobs: Sequence[Seen], context: Context) -> dict[str, Any]:
    """The members of `squeue --json` that orchestrators read, each task by itself."""
    return {"jobs": [_object(Row(seen), context) for seen in jobs], "errors": [], "warnings": []}


def _object(row: Row, c: Context) -> dict[str, Any]:
    seen, view = row.seen, row.seen.view
    status = seen.exit_status
    return {
        "job_id": seen.number,
        "array_job_id": _number(None if seen.task is None else seen.number),
        "array_task_id": _number(seen.task),
        "name": base_name(seen),
        "job_state": [seen.state],
        "state_reason": seen.waits_for,
        "user_name": seen.shown.user,
        "account": seen.shown.account,
        "partition": seen.shown.queue or "chappe",
        "cluster": _place(row, c),
        "nodes": _place(row, c),
        "cpus": _number(seen.shown.cores * seen.shown.nodes),
        "node_count": _number(seen.shown.nodes),
        "time_limit": _number(None if seen.shown.wall_s is None else int(seen.shown.wall_s // 60)),
        "submit_time": _number(int(view.created_at)),
        "end_time": _number(int(_ended(row) or 0)),
        "current_working_directory": seen.shown.directory,
        "priority": _number(view.priority),
        "exit_code": {
            "return_code": _number(status),
            "status": ["SUCCESS" if not status else "ERROR"],
        },
        "comment": view.id,
    }


def _number(value: int | None) -> dict[str, Any]:
    return {"set": value is not None, "infinite": False, "number": value or 0}


def flags(
    table: Sequence[Flag], argv: Sequence[str]
) -> tuple[dict[str, str], list[str], list[str]]:
    """The values, the words and the notes of a command line. Raises Usage."""
    found = read(table, argv, stops=False)
    return found.values, found.words, found.notes
