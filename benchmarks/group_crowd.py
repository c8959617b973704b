"""Sixteen clients at once, each with a connection of its own and 1 000 signed Jobs."""

from __future__ import annotations

import asyncio
import time

from benchmarks.bench import Bench
from benchmarks.rig import Bed, bed
from chappe.core.errors import ChappeError
from chappe.link.http import NO_RETRY, HubClient
from chappe.wire.jobs import CreateReply

CLIENTS = 16
BATCH = 1_000


def run(bench: Bench) -> None:
    """From a common start, TLS handshake included, to the last byte of the slowest answer."""
    keys = ("crowd.slowest", "crowd.succeeded")
    with bench.attempt(*keys), bench.private("crowd") as directory, bed(directory) as the:
        for _ in range(bench.rounds):
            bodies = [the.maker.body(BATCH) for _ in range(CLIENTS)]
            taken = asyncio.run(_crowd(the, bodies))
            bench.add("crowd.slowest", max(taken))
            bench.add("crowd.succeeded", sum(t != float("inf") for t in taken))


async def _crowd(the: Bed, bodies: list[bytes]) -> list[float]:
    """Seconds until each was answered; infinite for one that was not."""
    hub = the.hub.running
    clients = [HubClient(hub.url, hub.token, ca_file=hub.ca_file) for _ in bodies]
    began = time.perf_counter()

    async def post(client: HubClient, body: bytes) -> float:
        try:
            reply = await client.request("POST", "/v1/jobs", body, CreateReply, retry=NO_RETRY)
        except ChappeError:
            return float("inf")
        assert len(reply.verdicts) == BATCH
        return time.perf_counter() - began

    try:
        return list(await asyncio.gather(*map(post, clients, bodies)))
    finally:
        for client in clients:
            await client.aclose()
