"""The batch script: directives for the scheduler, then shell that runs the pilot.

A Site may bring a template of its own (`[scheduler] template`, Jinja2). It has the same parts by name —
`shell`, `directives` (lines), `environment`, `prologue`, `pilot`, `epilogue` — and all fields of `batch`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from chappe.core.errors import Invalid
from chappe.site.schedulers.base import Batch

PILOT_RESTARTS = 3
SESSION_ENDED_EXIT = 3
"""Exit status of a pilot whose Session is over: it must not be started again."""
CLAIM = "claim"
"""Directory that the first allocation of a Session makes; in its file `id` stands the scheduler's id."""

TEMPLATE = """\
#!{{ shell }}
{% for line in directives -%}
{{ line }}
{% endfor -%}
{{ environment }}
{{ prologue }}
{{ pilot }}
{{ epilogue }}
exit "$status"
"""

#: The pilot reads a thousand grants at a time. As glibc comes, it keeps what such a reply took, in one arena
#: a thread: 2.3 KB a grant, and 1.3 so. Jobs do not inherit these (their environment is made by the pilot).
_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
_PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")
_ENVIRONMENT = SandboxedEnvironment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
)


def script(batch: Batch, directives: Sequence[str], notice: Sequence[str] = ()) -> str:
    """The whole script. Raises Invalid for a template that fails, or that leaves the pilot out.

    `notice` are signals that the scheduler sends to all processes at once, to say that it will kill."""
    for line in directives:
        if not line.isprintable():
            raise Invalid(
                f"{line[:80]!r} cannot be a line of a batch script: it has control characters",
                field="script",
            )
    pilot = pilot_loop(batch, notice)
    try:
        text = _ENVIRONMENT.from_string(batch.template or TEMPLATE).render(
            batch=batch,
            shell=batch.shell,
            directives=list(directives),
            environment=environment(batch),
            prologue="\n".join(batch.prologue),
            pilot=pilot,
            epilogue="\n".join(batch.epilogue),
        )
    except jinja2.TemplateError as e:
        line_no = getattr(e, "lineno", None)
        where = f" (line {line_no})" if line_no else ""
        raise Invalid(f"the template cannot be used{where}: {e}", field="scheduler.template") from e
    if pilot not in text or f"CHAPPE_SESSION={shlex.quote(batch.session)}" not in text:
        raise Invalid(
            "the template must contain {{ environment }} and {{ pilot }}, each on lines of its own",
            field="scheduler.template",
        )
    return text


def check_plain(path: str, mark: str) -> None:
    """Raise Invalid unless `path` means itself in a directive, a line that begins with `mark`. Batch systems
    differ in what they do with quotation marks there; where one is sure, its adapter allows more."""
    if not _PLAIN.fullmatch(path):
        raise Invalid(
            f"{path!r} cannot be named in a `{mark}` line; letters, digits and _./+- can",
            field="site_dir",
        )


def environment(batch: Batch) -> str:
    """Shell that sets the mark by which every process of the allocation is known, and what the Site sets."""
    lines = [f"export CHAPPE_SESSION={shlex.quote(batch.session)}"]
    lines += [f"export {name}={value}" for name, value in _MALLOC.items()]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(batch.env.items())]
    return "\n".join([*lines, f"cd {shlex.quote(batch.site_dir)} || exit 1"])


def pilot_loop(batch: Batch, notice: Sequence[str] = ()) -> str:
    """Shell that runs the pilot, and again if it dies (≤ 3 times); its exit status is in $status then.

    First it claims the Session. A scheduler that forgot a job it had accepted, and was given it again, may
    run it twice: the second ends here, before its pilot begins.

    Exit 0 means done, `SESSION_ENDED_EXIT` that the Session is over. TERM is passed on, and then the
    pilot is not started again. The shell stays: it is what a local scheduler sends TERM to. Signals of
    `notice` are taken for TERM here, and ignored by the pilot, which gets a TERM for them.
    """
    start = f'{shlex.quote(batch.python)} -P -m chappe.pilot --dir "$session_dir"'
    if notice:
        start = f"(trap '' {' '.join(notice)}; exec {start})"
    return _LOOP.format(
        start=start,
        signals=" ".join(dict.fromkeys(("TERM", "INT", *notice))),
        session_dir=shlex.quote(batch.session_dir),
        claim=CLAIM,
        over=SESSION_ENDED_EXIT,
        restarts=PILOT_RESTARTS,
    )


_LOOP = """\
session_dir={session_dir}
umask 077
if ! mkdir "$session_dir/{claim}"; then
    echo "this session has an allocation already" >>"$session_dir/pilot.out"
    exit {over}
fi
echo "${{SLURM_JOB_ID:-${{PBS_JOBID:-${{LSB_JOBID:-${{FLUX_JOB_ID:-$JOB_ID}}}}}}}}" >"$session_dir/{claim}/id"
ending=
pilot=
restarts=0
status=0
trap 'ending=1; [ -z "$pilot" ] || kill -TERM "$pilot" 2>/dev/null' {signals}
while [ -z "$ending" ]; do
    {start} >>"$session_dir/pilot.out" 2>&1 </dev/null &
    pilot=$!
    # A trapped signal ends `wait` early: go on until the pilot itself has ended.
    while :; do
        wait "$pilot"
        status=$?
        kill -0 "$pilot" 2>/dev/null || break
    done
    case $status in 0 | {over}) break ;; esac
    restarts=$((restarts + 1))
    [ "$restarts" -le {restarts} ] || break
    echo "the pilot ended with status $status: restart $restarts" >>"$session_dir/pilot.out"
done"""
