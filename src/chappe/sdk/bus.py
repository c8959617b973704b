"""The bus, as those see it who look after a hub: queues, dead letters, replay."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from chappe.core import limits
from chappe.link.http import NO_RETRY, HubClient
from chappe.wire.bus import (
    BusMessage,
    CheckReply,
    DeadLetters,
    QueueDetail,
    QueueList,
    Replay,
    ReplayReply,
    Revive,
    ReviveReply,
)

__all__ = ["Bus", "BusMessage", "QueueDetail"]


class Bus:
    """Requests about the bus. Async; a queue has our name, or `NAME:TYPE` as others call it."""

    def __init__(self, hub: HubClient) -> None:
        self._hub = hub

    async def queues(self) -> QueueList:
        """All queues, and the last position that was published. For administrators."""
        return await self._hub.request("GET", "/v1/bus/queues", reply=QueueList)

    async def queue(self, name: str) -> QueueDetail:
        """A queue, and the oldest messages in it. For administrators."""
        return await self._hub.request("GET", f"/v1/bus/queues/{quote(name)}", reply=QueueDetail)

    async def dead(self, queue: str | None = None, limit: int = 100) -> list[BusMessage]:
        """Dead letters: of the project for an owner, all for an administrator."""
        found: list[BusMessage] = []
        params: dict[str, str | int] = {} if queue is None else {"queue": queue}
        while len(found) < limit:
            params["limit"] = min(limit - len(found), limits.PAGE_MAX)
            page = await self._hub.request("GET", "/v1/bus/dead", reply=DeadLetters, params=params)
            found += page.messages
            if page.next is None:
                break
            params["cursor"] = page.next
        return found

    async def revive(self, queue: str, positions: Sequence[int] | None = None) -> int:
        """Have dead letters tried anew, all of the queue or those at `positions`; how many."""
        revived = 0
        while True:
            body = Revive(queue, None if positions is None else list(positions))
            done = await self._hub.request("POST", "/v1/bus/dead/revive", body, ReviveReply)
            revived += done.revived
            if done.complete or not done.revived:
                return revived

    async def replay(self, queue: str, after: int, until: int | None = None) -> int:
        """Put what was published after a position into the queue once more; how many. For administrators."""
        path, replayed = f"/v1/bus/queues/{quote(queue)}/replay", 0
        while True:
            body = Replay(after, until)
            done = await self._hub.request("POST", path, body, ReplayReply)
            replayed, after = replayed + done.replayed, done.after
            if done.complete:
                return replayed

    async def check(self) -> CheckReply:
        """Send a message through the bus. For administrators."""
        return await self._hub.request("POST", "/v1/bus/check", reply=CheckReply, retry=NO_RETRY)
