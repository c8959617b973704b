"""The `local` scheduler: this machine alone, through chappe.site.localctl."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from chappe.core.errors import Invalid
from chappe.site.schedulers.base import (
    Batch,
    BatchState,
    Phase,
    Plain,
    Quirks,
    SubmitRefused,
    SubmitUnclear,
    succeeded,
)
from chappe.site.schedulers.script import script

_TOOL = Path(__file__).resolve().parent.parent / "localctl.py"
NODES_MOST = 64
_SIGNAL_NAMES = {9: "KILL", 15: "TERM"}


class Local(Plain):
    """Text in, text out for localctl, which keeps its records in the directory `records`."""

    kind = "local"
    #: Nobody else uses it, and what it says of processes it has just seen in /proc.
    quirks = Quirks(shared=False, ends_seen=1, settle_s=0.0, verified="this machine")

    def __init__(self, records: str, python: str = sys.executable) -> None:
        self._command = [python, "-I", "-S", str(_TOOL), "--dir", records]

    def render_script(self, batch: Batch) -> str:
        """A /bin/sh script. Several nodes are shares of this machine. Raises Invalid for very many."""
        if not 1 <= batch.nodes <= NODES_MOST:
            raise Invalid(
                f"{batch.nodes} nodes are asked for; this machine can play {NODES_MOST} at most",
                field="nodes",
            )
        head = [
            f"#LOCAL mark CHAPPE_SESSION={batch.session}",
            "#LOCAL charge CHAPPE_JOB_ID",
            f"#LOCAL kill_s {batch.kill_s:g}",
        ]
        if batch.wall_s is not None:
            head.append(f"#LOCAL wall_s {batch.wall_s:g}")
        return script(batch, head)

    def submit_command(self, script: str, name: str) -> list[str]:
        """`localctl submit`."""
        return [*self._command, "submit", "--name", name, script]

    def parse_submit(self, stdout: str, stderr: str, exit_code: int) -> str:
        """The id after the word `submitted`. Raises SubmitRefused or SubmitUnclear."""
        words = stdout.split()
        if exit_code == 0 and len(words) == 2 and words[0] == "submitted":
            return words[1]
        said = (stderr.strip() or stdout.strip())[-500:]
        if exit_code in (1, 2) and not words:
            # Exit 1 may also come after the guard was started (a full disk): look before trying again.
            kind = SubmitRefused if "is not understood" in said or exit_code == 2 else SubmitUnclear
            raise kind(f"localctl refused the script: {said}")
        raise SubmitUnclear(f"localctl ended with {exit_code} and said: {said}")

    def find_commands(self, name: str) -> list[list[str]]:
        """`localctl find`."""
        return [[*self._command, "find", name]]

    def parse_find(self, stdout: str, name: str, stderr: str = "", exit_code: int = 0) -> list[str]:
        """The first word of each line whose second is `name`."""
        lines = succeeded(stdout, stderr, exit_code, "localctl find").splitlines()
        rows = (line.split() for line in lines)
        return [row[0] for row in rows if len(row) == 2 and row[1] == name]

    def status_command(self, ids: Sequence[str]) -> list[str]:
        """`localctl status`."""
        return [*self._command, "status", *ids]

    def parse_status(
        self, stdout: str, stderr: str = "", exit_code: int = 0
    ) -> dict[str, BatchState]:
        """Lines `ID STATE [key=value]...`; lines of another form are passed over."""
        lines = succeeded(stdout, stderr, exit_code, "localctl status").splitlines()
        rows = (line.split() for line in lines)
        return {row[0]: _state(row[1], row[2:]) for row in rows if len(row) >= 2}

    def cancel_command(self, ids: Sequence[str]) -> list[str]:
        """`localctl cancel`."""
        return [*self._command, "cancel", *ids]


def _state(word: str, rest: list[str]) -> BatchState:
    facts = dict(item.split("=", 1) for item in rest if "=" in item)
    if word in ("pending", "running"):
        pid = facts.get("pid", "")
        return BatchState(Phase(word), watch_pid=int(pid) if pid.isdigit() else 0)
    if word != "ended":
        return BatchState(Phase.UNKNOWN)
    if facts.get("reason") == "cancelled":
        return BatchState(Phase.CANCELLED, "cancelled")
    if facts.get("reason") == "wall":
        return BatchState(Phase.ENDED, "its wall-clock limit passed")
    if "signal" in facts:
        name = _SIGNAL_NAMES.get(int(facts["signal"]), facts["signal"])
        return BatchState(Phase.FAILED, f"its script was killed by signal {name}")
    if facts.get("exit", "0") != "0":
        return BatchState(Phase.FAILED, f"its script ended with status {facts['exit']}")
    return BatchState(Phase.ENDED)
