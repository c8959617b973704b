"""Check that modules and functions stay small: `python tools/sizes.py PATH...`.

A reader should hold a module in the head at once. More than 400 lines are pointed out, more than 600 are
an error; so is a function of more than 70 lines, counted from `def` to its last line, docstring included.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MODULE_WARN_LINES = 400
MODULE_MAX_LINES = 600
FUNCTION_MAX_LINES = 70
#: Copied alone to machines without Chappe, so it cannot be split.
ALONE = {"chappe_emit.py": 1000}


def main(paths: list[str]) -> int:
    """Print what is too long; the exit code is 1 if anything is over a maximum."""
    if not paths:
        print("usage: sizes.py PATH...", file=sys.stderr)
        return 2
    failed = False
    for source in sources(paths):
        for is_error, message in findings(source):
            print(message)
            failed |= is_error
    return int(failed)


def sources(paths: list[str]) -> list[Path]:
    """The Python files at or below the paths."""
    found: set[Path] = set()
    for path in map(Path, paths):
        found.update([path] if path.is_file() else path.rglob("*.py"))
    # A migration is a list of statements, and is not edited once it is released.
    return sorted(path for path in found if "migrations" not in path.parts)


def findings(source: Path) -> Iterator[tuple[bool, str]]:
    """What is too long in one file: (whether it is an error, a line for a person)."""
    text = source.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    most = ALONE.get(source.name, MODULE_MAX_LINES)
    if lines > most:
        yield True, f"{source}: {lines} lines, at most {most}: split it"
    elif lines > MODULE_WARN_LINES:
        yield False, f"{source}: {lines} lines (warning above {MODULE_WARN_LINES})"
    for node in ast.walk(ast.parse(text, filename=str(source))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_MAX_LINES:
                place = f"{source}:{node.lineno}: {node.name}"
                yield True, f"{place} has {length} lines, at most {FUNCTION_MAX_LINES}: split it"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
