"""What a Session's directory holds when its pilot starts, and what is left of it in the end."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import msgspec

from chappe.core.errors import Invalid
from chappe.core.ids import created_ms, is_uuid7
from chappe.link.clock import now
from chappe.link.files import write_atomic
from chappe.link.relayed import RelayFiles
from chappe.site.config import SiteConfig, SiteProblem
from chappe.site.paths import SitePaths
from chappe.site.schedulers.base import Batch, Scheduler
from chappe.site.schedulers.script import CLAIM
from chappe.wire.sites import BatchJobIntent, NewSessionReply

SESSION_FILE = "session.json"
SCRIPT = "batch.sh"
KEEP_DIRECTORIES = 50
KEEP_S = 30 * 86_400.0
TERM_TO_KILL_S = 10.0
"""What the scheduler allows beyond the pilot's own time to end its Jobs."""


def wall_of(config: SiteConfig, intent: BatchJobIntent) -> float | None:
    """The wall-clock limit to ask for, in seconds; None for none."""
    return intent.wall_s or config.pilot.wall_s or None


def with_defaults(config: SiteConfig, intent: BatchJobIntent) -> BatchJobIntent:
    """The same, with the Site's own choices where it makes none."""
    chosen = config.scheduler
    return msgspec.structs.replace(
        intent,
        wall_s=wall_of(config, intent),
        cores=intent.cores or config.pilot.cores,
        queue=intent.queue or chosen.queue,
        account=intent.account or chosen.account,
        qos=intent.qos or chosen.qos,
        reservation=intent.reservation or chosen.reservation,
        constraint=intent.constraint or chosen.constraint,
    )


def write_session(
    paths: SitePaths,
    config: SiteConfig,
    intent: BatchJobIntent,
    session: str,
    reply: NewSessionReply,
    idle_s: float | None = None,
) -> None:
    """Write session.json (0600) in a directory of its own (0700). `idle_s` None: as the Site says.

    Who this Site is, its own site.toml says: a pilot that believed the Hub about that would run what was
    signed for another Site. Raises Invalid when the reply speaks of others, OSError.
    """
    if (reply.id, reply.site, reply.project) != (session, config.site.id, config.site.project):
        raise Invalid(
            f"the hub made session {reply.id[:60]!r} of site {reply.site[:60]!r}, project "
            f"{reply.project[:60]!r}, and not this site's",
            field="site",
        )
    directory = paths.session(session)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    pilot = config.pilot
    content = {
        "session": session,
        "project": config.site.project,
        "site": config.site.id,
        "site_name": config.site.name,
        "url": config.hub.url,
        "site_dir": str(paths.root),
        "token": reply.token,
        "ca_file": config.ca_path(paths.root),
        "node_local": pilot.node_local,
        "scratch": pilot.scratch,
        "wall_s": wall_of(config, intent),
        "options": {
            "cores": intent.cores or pilot.cores,
            "mem_bytes": pilot.mem_bytes,
            "hold_memory": pilot.hold_memory,
            "file_bytes": pilot.file_bytes,
            "processes": pilot.processes,
            "node_tags": pilot.node_tags,
            "slots": pilot.slots,
            "idle_s": pilot.idle_s if idle_s is None else idle_s,
            "drain_s": pilot.drain_s,
            "kill_s": pilot.kill_s,
            "head_grace_s": pilot.head_grace_s,
            "umask": int(pilot.umask or "077", 8),
            "topology": str(paths.root / pilot.topology) if pilot.topology else "",
            "named": config.resources.named,
            "ranks": pilot.ranks,
            "host_line": pilot.host_line,
            "urgent_cores": pilot.urgent_cores,
            "urgent_priority": pilot.urgent_priority,
            "launch": {
                "ranks": config.launch.ranks,
                "binding": config.launch.binding,
                "args": config.launch.args,
            },
        },
        "functions": config.functions,
        "hosts": _hosts(config, intent),
        "relay": _relay(paths) if config.relay.enabled else None,
        "spool": config.spool.enabled,
    }
    write_atomic(directory / SESSION_FILE, msgspec.json.encode(content), 0o600)


def _relay(paths: SitePaths) -> RelayFiles:
    return RelayFiles(str(paths.relay_place), str(paths.relay_cert))


def _hosts(config: SiteConfig, intent: BatchJobIntent) -> dict[str, object]:
    """How the pilot finds the nodes of its allocation, and starts hands on them."""
    if config.pilot.hands:
        return {"kind": "command", "names": config.pilot.node_names, "start": config.pilot.hands}
    if config.scheduler.kind == "local":
        return {"kind": "emulated", "nodes": intent.nodes} if intent.nodes > 1 else {}
    if not config.launch.hands:
        return {}
    return {"kind": "launcher", "launcher": config.launch.hands}


def write_script(
    paths: SitePaths,
    config: SiteConfig,
    scheduler: Scheduler,
    intent: BatchJobIntent,
    name: str,
    session: str,
) -> Path:
    """Write the batch script; its path. Raises Invalid when the scheduler cannot do it, OSError."""
    path = paths.session(session) / SCRIPT
    text = scheduler.render_script(batch_of(paths, config, intent, name, session))
    write_atomic(path, text.encode(), 0o700)
    return path


def batch_of(
    paths: SitePaths, config: SiteConfig, intent: BatchJobIntent, name: str, session: str
) -> Batch:
    """What to ask the scheduler for. Raises SiteProblem when the Site's template cannot be read."""
    wanted = with_defaults(config, intent)
    chosen = config.scheduler
    return Batch(
        name=name,
        session=session,
        site_dir=str(paths.root),
        session_dir=str(paths.session(session)),
        python=config.pilot.python or sys.executable,
        nodes=wanted.nodes,
        cores=wanted.cores,
        wall_s=wanted.wall_s,
        kill_s=config.pilot.kill_s + TERM_TO_KILL_S,
        env=config.pilot.env,
        gpus=wanted.gpus,
        mem_bytes=wanted.mem_bytes,
        queue=wanted.queue,
        account=wanted.account,
        qos=wanted.qos,
        reservation=wanted.reservation,
        constraint=wanted.constraint,
        directives=(*chosen.job_extra_directives, *wanted.job_extra_directives),
        prologue=tuple(chosen.prologue),
        epilogue=tuple(chosen.epilogue),
        shell=chosen.shell,
        template=_template(paths, chosen.template),
    )


def claimed_by(paths: SitePaths, session: str) -> str | None:
    """The scheduler's id of the allocation that has begun for a Session; "" when it could not say; None when
    none has. PBS adds the name of its server, which no id of ours has."""
    claim = paths.session(session) / CLAIM
    try:
        return (claim / "id").read_text(encoding="ascii").strip().partition(".")[0][:100]
    except (OSError, UnicodeDecodeError):
        return "" if claim.exists() else None


def claimed_at(paths: SitePaths, session: str) -> float | None:
    """When the allocation of a Session began (seconds since 1970, as the file system tells); None: it has
    not."""
    try:
        return (paths.session(session) / CLAIM).stat().st_mtime
    except OSError:
        return None


def _template(paths: SitePaths, name: str) -> str:
    if not name:
        return ""
    path = paths.root / name
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise SiteProblem(f"{path}: it cannot be read: {e}", field="scheduler.template") from e


def close(paths: SitePaths, session: str) -> None:
    """After the end: remove the token, keep the logs; of many old directories remove the oldest."""
    (paths.session(session) / SESSION_FILE).unlink(missing_ok=True)
    try:
        # Ids begin with their time: the order of names is the order of creation.
        found = sorted(d for d in paths.sessions.iterdir() if not (d / SESSION_FILE).exists())
    except FileNotFoundError:
        return
    for old in found[:-KEEP_DIRECTORIES]:
        if is_uuid7(old.name) and created_ms(old.name) / 1000 < now() - KEEP_S:
            shutil.rmtree(old, ignore_errors=True)
