"""`[elastic]` in site.toml: what the agent asks the scheduler for by itself."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from chappe.core import limits
from chappe.core.elastic import NodeSize, PolicyKind
from chappe.core.errors import Invalid
from chappe.site.schedulers.windows import READERS

_Hours = Annotated[float, Meta(ge=0, le=1e9)]


class ElasticConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The allocations that the agent asks for by itself."""

    policy: Annotated[
        PolicyKind,
        Meta(
            description='"keep": as many as `[pilot] keep` says. "fit": what the waiting Jobs need. '
            '"backfill": that, as far as it fits into gaps of the machine\'s plan. "deadline": what it takes '
            'to be through by `deadline`. "off": none.'
        ),
    ] = PolicyKind.KEEP
    minimum: Annotated[
        int,
        Meta(ge=0, le=1_000, description="Allocations that stay whatever waits (not with `keep`)."),
    ] = 0
    maximum: Annotated[
        int,
        Meta(
            ge=1, le=1_000, description="Allocations that may be open at once, users' own included."
        ),
    ] = 10
    nodes: Annotated[
        int, Meta(ge=1, le=100_000, description="Nodes of an allocation, unless Jobs need more.")
    ] = 1
    nodes_max: Annotated[
        int, Meta(ge=1, le=100_000, description="Nodes of all open allocations together.")
    ] = 100
    wall_s: Annotated[
        float,
        Meta(
            ge=0,
            le=limits.WALL_MAX_S,
            description="Wall-clock limit of an allocation at most. 0: as `[pilot] wall_s` says.",
        ),
    ] = 0.0
    wall_s_min: Annotated[
        float,
        Meta(ge=0, le=limits.WALL_MAX_S, description="Wall-clock limit of an allocation at least."),
    ] = 600.0
    within_s: Annotated[
        float,
        Meta(
            ge=0,
            le=limits.WALL_MAX_S,
            description="What waits is to be through so long after allocations began. 0: all of it runs at "
            "once, as far as it may.",
        ),
    ] = 3_600.0
    deadline: Annotated[
        str, Meta(description='When all is to be done, for `deadline`: "2026-12-01T08:00:00Z".')
    ] = ""
    idle_s: Annotated[
        float,
        Meta(
            gt=0,
            le=limits.WALL_MAX_S,
            description="A pilot that was asked for because of waiting Jobs ends its allocation after so "
            "long without any; one that is queued and not needed is taken back after so long.",
        ),
    ] = 300.0
    wait_s: Annotated[
        float,
        Meta(
            ge=0,
            le=limits.WALL_MAX_S,
            description="An allocation that has been queued for so long is replaced by one of half its size, "
            "if its Jobs fit into that. 0: never.",
        ),
    ] = 0.0
    assumed_s: Annotated[
        float,
        Meta(
            gt=0,
            le=limits.WALL_MAX_S,
            description="How long a Job takes of which nobody said it.",
        ),
    ] = 600.0
    node_hours_per_day: Annotated[
        float,
        Meta(
            ge=0,
            le=1e9,
            description="Node-hours that allocations may use in any 24 hours. 0: any number.",
        ),
    ] = 0.0
    accounts: Annotated[
        dict[str, _Hours],
        Meta(
            description="Accounts to charge in turn, with the node-hours that each may use in 24 hours. "
            "Empty: `[scheduler] account`."
        ),
    ] = {}
    node_cores: Annotated[
        int,
        Meta(
            ge=0,
            le=limits.CORES_MAX,
            description="Cores that a node has for Jobs. 0: the first pilot tells; until then there is one.",
        ),
    ] = 0
    node_mem_bytes: Annotated[int, Meta(ge=0, description="Memory of such a node. 0: enough.")] = 0
    node_gpus: Annotated[int, Meta(ge=0, le=1_000, description="GPUs of such a node.")] = 0

    @property
    def node(self) -> NodeSize | None:
        """What a node has, if it is said here."""
        if not self.node_cores:
            return None
        return NodeSize(self.node_cores, self.node_mem_bytes, self.node_gpus)

    @property
    def deadline_at(self) -> float | None:
        """The deadline in seconds since 1970. Raises Invalid."""
        if not self.deadline:
            return None
        try:
            at = datetime.fromisoformat(self.deadline)
        except ValueError as e:
            raise Invalid(f"this is no time: {e}", field="elastic.deadline") from None
        if at.tzinfo is None:
            raise Invalid("say the time zone as well: …Z or …+01:00", field="elastic.deadline")
        return at.timestamp()


def check_elastic(config: ElasticConfig, scheduler: str) -> None:
    """What types cannot say. Raises Invalid naming the field."""
    if config.policy is PolicyKind.BACKFILL and scheduler not in READERS:
        raise Invalid(
            f"free nodes are known only with {', '.join(READERS)}: choose `fit`",
            field="elastic.policy",
        )
    if config.deadline_at is None and config.policy is PolicyKind.DEADLINE:
        raise Invalid("the policy `deadline` needs a time", field="elastic.deadline")
    if config.minimum > config.maximum:
        raise Invalid("`minimum` is above `maximum`", field="elastic.minimum")
    if config.nodes > config.nodes_max:
        raise Invalid("`nodes` is above `nodes_max`", field="elastic.nodes")
