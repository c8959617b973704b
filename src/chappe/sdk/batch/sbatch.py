"""`sbatch`: its flags and its `#SBATCH` lines as a Request."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from chappe.sdk.batch.flags import Flag, Usage, noted, quiet, read, refused
from chappe.sdk.batch.request import Depends, Request, exports, memory_bytes, wall_s
from chappe.sdk.errors import Invalid

_NO_CHOICE = "it runs where the site's allocations are, whatever they were asked of"
_NO_MAIL = "nothing is mailed; `chappe events -f` follows"
_LAYOUT = "the pilot places tasks itself"
_NODES = "a Job cannot choose nodes; --clusters names a site"

FLAGS: tuple[Flag, ...] = (
    Flag("array", "a"),
    Flag("account", "A"),
    Flag("begin", "b"),
    Flag("chdir", "D"),
    Flag("workdir"),
    Flag("clusters", "M"),
    Flag("cpus-per-task", "c"),
    Flag("dependency", "d"),
    Flag("error", "e"),
    Flag("export"),
    Flag("gpus", "G"),
    Flag("gpus-per-node"),
    Flag("gpus-per-task"),
    Flag("gres"),
    Flag("help", "h", "nothing"),
    Flag("job-name", "J"),
    Flag("licenses", "L"),
    Flag("mem"),
    Flag("mem-per-cpu"),
    Flag("mem-per-gpu"),
    Flag("nice", "", "maybe"),
    Flag("no-requeue", "", "nothing"),
    Flag("nodes", "N"),
    Flag("ntasks", "n"),
    Flag("ntasks-per-node"),
    Flag("open-mode"),
    Flag("output", "o"),
    Flag("parsable", "", "nothing"),
    Flag("partition", "p"),
    Flag("priority"),
    Flag("quiet", "Q", "nothing"),
    Flag("requeue", "", "nothing"),
    Flag("signal"),
    Flag("time", "t"),
    Flag("version", "V", "nothing"),
    Flag("wait", "W", "nothing"),
    Flag("wrap"),
    *quiet(
        "verbose|v", "ignore-pbs", "no-kill|k", "oversubscribe|s", "spread-job", "use-min-nodes"
    ),
    *quiet("kill-on-invalid-dep", "time-min", "deadline", "comment", "wckey", takes="value"),
    *quiet("get-user-env", "propagate", takes="maybe"),
    *noted(_NO_CHOICE, "constraint|C", "qos|q", "reservation", "prefer", "switches"),
    *noted(_NO_MAIL, "mail-type", "mail-user"),
    *noted(
        _LAYOUT, "distribution|m", "hint", "cpu-bind", "mem-bind", "gpu-bind", "threads-per-core"
    ),
    *noted(_LAYOUT, "cores-per-socket", "sockets-per-node", "extra-node-info|B", "ntasks-per-core"),
    *noted(_LAYOUT, "ntasks-per-socket", "ntasks-per-gpu", "core-spec|S", "thread-spec"),
    *noted(_LAYOUT, "contiguous", "overcommit|O", takes="nothing"),
    *noted("nothing is measured but what `chappe job show` tells", "profile", "acctg-freq"),
    *noted("the clock of a node is not changed", "cpu-freq", "power"),
    *refused("use --begin, or `chappe job hold`", "hold|H", takes="nothing"),
    *refused(_NODES, "nodelist|w", "nodefile|F", "exclude|x"),
    *refused("ask for the cores of the node: --cpus-per-task", "exclusive", takes="maybe"),
    *refused("read it in the script: command < FILE", "input|i"),
    *refused("copy in the script, from and to the site's own file systems", "bb", "bbf"),
    *refused("start it in the script", "container", "container-id"),
    *refused("`chappe why` says what a Job waits for", "test-only", takes="nothing"),
    *refused("Jobs run as the owner of their site", "uid", "gid"),
    *refused("use TMPDIR of the site", "tmp"),
    *refused("ask for cores and memory per node: -N, -n, -c, --mem", "gpus-per-socket", "mincpus"),
)

#: Variables that stand for flags, as in the original; the command line comes before them.
ENVIRONMENT = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_ARRAY_INX": "array",
    "SBATCH_CLUSTERS": "clusters",
    "SBATCH_EXPORT": "export",
    "SBATCH_JOB_NAME": "job-name",
    "SBATCH_OPEN_MODE": "open-mode",
    "SBATCH_PARTITION": "partition",
    "SBATCH_REQUEUE": "requeue",
    "SBATCH_TIMELIMIT": "time",
}


class Sbatch(NamedTuple):
    """What to submit, and how to answer."""

    request: Request
    parsable: bool
    wait: bool
    quiet: bool


class Command(NamedTuple):
    """The command line before its script is read: flags, the script's path (None: stdin) and arguments."""

    values: dict[str, str]
    path: str | None
    args: tuple[str, ...]
    notes: tuple[str, ...]


def command(argv: Sequence[str]) -> Command:
    """Read the command line. Raises Usage."""
    found = read(FLAGS, argv)
    path, args = (found.words[0], found.words[1:]) if found.words else (None, [])
    if "wrap" in found.values and path is not None:
        raise Usage("script arguments not permitted with --wrap option")
    return Command(found.values, path, tuple(args), tuple(found.notes))


def wrapped(line: str) -> bytes:
    """The script that --wrap stands for."""
    return b"#!/bin/sh\n# This script was created by sbatch --wrap.\n\n" + line.encode() + b"\n"


def directives(script: bytes, mark: str = "#SBATCH") -> list[str]:
    """The words of the directives at a script's head. Raises Usage."""
    words: list[str] = []
    for number, line in enumerate(script.decode("utf-8", "replace").splitlines(), 1):
        text = line.strip()
        if text.startswith(mark) and text[len(mark) :][:1] in ("", " ", "\t"):
            try:
                words += shlex.split(text[len(mark) :], comments=True)
            except ValueError as e:
                raise Usage(f"line {number} of the script: {e}") from None
        elif text and not text.startswith("#"):
            break
    return words


def submission(
    line: Command, script: bytes, environ: Mapping[str, str], directory: str, now: float
) -> Sbatch:
    """A Request of the command line, the environment and the script. Raises Invalid, Usage.

    `directory` is the one of submission; `now` in seconds since 1970.
    """
    if "wrap" not in line.values:
        _check_script(script)
    head = read(FLAGS, directives(script))
    if head.words:
        raise Usage(f"{head.words[0][:40]!r} in the script's directives is no flag")
    given = {flag: environ[name] for name, flag in ENVIRONMENT.items() if environ.get(name)}
    values = {**head.values, **given, **line.values}
    env, notes = exports(values.get("export"), script, environ)
    chdir = values.get("chdir", values.get("workdir"))
    size = _size(values)
    warn_signal, warn_s = _signal(values.get("signal"))
    request = Request(
        dialect="slurm",
        script=script,
        args=line.args,
        name=values.get("job-name") or _name(line),
        site=_site(values.get("clusters")),
        tasks=size.tasks,
        threads=size.threads,
        cores=size.cores,
        nodes=size.nodes,
        gpus=size.gpus,
        mem_bytes=size.mem_bytes,
        wall_s=wall_s(values["time"]) if "time" in values else None,
        array=values.get("array"),
        depends=dependency(values["dependency"]) if values.get("dependency") else None,
        submitted_in=directory,
        enter=_directory(chdir, directory),
        must_enter=chdir is not None,
        out=values.get("output"),
        err=values.get("error"),
        append=_append(values.get("open-mode")),
        env=env,
        queue=values.get("partition", ""),
        account=values.get("account", ""),
        priority=_priority(values),
        not_before=_begin(values["begin"], now) if "begin" in values else None,
        named=_licenses(values.get("licenses")),
        warn_signal=warn_signal,
        warn_s=warn_s,
        restarts="no-requeue" not in values,
        notes=tuple(dict.fromkeys([*line.notes, *head.notes, *notes])),
    )
    return Sbatch(request, "parsable" in values, "wait" in values, "quiet" in values)


def dependency(text: str) -> Depends:
    """`afterok:1:2,afterany:3` as what must end first. Raises Usage for what cannot be said here."""
    kinds: set[str] = set()
    on: list[str] = []
    for part in re.split("[,?]", text):
        kind, *ids = part.strip().split(":")
        if kind in ("after", "afternotok", "aftercorr", "afterburstbuffer", "singleton", "expand"):
            raise Usage(f"the dependency {kind} is not possible here: use afterok or afterany")
        if kind not in ("afterok", "afterany") or not all(ids) or not ids:
            raise Usage(f"{part[:40]!r} is no dependency: afterok:ID[:ID], afterany:ID[:ID]")
        kinds.add(kind)
        on += [one.partition("+")[0] for one in ids]
    if len(kinds) > 1 or "?" in text:
        raise Usage(
            "one job waits for the success of all (afterok) or for the end of all (afterany)"
        )
    return Depends(tuple(on), kinds == {"afterok"})


def _check_script(script: bytes) -> None:
    if not script.strip():
        raise Usage("Batch script is empty!")
    if not script.startswith(b"#!"):
        raise Usage(
            "This does not look like a batch script.  The first\n"
            "line must start with #! followed by the path to an interpreter.\n"
            "For instance: #!/bin/sh"
        )
    if b"\r\n" in script:
        raise Usage(
            "Batch script contains DOS line breaks (\\r\\n)\n"
            "instead of expected UNIX line breaks (\\n)."
        )


def _name(line: Command) -> str:
    if "wrap" in line.values:
        return "wrap"
    return "sbatch" if line.path is None else line.path.rsplit("/", 1)[-1]


def _site(clusters: str | None) -> str | None:
    if clusters is not None and "," in clusters:
        raise Usage("--clusters names one site")
    return clusters or None


def _directory(chdir: str | None, here: str) -> str:
    if chdir is None or chdir.startswith("/"):
        return chdir or here
    return f"{here.rstrip('/')}/{chdir}"


def _append(mode: str | None) -> bool:
    if mode not in (None, "append", "truncate", "a", "t"):
        raise Usage("--open-mode is append or truncate")
    return (mode or "").startswith("a")


def whole(values: Mapping[str, str], name: str, least: int = 1, default: int = 1) -> int:
    """A flag's whole number. Raises Usage."""
    text = values.get(name, str(default)).strip()
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or int(text) < least:
        raise Usage(f"--{name} is a whole number from {least} on, not {text[:40]!r}")
    return int(text)


class Size(NamedTuple):
    """What a job needs: `cores`, `gpus` and `mem_bytes` on each of its nodes."""

    tasks: int
    threads: int
    cores: int
    nodes: int
    gpus: int
    mem_bytes: int


def _size(values: Mapping[str, str]) -> Size:
    nodes = whole({"nodes": values.get("nodes", "1").partition("-")[0]}, "nodes")
    each = whole(values, "cpus-per-task")
    per_node = whole(values, "ntasks-per-node", 0, 0)
    tasks = whole(values, "ntasks", 1, max(1, per_node) * nodes)
    nodes = min(nodes, tasks)
    cores = (per_node if per_node and "ntasks" not in values else -(-tasks // nodes)) * each
    gpus = _gpus(values, nodes, -(-tasks // nodes))
    if "mem" in values:
        mem = memory_bytes(values["mem"])
    elif "mem-per-cpu" in values:
        mem = memory_bytes(values["mem-per-cpu"]) * cores
    elif "mem-per-gpu" in values:
        mem = memory_bytes(values["mem-per-gpu"]) * gpus
    else:
        mem = 0
    return Size(tasks, each, cores, nodes, gpus, mem)


def _gpus(values: Mapping[str, str], nodes: int, tasks: int) -> int:
    """GPUs per node. Their type is not chosen: a site's are what they are."""
    total = -(-_count(values.get("gpus", "0")) // nodes)
    total = max(total, _count(values.get("gpus-per-node", "0")))
    total = max(total, _count(values.get("gpus-per-task", "0")) * tasks)
    for part in filter(None, values.get("gres", "").removeprefix("gres:").split(",")):
        kind, _, count = part.partition(":")
        if kind != "gpu":
            raise Usage(
                f"--gres={part[:40]} is not possible here: GPUs only; --licenses for others"
            )
        total = max(total, _count(count or "1"))
    return total


def _count(text: str) -> int:
    """`2`, `a100:2` or a type alone, which is one."""
    last = text.rpartition(":")[2].partition("(")[0]
    if re.fullmatch(r"[0-9]{1,4}", last, re.ASCII):
        return int(last)
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", last, re.ASCII):
        return 1
    raise Usage(f"{text[:40]!r} is no number of GPUs")


def _licenses(text: str | None) -> dict[str, int]:
    found = {}
    for part in filter(None, re.split("[,|]", text or "")):
        name, _, count = part.strip().replace("=", ":").partition(":")
        found[name.partition("@")[0]] = whole({"licenses": count or "1"}, "licenses")
    return found


def _signal(text: str | None) -> tuple[str | None, float | None]:
    """`[{R|B}:]<signal>[@seconds]` as the signal's name and how long before the end it comes."""
    if text is None:
        return None, None
    found = re.fullmatch(
        r"(?:[RB]{1,2}:)?(?:SIG)?([A-Z0-9]{1,10})(?:@([0-9]{1,6}))?", text, re.ASCII
    )
    if found is None:
        raise Usage("--signal is like B:USR1@120")
    name = {"10": "USR1", "12": "USR2", "15": "TERM", "2": "INT", "1": "HUP"}.get(
        found[1], found[1]
    )
    return name, max(1.0, float(found[2] or 60))


def _priority(values: Mapping[str, str]) -> int:
    if "priority" in values:
        return whole(values, "priority", 0)
    nice = values.get("nice", "0") or "100"
    if not re.fullmatch(r"-?[0-9]{1,6}", nice, re.ASCII):
        raise Usage("--nice is a whole number")
    return -int(nice)


_NOW = re.compile(r"now(?:\+([0-9]{1,9})([a-z]*))?", re.ASCII)
_SECONDS = {"": 1, "second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "week": 604_800}


def _begin(text: str, now: float) -> float:
    """`now+1hour` or `2026-05-01T12:00`, in the submitter's own zone."""
    found = _NOW.fullmatch(text)
    unit = (found[2] or "").removesuffix("s") if found else ""
    if found is not None and unit in _SECONDS:
        return now + int(found[1] or 0) * _SECONDS[unit]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise Invalid(
            f"{text[:40]!r} is no time: now+2hours, 2026-05-01T12:00", field="begin"
        ) from None
