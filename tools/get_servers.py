"""Have the servers' programs that tests want: `python -m tools.get_servers [NAME ...]` (without names: all).

Standard library only, for it runs before anything is installed. Nothing is done for what is there already,
or where this is not root on Debian or Ubuntu: then the tests that want something say how to get it. No
server of the system's is made or started; the tests run their own (`chappe.testing`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PATIENCE_S = 600
#: What tells Debian's packages whether they may start what they install.
POLICY = Path("/usr/sbin/policy-rc.d")
#: Packages that cannot be installed beside others are unpacked here, in a directory of their own.
UNPACKED = Path(__file__).resolve().parent.parent / ".state" / "servers"


class Server(NamedTuple):
    """A server or tool for tests: Debian's packages, and how to see that it is there.

    `programs` are looked for in PATH and the system's other directories of programs, or are patterns of
    absolute paths; all must be found. `unpack` is a package to unpack under `UNPACKED`/name only.
    """

    name: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]
    unpack: str = ""

    @property
    def present(self) -> bool:
        """Whether its programs are there."""
        if self.unpack:
            return all(any((UNPACKED / self.name).glob(p)) for p in self.programs)
        return all(_found(program) for program in self.programs)


SERVERS = (
    Server(
        "rabbitmq",
        ("rabbitmq-server",),
        ("/usr/lib/rabbitmq/bin/rabbitmq-server", "epmd", "setpriv"),
    ),
    Server("postgres", ("postgresql",), ("/usr/lib/postgresql/*/bin/initdb|initdb",)),
    Server(
        "slurm",
        ("slurm-wlm", "slurmdbd", "slurm-client", "munge", "mariadb-server"),
        ("slurmctld", "slurmd", "slurmdbd", "sacct", "munged", "mariadbd"),
    ),
    Server(
        "gridengine",
        ("gridengine-master", "gridengine-exec", "gridengine-client"),
        ("/usr/lib/gridengine/sge_qmaster", "/usr/lib/gridengine/sge_execd", "qconf"),
    ),
    Server(
        "openmpi", ("openmpi-bin", "libopenmpi-dev", "gcc"), ("mpiexec.openmpi", "mpicc", "gcc")
    ),
    Server(
        "producers",
        ("dash", "bash", "ksh93u+m", "mksh", "busybox-static", "gcc", "gfortran"),
        ("dash", "bash", "ksh93", "mksh", "busybox", "gcc", "gfortran"),
    ),
    Server(
        "mail",
        ("postfix", "dovecot-core", "dovecot-imapd", "dovecot-lmtpd", "openssl"),
        ("postfix", "dovecot", "doveadm", "/usr/lib/dovecot/lmtp"),
    ),
    # PBS commands in front of Slurm; the package conflicts with gridengine-client.
    Server(
        "torque",
        ("libslurm-perl", "libslurmdb-perl"),
        ("usr/bin/qsub", "usr/bin/qstat"),
        "slurm-wlm-torque",
    ),
)


def main(names: list[str]) -> int:
    """Install what is missing and can be had; 1 when something could not."""
    unknown = set(names) - {server.name for server in SERVERS}
    if unknown:
        known = " ".join(server.name for server in SERVERS)
        print(f"no such server: {' '.join(sorted(unknown))} (there are: {known})", file=sys.stderr)
        return 2
    wanted = [s for s in SERVERS if (not names or s.name in names) and not s.present]
    if not wanted or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return 0
    print(f"installing for the tests: {', '.join(s.name for s in wanted)} …", flush=True)
    problems = []
    with starting_nothing():
        try:
            _apt("update")
        except (OSError, subprocess.SubprocessError) as error:
            problems.append(f"the lists of packages are not renewed: {error}")
        # One by one: what cannot be had does not keep the others away.
        for server in wanted:
            try:
                _apt("install", "-y", "--no-install-recommends", *server.packages)
                if server.unpack:
                    _unpack(server)
            except (OSError, subprocess.SubprocessError) as error:
                problems.append(f"{server.name} could not be installed: {error}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _found(program: str) -> bool:
    """Whether one of the places in `program` (`a|b`) exists."""
    for place in program.split("|"):
        if place.startswith("/"):
            if any(Path("/").glob(place[1:])):
                return True
        elif shutil.which(place, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
            return True
    return False


def _apt(*arguments: str) -> None:
    subprocess.run(
        ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdout=subprocess.DEVNULL,
        timeout=PATIENCE_S,
        check=True,
    )


def _unpack(server: Server) -> None:
    """Download a package and unpack it, without telling dpkg."""
    place = UNPACKED / server.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    subprocess.run(
        ["apt-get", "download", "-q", server.unpack],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # that it runs as root: the directory is root's own
        timeout=PATIENCE_S,
        check=True,
    )
    for package in place.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, place], timeout=PATIENCE_S, check=True)
        package.unlink()


@contextlib.contextmanager
def starting_nothing() -> Iterator[None]:
    """Keep packages from starting servers, unless this machine has a policy of its own."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
