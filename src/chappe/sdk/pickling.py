"""Pickles of the user's own code by value, so that it runs at a Site where it is not installed.

cloudpickle takes what is defined in an importable module by its name. That suits packages, which the Site
has too, and not the script's own helper modules beside it, which it has not. So modules that are neither the
standard library's nor installed count as the user's own: what they define travels as it stands here.
"""

from __future__ import annotations

import site
import sys
import sysconfig
import threading
from pathlib import Path
from types import ModuleType

import cloudpickle

_lock = threading.Lock()
_seen: set[str] = set()
_own: dict[str, ModuleType] = {}


def dumps(thing: object) -> bytes:
    """`thing` pickled, with the user's own code by value. Raises whatever its own code raises."""
    with _lock:
        _look_around()
        registered = []
        for name, module in _own.items():
            if (
                sys.modules.get(name) is module
                and name not in cloudpickle.list_registry_pickle_by_value()
            ):
                cloudpickle.register_pickle_by_value(module)
                registered.append(module)
        try:
            found: bytes = cloudpickle.dumps(thing)
            return found
        finally:
            for module in registered:
                cloudpickle.unregister_pickle_by_value(module)


def _look_around() -> None:
    """Learn which of the modules loaded since the last time are the user's own."""
    new = sys.modules.keys() - _seen
    _seen.update(new)
    for name in new:
        module = sys.modules[name]
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and _is_own(name, file):
            _own[name] = module


def _is_own(name: str, file: str) -> bool:
    top = name.partition(".")[0]
    if top in ("__main__", "chappe") or top in sys.stdlib_module_names or not file.endswith(".py"):
        return False
    path = Path(file).resolve()
    return not any(path.is_relative_to(place) for place in _INSTALLED)


def _installed() -> list[Path]:
    names = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    names += [*site.getsitepackages(), site.getusersitepackages()]
    return [Path(name).resolve() for name in dict.fromkeys(names) if name]


_INSTALLED = _installed()
