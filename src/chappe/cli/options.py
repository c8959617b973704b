"""Options that several commands share: which Jobs, what a Job needs, sizes and durations as people write."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from chappe.sdk.sync import Client

F = TypeVar("F", bound=Callable[..., Any])

PHASES = ("open", "waiting", "runnable", "running", "finished", "failed", "cancelled")
ROLE = click.Choice(["viewer", "operator", "owner"])
_UNITS_B = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_UNITS_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def size_bytes(text: str) -> int:
    """Bytes as people write them: `4G`, `512MiB`, `1000000`. Units are powers of 1024."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?b)?", text.strip().lower())
    if found is None:
        raise click.BadParameter(f"{text!r} is no size: 4G, 512M or a number of bytes")
    return int(float(found[1]) * _UNITS_B[found[2]])


def duration_s(text: str) -> float:
    """Seconds as people write them: `90`, `30m`, `2h`, `1d12h`, `2h30m`."""
    short = text.strip().lower()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", short):
        return float(short)
    if not re.fullmatch(r"([0-9]+[dhms])+", short):
        raise click.BadParameter(f"{text!r} is no duration: 90, 30m, 2h30m or 1d")
    return float(sum(int(n) * _UNITS_S[u] for n, u in re.findall(r"([0-9]+)([dhms])", short)))


def moment(text: str) -> float:
    """A time as people write it, in seconds since 1970: `2h` (ago), `2026-05-01`, `2026-05-01T12:30`."""
    import time  # here: most commands name no time
    from datetime import datetime

    try:
        return time.time() - duration_s(text)
    except click.BadParameter:
        pass
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no time: 2h (ago), 2026-05-01 or 2026-05-01T12:30"
        ) from None


def offers(kind: str) -> Any:
    """A `shell_complete` of one kind (see sdk.offers): sites, apps, jobs or states."""

    def complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> Any:
        from click.shell_completion import CompletionItem  # here: nothing else needs these

        from chappe.sdk import offers as sdk

        return [CompletionItem(text, help=word) for text, word in sdk.offers(kind, incomplete)]

    return complete


def filters(command: F) -> F:
    """The conditions of `job ls` and of acts on many Jobs."""
    times = [
        click.option(f"--{name}", type=moment, metavar="TIME", help=words)
        for name, words in (
            ("ended-until", "Ended before this."),
            ("ended-since", "Ended since: 2h (ago), 2026-05-01, 2026-05-01T12:30."),
            ("created-until", "Created before this."),
            ("created-since", "Created since this."),
        )
    ]
    for option in (
        *times,
        click.option("--batch-job", metavar="ID", help="Held now by the pilot of this allocation."),
        click.option("--session", metavar="ID", help="Held now by this session."),
        click.option("--held", is_flag=True, default=None, help="Held, and not ended."),
        click.option("--tag", "tags", multiple=True, metavar="K=V", help="With this tag; repeat."),
        click.option(
            "--parent", metavar="ID", shell_complete=offers("jobs"), help="Children of this job."
        ),
        click.option("--name-prefix", metavar="TEXT", help="Whose name begins so."),
        click.option("--name", help="With exactly this name."),
        click.option("--app", shell_complete=offers("apps"), help="Of this app."),
        click.option(
            "-s", "--site", shell_complete=offers("sites"), help="At this site (name or id)."
        ),
        click.option(
            "--state", shell_complete=offers("states"), help="In this fine state, such as RUNNING."
        ),
        click.option("--phase", type=click.Choice(PHASES), help="In this coarse state."),
    ):
        command = option(command)
    return command


def conditions(client: Client, given: dict[str, Any]) -> dict[str, Any]:
    """The SDK's conditions for the options of `filters`; a short id of a parent is looked up."""
    from chappe.sdk.texts import pairs  # here: `--help` does without the SDK

    found = {k: v for k, v in given.items() if v not in (None, ())}
    if "tags" in found:
        found["tags"] = dict(pairs(found["tags"], "tag"))
    if "parent" in found:
        found["parent"] = client.job(found["parent"]).id
    return found


def job_options(command: F) -> F:
    """What a Job needs and how it is treated: the options of `job submit` and `run`."""
    for option in (
        click.option(
            "--env", multiple=True, metavar="K=V", help="Variable the app allows; repeat."
        ),
        click.option("--workdir", help="Directory, relative to the site's data directory."),
        click.option(
            "--takeover",
            "takeover_s",
            type=duration_s,
            metavar="TIME",
            help="Run elsewhere after this silence.",
        ),
        click.option(
            "--on-parent-failure",
            type=click.Choice(["fail", "anyway", "succeeded"]),
            help="What to do when a parent fails.",
        ),
        click.option(
            "--parent",
            "parents",
            multiple=True,
            metavar="ID",
            shell_complete=offers("jobs"),
            help="Wait for it; repeat.",
        ),
        click.option("--priority", type=int, help="Higher runs first."),
        click.option("--tag", "tags", multiple=True, metavar="K=V", help="Attach a tag; repeat."),
        click.option(
            "--retry-on",
            multiple=True,
            type=click.Choice(["error", "timeout", "lost"]),
            help="After which outcomes (lost); repeat.",
        ),
        click.option("--retries", type=int, help="How often it may be started again (2)."),
        click.option(
            "--warn",
            "warn_s",
            type=duration_s,
            metavar="TIME",
            help="Signal it so long before its end.",
        ),
        click.option(
            "--needs",
            "named",
            multiple=True,
            metavar="NAME=N",
            help="Licences and the like; repeat.",
        ),
        click.option("--threads", "threads_per_rank", type=int, help="Threads of a rank."),
        click.option("--ranks", type=int, help="MPI ranks in all (1)."),
        click.option("--nodes", type=int, help="Nodes it needs (1)."),
        click.option("--node-tag", help="Run on nodes that the owner set apart by this word."),
        click.option("--gpus", type=float, help="GPUs it needs on a node; 0.5: half of one."),
        click.option(
            "--wall", "wall_s", type=duration_s, metavar="TIME", help="Time limit: 90, 30m, 2h."
        ),
        click.option(
            "--mem", "mem_bytes", type=size_bytes, metavar="SIZE", help="Memory it needs: 4G."
        ),
        click.option("--cores", type=int, help="Cores it needs (1)."),
        click.option("--name", help="What people call it."),
    ):
        command = option(command)
    return command


def array_options(command: F) -> F:
    """The options that make one Job an array."""
    for option in (
        click.option(
            "--dialect",
            type=click.Choice(["slurm", "pbs", "sge"]),
            help="Set this batch system's variables too, as SLURM_ARRAY_TASK_ID.",
        ),
        click.option(
            "--array",
            metavar="INDICES",
            help="Once for each index: 1-100, 1-100:5, 1,4,7-9; 1-100%20: 20 at once.",
        ),
    ):
        command = option(command)
    return command


def options_of(client: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The SDK's Options for those of `job_options`; short parent ids are looked up."""
    from chappe.sdk.texts import pairs  # here: `--help` does without the SDK

    options = {name: value for name, value in given.items() if value not in (None, ())}
    for name in ("tags", "env"):
        if name in options:
            options[name] = dict(pairs(options[name], name))
    if "named" in options:
        options["named"] = {name: _count(n) for name, n in pairs(options["named"], "needs")}
    if "parents" in options:
        options["parents"] = [client.job(parent).id for parent in options["parents"]]
    return options


def _count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number", param_hint="--needs") from None
