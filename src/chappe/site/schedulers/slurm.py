"""Slurm: sbatch, squeue, sacct and scancel, as text.

What was seen on real clusters, and is why things are as they are:

- The controller saves its state every few seconds. Killed within that time of an accepted submission, it
  forgets a job that still runs; `sacct` has it PENDING for ever. So sacct is believed about ends only.
- An accepted submission may look like one that timed out, and may be taken up long after. The job carries our
  name as its name and as its comment, and is looked for in queue and accounting.
- Of several job ids squeue passes over those that it does not know; of a single one it fails.
- After NODE_FAIL processes may live on, on a node that only lost its slurmd: that is no end. The allocation's
  limit is one.
- More nodes than a partition has are accepted, and the job waits for ever.
- A job that is requeued would start a second pilot where the first may be alive: we ask for --no-requeue.
- `sacct --json` reports success for exit status 3; the text is right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from chappe.core.errors import Invalid
from chappe.core.limits import MIB
from chappe.site.schedulers.base import (
    OVER,
    Batch,
    BatchState,
    Phase,
    Plain,
    Quirks,
    SchedulerDown,
    SubmitRefused,
    SubmitUnclear,
    said,
    succeeded,
)
from chappe.site.schedulers.script import script

HISTORY_DAYS = 30
"""How far back a job is looked for by its name."""

_RUNNING = (
    "CONFIGURING COMPLETING RUNNING RESIZING SIGNALING STAGE_OUT STOPPED SUSPENDED POWER_UP_NODE"
)
_PENDING = "PENDING REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD SPECIAL_EXIT"
_STATES: dict[str, tuple[Phase, str]] = {
    **dict.fromkeys(_RUNNING.split(), (Phase.RUNNING, "")),
    **dict.fromkeys(_PENDING.split(), (Phase.PENDING, "")),
    "COMPLETED": (Phase.ENDED, ""),
    "TIMEOUT": (Phase.ENDED, "its wall-clock limit passed"),
    "DEADLINE": (Phase.ENDED, "its deadline passed"),
    "CANCELLED": (Phase.CANCELLED, "cancelled"),
    "REVOKED": (Phase.CANCELLED, "revoked"),
    "FAILED": (Phase.FAILED, "its script failed"),
    "OUT_OF_MEMORY": (Phase.FAILED, "it used more memory than it had"),
    "LAUNCH_FAILED": (Phase.FAILED, "it could not be launched"),
    "RECONFIG_FAIL": (Phase.FAILED, "its nodes could not be set up"),
    "BOOT_FAIL": (Phase.FAILED, "its nodes did not boot"),
    "PREEMPTED": (Phase.FAILED, "pre-empted by another job"),
    "NODE_FAIL": (Phase.UNKNOWN, "a node failed; what ran there may go on until the limit"),
}
#: Reasons of what has more nodes than its partition, or than one job may have.
_TOO_WIDE = re.compile(r"PartitionConfig|PartitionNodeLimit|(QOS|Assoc)MaxNodePerJob(Limit)?")
_NO_SUCH_JOB = "Invalid job id specified"
_NO_ACCOUNTING = "accounting storage is disabled"
#: It may have taken the job, whatever else was said: sbatch tries again by itself, and tells of each time.
_UNCLEAR = re.compile(r"timed out|zero bytes|send/recv|receive_msg", re.IGNORECASE)
#: The controller never read the request.
_DOWN = re.compile(
    r"unable to contact slurm controller|connection refused|unable to establish|unable to resolve|"
    r"temporarily unable to accept job|cannot stat file|munge|authentication|"
    r"(QOS|Assoc)Max(Submit|Jobs)|MaxJobCount|resource temporarily unavailable|limit exceeded.*try",
    re.IGNORECASE,
)
#: It read it and will not have it.
_REFUSED = re.compile(
    r"invalid|not available|can ?not be satisfied|not permitted|violates|unrecogni[sz]ed|denied|exceeds|"
    r"requested (node|time|partition)|memory specification|unable to open file|disabled|bad ",
    re.IGNORECASE,
)


class Slurm(Plain):
    """Text in, text out for Slurm's commands."""

    kind = "slurm"
    quirks = Quirks(verified="Slurm 22.05")

    def render_script(self, batch: Batch) -> str:
        """A script with `#SBATCH` lines. Raises Invalid."""
        for path in (batch.site_dir, batch.session_dir):
            if not path.isprintable() or set(path) & set("\"'\\`$%"):
                raise Invalid(
                    f"{path!r} cannot be named in a batch script: quotation marks, `$`, `%` or others of "
                    "that kind are in it",
                    field="site_dir",
                )
        options = [
            f"--job-name={batch.name}",
            f"--comment={batch.name}",
            f'--chdir="{batch.site_dir}"',
            f'--output="{batch.session_dir}/batch.out"',
            "--open-mode=append",
            "--no-requeue",
            f"--nodes={batch.nodes}",
            "--ntasks-per-node=1",
            f"--cpus-per-task={batch.cores}" if batch.cores else "--exclusive",
        ]
        if batch.mem_bytes:
            options.append(f"--mem={math.ceil(batch.mem_bytes / MIB)}M")
        elif not batch.cores:
            options.append("--mem=0")
        if batch.gpus:
            options.append(f"--gres=gpu:{batch.gpus}")
        if batch.wall_s is not None:
            options.append(f"--time={clock(batch.wall_s)}")
        chosen = {
            "partition": batch.queue,
            "account": batch.account,
            "qos": batch.qos,
            "reservation": batch.reservation,
            "constraint": batch.constraint,
        }
        options += [f"--{name}={value}" for name, value in chosen.items() if value]
        return script(batch, [f"#SBATCH {line}" for line in (*options, *batch.directives)])

    def submit_command(self, script: str, name: str) -> list[str]:
        """`sbatch --parsable`."""
        return ["sbatch", "--parsable", f"--job-name={name}", f"--comment={name}", script]

    def parse_submit(self, stdout: str, stderr: str, exit_code: int) -> str:
        """The id, in the last line of its form: sites wrap sbatch, and their wrappers talk."""
        if exit_code == 0:
            for line in reversed(stdout.splitlines()):
                if found := re.fullmatch(r"(\d+)(;[\w.-]+)?", line.strip()):
                    return found.group(1)
            raise SubmitUnclear(f"sbatch succeeded and said: {said(stdout, stderr)}")
        words = said(stdout, stderr)
        if _UNCLEAR.search(stderr):
            raise SubmitUnclear(f"sbatch: {words}")
        if _DOWN.search(stderr):
            raise SchedulerDown(f"sbatch: {words}")
        if exit_code == 1 and not stdout.strip() and _REFUSED.search(stderr):
            raise SubmitRefused(f"sbatch: {words}")
        raise SubmitUnclear(f"sbatch ended with {exit_code} and said: {words}")

    def find_commands(self, name: str) -> list[list[str]]:
        """The queue, and the accounting, which may know what the queue has forgotten."""
        queue = ["squeue", "--me", "--noheader", "--states=all", f"--name={name}", "--format=%A|%j"]
        columns = "--format=JobIDRaw,JobName"
        since = f"--starttime=now-{HISTORY_DAYS}days"
        history = ["sacct", "-X", "-P", "--noheader", f"--name={name}", since, columns]
        return [queue, history]

    def parse_find(self, stdout: str, name: str, stderr: str = "", exit_code: int = 0) -> list[str]:
        """Rows `ID|NAME`, lowest id first."""
        if exit_code != 0 and _NO_ACCOUNTING in stderr.lower():
            return []
        rows = [
            line.split("|") for line in succeeded(stdout, stderr, exit_code, "slurm").splitlines()
        ]
        found = {row[0] for row in rows if len(row) == 2 and row[1] == name and row[0].isdecimal()}
        return sorted(found, key=int)

    def status_command(self, ids: Sequence[str]) -> list[str]:
        """`squeue`, also of jobs that ended a few minutes ago; of this user's only, which costs the least."""
        columns = "--format=%A|%T|%j|%r"
        return ["squeue", "--me", "--noheader", "--states=all", f"--jobs={','.join(ids)}", columns]

    def parse_status(
        self, stdout: str, stderr: str = "", exit_code: int = 0
    ) -> dict[str, BatchState]:
        """Rows `ID|STATE|NAME|REASON`."""
        if exit_code == 1 and _NO_SUCH_JOB in stderr:
            return {}
        rows = (
            line.split("|", 3)
            for line in succeeded(stdout, stderr, exit_code, "squeue").splitlines()
        )
        return {r[0]: _state(r[1], r[2], r[3]) for r in rows if len(r) == 4 and r[0].isdecimal()}

    def history_command(self, ids: Sequence[str]) -> list[str]:
        """`sacct`, as text."""
        columns = "--format=JobIDRaw,State,JobName,ExitCode"
        return ["sacct", "-X", "-P", "--noheader", f"--jobs={','.join(ids)}", columns]

    def parse_history(
        self, stdout: str, stderr: str = "", exit_code: int = 0
    ) -> dict[str, BatchState]:
        """Ends only: what the accounting has as pending or running may have been forgotten."""
        if exit_code != 0 and _NO_ACCOUNTING in stderr.lower():
            return {}
        rows = (
            line.split("|") for line in succeeded(stdout, stderr, exit_code, "sacct").splitlines()
        )
        states = {r[0]: _state(r[1], r[2], r[3]) for r in rows if len(r) == 4}
        return {id: state for id, state in states.items() if state.phase in OVER}

    def cancel_command(self, ids: Sequence[str]) -> list[str]:
        """`scancel`, which takes ids of jobs that have ended without complaint."""
        return ["scancel", *ids]


def clock(seconds: float) -> str:
    """`D-HH:MM:SS`, rounded up."""
    minutes, second = divmod(math.ceil(seconds), 60)
    hours, minute = divmod(minutes, 60)
    day, hour = divmod(hours, 24)
    return f"{day}-{hour:02}:{minute:02}:{second:02}"


def _state(text: str, name: str, why: str) -> BatchState:
    """A state as in `CANCELLED by 1000`, with a reason (squeue) or `STATUS:SIGNAL` (sacct)."""
    phase, message = _STATES.get(text.split(" ")[0].rstrip("+"), (Phase.UNKNOWN, text[:60]))
    status = re.fullmatch(r"(\d+):(\d+)", why)
    if phase is Phase.FAILED and status:
        exit_status, signal = status.groups()
        message += f" (signal {signal})" if signal != "0" else f" (exit status {exit_status})"
    elif why not in ("None", "", "NonZeroExitCode") and not status and phase is not Phase.RUNNING:
        message = f"{message}: {why}" if message else why
    too_wide = phase is Phase.PENDING and bool(_TOO_WIDE.fullmatch(why))
    return BatchState(phase, message, name=name, too_wide=too_wide)
