"""Many hands in one process: they speak to a head as hands do, and start nothing.

    python -m benchmarks.fake_hands --dir SESSION_DIR --count N --slots N --life-s SECONDS

A Job "begins" at once and "ends" after so many seconds, with status 0.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from chappe.pilot import hand_wire as wire
from chappe.pilot.launch_wire import Ended, Events, Keep, Snapshot, Start, Started, Stop, Task
from chappe.pilot.topology import Topology

_MEM_BYTES = 1 << 40


async def hand(directory: Path, node: str, slots: int, life_s: float) -> None:
    """One of them, to the end of its connection."""
    place = wire.read_place(directory)
    assert place is not None
    reader, writer = await asyncio.open_connection(
        place.addresses[0], place.port, ssl=wire.tls(directory, server=False)
    )
    loop = asyncio.get_running_loop()

    def end(tasks: list[Task], at: float) -> None:
        now = time.time()
        ended = [
            Ended(t.job, t.epoch, t.attempt, "exit", 0, None, at, now, wall_s=now - at)
            for t in tasks
        ]
        writer.write(wire.encode(Events([], ended, [])))

    topology = Topology((tuple(range(slots)),))
    writer.write(wire.encode(wire.Hello(directory.name, node, topology, _MEM_BYTES, slots)))
    await wire.hear_head(reader)
    writer.write(wire.encode(Snapshot(directory.name, 1, [], [], [], more=False)))
    while True:
        frame = await wire.hear_head(reader)
        if isinstance(frame, Stop):
            return
        if isinstance(frame, Keep):
            writer.write(wire.encode(Events([], [], [])))
        if isinstance(frame, Start):
            at = time.time()
            begun = [Started(t.job, t.epoch, t.attempt, 1, at, t.place) for t in frame.tasks]
            writer.write(wire.encode(Events(begun, [], [])))
            loop.call_later(life_s, end, frame.tasks, at)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--life-s", type=float, required=True)
    given = parser.parse_args()
    hands = (hand(given.dir, f"h{k}", given.slots, given.life_s) for k in range(given.count))
    await asyncio.gather(*hands)


if __name__ == "__main__":
    asyncio.run(main())
