"""Grid Engine (Son of Grid Engine, Univa, Altair): qsub, qstat, qacct and qdel, as text.

What was seen on a real one, and is why things are as they are:

- `qdel` and the limit kill without a word. Asked to (`-notify`, `s_rt`) it sends USR2 or USR1 first, to the
  whole process group: the script takes them for TERM, and its pilot is started to ignore them.
- A job that is deleted while it waits is in no accounting. `qstat` is asked for finished ones too (`-s z`),
  as many as the cluster's `finished_jobs`; that a job ended is all it says of them.
- `qacct` reads a whole file, knows one id or a pattern of names at a time, and learns of an end only after
  `flush_time`, often 15 s: one question for all our names, when the queue does not list something any more.
- A master that was killed knows its jobs again when it is back. While it is gone, commands fail at once.
- `qdel` of several ids fails for one that is gone, and deletes the others.
- Nodes are shared out by parallel environments, which every site names and fills in its own way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

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
from chappe.site.schedulers.script import check_plain, script

HISTORY_DAYS = 30
"""How far back the accounting is read."""
NOTICE = ("USR1", "USR2")
"""What it sends before it suspends, or at `s_rt`; and before it kills."""

_LIMITS = ("37", "44")
"""`failed` of a job that was ended at a limit: by the master, by its own host."""
_KILLED = "100"
_DOWN = re.compile(
    r"unable to (contact|send message to|connect to) qmaster|commlib|can't (connect|resolve)|"
    r"connection refused|got no (response|permission)|jobs are allowed (per user|per cluster)|timeout",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"rejected|denied|unknown (queue|option|resource)|does not exist|is not a|no suitable queues|invalid|"
    r"error opening|not allowed",
    re.IGNORECASE,
)
_GONE = re.compile(
    r'job "?\d+"? does not exist|has (registered|deleted)|already in deletion', re.IGNORECASE
)
_NO_RECORD = re.compile(r"not found|no jobs running since startup", re.IGNORECASE)


class GridEngine(Plain):
    """Text in, text out for Grid Engine's commands."""

    kind = "gridengine"
    quirks = Quirks(settle_s=60.0, verified="Son of Grid Engine 8.1.9")

    def render_script(self, batch: Batch) -> str:
        """A script with `#$` lines. Raises Invalid for what Grid Engine has no words for."""
        if batch.qos:
            raise Invalid("Grid Engine knows no qos", field="intent.qos")
        if not batch.cores:
            raise Invalid(
                "Grid Engine wants to know how many slots: ask for cores, or set [pilot] cores",
                field="intent.cores",
            )
        check_plain(batch.session_dir, "#$")
        options = [f"-N {batch.name}", "-j y", f"-o {batch.session_dir}/batch.out", "-r n"]
        options += ["-notify", f"-S {batch.shell.split()[0]}", *self._resources(batch)]
        if batch.wall_s is not None:
            hard = math.ceil(batch.wall_s)
            options.append(f"-l h_rt={hard},s_rt={max(1, hard - math.ceil(batch.kill_s))}")
        chosen = {"q": batch.queue, "P": batch.account, "ar": batch.reservation}
        options += [f"-{name} {value}" for name, value in chosen.items() if value]
        return script(batch, [f"#$ {line}" for line in (*options, *batch.directives)], NOTICE)

    def _resources(self, batch: Batch) -> list[str]:
        options = []
        if not any(line.startswith("-pe ") for line in batch.directives):
            if batch.nodes > 1:
                raise Invalid(
                    "how Grid Engine gives several nodes is for its parallel environments to say: name one "
                    'with its slots, [scheduler] job_extra_directives = ["-pe NAME SLOTS"]',
                    field="intent.nodes",
                )
            options += [f"-pe smp {batch.cores}"] if batch.cores > 1 else []
        # Requests are per slot, where a site counts them.
        if batch.mem_bytes:
            options.append(f"-l mem_free={math.ceil(batch.mem_bytes / batch.cores / MIB)}M")
        if batch.gpus:
            options.append(f"-l gpu={batch.gpus}")
        if batch.constraint:
            options.append(f"-l {batch.constraint}")
        return options

    def submit_command(self, script: str, name: str) -> list[str]:
        """`qsub -terse`."""
        return ["qsub", "-terse", "-N", name, script]

    def parse_submit(self, stdout: str, stderr: str, exit_code: int) -> str:
        """The id, in the last line that is a number: sites wrap qsub, and their wrappers talk."""
        if exit_code == 0:
            for line in reversed(stdout.splitlines()):
                if line.strip().isdecimal():
                    return line.strip()
            raise SubmitUnclear(f"qsub succeeded and said: {said(stdout, stderr)}")
        words = f"{stdout}\n{stderr}"
        if _DOWN.search(words):
            raise SchedulerDown(f"qsub: {said(stdout, stderr)}")
        if _REFUSED.search(words):
            raise SubmitRefused(f"qsub: {said(stdout, stderr)}")
        raise SubmitUnclear(f"qsub ended with {exit_code} and said: {said(stdout, stderr)}")

    def find_commands(self, name: str) -> list[list[str]]:
        """The queue, and the accounting."""
        return [self.status_command([]), ["qacct", "-d", str(HISTORY_DAYS), "-j", name]]

    def parse_find(self, stdout: str, name: str, stderr: str = "", exit_code: int = 0) -> list[str]:
        """What either of them has under this name."""
        if stdout.lstrip().startswith("<?xml"):
            found = self.parse_status(stdout, stderr, exit_code)
        else:
            found = self.parse_history(stdout, stderr, exit_code)
        return sorted((id for id, state in found.items() if state.name == name), key=int)

    def status_command(self, ids: Sequence[str]) -> list[str]:
        """All of this user's jobs: only so does `qstat` print whole names in one form."""
        return ["qstat", "-xml", "-s", "prsz"]

    def parse_status(
        self, stdout: str, stderr: str = "", exit_code: int = 0
    ) -> dict[str, BatchState]:
        """Elements `job_list`, in the queue or finished."""
        text = succeeded(stdout, stderr, exit_code, "qstat")
        try:
            # Of the machine's own scheduler, about jobs of ours; expat bounds what entities may grow to.
            jobs = list(ElementTree.fromstring(text).iter("job_list"))  # noqa: S314
        except ElementTree.ParseError as e:
            raise SchedulerDown(f"qstat printed no XML: {said(stdout, stderr)}") from e
        rows = [{part.tag: part.text or "" for part in job} for job in jobs]
        return {
            row["JB_job_number"]: BatchState(*_of_queue(row.get("state", "")), name=row["JB_name"])
            for row in rows
            if row.get("JB_job_number", "").isdecimal() and "JB_name" in row
        }

    def history_command(self, ids: Sequence[str]) -> list[str]:
        """`qacct` for all jobs of Chappe's."""
        return ["qacct", "-d", str(HISTORY_DAYS), "-j", "chappe-*"]

    def parse_history(
        self, stdout: str, stderr: str = "", exit_code: int = 0
    ) -> dict[str, BatchState]:
        """Blocks of `name value`, between lines of `=`; of a job that ran again the last one holds."""
        if exit_code != 0 and _NO_RECORD.search(f"{stdout}\n{stderr}"):
            return {}
        text = succeeded(stdout, stderr, exit_code, "qacct")
        states = {facts["jobnumber"]: _of_accounting(facts) for facts in _blocks(text)}
        return {id: state for id, state in states.items() if state.phase in OVER}

    def cancel_command(self, ids: Sequence[str]) -> list[str]:
        """`qdel`."""
        return ["qdel", *ids]

    def parse_cancel(self, stdout: str, stderr: str, exit_code: int) -> None:
        """Complaints about jobs that have ended are none."""
        lines = [line for line in f"{stdout}\n{stderr}".splitlines() if line.strip()]
        if exit_code != 0 and not (lines and all(_GONE.search(line) for line in lines)):
            succeeded(stdout, stderr, exit_code, "qdel")


def _blocks(text: str) -> Iterator[dict[str, str]]:
    for block in re.split(r"^=+$", text, flags=re.MULTILINE):
        rows = (line.split(None, 1) for line in block.splitlines())
        facts = {row[0]: row[1].strip() for row in rows if len(row) == 2}
        if facts.get("jobnumber", "").isdecimal():
            yield facts


def _of_queue(state: str) -> tuple[Phase, str]:
    """Letters, one for each thing that is so: `hqw`, `dr`, `Eqw`."""
    if "z" in state:
        return Phase.ENDED, ""
    if "q" in state:
        # An error of its host or its script: it waits until somebody clears it.
        return Phase.PENDING, "it could not be started, and is held (Eqw)" if "E" in state else ""
    if set(state) & set("rtsSTRN"):
        return Phase.RUNNING, ""
    return Phase.UNKNOWN, state[:60]


def _of_accounting(facts: dict[str, str]) -> BatchState:
    name = facts.get("jobname", "")
    failed, _, why = facts.get("failed", "").partition(":")
    status = facts.get("exit_status", "").split(" ")[0]
    if failed.strip() in _LIMITS:
        return BatchState(Phase.ENDED, f"its limit passed: {why.strip()}"[:200], name=name)
    if failed.strip() == _KILLED:
        return BatchState(Phase.CANCELLED, "it was killed", name=name)
    if failed.strip() not in ("", "0"):
        return BatchState(Phase.FAILED, why.strip()[:200], name=name)
    if status == "0":
        return BatchState(Phase.ENDED, name=name)
    if status.isdecimal():
        return BatchState(Phase.FAILED, f"its script ended with status {status}", name=name)
    return BatchState(Phase.UNKNOWN, name=name)
