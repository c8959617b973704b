"""Messages: sending them, reading the journal, what waits in quarantine, and who may send."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from urllib.parse import quote

from chappe.link.http import HubClient
from chappe.wire.messages import (
    Accepted,
    Compare,
    Compared,
    MessagePage,
    MessageStats,
    MessageView,
    NewProducer,
    ProducerList,
    ProducerView,
    QuarantinePage,
    QuarantineView,
    Requeue,
    Requeued,
    StreamCheck,
    StreamPage,
    Verdict,
)
from chappe.wire.metrics import SeriesList, SeriesView

__all__ = [
    "Compared",
    "MessageStats",
    "MessageView",
    "Messages",
    "ProducerView",
    "QuarantineView",
    "Requeued",
    "SeriesView",
    "StreamCheck",
    "Verdict",
]

LINES = "application/x-ndjson"
MAIL = "message/rfc822"
PAGE = 1_000
#: One simulation of a million messages is folded in less.
COMPARE_S = 600.0


class Messages:
    """Requests about messages. Async."""

    def __init__(self, hub: HubClient) -> None:
        self._hub = hub

    async def send(self, raws: Sequence[bytes]) -> list[Verdict]:
        """Send messages, each the bytes of one JSON object on one line; a verdict for each. Once this returns
        they are stored; sending the same bytes again is harmless."""
        body = b"\n".join(raws)
        path = "/v1/messages"
        return (await self._hub.request("POST", path, body, Accepted, media=LINES)).verdicts

    async def send_mail(self, raw: bytes) -> list[Verdict]:
        """Send a mail as it came; a verdict for each message in it. They are yours, whoever signed it."""
        path = "/v1/messages"
        return (await self._hub.request("POST", path, raw, Accepted, media=MAIL)).verdicts

    async def ls(
        self, limit: int = 100, *, newest: bool = True, **where: str | None
    ) -> list[MessageView]:
        """Up to `limit` messages, by default the newest first; `where`: of a simulation, job, type, code or
        producer."""
        found: list[MessageView] = []
        cursor: int | None = None
        while len(found) < limit:
            params = {"newest": newest, "cursor": cursor, "limit": min(PAGE, limit - len(found))}
            page = await self._hub.request(
                "GET", "/v1/messages", reply=MessagePage, params={**params, **where}
            )
            found += page.messages
            cursor = page.cursor
            if cursor is None:
                break
        return found

    async def show(self, uid: str, producer: str | None = None) -> MessageView:
        """One message with its payload and bytes. Raises NotFound."""
        path = f"/v1/messages/{quote(uid, safe='')}"
        return await self._hub.request(
            "GET", path, reply=MessageView, params={"producer": producer}
        )

    async def stats(self) -> MessageStats:
        """What each source counted, and what waits in quarantine."""
        return await self._hub.request("GET", "/v1/messages/stats", reply=MessageStats)

    async def streams(self, simulation: str | None = None) -> tuple[list[StreamCheck], int]:
        """Check all streams, or those of a simulation; and how many of its messages are of no stream."""
        found: list[StreamCheck] = []
        cursor: str | None = ""
        page = StreamPage([])
        while cursor is not None:
            page = await self._hub.request(
                "GET",
                "/v1/messages/streams",
                reply=StreamPage,
                params={"simulation": simulation, "cursor": cursor},
            )
            found += page.streams
            cursor = page.cursor
        return found, page.unnumbered

    async def quarantine(self, reason: str | None = None) -> AsyncIterator[QuarantineView]:
        """All that waits in quarantine, or what is there for one reason."""
        cursor: int | None = 0
        while cursor is not None:
            page = await self._hub.request(
                "GET",
                "/v1/quarantine",
                reply=QuarantinePage,
                params={"reason": reason, "cursor": cursor, "limit": PAGE},
            )
            for one in page.quarantined:
                yield one
            cursor = page.cursor

    async def quarantined(self, n: int) -> QuarantineView:
        """One of these, with its bytes. Raises NotFound."""
        return await self._hub.request("GET", f"/v1/quarantine/{n}", reply=QuarantineView)

    async def requeue(
        self, numbers: Sequence[int] | None = None, reason: str | None = None
    ) -> Requeued:
        """Decode again what is in quarantine: these numbers, what is there for a reason, or all."""
        total, after = Requeued(0, 0, 0, 0), 0
        chosen = None if numbers is None else list(numbers)
        while True:
            body = Requeue(chosen, reason, after)
            done = await self._hub.request("POST", "/v1/messages/requeue", body, Requeued)
            total = Requeued(
                total.tried + done.tried,
                total.stored + done.stored,
                total.duplicate + done.duplicate,
                total.quarantined + done.quarantined,
            )
            if done.cursor is None:
                return total
            after = done.cursor

    async def compare(self, *, correct: bool = False) -> AsyncIterator[Compared]:
        """Hold all that is shown of simulations against their messages, piece by piece; with `correct`, put
        right what differs. For owners."""
        cursor: str | None = ""
        while cursor is not None:
            body = Compare(cursor, correct)
            found = await self._hub.request(
                "POST", "/v1/messages/compare", body, Compared, timeout_s=COMPARE_S
            )
            yield found
            cursor = found.cursor

    async def series(
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
        params = {
            "simulation": simulation,
            "job": job,
            "name": list(names) or None,
            "since": since,
            "until": until,
            "buckets": buckets,
        }
        found = await self._hub.request("GET", "/v1/metrics", reply=SeriesList, params=params)
        return found.series

    async def producers(self) -> list[ProducerView]:
        """The project's producers."""
        return (await self._hub.request("GET", "/v1/producers", reply=ProducerList)).producers

    async def add_producer(
        self, name: str, note: str = "", expires_in_s: float | None = None
    ) -> ProducerView:
        """Make a producer and a token for it, shown this once; for one that is there, a further token."""
        body = NewProducer(name, note, expires_in_s)
        return await self._hub.request("POST", "/v1/producers", body, ProducerView)

    async def remove_producer(self, name: str) -> None:
        """End a producer's tokens at once. Its messages stay."""
        await self._hub.request("DELETE", f"/v1/producers/{quote(name, safe='')}")
