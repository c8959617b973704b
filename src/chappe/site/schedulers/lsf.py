"""IBM Spectrum LSF: bsub, bjobs and bkill, as text. Written after its command reference, version 10.1.

What it says, and is why things are as they are:

- bsub takes wishes from a script only when it reads that from its standard input.
- bsub waits for a master that is down, and says so for ever: the agent's own limit ends it, and then it is
  unclear whether it was submitted.
- bjobs shows what has ended for `CLEAN_PERIOD`, an hour as it comes. After that an allocation is given up
  only when its whole time has passed. A short while after bsub it may not show a job yet.
- bjobs and bkill fail for ids that they do not know, and tell of the others.
- bkill sends INT, then TERM, then KILL; at the run limit USR2 comes first. All go to every process.
- UNKWN and ZOMBI say that a host was lost: what ran there may go on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from chappe.core.errors import Invalid
from chappe.core.limits import MIB
from chappe.site.schedulers.base import (
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
from chappe.site.schedulers.script import check_plain, script

NOTICE = ("INT", "USR2")
"""What it sends to every process before TERM and KILL."""

_COLUMNS = "jobid stat exit_code job_name exit_reason delimiter='|'"
_STATES = {
    **dict.fromkeys(("PEND", "PSUSP", "WAIT"), Phase.PENDING),
    **dict.fromkeys(("RUN", "SSUSP", "USUSP", "PROV"), Phase.RUNNING),
    "DONE": Phase.ENDED,
    "EXIT": Phase.FAILED,
}
_AT_LIMIT = ("TERM_RUNLIMIT", "TERM_DEADLINE", "TERM_WINDOW")
_BY_HAND = ("TERM_OWNER", "TERM_ADMIN", "TERM_FORCE_OWNER", "TERM_FORCE_ADMIN", "TERM_BUCKET_KILL")
_DOWN = re.compile(
    r"LSF is down|LIM is down|not responding|cannot (connect|contact)|connection refused|timed? ?out|"
    r"failed in an LSF library call|pending job (threshold|limit)|job (slot|submission) limit|please wait",
    re.IGNORECASE,
)
_REFUSED = "job not submitted"
_GONE = re.compile(
    r"is not found|no (unfinished |matching )?jobs? found|no matching job|already finished|"
    r"is being (terminated|signaled)",
    re.IGNORECASE,
)


class Lsf(Plain):
    """Text in, text out for LSF's commands."""

    kind = "lsf"
    quirks = Quirks(settle_s=120.0)

    def render_script(self, batch: Batch) -> str:
        """A script with `#BSUB` lines. Raises Invalid for what LSF has no words for."""
        if batch.qos:
            raise Invalid("LSF knows no qos; ask for a queue", field="intent.qos")
        if not batch.cores:
            raise Invalid(
                "LSF wants to know how many slots of each host: ask for cores, or set [pilot] cores",
                field="intent.cores",
            )
        check_plain(batch.session_dir, "#BSUB")
        options = [f"-J {batch.name}", f"-oo {batch.session_dir}/batch.out", "-rn"]
        options += [f"-n {batch.nodes * batch.cores}", f'-R "span[ptile={batch.cores}]"']
        if batch.mem_bytes:
            options.append(f'-R "rusage[mem={math.ceil(batch.mem_bytes / MIB)}MB/host]"')
        if batch.gpus:
            options.append(f'-gpu "num={batch.gpus}"')
        if batch.constraint:
            options.append(f'-R "select[{batch.constraint}]"')
        if batch.wall_s is not None:
            options.append(f"-W {math.ceil(batch.wall_s / 60)}")
        chosen = {"q": batch.queue, "P": batch.account, "U": batch.reservation}
        options += [f"-{name} {value}" for name, value in chosen.items() if value]
        return script(batch, [f"#BSUB {line}" for line in (*options, *batch.directives)], NOTICE)

    def submit_command(self, script: str, name: str) -> list[str]:
        """`bsub`, with the script on its standard input."""
        return ["/bin/sh", "-c", 'exec bsub -J "$1" <"$0"', script, name]

    def parse_submit(self, stdout: str, stderr: str, exit_code: int) -> str:
        """The number in `Job <123> is submitted to queue <normal>.`, among what the site's esub says."""
        if exit_code == 0:
            if found := re.findall(r"^Job <(\d+)> is submitted to ", stdout, re.MULTILINE):
                return str(found[-1])
            raise SubmitUnclear(f"bsub succeeded and said: {said(stdout, stderr)}")
        words = f"{stdout}\n{stderr}"
        if _REFUSED not in words.lower():
            raise SubmitUnclear(f"bsub ended with {exit_code} and said: {said(stdout, stderr)}")
        if _DOWN.search(words):
            raise SchedulerDown(f"bsub: {said(stdout, stderr)}")
        raise SubmitRefused(f"bsub: {said(stdout, stderr)}")

    def find_commands(self, name: str) -> list[list[str]]:
        """`bjobs` by name, also of what ended lately."""
        return [["bjobs", "-a", "-J", name, "-noheader", "-o", _COLUMNS]]

    def parse_find(self, stdout: str, name: str, stderr: str = "", exit_code: int = 0) -> list[str]:
        """Those with exactly this name."""
        found = self.parse_status(stdout, stderr, exit_code)
        return sorted((id for id, state in found.items() if state.name == name), key=int)

    def status_command(self, ids: Sequence[str]) -> list[str]:
        """`bjobs`, in columns of unlimited width."""
        return ["bjobs", "-a", "-noheader", "-o", _COLUMNS, *ids]

    def parse_status(
        self, stdout: str, stderr: str = "", exit_code: int = 0
    ) -> dict[str, BatchState]:
        """Rows `ID|STAT|EXIT_CODE|NAME|EXIT_REASON`, with `-` for what there is not."""
        if exit_code != 0 and not _only_gone(stderr):
            succeeded(stdout, stderr, exit_code, "bjobs")
        rows = (line.strip().split("|", 4) for line in stdout.splitlines())
        return {
            row[0]: _state(row[1], row[2], row[3], row[4])
            for row in rows
            if len(row) == 5 and row[0].isdecimal()
        }

    def cancel_command(self, ids: Sequence[str]) -> list[str]:
        """`bkill`."""
        return ["bkill", *ids]

    def parse_cancel(self, stdout: str, stderr: str, exit_code: int) -> None:
        """Complaints about jobs that have ended are none."""
        if exit_code != 0 and not _only_gone(f"{stdout}\n{stderr}"):
            succeeded(stdout, stderr, exit_code, "bkill")


def _only_gone(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(lines) and all(_GONE.search(line) for line in lines)


def _state(stat: str, status: str, name: str, why: str) -> BatchState:
    phase = _STATES.get(stat, Phase.UNKNOWN)
    if phase is Phase.UNKNOWN:
        lost = "a host was lost; what ran there may go on until the limit"
        return BatchState(phase, lost if stat in ("UNKWN", "ZOMBI") else stat[:60], name=name)
    if phase is not Phase.FAILED:
        return BatchState(phase, name=name)
    reason = why.partition(":")[0].strip()
    if reason in _AT_LIMIT:
        return BatchState(Phase.ENDED, "its wall-clock limit passed", name=name)
    if reason in _BY_HAND:
        return BatchState(Phase.CANCELLED, "cancelled", name=name)
    message = f"its script ended with status {status}" if status.isdecimal() else "it failed"
    return BatchState(
        phase, message if reason in ("", "-") else f"{message}: {why}"[:200], name=name
    )
