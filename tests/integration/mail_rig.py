"""A Hub that takes mail, and what tests do with it: send, look what was kept, look again after a restart."""

from __future__ import annotations

import json
import smtplib
import socket
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from chappe.testing.daemons import free_ports
from chappe.testing.hub import RunningHub
from chappe.testing.mail import DOMAIN, PASSWORD, MailServers
from tests.integration.hub_rig import raw

SENDER = "p86xxxx@hpc.site.test"
OPEN = "messages@hub.site.test"
SIGNED = "signed@hub.site.test"

SOURCES = f"""
[[source]]
name = "open"
project = "default"
recipients = ["{OPEN}"]
senders = ["*@hpc.site.test"]
unsigned = true

[[source]]
name = "signed"
project = "default"
recipients = ["{SIGNED}"]
"""


def imap(servers: MailServers, box: str, more: str = "", password: str = PASSWORD) -> str:
    """What mail.toml says of a mailbox; `more` are lines of the same table."""
    password_file = servers.directory / f"{box}.password"
    password_file.write_text(f"{password}\n")
    return f"""
[[imap]]
source = "open"
host = "127.0.0.1"
port = {servers.imaps_port}
ca_file = "{servers.ca_file}"
user = "{box}@{DOMAIN}"
password_file = "{password_file}"
{more}
"""


class MailHub:
    """A Hub with an SMTP and an LMTP door. `more` is put at the end of its mail.toml. With an `environ` it is
    begun, and not waited for."""

    def __init__(
        self, directory: Path, more: str = "", environ: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self._messages = self._quarantined = 0
        directory.mkdir(parents=True, exist_ok=True)
        self.smtp_port, self.lmtp_port = free_ports(2)
        listen = "".join(
            f'\n[[listen]]\nkind = "{kind}"\nport = {port}\n'
            for kind, port in (("smtp", self.smtp_port), ("lmtp", self.lmtp_port))
        )
        (directory / "mail.toml").write_text(SOURCES + listen + more)
        options = {"port": 0, "mail": directory / "mail.toml"}
        self.hub = RunningHub(directory / "hub", options, environ or {})
        if environ is None:
            self.hub.start()
        else:
            # It may be told to die before it is ready.
            self.hub.launch()

    def begin(self) -> None:
        """From now on, `raws` and `reasons` tell of what comes later."""
        ((self._messages, self._quarantined),) = self.rows(
            "SELECT (SELECT COALESCE(max(n), 0) FROM message),"
            " (SELECT COALESCE(max(n), 0) FROM quarantine)"
        )

    def send(self, mail: bytes, recipient: str = OPEN, sender: str = SENDER) -> tuple[int, str]:
        """Send a mail over SMTP; what the Hub says to it, or to the first command that it refuses."""
        with smtplib.SMTP("127.0.0.1", self.smtp_port, timeout=60) as client:
            client.ehlo("hpc.site.test")
            for code, words in (client.mail(sender), client.rcpt(recipient)):
                if code != 250:
                    return code, words.decode()
            code, words = client.data(mail)
            return code, words.decode()

    def talk(self, *sent: bytes) -> bytes:
        """Write bytes to the SMTP door as they are, end, and read all that it says."""
        with socket.create_connection(("127.0.0.1", self.smtp_port), timeout=60) as client:
            try:
                for each in sent:
                    client.sendall(each)
                client.shutdown(socket.SHUT_WR)
            except OSError:  # it has cut us off: what it said before can still be read
                pass
            heard = b""
            try:
                while piece := client.recv(65_536):
                    heard += piece
            except ConnectionResetError:
                pass
            return heard

    def rows(self, query: str, *values: int) -> list[tuple[Any, ...]]:
        """What the Hub's database says."""
        with closing(sqlite3.connect(self.directory / "hub" / "hub.sqlite")) as db:
            return db.execute(query, values).fetchall()

    def raws(self) -> list[bytes]:
        """All messages, in the order in which they were kept."""
        rows = self.rows("SELECT raw FROM message WHERE n > ? ORDER BY n", self._messages)
        return [row[0] for row in rows]

    def reasons(self) -> list[str]:
        """Why something is in quarantine."""
        rows = self.rows("SELECT reason FROM quarantine WHERE n > ? ORDER BY n", self._quarantined)
        return [reason for (reason,) in rows]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """What the Hub's interface answers to its owner. A body of bytes goes as it is."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        named = {k.replace("_", "-"): v for k, v in headers.items()}
        answer = raw(self.hub, method, path, self.hub.token, data, named)
        assert answer.status < 300, answer.body
        return json.loads(answer.body)

    def uids(self) -> list[str]:
        """The ids of all messages, in the order in which they were kept."""
        return [m["uid"] for m in self.ask("GET", "/v1/messages?limit=1000")["messages"]]

    def close(self) -> None:
        """Stop it."""
        self.hub.stop()
