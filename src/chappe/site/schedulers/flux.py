"""Flux: `flux batch`, `flux jobs` and `flux cancel`, as text. Written after flux-core's manual pages.

What they say, and is why things are as they are:

- An allocation is an instance of Flux of its own, with the script as its initial program, so its Jobs may
  use `flux run`. The environment tells it neither its job's id nor its nodes: hence one node.
- Ids are words like `ƒM7Zq9AKHno`; asked to (`FLUX_F58_FORCE_ASCII`), they are plain ASCII.
- A job that is cancelled gets TERM, and KILL five seconds later unless the system's owner gave it more. The
  broker that gets it hangs up on its initial program.
- `flux jobs` lists the last thousand that it finds, and names ids that it does not know on stderr.
- It gives cores and GPUs; of memory it knows nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from chappe.core.errors import Invalid
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

NOTICE = ("HUP",)
"""What a broker that ends sends to the group of its initial program."""

_FLUX = ["env", "FLUX_F58_FORCE_ASCII=1", "flux"]
_COLUMNS = "{id.f58}|{status}|{returncode}|{exception.type}|{name}"
_STATES = {
    **dict.fromkeys(("NEW", "DEPEND", "PRIORITY", "SCHED", "PENDING"), Phase.PENDING),
    **dict.fromkeys(("RUN", "CLEANUP", "RUNNING"), Phase.RUNNING),
    "COMPLETED": Phase.ENDED,
    "FAILED": Phase.FAILED,
    "CANCELED": Phase.CANCELLED,
    "TIMEOUT": Phase.ENDED,
}
_NODE_LOST = ("node-failure", "lost-contact")
_ID = r"f[1-9A-HJ-NP-Za-km-z]+"
"""An id: base58 after an `f`."""
_DOWN = re.compile(
    r"unable to connect|could not connect|connection (refused|reset)|lost connection|flux_open|"
    r"broker.*(not|down)|function not implemented|submission is disabled|max.*(jobs|active)|timed? ?out",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"invalid|unsatisfiable|exceeds|unknown (bank|queue)|unrecognized|not permitted|cannot|denied|must be|"
    r"error: argument|no such queue|bank",
    re.IGNORECASE,
)
_GONE = re.compile(r"unknown|not found|inactive|no such file or directory", re.IGNORECASE)


class Flux(Plain):
    """Text in, text out for Flux's commands."""

    kind = "flux"
    quirks = Quirks()

    def render_script(self, batch: Batch) -> str:
        """A script with `# flux:` lines. Raises Invalid for what Flux has no words for."""
        for field in ("qos", "reservation", "mem_bytes"):
            if getattr(batch, field):
                raise Invalid(f"Flux knows no {field}", field=f"intent.{field}")
        if batch.nodes > 1:
            raise Invalid(
                "Flux does not tell a pilot which nodes it has: ask for one node at a time",
                field="intent.nodes",
            )
        check_plain(batch.session_dir, "# flux:")
        options = [f"--job-name={batch.name}", f"--output={batch.session_dir}/batch.out"]
        options.append("--nodes=1")
        if batch.cores:
            options += ["--nslots=1", f"--cores-per-slot={batch.cores}"]
            options += [f"--gpus-per-slot={batch.gpus}"] if batch.gpus else []
        else:
            options.append("--exclusive")
        if batch.wall_s is not None:
            options.append(f"--time-limit={math.ceil(batch.wall_s)}s")
            options.append(f"--signal=SIGTERM@{math.ceil(batch.kill_s)}s")
        chosen = {
            "queue": batch.queue,
            "setattr=system.bank": batch.account,
            "requires": batch.constraint,
        }
        options += [f"--{name}={value}" for name, value in chosen.items() if value]
        return script(batch, [f"# flux: {line}" for line in (*options, *batch.directives)], NOTICE)

    def submit_command(self, script: str, name: str) -> list[str]:
        """`flux batch`, which keeps a copy of the script."""
        return [*_FLUX, "batch", f"--job-name={name}", script]

    def parse_submit(self, stdout: str, stderr: str, exit_code: int) -> str:
        """The id, in the last line of its form."""
        if exit_code == 0:
            for line in reversed(_plain(stdout).splitlines()):
                if re.fullmatch(_ID, line.strip()):
                    return line.strip()
            raise SubmitUnclear(f"flux batch succeeded and said: {said(stdout, stderr)}")
        words = f"{stdout}\n{stderr}"
        if _DOWN.search(words):
            raise SchedulerDown(f"flux batch: {said(stdout, stderr)}")
        if exit_code in (1, 2) and not stdout.strip() and _REFUSED.search(stderr):
            raise SubmitRefused(f"flux batch: {said(stdout, stderr)}")
        raise SubmitUnclear(f"flux batch ended with {exit_code} and said: {said(stdout, stderr)}")

    def find_commands(self, name: str) -> list[list[str]]:
        """`flux jobs` by name, also of what has ended."""
        return [[*_FLUX, "jobs", "-a", "-n", f"--name={name}", "-o", _COLUMNS]]

    def parse_find(self, stdout: str, name: str, stderr: str = "", exit_code: int = 0) -> list[str]:
        """Those with exactly this name, as they were submitted: ids grow, and longer ones are greater."""
        found = self.parse_status(stdout, stderr, exit_code)
        ids = [id for id, state in found.items() if state.name == name]
        return sorted(ids, key=lambda id: (len(id), id))

    def status_command(self, ids: Sequence[str]) -> list[str]:
        """`flux jobs`; named ids are listed in whatever state they are."""
        return [*_FLUX, "jobs", "-a", "-n", "-o", _COLUMNS, *ids]

    def parse_status(
        self, stdout: str, stderr: str = "", exit_code: int = 0
    ) -> dict[str, BatchState]:
        """Rows `ID|STATUS|RETURNCODE|EXCEPTION|NAME`, with nothing for what there is not."""
        if exit_code != 0 and not _only_gone(stderr):
            succeeded(stdout, stderr, exit_code, "flux jobs")
        rows = (line.strip().split("|", 4) for line in _plain(stdout).splitlines())
        return {
            row[0]: _state(row[1], row[2], row[3], row[4])
            for row in rows
            if len(row) == 5 and re.fullmatch(_ID, row[0])
        }

    def cancel_command(self, ids: Sequence[str]) -> list[str]:
        """`flux cancel`."""
        return [*_FLUX, "cancel", *ids]

    def parse_cancel(self, stdout: str, stderr: str, exit_code: int) -> None:
        """Complaints about jobs that have ended are none."""
        if exit_code != 0 and not _only_gone(stderr):
            succeeded(stdout, stderr, exit_code, "flux cancel")


def _plain(text: str) -> str:
    """Ids of a Flux that does not heed the wish for ASCII, as if it did."""
    return text.replace("ƒ", "f")


def _only_gone(text: str) -> bool:
    """Whether each line complains about one id, and of nothing worse than that it is gone."""
    lines = [line for line in _plain(text).splitlines() if line.strip()]
    about = re.compile(rf"\b{_ID}\b")
    return bool(lines) and all(_GONE.search(line) and about.search(line) for line in lines)


def _state(status: str, code: str, exception: str, name: str) -> BatchState:
    phase = _STATES.get(status, Phase.UNKNOWN)
    if phase is Phase.FAILED and exception in _NODE_LOST:
        what = "a node failed; what ran there may go on until the limit"
        return BatchState(Phase.UNKNOWN, what, name=name)
    if status == "TIMEOUT":
        return BatchState(phase, "its wall-clock limit passed", name=name)
    if phase is not Phase.FAILED:
        return BatchState(phase, status[:60] if phase is Phase.UNKNOWN else "", name=name)
    if exception:
        return BatchState(phase, f"Flux ended it: {exception}"[:200], name=name)
    if code.startswith("-"):
        return BatchState(phase, f"its script was killed by signal {code[1:]}", name=name)
    return BatchState(phase, f"its script ended with status {code}", name=name)
