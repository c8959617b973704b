"""Questions on the terminal. Secrets are never arguments, where other users of the machine could read them.

Where there is no terminal the answers are the lines of stdin, for scripts that have them in a file.
"""

from __future__ import annotations

import sys

import click

from chappe.sdk.errors import Invalid


def ask(label: str) -> str:
    """An answer, shown while it is typed."""
    return _line(label) if not sys.stdin.isatty() else str(click.prompt(label, err=True))


def ask_secret(label: str, *, may_be_empty: bool = False) -> str:
    """An answer that is not shown."""
    if not sys.stdin.isatty():
        return _line(label)
    default = "" if may_be_empty else None
    return str(click.prompt(label, default, hide_input=True, show_default=False, err=True))


def ask_new_password() -> str:
    """A new password, on a terminal twice."""
    if not sys.stdin.isatty():
        return _line("new password")
    question = "New password (10 characters or more)"
    again = "The same again"
    return str(click.prompt(question, hide_input=True, confirmation_prompt=again, err=True))


def _line(label: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise Invalid(
            f"there is no terminal to ask for the {label.lower()} on: run this in one, or give the "
            "answers as lines on stdin",
            field="stdin",
        )
    return line.rstrip("\n")
