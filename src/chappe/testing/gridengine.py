"""A private Grid Engine for tests: its master, and one host to run on.

    with GridEngineCell.start() as cell:
        subprocess.run(["qhost"], env={**os.environ, **cell.environ})

It runs as whoever starts it, root too. Its ports listen on all addresses, and it accepts only this machine;
it looks at jobs every second.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from chappe.testing.daemons import Daemons, free_ports, until

HOW_TO_GET = (
    "apt-get install --no-install-recommends "
    "gridengine-master gridengine-exec gridengine-client (run as root)"
)
PROGRAMS = Path("/usr/lib/gridengine")
SHARED = Path("/usr/share/gridengine")
SLOTS = 4

_BOOTSTRAP = {
    "admin_user": "none",
    "spooling_params": "{root}/spooldb",
    "qmaster_spool_dir": "{root}/qmaster",
    "binary_path": str(PROGRAMS),
}
#: Short intervals, no mail, and jobs of root.
_CONFIGURATION = {
    "execd_spool_dir": "{root}/execd",
    "mailer": "/bin/true",
    "administrator_mail": "none",
    "load_report_time": "00:00:01",
    "max_unheard": "00:00:20",
    "min_uid": "0",
    "min_gid": "0",
    "reporting_params": "accounting=true reporting=false flush_time=00:00:01 joblog=false "
    "sharelog=00:00:00",
}
_SCHEDULER = {"schedule_interval": "0:0:1", "flush_submit_sec": "1", "flush_finish_sec": "1"}
_HOST = {"hostname": "{host}", "load_scaling": "NONE", "complex_values": "NONE"}
_NONE = "user_lists xuser_lists projects xprojects"
_HOST |= dict.fromkeys([*_NONE.split(), "usage_scaling", "report_variables"], "NONE")
_GROUP = {"group_name": "@allhosts", "hostlist": "{host}"}
_ENVIRONMENT = {
    "pe_name": "smp",
    "slots": "999",
    **dict.fromkeys(["user_lists", "xuser_lists", "start_proc_args", "stop_proc_args"], "NONE"),
    "allocation_rule": "$pe_slots",
    "control_slaves": "FALSE",
    "job_is_first_task": "TRUE",
    "urgency_slots": "min",
    "accounting_summary": "FALSE",
    "qsort_args": "NONE",
}
_QUEUE = {
    "qname": "all.q",
    "hostlist": "@allhosts",
    "seq_no": "0",
    "nsuspend": "1",
    "suspend_interval": "00:05:00",
    "priority": "0",
    "min_cpu_interval": "00:05:00",
    "processors": "UNDEFINED",
    "qtype": "BATCH INTERACTIVE",
    "pe_list": "smp",
    "rerun": "FALSE",
    "slots": str(SLOTS),
    "tmpdir": "{root}/tmp",
    "shell": "/bin/sh",
    "shell_start_mode": "unix_behavior",
    "notify": "00:00:02",
    "initial_state": "default",
}
_QUEUE |= dict.fromkeys(
    f"{_NONE} load_thresholds suspend_thresholds ckpt_list prolog epilog starter_method suspend_method "
    "resume_method terminate_method owner_list subordinate_list complex_values calendar".split(),
    "NONE",
)
_QUEUE |= {
    f"{kind}_{what}": "INFINITY"
    for kind in ("s", "h")
    for what in ("rt", "cpu", "fsize", "data", "stack", "core", "rss", "vmem")
}


def available() -> bool:
    """Whether everything is installed, and this is root: what runs here runs as who submitted it."""
    return os.geteuid() == 0 and all(
        (PROGRAMS / name).exists() for name in ("sge_qmaster", "sge_execd", "qconf", "spoolinit")
    )


class GridEngineCell:
    """A running cell. Its files are in `directory`, which `close` removes; commands need `environ`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._daemons = Daemons(directory)
        self._facts = {"root": str(directory), "host": socket.gethostname()}
        master, host = free_ports(2)
        self.environ = {
            "SGE_ROOT": str(directory / "sge"),
            "SGE_CELL": "default",
            "SGE_QMASTER_PORT": str(master),
            "SGE_EXECD_PORT": str(host),
            "SGE_ND": "1",  # in the foreground
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }

    @classmethod
    def start(cls) -> GridEngineCell:
        """Make a cell. RuntimeError when Grid Engine is not installed, or does not start."""
        if not available():
            raise RuntimeError(f"no Grid Engine; to get it: {HOW_TO_GET}")
        directory = Path(tempfile.mkdtemp(prefix="chappe-sge-"))
        directory.chmod(0o755)
        cell = cls(directory)
        try:
            cell._make_place()
            cell._daemons.launch("qmaster", [PROGRAMS / "sge_qmaster"], cell.environ)
            cell._daemons.await_ready("qmaster", lambda: cell._call("qconf", "-sh").returncode == 0)
            cell._configure()
            cell._daemons.launch("execd", [PROGRAMS / "sge_execd"], cell.environ)
            until(cell._host_is_up, "the host is up")
        except BaseException:
            cell.close()
            raise
        return cell

    def _make_place(self) -> None:
        root = self.directory / "sge"
        for name in ("bin", "lib", "utilbin"):
            (root / name).mkdir(parents=True)
            (root / name / "lx-amd64").symlink_to(PROGRAMS)
        (root / "util").symlink_to(SHARED / "util")
        for name in ("qmaster/job_scripts", "spooldb", "execd", "etc", "tmp"):
            (self.directory / name).mkdir(parents=True)
        common = root / "default" / "common"
        common.mkdir(parents=True)
        (common / "act_qmaster").write_text(f"{self._facts['host']}\n")
        (common / "host_aliases").write_text(f"{self._facts['host']} localhost\n")
        bootstrap = (SHARED / "default-bootstrap").read_text()
        (common / "bootstrap").write_text(self._changed(bootstrap, _BOOTSTRAP))
        settings = self.directory / "etc" / "configuration"
        defaults = (SHARED / "default-configuration").read_text()
        settings.write_text(self._changed(defaults, _CONFIGURATION))
        resources = SHARED / "util" / "resources"
        self.run("spoolinit", "berkeleydb", "libspoolb", self.directory / "spooldb", "init")
        self.run("spooldefaults", "configuration", settings)
        self.run("spooldefaults", "complexes", resources / "centry")
        self.run("spooldefaults", "usersets", resources / "usersets")
        self.run("spooldefaults", "managers", "root")

    def _changed(self, text: str, values: dict[str, str]) -> str:
        for name, value in values.items():
            line = f"{name} {value.format(**self._facts)}"
            text = re.sub(rf"^{name}\s.*$", line, text, flags=re.MULTILINE)
        return text

    def _configure(self) -> None:
        host = self._facts["host"]
        self._call("qconf", "-ah", host)  # it may know itself already
        self.run("qconf", "-as", host)
        for option, facts in (
            ("-Ae", _HOST),
            ("-Ahgrp", _GROUP),
            ("-Ap", _ENVIRONMENT),
            ("-Aq", _QUEUE),
        ):
            path = self.directory / "etc" / option[1:]
            rows = (f"{name} {value.format(**self._facts)}" for name, value in facts.items())
            path.write_text("\n".join(rows) + "\n")
            self.run("qconf", option, path)
        path = self.directory / "etc" / "scheduler"
        path.write_text(self._changed(self.run("qconf", "-ssconf"), _SCHEDULER) + "\n")
        self.run("qconf", "-Msconf", path)

    def _host_is_up(self) -> bool:
        """Whether the queue on it has no letters of trouble: those would be a sixth column."""
        rows = [line.split() for line in self._call("qstat", "-f").stdout.splitlines()]
        return any(row[0].startswith("all.q@") and len(row) == 5 for row in rows if row)

    def run(self, *argv: str | Path) -> str:
        """Run one of Grid Engine's commands; what it printed. Raises CalledProcessError."""
        done = self._call(*argv)
        done.check_returncode()
        return done.stdout.strip()

    def _call(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(PROGRAMS / argv[0]), *map(str, argv[1:])],
            env={**os.environ, **self.environ},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            cwd=self.directory,
        )

    def close(self) -> None:
        """End all jobs, stop everything and remove all files."""
        if self._daemons.alive("qmaster"):
            self._call("qdel", "-u", "*")
            with suppress(TimeoutError):
                until(lambda: not self._call("qstat").stdout.strip(), "no job", 10.0)
            self._daemons.stop("execd")
            self._daemons.stop("qmaster", signal.SIGKILL)  # nothing of it is kept
        self._daemons.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> GridEngineCell:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
