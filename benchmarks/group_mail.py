"""Mail: from the sender's last byte to the Event that a reader of the feed sees, and a storm of messages."""

from __future__ import annotations

import http.client
import queue
import random
import smtplib
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.contract import MS
from benchmarks.figures import percentile
from benchmarks.rig import HubProcess, hub
from chappe.testing import mail as programs
from chappe.testing import mails
from chappe.testing.daemons import free_ports
from chappe.testing.mail import DOMAIN, PASSWORD, MailServers

_SENDER, _RECIPIENT = "p86xxxx@hpc.site.test", "messages@hub.site.test"
_PAUSE_S = (0.02, 0.08)
_LINES = 3_719
_PATIENCE_S = 60.0


def run(bench: Bench) -> None:
    """Over SMTP to the Hub itself, and through a mailbox of Dovecot's."""
    with ExitStack() as stack:
        stack.enter_context(bench.attempt("mail.storm", "mail.smtp_p95", "mail.imap_p95"))
        directory = stack.enter_context(bench.private("mail"))
        servers = None
        if programs.available():
            servers = stack.enter_context(MailServers.start())
        else:
            bench.note("mail.imap_p95", f"not measured; {programs.HOW_TO_GET}")
        (port,) = free_ports(1)
        config = _configure(directory, port, servers)
        running = stack.enter_context(hub(directory, mail=config))
        feed = stack.enter_context(_following(running))
        for _ in range(bench.rounds):
            bench.add("mail.storm", _storm(port, feed))
            count = bench.scaled(100, 20)
            smtp = [_told(feed, partial(_send, port)) for _ in range(count)]
            bench.add("mail.smtp_p95", percentile(smtp, 95) * MS)
            if servers is not None:
                put = partial(servers.put, box="bench")
                imap = [_told(feed, put) for _ in range(count // 2)]
                bench.add("mail.imap_p95", percentile(imap, 95) * MS)


def _configure(directory: Path, port: int, servers: MailServers | None) -> Path:
    text = f"""
[[source]]
name = "bench"
project = "default"
recipients = ["{_RECIPIENT}"]
unsigned = true

[[listen]]
kind = "smtp"
port = {port}
"""
    if servers is not None:
        (directory / "password").write_text(PASSWORD)
        text += f"""
[[imap]]
source = "bench"
host = "127.0.0.1"
port = {servers.imaps_port}
ca_file = "{servers.ca_file}"
user = "bench@{DOMAIN}"
password_file = "password"
processed = "done"
"""
    path = directory / "mail.toml"
    path.write_text(text)
    return path


def _storm(port: int, feed: queue.Queue[str]) -> float:
    """Seconds until a mail of 3 719 messages is applied, from the sender's connection on."""
    simulation = str(uuid.uuid4())
    raws = [mails.message("1900", simuid=simulation, command="x" * 150) for _ in range(_LINES)]
    raw = mails.mail(raws)
    began = time.perf_counter()
    words = _send(port, raw)
    assert words == f"2.0.0 {_LINES} stored", words
    _await(feed, simulation)
    return time.perf_counter() - began


def _told(feed: queue.Queue[str], send: Callable[[bytes], object]) -> float:
    """Seconds from a mail's sending to the Event of its simulation."""
    time.sleep(random.uniform(*_PAUSE_S))
    simulation = str(uuid.uuid4())
    raw = mails.mail([mails.message("0000", simuid=simulation)])
    began = time.perf_counter()
    send(raw)
    _await(feed, simulation)
    return time.perf_counter() - began


def _send(port: int, raw: bytes) -> str:
    with smtplib.SMTP("127.0.0.1", port, local_hostname="bench", timeout=_PATIENCE_S) as client:
        client.ehlo()
        client.mail(_SENDER)
        client.rcpt(_RECIPIENT)
        return client.data(raw)[1].decode()


def _await(feed: queue.Queue[str], simulation: str) -> None:
    while simulation not in feed.get(timeout=_PATIENCE_S):
        pass


@contextmanager
def _following(running: HubProcess) -> Iterator[queue.Queue[str]]:
    """The Events of simulations, as the stream brings them."""
    the = running.running
    host, _, port = the.url.removeprefix("https://").rpartition(":")
    tls = ssl.create_default_context(cafile=the.ca_file)
    stream = http.client.HTTPSConnection(host, int(port), timeout=_PATIENCE_S, context=tls)
    stream.request(
        "GET", "/v1/events/stream?kind=simulation", headers={"Authorization": f"Bearer {the.token}"}
    )
    answer = stream.getresponse()
    assert answer.status == 200, answer.status
    told: queue.Queue[str] = queue.Queue()
    ready = threading.Event()

    def read() -> None:
        try:
            for line in iter(answer.readline, b""):
                ready.set()
                told.put(line.decode())
        except (OSError, http.client.HTTPException, ValueError, AttributeError):
            return  # the connection was closed; http.client says so in several ways

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert ready.wait(_PATIENCE_S)
    try:
        yield told
    finally:
        stream.close()
        reader.join(_PATIENCE_S)
