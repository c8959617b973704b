"""The synchronous face of `bus`: the same, blocking."""

from __future__ import annotations

from collections.abc import Sequence

from chappe.sdk.bus import Bus
from chappe.sdk.loop import Loop
from chappe.wire.bus import BusMessage, CheckReply, QueueDetail, QueueList


class SyncBus:
    """Queues, dead letters and replay; see Bus for what each does and raises."""

    def __init__(self, loop: Loop, bus: Bus) -> None:
        self._run = loop.run
        self._bus = bus

    def queues(self) -> QueueList:
        """All queues, and the last position that was published. For administrators."""
        return self._run(self._bus.queues())

    def queue(self, name: str) -> QueueDetail:
        """A queue, and the oldest messages in it. For administrators."""
        return self._run(self._bus.queue(name))

    def dead(self, queue: str | None = None, limit: int = 100) -> list[BusMessage]:
        """Dead letters: of the project for an owner, all for an administrator."""
        return self._run(self._bus.dead(queue, limit))

    def revive(self, queue: str, positions: Sequence[int] | None = None) -> int:
        """Have dead letters tried anew, all of the queue or those at `positions`; how many."""
        return self._run(self._bus.revive(queue, positions))

    def replay(self, queue: str, after: int, until: int | None = None) -> int:
        """Put what was published after a position into the queue once more; how many. For administrators."""
        return self._run(self._bus.replay(queue, after, until))

    def check(self) -> CheckReply:
        """Send a message through the bus. For administrators."""
        return self._run(self._bus.check())
