"""A Hub in an attacker's hands: it has the stolen certificate and key, and answers whatever it likes.

It speaks the protocol well enough to keep a real agent and its pilots busy, takes every report as applied,
and checks no token. A test queues what the next answer to a pilot shall hold, and waits for what the pilot
says about it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec

from chappe.link.clock import new_id
from chappe.wire.jobs import ParentPage
from chappe.wire.results import Kept, PutResults, PutResultsReply, ResultUpload, ResultVerdict
from chappe.wire.sites import (
    AgentHello,
    AgentSync,
    AgentSyncReply,
    BatchJobIntent,
    BatchJobOrder,
    BatchJobReport,
    BatchJobView,
    Listing,
    NewBatchJob,
    NewSession,
    NewSessionReply,
)
from chappe.wire.submission import Submission
from chappe.wire.sync import Grant, JobEpoch, Kill, Report, ReportVerdict, SyncReply, SyncRequest

DEADLINE_S = 60.0
MANY = 1 << 40  # a commit number that no honest Hub ever reached


class Answer(msgspec.Struct):
    """What to add to the answer of a sync. `raw` replaces it as a whole."""

    grants: list[Grant] = []
    submissions: list[Submission] = []
    kill: list[Kill] = []
    unknown: list[JobEpoch] = []
    raw: bytes | None = None


class EvilHub:
    """The attacker's server. `identity` is (site, project), as the stolen database names them."""

    def __init__(self, cert: Path, key: Path, identity: tuple[str, str]) -> None:
        self.site, self.project = identity
        self.changed = threading.Condition()
        self.up = True
        self.orders: list[BatchJobOrder] = []
        self.listed: list[BatchJobView] = []
        self.agent_reports: dict[str, BatchJobReport] = {}
        self.session_reply: Callable[[NewSessionReply], object] = lambda reply: reply
        self.sessions: list[str] = []
        self.syncs: list[SyncRequest] = []
        self.reports: list[tuple[str, Report]] = []
        self.returned: list[JobEpoch] = []
        self.parents: dict[str, Any] = {}
        self.results: dict[str, bytes] = {}
        self.uploads: list[ResultUpload] = []
        self.asked: list[str] = []
        self._answers: list[tuple[str | None, Answer]] = []
        self._woken: set[str] = set()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Answer nobody any more."""
        with self.changed:
            self.up = False
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    # --- what a test does

    def say(self, answer: Answer, session: str | None = None) -> None:
        """Answer the next sync (of one Session, or of any) with this."""
        with self.changed:
            self._answers.append((session, answer))
            self.changed.notify_all()

    def grant(
        self,
        grant: Grant,
        submissions: Sequence[Submission] = (),
        session: str | None = None,
    ) -> None:
        """Grant this with the next answer."""
        self.say(Answer(grants=[grant], submissions=list(submissions)), session)

    def order(self, order: BatchJobOrder) -> None:
        """Order something from the agent."""
        with self.changed:
            self.orders.append(order)
            self.changed.notify_all()

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """What `condition` gives once it is true; it is looked at after every request."""
        deadline = time.monotonic() + DEADLINE_S
        with self.changed:
            while not (value := condition()):
                left = deadline - time.monotonic()
                assert left > 0, f"never happened: {what}"
                # Bounded: a condition may also be about files.
                self.changed.wait(min(left, 0.2))
            return value

    def report(self, job: str, epoch: int = 1, kinds: Sequence[str] = ("refused", "end")) -> Report:
        """The report that ends this grant, once it came."""

        def found() -> Report | None:
            for _, r in self.reports:
                if r.job == job and r.epoch == epoch and r.kind in kinds:
                    return r
            return None

        report: Report = self.wait(found, f"{' or '.join(kinds)} of {job} at epoch {epoch}")
        return report

    def returns(self, job: str) -> JobEpoch:
        """The grant of this Job, once a pilot has handed it back."""
        back: JobEpoch = self.wait(
            lambda: next((r for r in self.returned if r.job == job), None), f"return of {job}"
        )
        return back

    def answered(self) -> None:
        """Return when a pilot has read all that was queued, and asks anew."""
        self.wait(lambda: not self._answers, "everything said")
        seen = len(self.syncs)
        self.wait(lambda: len(self.syncs) > seen, "the next sync")

    # --- what the agent and the pilots get

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body for one request."""
        found = self._answer(method, path.partition("?")[0].split("/")[2:], body)
        with self.changed:
            self.changed.notify_all()
        if isinstance(found, bytes):
            return 200, found
        if found is None:
            return 204, b""
        if isinstance(found, int):
            error = {"error": {"code": "not_found", "message": "scripted", "transient": False}}
            return found, msgspec.json.encode(error)
        return 200, msgspec.json.encode(found)

    def _answer(self, method: str, parts: list[str], body: bytes) -> object:
        match (method, parts):
            case ("POST", ["sync"]):
                return self._sync(msgspec.json.decode(body, type=SyncRequest))
            case ("POST", ["sync", "wake"]):
                self._wake()
            case ("POST", ["results"]):
                uploads = msgspec.json.decode(body, type=PutResults).results
                self.uploads += uploads
                stored = [ResultVerdict(u.job, u.epoch, Kept.STORED) for u in uploads]
                return PutResultsReply(stored)
            case ("GET", ["jobs", job, "parents"]):
                self.asked.append(f"parents {job}")
                return self.parents.get(job, ParentPage([]))
            case ("GET", ["jobs", job, "result"]):
                self.asked.append(f"result {job}")
                return self.results.get(job, 404)
            case ("POST", ["sites", _, "sync"]):
                return self._agent_sync(msgspec.json.decode(body, type=AgentSync))
            case ("POST", ["sites", _, "agent"]):
                msgspec.json.decode(body, type=AgentHello)
                return None
            case ("GET", ["batch-jobs"]):
                return Listing(batch_jobs=self.listed)
            case ("POST", ["batch-jobs"]):
                new = msgspec.json.decode(body, type=NewBatchJob)
                return BatchJobView(new.id, new.site, "requested", new.intent, time.time())
            case ("POST", ["sessions"]):
                session = msgspec.json.decode(body, type=NewSession).id
                self.sessions.append(session)
                token = f"chp_p_aaaabbbbcccc_{'x' * 43}"
                return self.session_reply(NewSessionReply(session, token, self.project, self.site))
        return None

    def _sync(self, request: SyncRequest) -> object:
        with self.changed:
            self.syncs.append(request)
            self.reports += [(request.session, r) for r in request.reports]
            self.returned += request.returned
            self.changed.notify_all()
            self._woken.discard(request.session)
            deadline = time.monotonic() + (0 if request.reports else request.wait_s)
            while (said := self._take(request.session)) is None and self.up:
                left = deadline - time.monotonic()
                if left <= 0 or request.session in self._woken:
                    break
                self.changed.wait(left)
        said = said or Answer()
        if said.raw is not None:
            return said.raw
        return SyncReply(
            1,
            MANY,
            request.request_no,
            60.0,
            verdicts=[ReportVerdict(r.no, "applied") for r in request.reports],
            unknown=said.unknown,
            kill=said.kill,
            grants=said.grants,
            submissions=said.submissions,
        )

    def _take(self, session: str) -> Answer | None:
        for i, (wanted, answer) in enumerate(self._answers):
            if wanted in (None, session):
                del self._answers[i]
                return answer
        return None

    def _wake(self) -> None:
        # It does not say whose it is, and it costs little to answer all.
        with self.changed:
            self._woken |= set(self.sessions)
            self.changed.notify_all()

    def _agent_sync(self, sync: AgentSync) -> AgentSyncReply:
        with self.changed:
            self.agent_reports.update((r.id, r) for r in sync.reports)
            self.changed.notify_all()
            deadline = time.monotonic() + sync.wait_s
            while self.up and not self.orders:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self.changed.wait(left)
            orders, self.orders = self.orders, []
        return AgentSyncReply(1, 60.0, orders, [], [r.id for r in sync.reports])


def plain_order(ident: str | None = None, **fields: Any) -> BatchJobOrder:
    """An order for one allocation."""
    return BatchJobOrder(ident or new_id(), wishes(BatchJobIntent(**fields)))


def wishes(intent: object) -> msgspec.Raw:
    """What an order carries."""
    return msgspec.Raw(msgspec.json.encode(intent))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that the other side may have left already."""
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A pilot that was killed in the middle of a request is no news here."""


class _Handler(BaseHTTPRequestHandler):
    hub: EvilHub
    protocol_version = "HTTP/1.1"
    timeout = 60

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        status, data = self.hub.answer(self.command, self.path, body)
        if not self.hub.up:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("content-type", "application/json")
        if status != 204:
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
