"""Small writes of one turn go out together, in their order, and none is lost."""

from __future__ import annotations

import asyncio

from chappe.hub.cork import SMALL_BYTES, Cork


class Recorder(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.ended = ""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"


async def a_turn() -> None:
    await asyncio.sleep(0)


def test_one_turn_is_one_write() -> None:
    async def go() -> None:
        wire = Recorder()
        cork = Cork(wire, asyncio.get_running_loop())
        cork.write(b"head ")
        cork.write(b"body")
        assert wire.written == []
        await a_turn()
        assert wire.written == [b"head body"]
        cork.write(b"more")
        await a_turn()
        await a_turn()
        assert wire.written == [b"head body", b"more"]

    asyncio.run(go())


def test_much_goes_at_once_behind_what_waited() -> None:
    async def go() -> None:
        wire = Recorder()
        cork = Cork(wire, asyncio.get_running_loop())
        much = b"x" * (SMALL_BYTES + 1)
        cork.write(b"head ")
        cork.write(much)
        assert b"".join(wire.written) == b"head " + much
        await a_turn()
        assert b"".join(wire.written) == b"head " + much

    asyncio.run(go())


def test_a_close_comes_after_what_was_written_and_an_abort_instead_of_it() -> None:
    async def go() -> None:
        closed, aborted = Recorder(), Recorder()
        loop = asyncio.get_running_loop()
        for wire in (closed, aborted):
            cork = Cork(wire, loop)
            cork.write(b"last words")
            if wire is closed:
                cork.close()
            else:
                cork.abort()
            await a_turn()
        assert (closed.written, closed.ended) == ([b"last words"], "closed")
        assert (aborted.written, aborted.ended) == ([], "aborted")

    asyncio.run(go())
