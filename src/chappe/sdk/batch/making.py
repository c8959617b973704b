"""From a Request to drafts: the command around the script, its environment, its output, its tags.

The script travels in the signed statement; what stands around it is the same few lines of shell for all, and
gets every value as an argument of its own, so that no value is ever read as shell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from chappe.core.ids import number_of
from chappe.link.clock import new_id
from chappe.sdk import drafts
from chappe.sdk.batch.request import Request
from chappe.sdk.drafts import Draft
from chappe.sdk.errors import Invalid

#: Tags by which the front ends know their own Jobs.
TAG, VALUE, USER = "queue", "batch", "user"

#: Arguments: the directory and whether it must exist; the outputs, whether they were named, and whether they
#: are appended to; a shell.
WRAPPER = r"""
enter=$1 must=$2 out=$3 err=$4 named=$5 append=$6 shell=$7; shift 7
say() { printf 'chappe: %s\n' "$*" >&2; }
if cd -- "${enter:-$HOME}" 2>/dev/null; then :
elif [ "$must" = yes ]; then say "the directory $enter cannot be entered here"; exit 1
else say "there is no $enter here: running in $CHAPPE_WORKDIR"; cd -- "$CHAPPE_WORKDIR" || exit 1
fi
case $out in */*) where=${out%/*} ;; *) where=. ;; esac
if [ -n "$out" ] && [ "$named" = no ] && ! [ -w "${where:-/}" ]; then out=; fi
if [ -n "$out" ]; then
  say "output goes to $out${err:+, errors to $err}"
  if [ "$append" = no ]; then : >"$out" || exit 1; [ -z "$err" ] || : >"$err" || exit 1; fi
  exec >>"$out" || exit 1
fi
if [ -n "$out" ] && [ -n "$err" ]; then exec 2>>"$err" || exit 1; else exec 2>&1; fi
if [ -n "$shell" ]; then exec $shell "$CHAPPE_SCRIPT" "$@"; fi
exec "$CHAPPE_SCRIPT" "$@"
"""


class Shown(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the front ends show of a Job beside its state: kept with the Job, for display only."""

    dialect: str
    user: str
    queue: str = ""
    account: str = ""
    cores: int = 1
    nodes: int = 1
    gpus: int = 0
    mem_bytes: int = 0
    wall_s: float | None = None
    directory: str = ""
    depends: str = ""


def numbered_id() -> str:
    """A new id that its number alone gives back: nothing follows what the number holds."""
    return f"{new_id()[:18]}-8000-000000000000"


def make(
    request: Request, id: str, site: str, user: str, host: str, parents: Sequence[str]
) -> list[Draft]:
    """The drafts of one submission, its first with this id; `parents` are full ids. Raises Invalid."""
    options = {
        "name": _printable(request.name),
        "cores": request.cores,
        "nodes": request.nodes,
        "gpus": request.gpus,
        "mem_bytes": request.mem_bytes,
        "wall_s": request.wall_s,
        "named": dict(request.named),
        "priority": request.priority,
        "not_before": request.not_before,
        "retries": 2 if request.restarts else 0,
        "env": {**request.env, **_environment(request, number_of(id), user, host)},
        "tags": {TAG: VALUE, USER: user},
        "data": {VALUE: msgspec.to_builtins(_shown(request, user))},
    }
    if request.warn_s is not None:
        options |= {"warn_s": request.warn_s, "warn_signal": request.warn_signal}
    if parents:
        policy = "fail" if request.depends is None or request.depends.succeed else "anyway"
        options |= {"parents": list(parents), "on_parent_failure": policy}
    made = Draft(drafts.template(site, command=["/bin/sh"]).with_options(options), {})
    made.id = id
    script = drafts.script(request.script)
    template = msgspec.structs.replace(made.template, script=script)
    made.template = msgspec.structs.replace(template, command=_command(request, id, None, user))
    if request.array is None:
        return [made]
    tasks = made.array(request.array, request.dialect)
    for draft in tasks:
        index = None if draft.task is None else draft.task.index
        draft.template = msgspec.structs.replace(
            draft.template, command=_command(request, id, index, user)
        )
    return tasks


def _command(request: Request, id: str, index: int | None, user: str) -> tuple[str, ...]:
    outputs = _slurm_outputs if request.dialect == "slurm" else _pbs_outputs
    out, err = outputs(request, number_of(id), index, user)
    return (
        *("/bin/sh", "-c", WRAPPER, f"{request.dialect}_script"),
        request.enter,
        "yes" if request.must_enter else "no",
        out,
        err,
        "no" if request.out is None else "yes",
        "yes" if request.append else "no",
        request.shell,
        *request.args,
    )


def _slurm_outputs(request: Request, number: int, index: int | None, user: str) -> tuple[str, str]:
    """Where output and errors go; "" for errors: to the same file."""
    patterns = _patterns(request, number, index, user)
    task = "" if index is None else f"_{index}"
    out = f"{request.enter.rstrip('/')}/slurm-{number}{task}.out"
    if request.out is not None:
        out = _filled(request.out, patterns)
    return out, "" if request.err is None else _filled(request.err, patterns)


def _pbs_outputs(request: Request, number: int, index: int | None, _user: str) -> tuple[str, str]:
    """NAME.o123 and NAME.e123 where it was submitted, unless something else is said."""
    task = "" if index is None else f".{index}"
    paths = []
    for given, letter in ((request.out, "o"), (request.err, "e")):
        file = f"{_file(request.name)}.{letter}{number}{task}"
        path = (given or "").rpartition(":")[2].replace("^array_index^", str(index))
        if not path or path.endswith("/"):
            path += file
        paths.append(path if path.startswith("/") else f"{request.submitted_in.rstrip('/')}/{path}")
    return paths[0], "" if request.joined else paths[1]


def _file(name: str) -> str:
    return re.sub(r"[/\0]", "_", name)


def _patterns(request: Request, number: int, index: int | None, user: str) -> dict[str, str]:
    """What %x in the name of an output stands for. Without an array a task's index is Slurm's NO_VAL."""
    task = str(4_294_967_294 if index is None else index)
    alone = str(number) if index is None else f"{number}_{index}"
    return {
        "A": str(number),
        "a": task,
        "j": alone,
        "J": alone,
        "x": _file(request.name),
        "u": user,
        "%": "%",
    }


def _filled(path: str, patterns: Mapping[str, str]) -> str:
    """A path with Slurm's patterns filled in: %j, %4a. Raises Invalid for those of a node or a step."""

    def fill(found: re.Match[str]) -> str:
        digits, letter = found.groups()
        if letter not in patterns:
            known = " ".join(f"%{one}" for one in patterns)
            raise Invalid(
                f"%{letter} cannot be told before the job runs (known are {known})", field="output"
            )
        width = int(digits or 0)
        return (
            patterns[letter].rjust(width, "0") if patterns[letter].isdecimal() else patterns[letter]
        )

    return re.sub(r"%([0-9]?)(.)", fill, path)


def _shown(request: Request, user: str) -> Shown:
    return Shown(
        dialect=request.dialect,
        user=user,
        queue=_printable(request.queue),
        account=_printable(request.account),
        cores=request.cores,
        nodes=request.nodes,
        gpus=request.gpus,
        mem_bytes=request.mem_bytes,
        wall_s=request.wall_s,
        directory=request.enter[:500],
        depends="" if request.depends is None else ":".join(request.depends.on)[:500],
    )


def _printable(text: str) -> str:
    """A name of at most 200 characters, with what cannot be printed replaced."""
    return "".join(c if c.isprintable() else "_" for c in text)[:200]


def _environment(request: Request, number: int, user: str, host: str) -> dict[str, str]:
    """What the dialect tells every job; the task of an array is told its own number beside it."""
    if request.dialect == "slurm":
        env = {
            "SLURM_JOB_ID": str(number),
            "SLURM_JOBID": str(number),
            "SLURM_JOB_NAME": request.name,
            "SLURM_JOB_USER": user,
            "SLURM_SUBMIT_DIR": request.submitted_in,
            "SLURM_SUBMIT_HOST": host,
            "SLURM_JOB_NUM_NODES": str(request.nodes),
            "SLURM_NNODES": str(request.nodes),
            "SLURM_NTASKS": str(request.tasks),
            "SLURM_CPUS_PER_TASK": str(request.threads),
            "SLURM_CPUS_ON_NODE": str(request.cores),
            "SLURM_JOB_CPUS_PER_NODE": str(request.cores),
            "SLURM_JOB_PARTITION": request.queue,
            "SLURM_JOB_ACCOUNT": request.account,
        }
        if request.mem_bytes:
            env["SLURM_MEM_PER_NODE"] = str(request.mem_bytes >> 20)
        return {name: value for name, value in env.items() if value}
    env = {
        "PBS_JOBID": f"{number}.chappe",
        "PBS_JOBNAME": request.name,
        "PBS_O_WORKDIR": request.submitted_in,
        "PBS_O_HOST": host,
        "PBS_O_LOGNAME": user,
        "PBS_QUEUE": request.queue,
        "PBS_ENVIRONMENT": "PBS_BATCH",
        "NCPUS": str(request.cores),
        "PBS_NP": str(request.cores * request.nodes),
        "PBS_NUM_NODES": str(request.nodes),
        "PBS_NUM_PPN": str(request.cores),
    }
    return {name: value for name, value in env.items() if value}
