"""site.toml as text: the commented file that `chappe site init` writes, and the reference to it.

Both are made from the Structs that say what the file may hold (site.config).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

import msgspec
from msgspec import Meta

from chappe.link.functions import FunctionEnvironment

Sections = Mapping[str, type[msgspec.Struct]]
"""Names of tables, and what each may hold."""

_EXAMPLES = {
    "env": '{ NAME = "value" }',
    "named": "{ licence = 4 }",
    "node_tags": "{ mpi = 2 }",
    "accounts": "{ physics = 500.0 }",
    "queues": "{ debug = { nodes_max = 2, wall_s_max = 1800.0 } }",
}
"""What a table may look like."""


def commented(sections: Sections, given: Mapping[str, Mapping[str, str | bool]]) -> str:
    """A file of these sections in which `given` (section → key → value) is set and all else is a comment."""
    lines = [
        "# The Site's settings. A line that starts with `#` and a key shows a default; to change it,",
        "# take the `#` away. The agent and new pilots read this file when they start.",
    ]
    for section, struct in sections.items():
        lines += ["", f"# {_first_line(struct)}", f"[{section}]"]
        for key, default, help_text in _fields(struct):
            lines += [f"# {part}" for part in _wrap(help_text)]
            value = given.get(section, {}).get(key)
            if value is not None:
                lines.append(f"{key} = {_toml(value)}")
            else:
                lines += _commented(section, key, default)
    return "\n".join(lines) + "\n"


def documented(sections: Sections) -> str:
    """The reference of these sections in Markdown."""
    lines = ["# site.toml", "", "Errors name the file and the line; unknown keys are errors.", ""]
    for section, struct in sections.items():
        lines += [f"## [{section}]", "", _first_line(struct), ""]
        lines += ["| key | default | meaning |", "|---|---|---|"]
        for key, default, help_text in _fields(struct):
            shown = "required" if default is None else f"`{_toml(default)}`"
            lines.append(f"| `{key}` | {shown} | {help_text} |")
        lines.append("")
    return "\n".join(lines)


def _commented(section: str, key: str, default: object) -> list[str]:
    """A key with its default, as comments; the tables of environments with all they may say."""
    if key == "environments":
        rows = _fields(FunctionEnvironment)
        table = [f"# [{section}.environments.default]"]
        return table + [line for name, value, _ in rows for line in _commented("", name, value)]
    shown = _EXAMPLES[key] if default == {} else _toml(default)
    return [f"# {key} = {shown}"]


def _fields(struct: type[msgspec.Struct]) -> list[tuple[str, Any, str]]:
    """(key, default or None, description) of each field."""
    hints = get_type_hints(struct, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(struct):
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        meta: Meta = hints[field.name].__metadata__[0]
        rows.append(
            (field.name, None if default is msgspec.NODEFAULT else default, meta.description or "")
        )
    return rows


def _first_line(struct: type[msgspec.Struct]) -> str:
    return (struct.__doc__ or "").splitlines()[0]


def _wrap(text: str) -> list[str]:
    words, lines = text.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 96:
            lines.append("")
        lines[-1] += word + " "
    return [line.rstrip() for line in lines]


def _toml(value: object) -> str:
    """`value` (text, number, or empty table) in TOML."""
    if isinstance(value, str):
        return msgspec.json.encode(value).decode()
    if isinstance(value, float) and value == int(value):
        return f"{value:.1f}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return msgspec.json.encode(value).decode()
    return "{}" if value == {} else str(value)
