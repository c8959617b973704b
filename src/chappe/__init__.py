"""Chappe: one control plane for simulations and analyses on many supercomputers."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

#: Public names and where they live. Resolved on first use, so that `import chappe` costs nothing in
#: the processes that only need a part (the launcher starts in milliseconds).
_PUBLIC: dict[str, str] = {}


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'chappe' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
