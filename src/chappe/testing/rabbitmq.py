"""Private RabbitMQ brokers for tests: loopback only, each in a directory of its own.

    with RabbitCluster.start() as broker:
        connection = await aio_pika.connect(broker.node.url())

Nodes speak AMQP and AMQPS, log in by password (PLAIN) or by certificate (EXTERNAL; the user is its common
name), have the management API and the shovel. Several nodes are one broker: a cluster. RabbitMQ's package
has a user for it; started by root, it runs as that user.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from chappe.testing.daemons import Daemons, free_ports, program, until
from chappe.testing.pki import Authority, Pair

HOW_TO_GET = "apt-get install --no-install-recommends rabbitmq-server"
PROGRAMS = Path("/usr/lib/rabbitmq/bin")
ADMIN = "admin"
PASSWORD = "admin"  # noqa: S105 - of a broker that only this machine reaches, and only for the test
_MEMORY = Path("/dev/shm")  # noqa: S108 - as in chappe.testing.postgres
_SIZE_BYTES = 1 << 30

#: A start can take this long where many tests share two cores.
START_WITHIN_S = 180.0

_CONFIG = """
listeners.tcp.1 = 127.0.0.1:{amqp}
listeners.ssl.1 = 127.0.0.1:{amqps}
ssl_options.cacertfile = {ca}
ssl_options.certfile = {cert}
ssl_options.keyfile = {key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
ssl_options.versions.1 = tlsv1.3
ssl_options.versions.2 = tlsv1.2
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
ssl_cert_login_from = common_name
management.tcp.ip = 127.0.0.1
management.tcp.port = {api}
default_user = {admin}
default_pass = {password}
loopback_users = none
vm_memory_high_watermark.absolute = 1GiB
disk_free_limit.absolute = 50MB
log.console = false
log.file.level = info
collect_statistics_interval = 1000
"""
#: rabbitmq_prometheus is left out: it would listen on all addresses.
_PLUGINS = "[rabbitmq_management,rabbitmq_shovel,rabbitmq_auth_mechanism_ssl]."


def available() -> bool:
    """Whether RabbitMQ is installed."""
    return (PROGRAMS / "rabbitmq-server").exists() and program("epmd") is not None


class RabbitNode:
    """One node; its files are in `directory`/NAME."""

    def __init__(self, daemons: Daemons, directory: Path, name: str, epmd: int) -> None:
        self.name = name
        self.amqp, self.amqps, self.api_port, self._dist = free_ports(4)
        self._daemons = daemons
        self._home = directory
        self._place = directory / name
        self._epmd = epmd

    def configure(self, authority: Authority, server: Pair, peers: Sequence[str]) -> None:
        """Write what it reads at its start. `peers` are the nodes of its cluster."""
        for part in ("data", "log"):
            (self._place / part).mkdir(parents=True)
        text = _CONFIG.format(
            amqp=self.amqp,
            amqps=self.amqps,
            api=self.api_port,
            ca=authority.ca,
            cert=server.cert,
            key=server.key,
            admin=ADMIN,
            password=PASSWORD,
        )
        if len(peers) > 1:
            text += "cluster_formation.peer_discovery_backend = classic_config\n"
            for n, peer in enumerate(peers, 1):
                text += f"cluster_formation.classic_config.nodes.{n} = {peer}@localhost\n"
        (self._place / "rabbitmq.conf").write_text(text)
        (self._place / "plugins").write_text(_PLUGINS)

    @property
    def _environ(self) -> dict[str, str]:
        place = self._place
        return {
            "HOME": str(self._home),
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"{self.name}@localhost",
            "RABBITMQ_MNESIA_BASE": str(place / "data"),
            "RABBITMQ_LOG_BASE": str(place / "log"),
            "RABBITMQ_PID_FILE": str(place / "data" / "pid"),
            "RABBITMQ_CONFIG_FILE": str(place / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(place / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(place / "none.config"),
            "RABBITMQ_DIST_PORT": str(self._dist),
            # The start script then becomes the server, instead of staying before it: one process to signal.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}"
            " +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
        }

    def launch(self) -> None:
        """Start it; see `await_ready`."""
        command = [*_as_owner(), PROGRAMS / "rabbitmq-server"]
        self._daemons.launch(self.name, command, self._environ)

    def await_ready(self) -> None:
        """Wait until it serves. Raises NotStarted."""
        self._daemons.await_ready(self.name, self._ready, START_WITHIN_S)

    def _ready(self) -> bool:
        # The listeners open last, when all queues are there again.
        if not all(_open(port) for port in (self.amqp, self.amqps)):
            return False
        try:
            self.api("GET", "/health/checks/port-listener/" + str(self.amqp))
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """Shut it down in order."""
        self._daemons.stop(self.name)

    def kill(self) -> None:
        """Kill it."""
        self._daemons.stop(self.name, signal.SIGKILL)

    def restart(self) -> None:
        """Start it again at its old addresses, after `stop` or `kill`."""
        self.launch()
        self.await_ready()

    def url(
        self, user: str = ADMIN, password: str = PASSWORD, port: int | None = None, host: str = "/"
    ) -> str:
        """The AMQP address of a virtual host, or that of a relay to it."""
        place = quote(host, safe="")
        return f"amqp://{user}:{password}@127.0.0.1:{port or self.amqp}/{place}"

    @property
    def api_url(self) -> str:
        """The address of its management API."""
        return f"http://127.0.0.1:{self.api_port}"

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the management API, as its administrator. OSError when it refuses, or is not there."""
        request = urllib.request.Request(  # noqa: S310 - our own
            f"{self.api_url}/api{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": "Basic " + b64encode(f"{ADMIN}:{PASSWORD}".encode()).decode(),
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=90) as reply:  # noqa: S310 - our own
            text = reply.read()
        return json.loads(text) if text else None

    def add_host(self, name: str) -> None:
        """A virtual host: exchanges, queues and accounts' rights of its own."""
        self.api("PUT", f"/vhosts/{quote(name, safe='')}", {})
        self.allow(ADMIN, name)

    def add_user(self, name: str, password: str = "", tags: str = "") -> None:
        """An account; without a password, one for a certificate."""
        login = {"password": password} if password else {"password_hash": ""}
        self.api("PUT", f"/users/{quote(name)}", {**login, "tags": tags})

    def allow(self, user: str, host: str, access: str = ".*") -> None:
        """Let an account do all with names that `access` matches."""
        rights = dict.fromkeys(("configure", "write", "read"), access)
        self.api("PUT", f"/permissions/{quote(host, safe='')}/{quote(user)}", rights)

    def depth(self, host: str, queue: str) -> int:
        """How many messages a queue holds, as known a few seconds ago."""
        found = self.api("GET", f"/queues/{quote(host, safe='')}/{quote(queue)}")
        return int(found.get("messages", 0))


class RabbitCluster:
    """Nodes that are one broker. Their files are in `directory`, which `close` removes."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self.directory = directory
        self.daemons = Daemons(directory)
        (self._epmd,) = free_ports(1)
        self.nodes = [RabbitNode(self.daemons, directory, name, self._epmd) for name in names]
        self.authority = Authority(directory)

    @classmethod
    def start(cls, *names: str, memory: bool = True) -> Self:
        """Start nodes of these names, one if there are none. RuntimeError when RabbitMQ is not installed."""
        if not available():
            raise RuntimeError(f"no RabbitMQ; to get it: {HOW_TO_GET}")
        in_memory = memory and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _SIZE_BYTES
        base = _MEMORY if in_memory else None
        directory = Path(tempfile.mkdtemp(prefix="chappe-rabbit-", dir=base))
        cluster = cls(directory, names or ("broker",))
        try:
            cluster._start()
        except BaseException:
            cluster.close()
            raise
        return cluster

    def _start(self) -> None:
        server = self.authority.server()
        for node in self.nodes:
            node.configure(self.authority, server, [n.name for n in self.nodes])
        cookie = self.directory / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(12))
        cookie.chmod(0o400)
        self.directory.chmod(0o755)
        owner = _owner()
        if owner is not None:
            for path in (self.directory, *self.directory.rglob("*")):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        # A private epmd: the first node would start one for all of the machine, which outlives it.
        epmd = [program("epmd") or "epmd", "-port", str(self._epmd), "-address", "127.0.0.1"]
        self.daemons.launch("epmd", epmd, {"ERL_EPMD_RELAXED_COMMAND_CHECK": "1"})
        self.daemons.await_ready("epmd", lambda: _open(self._epmd))
        first, *others = self.nodes
        first.launch()
        first.await_ready()
        for node in others:
            node.launch()
        for node in others:
            node.await_ready()
        until(self._complete, "all nodes have joined")

    def _complete(self) -> bool:
        with suppress(urllib.error.HTTPError):
            seen = self.nodes[0].api("GET", "/nodes")
            return [node["running"] for node in seen] == [True] * len(self.nodes)
        return False

    @property
    def node(self) -> RabbitNode:
        """The first node."""
        return self.nodes[0]

    def close(self) -> None:
        """End all nodes and remove their files."""
        for node in reversed(self.nodes):
            node.kill()
        self.daemons.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _owner() -> pwd.struct_passwd | None:
    """Whom the servers run as; None for ourselves."""
    return pwd.getpwnam("rabbitmq") if os.geteuid() == 0 else None


def _as_owner() -> list[str | Path]:
    owner = _owner()
    if owner is None:
        return []
    ids = ["--reuid", str(owner.pw_uid), "--regid", str(owner.pw_gid)]
    return ["setpriv", *ids, "--clear-groups"]


def _open(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False
