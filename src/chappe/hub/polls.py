"""Long polls: requests that were answered with nothing and wait for a hint.

A hint says only that something may have changed; whoever waited looks again in the store. A poll
registers *before* its first look, so a change that falls between that look and the wait is not missed.
All of this lives on the event loop; the writer's thread hands its hints over in `hub.state`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from types import TracebackType

#: A wake that overtakes its poll (they travel on two connections) is kept for so long.
EARLY_WAKE_S = 5.0
EARLY_WAKES = 10_000


class Poll:
    """One waiting request. `over` is set when it is to be answered with what it has."""

    def __init__(self, polls: Polls, key: Hashable, order: int, groups: tuple[Hashable, ...]):
        self._polls = polls
        self.key = key
        self.order = order
        self.groups = groups
        self.over = False
        self._hinted = asyncio.Event()

    def hint(self) -> None:
        """Something may have changed: look again."""
        self._hinted.set()

    def end(self) -> None:
        """Answer now, with what there is."""
        self.over = True
        self._hinted.set()

    async def wait(self, deadline: float) -> bool:
        """Wait for a hint until `deadline` (the loop's clock). True: look again. False: answer."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._hinted.wait()
        except TimeoutError:
            return False
        self._hinted.clear()
        return not self.over

    def __enter__(self) -> Poll:
        self._polls.enter(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._polls.leave(self)


class Polls:
    """All polls, by who waits (`key`: one at a time) and by what they wait for (`groups`)."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, Poll] = {}
        self._by_group: dict[Hashable, set[Poll]] = {}
        self._early: OrderedDict[Hashable, float] = OrderedDict()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._by_key)

    def poll(self, key: Hashable, order: int, groups: tuple[Hashable, ...]) -> Poll:
        """A poll to be used as a context manager. Of two with one key the lower `order` is ended."""
        return Poll(self, key, order, groups)

    def enter(self, poll: Poll) -> None:
        """Register a poll; called on entering it."""
        other = self._by_key.get(poll.key)
        if other is not None and other.order > poll.order:
            poll.end()
            return
        if other is not None:
            other.end()
            self.leave(other)
        self._by_key[poll.key] = poll
        for group in poll.groups:
            self._by_group.setdefault(group, set()).add(poll)
        woken_at = self._early.pop(poll.key, None)
        now = asyncio.get_running_loop().time()
        if self._stopped or (woken_at is not None and now - woken_at < EARLY_WAKE_S):
            poll.end()

    def leave(self, poll: Poll) -> None:
        """Forget a poll; called on leaving it."""
        if self._by_key.get(poll.key) is not poll:
            return
        del self._by_key[poll.key]
        for group in poll.groups:
            among = self._by_group[group]
            among.discard(poll)
            if not among:
                del self._by_group[group]

    def hint(self, groups: Iterable[Hashable]) -> None:
        """Wake every poll of these groups."""
        for group in groups:
            for poll in self._by_group.get(group, ()):
                poll.hint()

    def wake(self, key: Hashable) -> None:
        """End the poll of `key`; if it has not come yet, the one that comes next."""
        poll = self._by_key.get(key)
        if poll is not None:
            poll.end()
            return
        self._early[key] = asyncio.get_running_loop().time()
        self._early.move_to_end(key)
        while len(self._early) > EARLY_WAKES:
            self._early.popitem(last=False)

    def stop(self) -> None:
        """End all polls, and all that come from now on."""
        self._stopped = True
        for poll in list(self._by_key.values()):
            poll.end()
