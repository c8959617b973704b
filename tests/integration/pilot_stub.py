"""A scripted stand-in for the Hub, for what a real one does not do on demand: losing a reply, forgetting a
Job, refusing a token or a request. It grants what it is given, applies every report, and remembers all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from chappe.wire.events import ErrorBody, ErrorReply
from chappe.wire.submission import Submission
from chappe.wire.sync import Grant, JobEpoch, ReportVerdict, SyncReply, SyncRequest


class Lost(Exception):
    """The reply does not arrive."""


class Refused(Exception):
    """The request is refused."""

    def __init__(self, status: int, code: str, *, transient: bool = False) -> None:
        self.status = status
        self.body = ErrorReply(ErrorBody(code, "scripted", transient))


class StubHub:
    """Read its state freely. `script` sees each sync and its reply, may change the reply, or raise."""

    def __init__(self) -> None:
        self.requests: list[SyncRequest] = []
        self.bodies: list[bytes] = []
        self.calls: list[tuple[str, str]] = []
        self.reports: list[tuple[str, str]] = []
        self.grants: list[Grant] = []
        self.submissions: list[Submission] = []
        self.unknown: list[JobEpoch] = []
        self.drain = False
        self.tokens = {"token"}
        self.verdict = "applied"
        self.script: Callable[[SyncRequest, SyncReply], SyncReply] = _as_it_is
        self.url = ""
        self._changed = asyncio.Event()
        self._server: asyncio.Server
        self._connections: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close everything."""
        self._server.close()
        for writer in self._connections:
            writer.close()
        await asyncio.sleep(0)

    def hint(self) -> None:
        """Answer the pending poll."""
        self._changed.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split()
                headers = {}
                while (header := await reader.readline()).strip():
                    name, _, value = header.decode().partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.calls.append((method, path.partition("?")[0]))
                token = headers.get("authorization", "").removeprefix("Bearer ")
                try:
                    status, answer = 200, await self._answer(token, path, body)
                except Refused as refused:
                    status, answer = refused.status, refused.body
                data = b"" if answer is None else msgspec.json.encode(answer)
                head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(data)}\r\n\r\n"
                writer.write(head.encode() + data)
                await writer.drain()
        except (Lost, ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(self, token: str, path: str, body: bytes) -> Any:
        if token not in self.tokens:
            raise Refused(401, "unauthenticated")
        if path == "/v1/sync/wake":
            self.hint()
            return None
        if path != "/v1/sync":
            return None
        request = msgspec.json.decode(body, type=SyncRequest)
        self.requests.append(request)
        self.bodies.append(body)
        verdicts = [ReportVerdict(r.no, self.verdict) for r in request.reports]
        for report in request.reports:
            self.reports.append((report.job, report.kind))
        if not (verdicts or self.grants or self.unknown or self.drain) and request.wait_s:
            with suppress(TimeoutError):
                async with asyncio.timeout(request.wait_s):
                    await self._changed.wait()
            self._changed.clear()
        grants: list[Grant] = []
        if request.capacity is not None:
            grants, self.grants = self.grants, []
        submissions, self.submissions = (self.submissions, []) if grants else ([], self.submissions)
        unknown, self.unknown = self.unknown, []
        reply = SyncReply(
            1,
            len(self.requests),
            request.request_no,
            60.0,
            verdicts=verdicts,
            unknown=unknown,
            grants=grants,
            submissions=submissions,
            drain=self.drain,
        )
        return self.script(request, reply)


def _as_it_is(_request: SyncRequest, reply: SyncReply) -> SyncReply:
    return reply
