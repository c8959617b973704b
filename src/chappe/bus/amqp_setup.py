"""`chappe bus setup`: have a broker's exchanges, queues and bindings as the hub wants them."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from chappe.bus import amqp_topology
from chappe.bus.amqp_config import Amqp
from chappe.bus.amqp_link import CLOSE_S, FAULTS, connect, restore
from chappe.core.errors import Unavailable


class Done(msgspec.Struct, frozen=True):
    """Where it was done, and what is there now."""

    url: str
    exchanges: tuple[str, ...]
    queues: tuple[str, ...]


def setup(config: Amqp) -> Done:
    """Declare everything at the first node that answers; what is there already is left as it is.

    Raises Conflict for what is there with other arguments, Forbidden, and Unavailable when no node answers.
    """
    return asyncio.run(_setup(config))


async def _setup(config: Amqp) -> Done:
    trouble = ""
    for url in config.urls:
        try:
            connection = await connect(config, url, "chappe bus setup")
        except FAULTS as e:
            trouble = str(e) or type(e).__name__
            continue
        try:
            await restore(await connection.channel())
        except FAULTS as e:
            trouble = str(e) or type(e).__name__
            continue
        finally:
            with contextlib.suppress(*FAULTS):
                async with asyncio.timeout(CLOSE_S):
                    await connection.close()
        return Done(
            url,
            tuple(exchange.name for exchange in amqp_topology.EXCHANGES),
            tuple(queue.name for queue in amqp_topology.QUEUES),
        )
    raise Unavailable(f"no broker answers at {' '.join(config.urls)}: {trouble}", field="urls")
