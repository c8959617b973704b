"""Crash points armed from the environment: how a test kills a real process at a named moment.

`CHAPPE_CRASH_AT=name` kills the process when `core.faults.reach(name)` is called first, `name:3` at the
third time. SIGKILL, because that is the crash that gives nobody a chance to tidy up. `CHAPPE_CRASH_ONCE`
may name a file: it is created just before the kill, and while it exists nothing is armed, so that a
process restarted with the same environment lives.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from chappe.core import faults
from chappe.core.errors import Invalid


def arm_from_env(environ: Mapping[str, str] = os.environ) -> None:
    """Arm the crash point that CHAPPE_CRASH_AT names; nothing when it is unset or empty.

    Raises Invalid when the value is neither `name` nor `name:nth` (nth ≥ 1).
    """
    wanted = environ.get("CHAPPE_CRASH_AT", "")
    once = environ.get("CHAPPE_CRASH_ONCE", "")
    if not wanted or (once and Path(once).exists()):
        return
    name, _, nth = wanted.partition(":")
    if not name or not ((nth.isascii() and nth.isdigit() and int(nth) > 0) or nth == ""):
        raise Invalid(
            f"CHAPPE_CRASH_AT is {wanted!r}: write `name` or `name:nth` with nth ≥ 1",
            field="CHAPPE_CRASH_AT",
        )
    faults.arm(_killer(name, int(nth or 1), once))


def _killer(name: str, nth: int, once: str) -> Callable[[str], None]:
    left = nth
    lock = threading.Lock()

    def hook(reached: str) -> None:
        nonlocal left
        if reached != name:
            return
        with lock:
            left -= 1
            if left == 0:
                if once:
                    Path(once).touch()
                os.kill(os.getpid(), signal.SIGKILL)

    return hook
