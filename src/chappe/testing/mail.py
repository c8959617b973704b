"""A private mail system: Postfix takes mail, Dovecot keeps it in mailboxes and shows them over IMAP.

    with MailServers.start() as servers:
        servers.send(raw, "alice@site.test")        # over Postfix, to Dovecot, into alice's INBOX
        servers.route("hub.site.test", 8024)        # Postfix hands mail of this domain to an LMTP port

Both listen on loopback, and want root. Every name has a mailbox, with the same
password.
"""

from __future__ import annotations

import os
import pwd
import shutil
import smtplib
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from chappe.testing.daemons import Daemons, free_ports, program, until

HOW_TO_GET = "as root: apt-get install postfix dovecot-core dovecot-imapd dovecot-lmtpd"
DOMAIN = "site.test"
PASSWORD = "private-of-all"  # noqa: S105 - of servers that live as long as a test

_DOVECOT = """
base_dir = {dir}/dovecot/run
state_dir = {dir}/dovecot/state
log_path = {dir}/log/dovecot.log
protocols = imap lmtp
listen = 127.0.0.1
mail_location = maildir:~/Maildir
ssl = yes
ssl_cert = <{dir}/cert.pem
ssl_key = <{dir}/key.pem
disable_plaintext_auth = no
auth_mechanisms = plain login
first_valid_uid = 1
mail_fsync = never
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={dir}/mail/%n allow_all_users=yes
}}
service imap-login {{
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = {imaps}
    ssl = yes
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {lmtp}
  }}
}}
protocol imap {{
  mail_max_userip_connections = 100
}}
"""

_POSTFIX = """
compatibility_level = 3.6
config_directory = {dir}/postfix/conf
queue_directory = {dir}/postfix/queue
data_directory = {dir}/postfix/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
maillog_file = {dir}/log/postfix.log
maillog_file_prefixes = {dir}, /dev/stdout
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = localhost
mydomain = {domain}
mydestination =
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
relay_domains = static:all
transport_maps = texthash:{dir}/postfix/conf/transport
lmtp_destination_recipient_limit = 1
local_transport = error:no local delivery
alias_maps =
alias_database =
message_size_limit = 10240000
mailbox_size_limit = 0
smtp_dns_support_level = disabled
minimal_backoff_time = 1s
maximal_backoff_time = 2s
queue_run_delay = 1s
transport_retry_time = 1s
"""

_MASTER = """
127.0.0.1:{smtp} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


def available() -> bool:
    """Whether this machine has the programs, and this is who may start them."""
    return os.geteuid() == 0 and all(program(p) for p in ("postfix", "dovecot", "openssl"))


class MailServers:
    """Postfix and Dovecot in a directory of their own; their users must be able to enter it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.smtp_port, self.lmtp_port, self.imap_port, self.imaps_port = free_ports(4)
        self._daemons = Daemons(directory)
        #: A certificate that signs itself, for 127.0.0.1.
        self.ca_file = directory / "cert.pem"

    @classmethod
    @contextmanager
    def start(cls) -> Iterator[MailServers]:
        """Start both; at the end they are stopped, and their files removed."""
        directory = Path(tempfile.mkdtemp(prefix="chappe-mail-"))
        directory.chmod(0o755)
        servers = cls(directory)
        try:
            servers._certify()
            servers.start_dovecot()
            servers._start_postfix()
            yield servers
        finally:
            servers.close()
            shutil.rmtree(directory, ignore_errors=True)

    def _certify(self) -> None:
        argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        argv += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        argv += ["-keyout", str(self.directory / "key.pem"), "-out", str(self.ca_file)]
        subprocess.run(argv, check=True, capture_output=True, timeout=60)

    def start_dovecot(self) -> None:
        """Start Dovecot (again, after `stop_dovecot`), at the same ports."""
        owner = pwd.getpwnam("nobody")
        mail = self.directory / "mail"
        for each in (mail, self.directory / "dovecot/run", self.directory / "dovecot/state"):
            each.mkdir(parents=True, exist_ok=True)
        os.chown(mail, owner.pw_uid, owner.pw_gid)
        (self.directory / "dovecot.conf").write_text(
            _DOVECOT.format(
                dir=self.directory,
                password=PASSWORD,
                uid=owner.pw_uid,
                gid=owner.pw_gid,
                imap=self.imap_port,
                imaps=self.imaps_port,
                lmtp=self.lmtp_port,
            )
        )
        dovecot = program("dovecot")
        assert dovecot is not None  # noqa: S101 - see available()
        self._daemons.launch("dovecot", [dovecot, "-F", "-c", self.directory / "dovecot.conf"])
        self._daemons.await_ready("dovecot", lambda: _open(self.imaps_port, self.lmtp_port))

    def stop_dovecot(self) -> None:
        """Stop Dovecot, and with it the connections of its clients."""
        self._daemons.stop("dovecot")

    def _start_postfix(self) -> None:
        place = self.directory / "postfix"
        for each in ("conf", "queue", "data"):
            (place / each).mkdir(parents=True)
        owner = pwd.getpwnam("postfix")
        os.chown(place / "data", owner.pw_uid, owner.pw_gid)
        (place / "conf/main.cf").write_text(_POSTFIX.format(dir=self.directory, domain=DOMAIN))
        (place / "conf/master.cf").write_text(_MASTER.format(smtp=self.smtp_port))
        self._routes = {DOMAIN: self.lmtp_port}
        self._write_routes()
        postfix = program("postfix")
        assert postfix is not None  # noqa: S101 - see available()
        self._daemons.launch("postfix", [postfix, "-c", place / "conf", "start-fg"])
        self._daemons.await_ready("postfix", lambda: _open(self.smtp_port))

    def route(self, domain: str, lmtp_port: int) -> None:
        """Have Postfix hand over the mail of a domain by LMTP to a port."""
        self._routes[domain] = lmtp_port
        self._write_routes()
        self._postfix("reload")

    def flush(self) -> None:
        """Have Postfix try now what it could not deliver."""
        self._postfix("flush")

    def _postfix(self, what: str) -> None:
        argv = [program("postfix") or "postfix", "-c", str(self.directory / "postfix/conf"), what]
        subprocess.run(argv, check=True, capture_output=True, timeout=60)

    def _write_routes(self) -> None:
        lines = [f"{d} lmtp:inet:127.0.0.1:{port}\n" for d, port in self._routes.items()]
        (self.directory / "postfix/conf/transport").write_text("".join(lines))

    def send(self, raw: bytes, *recipients: str, sender: str = "p86xxxx@hpc.site.test") -> None:
        """Give a mail to Postfix."""
        with smtplib.SMTP("127.0.0.1", self.smtp_port, timeout=60) as client:
            client.sendmail(sender, recipients, raw)

    def put(self, raw: bytes, box: str, sender: str = "p86xxxx@hpc.site.test") -> None:
        """Put a mail into an INBOX at once, without Postfix."""
        with smtplib.LMTP("127.0.0.1", self.lmtp_port) as client:
            client.sendmail(sender, [f"{box}@{DOMAIN}"], raw)

    def doveadm(self, *arguments: str) -> str:
        """Do something to mailboxes, as their administrator."""
        argv = [program("doveadm") or "doveadm", "-c", str(self.directory / "dovecot.conf")]
        done = subprocess.run(
            [*argv, *arguments], check=True, capture_output=True, text=True, timeout=60
        )
        return done.stdout

    def count(self, box: str, folder: str = "INBOX") -> int:
        """How many mails there are in a folder; 0 where there is none."""
        user = f"{box}@{DOMAIN}"
        if folder not in self.doveadm("mailbox", "list", "-u", user).split():
            return 0
        said = self.doveadm("mailbox", "status", "-u", user, "messages", folder)
        return int(said.rsplit("=", 1)[1])

    def log(self) -> str:
        """What both said."""
        files: Sequence[Path] = sorted((self.directory / "log").iterdir())
        return "\n".join(f.read_text(errors="replace") for f in files)

    def close(self) -> None:
        """Stop both."""
        pid_file = self.directory / "postfix/queue/pid/master.pid"
        if self._daemons.alive("postfix") and pid_file.exists():
            self._postfix("stop")
            until(lambda: not self._daemons.alive("postfix"), "the end of Postfix")
        self._daemons.close()


def _open(*ports: int) -> bool:
    for port in ports:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            return False
    return True
