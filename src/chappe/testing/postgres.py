"""A private PostgreSQL server for tests and benchmarks: loopback only, in a directory of its own.

    with PostgresServer.start() as server:
        url = server.database()

PostgreSQL refuses to run as root; started by root, it runs as the user `postgres`, or `nobody`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

HOW_TO_GET = (
    "apt-get install postgresql, or PATH with PostgreSQL's initdb and postgres (14 or later)"
)
MEMORY = Path("/dev/shm")  # noqa: S108 - where a commit costs nothing; files there are made by mkdtemp
START_WITHIN_S = 60.0
#: What a server needs in memory, with room.
_SIZE_BYTES = 1 << 30

_CONFIG = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 60
shared_buffers = 64MB
max_wal_size = 256MB
min_wal_size = 48MB
logging_collector = off
log_min_messages = warning
"""


def binaries() -> Path | None:
    """The directory of PostgreSQL's programs, None when there is none."""
    found = shutil.which("postgres")
    candidates = [Path(found).resolve().parent] if found else []
    debian = Path("/usr/lib/postgresql")
    if debian.is_dir():
        versions = [d for d in debian.iterdir() if d.name.isdecimal()]
        candidates += [d / "bin" for d in sorted(versions, key=lambda d: -int(d.name))]
    return next((d for d in candidates if (d / "initdb").exists()), None)


class PostgresServer:
    """A running server. Its files are in `directory`, which `close` removes."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self.directory = directory
        self._programs = programs
        self._owner = _owner()
        self._databases = 0
        self.port = 0
        self.process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, *settings: str, memory: bool = True) -> PostgresServer:
        """Make a server, on a disk unless `memory`. RuntimeError when PostgreSQL is not installed."""
        programs = binaries()
        if programs is None:
            raise RuntimeError(f"no PostgreSQL; to get it: {HOW_TO_GET}")
        in_memory = memory and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > _SIZE_BYTES
        directory = Path(tempfile.mkdtemp(prefix="chappe-pg-", dir=MEMORY if in_memory else None))
        server = cls(directory, programs)
        try:
            server._init(settings)
            server.launch()
        except BaseException:
            server.close()
            raise
        return server

    def _init(self, settings: Iterable[str]) -> None:
        if self._owner is not None:
            os.chown(self.directory, self._owner.pw_uid, self._owner.pw_gid)
        options = [
            "-U",
            "chappe",
            "-A",
            "trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]
        self._run("initdb", "-D", self._data, *options)
        with (self._data / "postgresql.conf").open("a") as config:
            config.write(_CONFIG + "\n".join(settings) + "\n")

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def launch(self) -> None:
        """Start the server's process, on its old port after the first time, and wait until it answers."""
        self.port = self.port or _free_port()
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, "-p", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                **self._as_owner(),
            )
        until = time.monotonic() + START_WITHIN_S
        ready = [str(self._programs / "pg_isready"), "-qh", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > until:
                log_end = (self.directory / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"PostgreSQL did not start: {log_end}")
            time.sleep(0.02)

    def url(self, database: str) -> str:
        """The address of a database."""
        return f"postgresql://chappe@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """The URL of a new, empty database."""
        self._databases += 1
        name = f"d{self._databases}"
        self.sql(f"CREATE DATABASE {name} STRATEGY file_copy")
        return self.url(name)

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement as an administrator would; its rows."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as conn:
            done = conn.execute(statement)
            return list(done.fetchall()) if done.description else []

    def stop(self, sig: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT as an orderly restart does, cutting its clients off; SIGQUIT as a crash."""
        self.process.send_signal(sig)
        self.process.wait(START_WITHIN_S)

    def restart(self, sig: signal.Signals = signal.SIGINT) -> None:
        """Stop, and start at the same address."""
        self.stop(sig)
        self.launch()

    @property
    def alive(self) -> bool:
        """Whether the server's first process lives."""
        return self.process.poll() is None

    def crash(self) -> bool:
        """Have the server end at once, without a last word on its disk; whether it lived."""
        lived = self.alive
        self.process.send_signal(signal.SIGQUIT)
        return lived

    def kill_backend(self) -> bool:
        """Kill a process that serves a client; the server then ends all others and recovers. False when there
        is none, or the server is not there."""
        import psycopg

        busy = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> "
        try:
            found = self.sql(f"{busy} pg_backend_pid() ORDER BY xact_start LIMIT 1")
        except psycopg.OperationalError:
            return False
        for (pid,) in found:
            os.kill(int(str(pid)), signal.SIGKILL)
        return bool(found)

    def close(self) -> None:
        """End the server and remove its files."""
        if hasattr(self, "process") and self.process.poll() is None:
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> PostgresServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [str(self._programs / program), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.directory,
            **self._as_owner(),
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stderr[-2000:]}")

    def _as_owner(self) -> dict[str, Any]:
        if self._owner is None:
            return {}
        return {"user": self._owner.pw_uid, "group": self._owner.pw_gid, "extra_groups": []}


def _owner() -> pwd.struct_passwd | None:
    """Whom the server runs as; None for ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL refuses root, and there is neither a user postgres nor nobody")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
