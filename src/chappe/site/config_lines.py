"""Where in site.toml something is wrong."""

from __future__ import annotations

import re

import msgspec


def split_error(error: msgspec.ValidationError) -> tuple[str, str]:
    """A msgspec message as (what is wrong, field): `… - at `$.pilot.keep`` → pilot.keep."""
    text = str(error)
    message, _, path = text.partition(" - at `$")
    field = path.rstrip("`").lstrip(".")
    named = re.search(r"(?:unknown|missing required) field `([^`]+)`", message)
    if named:
        field = f"{field}.{named.group(1)}".lstrip(".")
    return message[:1].lower() + message[1:], field


def line_of(text: str, field: str) -> int:
    """The line (from 1) of `section.key` in a TOML text; of its section, or 1, when it is not there."""
    section, _, key = field.rpartition(".")
    if not section:
        section, key = key, ""
    found, current = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[([^\[\]]+)\]", line)
        if header:
            current = header.group(1).replace(" ", "")
            if current == section or (not key and current == field):
                found = number
        elif current == section and key and re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", line):
            return number
    if not found and "." in section:
        return line_of(text, section)
    return found or 1
