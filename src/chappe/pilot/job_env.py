"""What a Job finds in its environment whatever its App says: of its Site, of its own size, of its GPUs."""

from __future__ import annotations

from collections.abc import Mapping

from chappe.core.jobs import Resources
from chappe.link.emitted import SPOOL
from chappe.pilot.nodes import Share
from chappe.pilot.session import Session
from chappe.pilot.topology import VARIABLES

_BASE_NAMES = ("PATH", "HOME", "USER", "LANG", "TMPDIR")


def base_env(session: Session, environ: Mapping[str, str]) -> dict[str, str]:
    """What all Jobs of the Session find in their environment."""
    env = {name: environ[name] for name in _BASE_NAMES if name in environ}
    env["CHAPPE_SITE"] = session.site_name
    env["CHAPPE_DATA"] = str(session.data)
    if session.spool:
        env["CHAPPE_EMIT_SPOOL"] = str(session.data / SPOOL)
    return env


def resource_env(resources: Resources) -> dict[str, str]:
    """What a Job is told of its own size."""
    env = {
        "CHAPPE_CORES": str(resources.node_cores),
        "CHAPPE_MEM_BYTES": str(resources.mem_bytes),
        "OMP_NUM_THREADS": str(resources.threads),
    }
    if resources.ranks > 1 or resources.nodes > 1:
        env["CHAPPE_NODES"] = str(resources.nodes)
        env["CHAPPE_RANKS"] = str(resources.ranks)
        env["CHAPPE_RANKS_PER_NODE"] = str(resources.node_ranks)
    return env


def gpu_env(share: Share) -> dict[str, str]:
    """Which GPUs of its node a Job may see: those that it asked for, and no other."""
    env: dict[str, list[str]] = {}
    for gpu in share.node.topology.gpus:
        seen = env.setdefault(VARIABLES[gpu.vendor], [])
        if gpu.uuid in share.gpus:
            seen.append(gpu.uuid)
    return {name: ",".join(uuids) for name, uuids in env.items()}
