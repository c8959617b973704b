"""Who gives up a connection during its handshake closes it."""

from __future__ import annotations

import asyncio
import gc

import pytest

from chappe.core.errors import Unavailable
from chappe.link.http import NO_RETRY, HubClient

WITHIN_S = 30.0


async def test_a_handshake_that_is_given_up_closes_its_connection() -> None:
    opened, closed = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            opened.set()
        if opened.is_set():
            closed.set()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    gc.disable()  # it would close the connection too, some time
    try:
        async with HubClient(f"https://127.0.0.1:{port}") as hub:
            # On a busy machine it may be given up before the handshake has begun: then, another time.
            until = asyncio.get_running_loop().time() + WITHIN_S
            while not opened.is_set() and asyncio.get_running_loop().time() < until:
                with pytest.raises(Unavailable, match="no complete answer"):
                    await hub.request("GET", "/v1/whoami", retry=NO_RETRY, timeout_s=0.2)
            await asyncio.wait_for(closed.wait(), WITHIN_S)
    finally:
        gc.enable()
        server.close()
        await server.wait_closed()
