"""Messages over HTTPS: how many are durable and applied in a second, how long an ack takes beside others,
what a message costs in a long simulation, and how long all state takes to be made anew."""

from __future__ import annotations

import asyncio
import itertools
import random
import sqlite3
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import msgspec

from benchmarks.bench import Bench
from benchmarks.contract import MS
from benchmarks.figures import percentile
from benchmarks.rig import HubProcess, hub
from chappe.testing.postgres import HOW_TO_GET, PostgresServer, binaries

_BATCH = 100
_SIMULATIONS = 1_000
_CONNECTIONS = 4
_PRODUCERS = 200
_OFFERED_PER_S = 2_000
_SETTINGS = ("shared_buffers = 1GB", "max_wal_size = 4GB", "wal_buffers = 16MB")


def run(bench: Bench) -> None:
    """On SQLite all rows, on PostgreSQL the first."""
    count = bench.scaled(100_000, 10_000)
    with (
        bench.attempt("ingest.sqlite", "ingest.ordered", "ingest.ack_p99", "ingest.hot"),
        bench.private("ingest") as place,
        hub(place) as running,
    ):
        said = Said()
        _post_all(running, [said.batch(said.starts())])
        for _ in range(bench.rounds):
            bench.add("ingest.sqlite", _rate(running, said.mixed(count)))
            bench.add("ingest.ordered", _rate(running, said.one_by_one(count)))
            acks = asyncio.run(_acks(running, said, bench.scaled(10, 3)))
            bench.add("ingest.ack_p99", percentile(acks, 99) * MS)
        bench.add("ingest.hot", _hot(running, said, bench.scaled(200_000, 20_000)))
    with bench.attempt("ingest.rebuild"), bench.private("rebuild") as place:
        many = bench.scaled(1_000_000, 50_000)
        with hub(place) as running:
            _rate(running, Said().one_by_one(many, 1_000))
            database = running.database
        with closing(sqlite3.connect(database)) as conn, conn:
            conn.executescript("DELETE FROM fact; DELETE FROM sim_job; DELETE FROM simulation;")
        with hub(place) as running:
            bench.add("ingest.rebuild", _rebuilt(running, many // 1_000) * 1_000_000 / many)
        bench.note("ingest.rebuild", f"{many} messages, of which nothing was left")
    with bench.attempt("ingest.postgresql"), bench.private("ingest-pg") as place:
        if binaries() is None:
            raise RuntimeError(f"no PostgreSQL; to get it: {HOW_TO_GET}")
        with (
            PostgresServer.start(*_SETTINGS, memory=False) as server,
            hub(place, db=server.database()) as running,
        ):
            said = Said()
            _post_all(running, [said.batch(said.starts())])
            for _ in range(bench.rounds):
                bench.add("ingest.postgresql", _rate(running, said.mixed(count)))


class Said:
    """What 1 000 simulations say, of one job each, as bytes."""

    def __init__(self) -> None:
        self.uids = [str(uuid.uuid4()) for _ in range(_SIMULATIONS)]
        self._dice = random.Random(7)
        self._clock = time.time()

    def message(self, code: str, uid: str, **fields: str) -> dict[str, str]:
        """One message, a moment after the last."""
        self._clock += 1e-4
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self._clock))
        return {
            "msgApplication": "monitoring",
            "msgProducer": "libigcm",
            "msgProducerVersion": "2.8.1",
            "simuid": uid,
            "jobuid": f"{uid[:-1]}x",
            "msgCode": code,
            "msgUID": str(uuid.uuid4()),
            "msgTimestamp": f"{at}.{int(self._clock % 1 * 1e9):09d}+0000",
            **fields,
        }

    def starts(self) -> list[dict[str, str]]:
        """All of them begin."""
        names = {"startDate": "1850-01-01", "endDate": "1859-12-31", "machine": "curie"}
        return [
            self.message("0000", uid, name=f"bench-{n}", **names) for n, uid in enumerate(self.uids)
        ]

    def course(self, uid: str) -> dict[str, str]:
        """What a running one says next: mostly what it copied, now and then a period or a command."""
        sort = self._dice.random()
        if sort < 0.8:
            return self.message(
                "7000",
                uid,
                actionName="IGCM_sys_Cp",
                size_Mo=".008789",
                duration_ms="45",
                throughput_Mo_s=".195312",
                dirFrom="/ccc/scratch/PARAM",
                dirTo="/ccc/scratch/RUN_DIR/2266303_73622",
            )
        if sort < 0.95:
            return self.message(
                "1001", uid, CumulPeriod="3", PeriodDateBegin="18500301", PeriodDateEnd="18500331"
            )
        return self.message("1900", uid, command="IGCM_sys_Put_Out")

    def mixed(self, count: int) -> list[bytes]:
        """Batches in which any simulation may speak."""
        return [
            self.batch([self.course(self._dice.choice(self.uids)) for _ in range(_BATCH)])
            for _ in range(count // _BATCH)
        ]

    def one_by_one(self, count: int, size: int = _BATCH) -> list[bytes]:
        """Batches of one simulation each, as its own producer sends them."""
        whose = itertools.cycle(self.uids)
        return [
            self.batch([self.course(uid) for _ in range(size)])
            for uid in itertools.islice(whose, count // size)
        ]

    @staticmethod
    def batch(messages: list[dict[str, str]]) -> bytes:
        """The body of one request."""
        return msgspec.json.encode(messages)


def _rate(running: HubProcess, bodies: list[bytes]) -> float:
    """Messages a second, until all are acknowledged: then they are durable, applied, and told of."""
    began = time.perf_counter()
    count = _post_all(running, bodies)
    return count / (time.perf_counter() - began)


def _post_all(running: HubProcess, bodies: list[bytes]) -> int:
    """Send all over a few connections; how many were stored, which must be all."""
    left = iter(bodies)
    taking = threading.Lock()
    stored: list[int] = []

    def send() -> None:
        with running.wire() as wire:
            while True:
                with taking:
                    body = next(left, None)
                if body is None:
                    return
                answer = msgspec.json.decode(wire.send("POST", "/v1/messages", body))
                verdicts = [one["verdict"] for one in answer["verdicts"]]
                assert set(verdicts) == {"stored"}, set(verdicts)
                stored.append(len(verdicts))

    senders = [threading.Thread(target=send) for _ in range(_CONNECTIONS)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert len(stored) == len(bodies), "a sender failed"
    return sum(stored)


def _hot(running: HubProcess, said: Said, count: int) -> float:
    """The hub's CPU for the last tenth of one simulation's messages, by that for its first thousand or so."""
    uid = str(uuid.uuid4())
    _post_all(running, [said.batch([said.message("0000", uid)])])
    size = 1_000
    costs = []
    with running.wire() as wire:
        for _ in range(count // size):
            body = said.batch([said.course(uid) for _ in range(size)])
            before = running.cpu_s
            wire.send("POST", "/v1/messages", body)
            costs.append(running.cpu_s - before)
    # One request takes few ticks of the kernel's clock: the first of several simulations are averaged.
    firsts = []
    with running.wire() as wire:
        for _ in range(10):
            other = str(uuid.uuid4())
            body = said.batch([said.course(other) for _ in range(size)])
            before = running.cpu_s
            wire.send("POST", "/v1/messages", body)
            firsts.append(running.cpu_s - before)
    tenth = costs[-max(5, len(costs) // 10) :]
    return (sum(tenth) / len(tenth)) / (sum(firsts) / len(firsts))


def _rebuilt(running: HubProcess, simulations: int) -> float:
    """Seconds to make all state anew from the journal, after which it holds against it."""
    with running.client() as client:
        began = time.perf_counter()
        made = list(client.messages.compare(correct=True))
        took_s = time.perf_counter() - began
        assert sum(len(piece.differing) for piece in made) == simulations, made
        again = list(client.messages.compare())
    assert not any(piece.differing for piece in again), again
    return took_s


async def _acks(running: HubProcess, said: Said, seconds: int) -> list[float]:
    """How long each ack took: 200 producers, one message at a time, at 2 000 a second offered."""
    parts = urlsplit(running.running.url)
    tls = ssl.create_default_context(cafile=running.running.ca_file)
    every_s = _PRODUCERS / _OFFERED_PER_S
    took: list[float] = []

    async def produce(n: int) -> None:
        bodies = [said.batch([said.course(said.uids[n])]) for _ in range(int(seconds / every_s))]
        head = (
            f"POST /v1/messages HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {running.running.token}\r\nContent-Length: "
        )
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=tls)
        ready.release()
        await go.wait()
        due = asyncio.get_running_loop().time() + every_s * n / _PRODUCERS
        for body in bodies:
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(max(0.0, due - now))
            # From when it was due: who is held up by the last ack waits for that, too.
            writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 202"), answer[:100]
            size = next(_lengths(answer))
            await reader.readexactly(size)
            took.append(asyncio.get_running_loop().time() - due)
            due += every_s
        writer.close()
        await writer.wait_closed()

    ready, go = asyncio.Semaphore(0), asyncio.Event()
    producers = [asyncio.create_task(produce(n)) for n in range(_PRODUCERS)]
    for _ in range(_PRODUCERS):
        await ready.acquire()
    go.set()
    await asyncio.gather(*producers)
    return took


def _lengths(head: bytes) -> Iterator[int]:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            yield int(line.partition(b":")[2])
