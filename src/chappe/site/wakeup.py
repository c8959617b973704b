"""How the agent's loops wake each other."""

from __future__ import annotations

import asyncio


class Wakeups:
    """One event per loop: set it when there may be something to do. `online`: the Hub answers."""

    def __init__(self) -> None:
        self.batches = asyncio.Event()
        self.watch = asyncio.Event()
        self.bury = asyncio.Event()
        self.report = asyncio.Event()
        self.windows = asyncio.Event()
        self.online = asyncio.Event()


async def wait_for(event: asyncio.Event, timeout_s: float | None = None) -> bool:
    """Wait for `event` and clear it; False when `timeout_s` passed first (None: no limit)."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True
