"""The synchronous face of `messages`: the same requests, blocking."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import groupby, islice

from chappe.sdk import messagefiles
from chappe.sdk.loop import Loop
from chappe.sdk.messages import Messages
from chappe.wire.messages import (
    Compared,
    MessageStats,
    MessageView,
    ProducerView,
    QuarantineView,
    Requeued,
    StreamCheck,
    Verdict,
)
from chappe.wire.metrics import SeriesView

#: Messages of one request, of those that come in lines.
AT_ONCE = 1_000


class SyncMessages:
    """Messages and producers; see Messages for what each does and raises."""

    def __init__(self, loop: Loop, messages: Messages) -> None:
        self._run = loop.run
        self._messages = messages

    def send(self, raws: Sequence[bytes]) -> list[Verdict]:
        """Send messages, each the bytes of one JSON object on one line; a verdict for each."""
        return self._run(self._messages.send(raws))

    def send_mail(self, raw: bytes) -> list[Verdict]:
        """Send a mail as it came; a verdict for each message in it."""
        return self._run(self._messages.send_mail(raw))

    def import_(self, path: str) -> Iterator[list[Verdict]]:
        """Send what a file, an mbox, a Maildir or a directory holds, or stdin (`-`), some at a time."""
        for is_mail, found in groupby(messagefiles.read(path), key=lambda f: f.is_mail):
            if is_mail:
                for mail in found:
                    yield self.send_mail(mail.raw)
                continue
            while some := [f.raw for f in islice(found, AT_ONCE)]:
                yield self.send(some)

    def ls(
        self, limit: int = 100, *, newest: bool = True, **where: str | None
    ) -> list[MessageView]:
        """Up to `limit` messages, by default the newest first."""
        return self._run(self._messages.ls(limit, newest=newest, **where))

    def show(self, uid: str, producer: str | None = None) -> MessageView:
        """One message with its payload and bytes."""
        return self._run(self._messages.show(uid, producer))

    def stats(self) -> MessageStats:
        """What each source counted, and what waits in quarantine."""
        return self._run(self._messages.stats())

    def streams(self, simulation: str | None = None) -> tuple[list[StreamCheck], int]:
        """Check all streams, or those of a simulation; and how many of its messages are of no stream."""
        return self._run(self._messages.streams(simulation))

    def quarantine(self, reason: str | None = None) -> list[QuarantineView]:
        """All that waits in quarantine, or what is there for one reason."""

        async def all_of_it() -> list[QuarantineView]:
            return [one async for one in self._messages.quarantine(reason)]

        return self._run(all_of_it())

    def quarantined(self, n: int) -> QuarantineView:
        """One of these, with its bytes."""
        return self._run(self._messages.quarantined(n))

    def requeue(self, numbers: Sequence[int] | None = None, reason: str | None = None) -> Requeued:
        """Decode again what is in quarantine: these numbers, what is there for a reason, or all."""
        return self._run(self._messages.requeue(numbers, reason))

    def compare(self, *, correct: bool = False) -> Iterator[Compared]:
        """Hold all that is shown of simulations against their messages, piece by piece."""
        pieces = self._messages.compare(correct=correct)
        while (piece := self._run(_next(pieces))) is not None:
            yield piece

    def series(
        self,
        simulation: str | None = None,
        *,
        job: str | None = None,
        names: Sequence[str] = (),
        since: float | None = None,
        until: float | None = None,
        buckets: int = 500,
    ) -> list[SeriesView]:
        """Scalar series of a simulation or a job, each in at most so many points."""
        found = self._messages.series(
            simulation, job=job, names=names, since=since, until=until, buckets=buckets
        )
        return self._run(found)

    def producers(self) -> list[ProducerView]:
        """The project's producers."""
        return self._run(self._messages.producers())

    def add_producer(
        self, name: str, note: str = "", expires_in_s: float | None = None
    ) -> ProducerView:
        """Make a producer and a token for it, shown this once."""
        return self._run(self._messages.add_producer(name, note, expires_in_s))

    def remove_producer(self, name: str) -> None:
        """End a producer's tokens at once. Its messages stay."""
        self._run(self._messages.remove_producer(name))


async def _next(pieces: AsyncIterator[Compared]) -> Compared | None:
    return await anext(pieces, None)
