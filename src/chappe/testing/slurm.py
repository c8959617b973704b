"""A private Slurm of emulated nodes on loopback, with accounting, for tests and benchmarks.

    with SlurmCluster.start(nodes=4) as slurm:
        subprocess.run(["sinfo"], env={**os.environ, **slurm.environ})

It runs as whoever starts it. Intervals are short, so that failures show within seconds.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from chappe.testing.daemons import Daemons, free_ports, program, until

HOW_TO_GET = (
    "apt-get install --no-install-recommends slurm-wlm slurmdbd slurm-client munge mariadb-server"
)
CLUSTER = "chappetest"
_PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "slurmdbd", "sacctmgr", "mariadbd")

_CONF = """\
ClusterName={cluster}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=10
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={root}/ctld
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmdLogFile={root}/log/slurmd-%n.log
SlurmdSpoolDir={root}/spool/%n
ReturnToService=2
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
LaunchParameters=use_interactive_step
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
SlurmdTimeout=10
SlurmctldTimeout=5
MessageTimeout=5
InactiveLimit=0
KillWait=2
MinJobAge=300
MaxArraySize=2001
MaxJobCount=20000
JobRequeue=1
Waittime=0
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={root}/munge/socket
AccountingStoreFlags=job_comment
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=01:00:00 DefaultTime=00:05:00 DefMemPerCPU=100 State=UP
PartitionName=long Nodes=node1 MaxTime=INFINITE DefMemPerCPU=100 State=UP
"""
_DBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=10
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd_port}
CommunicationParameters=NoInAddrAny
SlurmUser={user}
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql_port}
StorageUser=slurm
StoragePass=slurmpw
StorageLoc=slurm_acct_db
"""


def available() -> bool:
    """Whether everything is installed."""
    return all(program(name) for name in _PROGRAMS)


class TorqueCommands:
    """The commands of PBS (qsub, qstat, qdel) in front of a cluster, from Debian's slurm-wlm-torque.

    They look for Slurm's own commands in the directory that they are in.
    """

    def __init__(self, found: Path, cluster: SlurmCluster, directory: Path) -> None:
        for name in ("qsub", "qstat", "qdel"):
            shutil.copy2(found / name, directory / name)
        for name in ("sbatch", "salloc", "srun", "squeue", "scancel", "scontrol", "sinfo", "sacct"):
            (directory / name).symlink_to(program(name) or name)
        path = f"{directory}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        self.environ = {**cluster.environ, "PATH": path}


class SlurmCluster:
    """A running cluster. Its files are in `directory`, which `close` removes; commands need `environ`."""

    def __init__(self, directory: Path, nodes: int, cpus: int, mem_mib: int) -> None:
        self.directory = directory
        self.nodes = [f"node{n}" for n in range(1, nodes + 1)]
        self._daemons = Daemons(directory)
        self._user = pwd.getpwuid(os.geteuid()).pw_name
        self._ports = free_ports(3 + nodes)
        self._write_conf(cpus, mem_mib)
        self.environ = {"SLURM_CONF": str(directory / "etc" / "slurm.conf")}

    @classmethod
    def start(cls, nodes: int = 4, cpus: int = 2, mem_mib: int = 2000) -> SlurmCluster:
        """Make a cluster of emulated nodes. RuntimeError when Slurm is not installed, or does not start."""
        if not available():
            raise RuntimeError(f"no Slurm; to get it: {HOW_TO_GET}")
        # munge wants a directory that everybody may search, and sockets want short names.
        directory = Path(tempfile.mkdtemp(prefix="chappe-slurm-"))
        directory.chmod(0o755)
        cluster = cls(directory, nodes, cpus, mem_mib)
        try:
            cluster._start_munge()
            cluster._start_accounting()
            cluster.start_controller()
            for node in cluster.nodes:
                cluster.start_node(node)
            until(lambda: cluster.idle_nodes() == len(cluster.nodes), "nodes are up")
        except BaseException:
            cluster.close()
            raise
        return cluster

    def _write_conf(self, cpus: int, mem_mib: int) -> None:
        for name in ("etc", "run", "ctld", "spool", "munge"):
            (self.directory / name).mkdir(mode=0o755)
        host = socket.gethostname().split(".")[0]
        ctld_port, dbd_port, sql_port, *node_ports = self._ports
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} "
            f"RealMemory={mem_mib} State=UNKNOWN"
            for name, port in zip(self.nodes, node_ports, strict=True)
        ]
        facts = {
            "cluster": CLUSTER,
            "host": host,
            "root": self.directory,
            "user": self._user,
            "ctld_port": ctld_port,
            "dbd_port": dbd_port,
            "sql_port": sql_port,
            "nodes": "\n".join(lines),
        }
        etc = self.directory / "etc"
        (etc / "slurm.conf").write_text(_CONF.format(**facts))
        (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        dbd = etc / "slurmdbd.conf"
        dbd.touch(0o600)
        dbd.write_text(_DBD_CONF.format(**facts))

    def _start_munge(self) -> None:
        place = self.directory / "munge"
        private = place / "private"
        private.mkdir(mode=0o700)
        key = private / "key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        munged = [program("munged") or "munged", "--foreground", "--num-threads=2"]
        files = {"key-file": key, "pid-file": private / "pid", "seed-file": private / "seed"}
        options = [f"--{name}={path}" for name, path in files.items()]
        self._daemons.launch(
            "munged", [*munged, *options, f"--socket={place}/socket", "--log-file=/dev/stderr"]
        )
        self._daemons.await_ready("munged", lambda: self._ok("munge", "-n", "-S", place / "socket"))

    def _start_accounting(self) -> None:
        data = self.directory / "mysql"
        data.mkdir()
        user = "mysql" if self._user == "root" else self._user
        if user == "mysql":
            shutil.chown(data, user)
        install = ["mariadb-install-db", "--no-defaults", f"--user={user}", f"--datadir={data}"]
        self.run(*install, "--auth-root-authentication-method=normal", "--skip-test-db")
        self._daemons.launch(
            "mariadb",
            [
                program("mariadbd") or "mariadbd",
                "--no-defaults",
                f"--user={user}",
                f"--datadir={data}",
                "--bind-address=127.0.0.1",
                f"--port={self._ports[2]}",
                f"--socket={data}/s.sock",
                f"--pid-file={data}/own.pid",
                "--innodb-buffer-pool-size=64M",
                "--innodb-log-file-size=32M",
                "--innodb-lock-wait-timeout=900",
                "--innodb-flush-log-at-trx-commit=0",
                "--skip-name-resolve",
            ],
        )
        as_root = ("--no-defaults", "-u", "root", "-S", f"{data}/s.sock")
        self._daemons.await_ready("mariadb", lambda: self._ok("mariadb-admin", *as_root, "ping"))
        grant = (
            "create database if not exists slurm_acct_db; "
            "create user if not exists 'slurm'@'127.0.0.1' identified by 'slurmpw'; "
            "grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1';"
        )
        self.run("mariadb", *as_root, "-e", grant)
        self.start_dbd()
        self.run("sacctmgr", "-iQ", "add", "cluster", CLUSTER)

    def start_dbd(self) -> None:
        """Start the accounting's daemon, and wait until it answers."""
        self._daemons.launch("slurmdbd", [program("slurmdbd") or "slurmdbd", "-D"], self.environ)
        ready = ("sacctmgr", "-n", "list", "cluster")
        self._daemons.await_ready("slurmdbd", lambda: self._ok(*ready))

    def start_controller(self) -> None:
        """Start slurmctld, and wait until it answers."""
        self._daemons.launch("slurmctld", [program("slurmctld") or "slurmctld", "-D"], self.environ)
        self._daemons.await_ready("slurmctld", lambda: self._ok("scontrol", "ping"))

    def start_node(self, node: str) -> None:
        """Start the slurmd of one node."""
        (self.directory / "spool" / node).mkdir(exist_ok=True)
        argv = [program("slurmd") or "slurmd", "-D", "-N", node]
        self._daemons.launch(f"slurmd-{node}", argv, self.environ)

    def kill(self, daemon: str, signum: signal.Signals = signal.SIGKILL) -> None:
        """End `slurmctld`, `slurmdbd` or `slurmd-NODE` on the spot."""
        self._daemons.stop(daemon, signum)

    def idle_nodes(self) -> int:
        """How many nodes could run something."""
        found = self._call("sinfo", "-h", "-N", "-p", "debug", "-t", "idle,alloc,mix", "-o", "%N")
        return len(set(found.stdout.split()))

    def run(self, *argv: str | Path) -> str:
        """Run one of Slurm's commands; what it printed. Raises CalledProcessError."""
        done = self._call(*argv)
        done.check_returncode()
        return done.stdout.strip()

    def jobs(self) -> list[tuple[str, str, str]]:
        """(id, name, state) of all jobs that the controller knows."""
        rows = self.run("squeue", "-h", "-t", "all", "-o", "%A|%j|%T").splitlines()
        return [(row.split("|")[0], row.split("|")[1], row.split("|")[2]) for row in rows]

    def clear(self) -> None:
        """Cancel everything, bring everything up again, and wait until no job is left."""
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        self._call("scancel", "--me")
        for node in self.nodes:
            self._call("scontrol", "update", f"NodeName={node}", "State=RESUME")
        left = ("squeue", "-h", "-o", "%A")
        until(lambda: not self._call(*left).stdout.strip(), "the queue is empty")
        until(lambda: self.idle_nodes() == len(self.nodes), "nodes are up")

    def _ok(self, *argv: str | Path) -> bool:
        return self._call(*argv).returncode == 0

    def _call(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(arg) for arg in argv],
            env={**os.environ, **self.environ},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            cwd=self.directory,
        )

    def _steps(self) -> Sequence[int]:
        """The slurmstepd of this cluster: they outlive their slurmd."""
        mark = f"SLURM_CONF={self.environ['SLURM_CONF']}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if not entry.name.isdigit() or (entry / "comm").read_text() != "slurmstepd\n":
                    continue
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def close(self) -> None:
        """Stop everything and remove all files."""
        if self._daemons.alive("slurmctld"):
            self._call("scancel", "--me")
            with suppress(TimeoutError):
                until(lambda: not self._call("squeue", "-h").stdout.strip(), "no job", 10.0)
        for pid in self._steps():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._daemons.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> SlurmCluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
