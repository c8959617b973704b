"""Stopping the Hub's server."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from chappe.hub import serve
from chappe.hub.tls import Files


async def nobody(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """An application that is not asked."""
    raise AssertionError


class _HeldLog:
    """A log whose lock is held by the code that a signal interrupts: to log would wait for ever."""

    def info(self, *_: object, **__: object) -> None:
        raise AssertionError("logged while the log's lock is held")


def test_a_signal_takes_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "log", _HeldLog())
    config = serve.config(nobody, Files(Path("cert.pem"), Path("key.pem"), Path("ca.pem")))
    server = serve.Server(config, ready=lambda: None, stop=lambda: None)
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit
