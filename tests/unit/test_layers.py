"""Who may import whom, where import-linter cannot look: at run time, and at the standard library.

The contracts themselves stand in pyproject.toml; `./run check` reads them. Here: `core` works with the
standard library and msgspec alone, and takes from the standard library nothing that would make it
impure; and what must start fast does not load what is heavy.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import chappe.core

#: Modules through which a clock, chance, the outside or another thread of control could come in.
IMPURE = """
    asyncio concurrent ctypes glob http io logging mmap multiprocessing os pathlib platform queue random
    sched secrets select selectors shutil signal socket sqlite3 ssl subprocess tempfile threading time
    urllib
"""
#: What these modules hold that is pure nevertheless: paths as text.
PURE = {("pathlib", "PurePosixPath")}

#: Imports every module of chappe.core while a finder refuses all but what core may use.
IMPORT_CORE = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in sys.stdlib_module_names or root == "msgspec":
            return None
        if name in ("chappe", "chappe.core") or name.startswith("chappe.core."):
            return None
        raise ImportError(f"core may not import {name}")

sys.meta_path.insert(0, Refuse())
import chappe.core
names = [m.name for m in pkgutil.walk_packages(chappe.core.__path__, "chappe.core.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def run_isolated(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter that sees only what is installed."""
    return subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False
    )


def core_files() -> list[Path]:
    return sorted(Path(chappe.core.__path__[0]).rglob("*.py"))


def test_core_imports_only_the_standard_library_and_msgspec() -> None:
    done = run_isolated(IMPORT_CORE)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len([path for path in core_files() if path.name != "__init__.py"])


def test_the_refusing_finder_refuses() -> None:
    done = run_isolated(IMPORT_CORE.replace("import chappe.core\n", "import chappe.wire\n", 1))
    assert "core may not import chappe.wire" in done.stderr


@pytest.mark.parametrize("path", core_files(), ids=lambda path: path.name)
def test_core_has_no_clock_no_chance_no_io_and_no_async(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").partition(".")[0]
            imported.update(module for name in node.names if (module, name.name) not in PURE)
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"async, line {node.lineno}"
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name):
            assert called.id not in {"open", "print", "input"}, f"I/O, line {called.lineno}"
        if isinstance(called, ast.Attribute):
            assert called.attr not in {"now", "utcnow", "today", "uuid1", "uuid4"}, (
                f"{called.attr}(), line {called.lineno}: take the value as an argument"
            )
    assert not imported & set(IMPURE.split())


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("chappe", "chappe.sdk chappe.hub httpx2 msgspec"),
        ("chappe.cli.main", "chappe.hub chappe.site chappe.pilot fastapi sqlalchemy uvicorn"),
        ("chappe.sdk", "chappe.hub chappe.site chappe.pilot chappe.store fastapi sqlalchemy"),
        ("chappe.pilot", "chappe.hub chappe.site chappe.store fastapi sqlalchemy uvloop"),
    ],
)
def test_what_must_start_fast_loads_nothing_heavy(module: str, heavy: str) -> None:
    done = run_isolated(
        f"import sys, {module}\nprint(*sorted(set({heavy!r}.split()) & set(sys.modules)))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
