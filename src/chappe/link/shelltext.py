"""Where in a piece of shell text a value may stand.

Not a shell parser: it follows quotes, comments and brackets, so that an App's author is told at once that
`"{{ x }}"` is a mistake. Safety does not depend on it (see link.templates).
"""

from __future__ import annotations

import re
from enum import Enum

from chappe.core.errors import Invalid


class _In(Enum):
    COMMANDS = "plain shell text"
    DOUBLE = "double quotes"
    SINGLE = "single quotes"
    BACKTICKS = "backticks"
    BRACES = "${…}"
    ARITHMETIC = "((…))"
    TEST = "[[…]]"
    COMMENT = "a comment"


# For each place: what matters there; anything else is passed over.
_TOKENS = {
    _In.COMMANDS: re.compile(
        r"\\.|\\$|['\"`]|\$?\(\(|\$\(|\$\{|[()]|<<|(?<![^\s;&|(])(?:\#|\[\[(?=\s))", re.DOTALL
    ),
    _In.DOUBLE: re.compile(r"\\.|\"|`|\$\(\(|\$\(|\$\{", re.DOTALL),
    _In.SINGLE: re.compile(r"'"),
    _In.BACKTICKS: re.compile(r"\\.|`", re.DOTALL),
    _In.BRACES: re.compile(r"\\.|\}|\$\{", re.DOTALL),
    _In.ARITHMETIC: re.compile(r"\)\)"),
    _In.TEST: re.compile(r"\]\]"),
    _In.COMMENT: re.compile(r"\n"),
}
_OPENS = {
    '"': _In.DOUBLE,
    "'": _In.SINGLE,
    "`": _In.BACKTICKS,
    "${": _In.BRACES,
    "$(": _In.COMMANDS,
    "(": _In.COMMANDS,
    "$((": _In.ARITHMETIC,
    "((": _In.ARITHMETIC,
    "[[": _In.TEST,
    "#": _In.COMMENT,
}
_CLOSES = {
    (_In.COMMANDS, ")"),
    (_In.DOUBLE, '"'),
    (_In.SINGLE, "'"),
    (_In.BACKTICKS, "`"),
    (_In.BRACES, "}"),
    (_In.ARITHMETIC, "))"),
    (_In.TEST, "]]"),
    (_In.COMMENT, "\n"),
}


class Scanner:
    """Reads the owner's shell text piece by piece; between two pieces stands a value."""

    def __init__(self) -> None:
        self._stack = [_In.COMMANDS]
        self._escaping = False

    def text(self, piece: str) -> None:
        """Follow the text up to the next value. Raises Invalid at a here-document."""
        self._escaping = False
        at = 0
        while found := _TOKENS[self._stack[-1]].search(piece, at):
            at = found.end()
            symbol = found[0]
            if symbol == "<<":
                raise Invalid(
                    "here-documents are not possible here: put the script into a file of its own"
                )
            if symbol == "\\":
                self._escaping = True
            elif symbol.startswith("\\"):
                continue
            elif (self._stack[-1], symbol) in _CLOSES:
                # A `)` with nothing open ends a pattern of `case`.
                if len(self._stack) > 1:
                    self._stack.pop()
            else:
                self._stack.append(_OPENS[symbol])

    def value(self) -> None:
        """A value stands here. Raises Invalid where it would not be one word."""
        place = self._stack[-1]
        if place is not _In.COMMANDS:
            raise Invalid(
                f"a value stands inside {place.value}: values are quoted for you, so take it out "
                "(write --out={{ x }}.nc, or first v={{ x }} and then use $v)"
            )
        if self._escaping:
            raise Invalid("a backslash stands before a value: take it away")
        self._escaping = False
