"""Named crash points: where a test may kill the process, to prove that nothing is lost there.

`reach(name)` marks a dangerous moment (between a commit and its answer, between a claim and a start)
and costs one global read. It does nothing unless a composition root armed a hook.
"""

from __future__ import annotations

from collections.abc import Callable

_hook: Callable[[str], None] | None = None


def arm(hook: Callable[[str], None] | None) -> None:
    """Install the function called at each crash point; None disarms."""
    global _hook  # noqa: PLW0603 - the one switch of the process
    _hook = hook


def reach(name: str) -> None:
    """Say that the crash point `name` is reached."""
    if _hook is not None:
        _hook(name)
