"""The bus on the wire: queues, what waits in them, dead letters, and having them tried again."""

from __future__ import annotations

from typing import Literal

import msgspec


class QueueView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A queue: `depth` is what is ready, leased (with a consumer) or delayed, `dead` its dead letters.

    `oldest_s` is since when the oldest is waiting, without delays that were asked for. The counts below are
    of all time. `others` is what it is called elsewhere; `declared` is false for one of another version.
    """

    name: str
    depth: int
    dead: int
    ready: int = 0
    leased: int = 0
    delayed: int = 0
    oldest_s: float | None = None
    arrived: int = 0
    acked: int = 0
    retried: int = 0
    lost: int = 0
    died: int = 0
    revived: int = 0
    forgotten: int = 0
    topics: list[str] = []
    others: str = ""
    attempts: int = 0
    lease_s: float = 0.0
    declared: bool = True


class QueueList(msgspec.Struct, frozen=True):
    """All queues. `position` is the last that was published: what a replay can begin after."""

    queues: list[QueueView]
    position: int


class BusMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message in a queue. `until` is when its delay ends; a dead letter died at `died_at` for `reason`.
    `project` is an id, "" for the hub itself; `body` is JSON, at most its first 4 KiB."""

    queue: str
    position: int
    topic: str
    state: str
    tries: int
    published_at: float
    project: str = ""
    until: float | None = None
    died_at: float | None = None
    reason: str = ""
    body: str = ""


class QueueDetail(msgspec.Struct, frozen=True):
    """A queue, and the oldest messages in it that are not dead."""

    queue: QueueView
    messages: list[BusMessage]


class DeadLetters(msgspec.Struct, frozen=True, omit_defaults=True):
    """Dead letters by queue and position; `next` is the cursor of the next page."""

    messages: list[BusMessage]
    next: str | None = None


class Replay(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`POST /v1/bus/queues/{name}/replay`: put what was published after a position, and up to `until`, into
    the queue once more."""

    after: int
    until: int | None = None


class ReplayReply(msgspec.Struct, frozen=True):
    """How many messages were put in (those in the queue already were not), and where it stopped: if before
    the end, ask again with `after` set to it."""

    replayed: int
    after: int
    complete: bool


class Revive(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`POST /v1/bus/dead/revive`: have dead letters of a queue tried anew, all or those at `positions`."""

    queue: str
    positions: list[int] | None = None


class ReviveReply(msgspec.Struct, frozen=True):
    """How many were revived; `complete` is false when there are more: ask again."""

    revived: int
    complete: bool


class CheckReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether a message went through the bus, and in what time."""

    outcome: Literal["ok", "waiting"]
    position: int
    seconds: float
