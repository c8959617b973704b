"""`import chappe` is quick and offers what it says, to programs and to type checkers alike."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import chappe

PUBLIC: dict[str, str] = importlib.import_module("chappe")._PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_and_documented(name: str) -> None:
    thing = getattr(chappe, name)
    assert thing.__doc__, f"chappe.{name} has no docstring"
    assert name in dir(chappe)


def test_type_checkers_see_the_same_names_from_the_same_places() -> None:
    stub = ast.parse((Path(chappe.__file__).parent / "__init__.pyi").read_text())
    seen = {
        alias.name: node.module
        for node in ast.walk(stub)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == PUBLIC


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        chappe.Clinet  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_loads_nothing_else() -> None:
    """The launcher imports the package, and must start in milliseconds."""
    code = "import sys, chappe; print([m for m in sys.modules if m.startswith('chappe.')])"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
