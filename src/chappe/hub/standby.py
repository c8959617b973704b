"""Waiting to be the Hub: another one writes the database, and this one takes over when that ends.

A standby listens at its address, so that whoever watches it sees what it is, and answers everything with
503 `standby`, which clients take as a reason to ask again. What it must load later is loaded now.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
import threading
from collections.abc import Callable

import structlog
from starlette.types import Receive, Scope, Send

from chappe.core.errors import Unavailable
from chappe.hub import serve
from chappe.hub.call import Content
from chappe.hub.http import closing, error_content, send_content
from chappe.hub.tls import Files
from chappe.store.db import parse
from chappe.store.postgres import wait_for_the_lock

log = structlog.get_logger("chappe.hub.standby")


def can_wait(error: Unavailable, url: str) -> bool:
    """Whether `error` says that another Hub has the database, and there is a way to wait for its end."""
    return error.code == "locked" and parse(url).get_backend_name() == "postgresql"


def wait(url: str, files: Files, listener: socket.socket, say: Callable[[], None]) -> bool:
    """Answer `standby` until no Hub writes the database at `url`; False when told to stop before.

    `listener` stays open: who connects between this and the Hub's start waits in its queue.
    """

    async def main() -> bool:
        stop = threading.Event()
        server = serve.Server(serve.config(_answer, files), ready=say, stop=stop.set)
        loop = asyncio.get_running_loop()
        free = loop.run_in_executor(None, wait_for_the_lock, parse(url), stop)
        free.add_done_callback(lambda _: server.stop_serving())
        # Importing the application takes longer than all else that a takeover does.
        await loop.run_in_executor(None, importlib.import_module, "chappe.hub.app")
        await server.serve(sockets=[listener.dup()])
        return await free

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        taken = runner.run(main())
    log.info("taking over" if taken else "stopped before it was needed")
    return taken


async def _answer(scope: Scope, _receive: Receive, send: Send) -> None:
    """The whole application of a standby."""
    if scope["path"] == "/healthz":
        await send_content(Content(b"ok\n", "text/plain; charset=utf-8"), send)
        return
    error = Unavailable(
        "this hub is a standby: another one serves, and this one will when that ends",
        code="standby",
    )
    await send_content(closing(error_content(error, "standby")), send)
