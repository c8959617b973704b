"""Typed parameters of Apps: declared once, compiled once per App, checked for each Job.

The Hub checks them to tell the user at once; the pilot checks them again, because it trusts nobody.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec

from chappe.core import limits
from chappe.core.errors import Invalid

Value = str | int | float | bool | list[Any]
Check = Callable[[Any], Value]
Validator = Callable[[dict[str, Any]], dict[str, Value]]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_FLOAT_MAX = sys.float_info.max
RESERVED = frozenset({"job_id", "attempt", "workdir", "cores", "site"})


class Kind(StrEnum):
    """The types a parameter may have."""

    STRING = "string"
    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    PATH = "path"
    CHOICE = "choice"
    LIST = "list"


class Parameter(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One parameter. `required`: every Job must give it; others have a default (see `compile_validator`).

    `items` is the type of a list's elements. `min` and `max` bound numbers; `pattern` (a regular
    expression) must match a whole string.
    """

    type: Kind = Kind.STRING
    help: str = ""
    default: Any = None
    required: bool = False
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()
    items: Kind = Kind.STRING
    pattern: str | None = None


Schema = dict[str, Parameter]


def compile_validator(schema: Schema) -> Validator:
    """A function from given parameters to complete ones; it raises Invalid naming the field.

    A parameter that is not given takes its default; without one, and not `required`, it takes the
    empty value of its type. Raises Invalid at once if the schema itself is wrong.
    """
    checks = {name: _compile(name, p) for name, p in schema.items()}
    defaults = {
        name: checks[name](_default(name, p)) for name, p in schema.items() if not p.required
    }
    required = [name for name, p in schema.items() if p.required]
    lists = [(name, value) for name, value in defaults.items() if isinstance(value, list)]

    def validate(given: dict[str, Any]) -> dict[str, Value]:
        out = dict(defaults)
        for name, value in lists:
            out[name] = list(value)  # or one Job's change of it would be every other's default
        for name, value in given.items():
            check = checks.get(name)
            if check is None:
                known = ", ".join(sorted(checks)) or "none"
                raise Invalid(
                    f"the app has no parameter {name[:60]!r} (it has: {known})",
                    field=f"parameters.{name[:60]}",
                )
            out[name] = check(value)
        for name in required:
            if name not in given:
                raise Invalid("this parameter must be given", field=f"parameters.{name}")
        return out

    return validate


def _default(name: str, p: Parameter) -> Any:
    if p.default is not None:
        return p.default
    if p.type is Kind.CHOICE and p.choices:
        return p.choices[0]
    if p.type in (Kind.INT, Kind.FLOAT) and p.min is not None:
        return p.min
    return {Kind.INT: 0, Kind.FLOAT: 0.0, Kind.BOOL: False, Kind.LIST: []}.get(p.type, "")


def _compile(name: str, p: Parameter) -> Check:
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise Invalid(
            f"{name[:60]!r} cannot be a parameter's name: a letter, then letters, digits and _, "
            f"and none of {', '.join(sorted(RESERVED))}",
            field=f"parameters.{name[:60]}",
        )
    field = f"parameters.{name}"
    if p.type is Kind.CHOICE and not p.choices:
        raise Invalid("a choice needs `choices`", field=field)
    if p.type is Kind.LIST:
        item = _scalar(field, p.items, p)

        def check_list(value: Any) -> Value:
            if not isinstance(value, list) or len(value) > limits.COMMAND_ARGS:
                raise Invalid(
                    f"a list of at most {limits.COMMAND_ARGS} elements is wanted", field=field
                )
            return [item(v) for v in value]

        return check_list
    return _scalar(field, p.type, p)


def _scalar(field: str, kind: Kind, p: Parameter) -> Check:
    match kind:
        case Kind.INT | Kind.FLOAT:
            return _number(field, kind, p)
        case Kind.BOOL:
            return lambda v: v if isinstance(v, bool) else _wrong(field, "true or false", v)
        case Kind.CHOICE:
            allowed = frozenset(p.choices)
            wanted = "one of " + ", ".join(p.choices)

            def choice(v: Any) -> Value:
                if not isinstance(v, str) or v not in allowed:
                    _wrong(field, wanted, v)
                return str(v)

            return choice
        case Kind.LIST:
            raise Invalid("a list of lists is not possible", field=field)
        case _:
            return _text(field, p)


def _number(field: str, kind: Kind, p: Parameter) -> Check:
    low = -math.inf if p.min is None else p.min
    high = math.inf if p.max is None else p.max

    def number(v: Any) -> Value:
        if isinstance(v, bool) or not isinstance(v, int | float):
            _wrong(field, "a number", v)
        if not -_FLOAT_MAX <= v <= _FLOAT_MAX:
            _wrong(field, "a finite number", v)
        if kind is Kind.INT and v != int(v):
            _wrong(field, "a whole number", v)
        if not low <= v <= high:
            _wrong(field, f"a number from {low:g} to {high:g}", v)
        return int(v) if kind is Kind.INT else float(v)

    return number


def _text(field: str, p: Parameter) -> Check:
    try:
        pattern = re.compile(p.pattern) if p.pattern is not None else None
    except re.error as e:
        raise Invalid(f"the pattern is no regular expression: {e}", field=field) from None

    def text(v: Any) -> Value:
        if not isinstance(v, str):
            _wrong(field, "text", v)
        if len(v) > limits.STRING_CHARS or "\0" in v:
            _wrong(field, f"text without NUL, at most {limits.STRING_CHARS} characters", v)
        if pattern is not None and not pattern.fullmatch(v):
            _wrong(field, f"text that matches {p.pattern}", v)
        return str(v)

    return text


def _wrong(field: str, wanted: str, got: Any) -> Value:
    raise Invalid(f"{wanted} is wanted, not {_shown(got)}", field=field)


def _shown(got: Any) -> str:
    """A value for a message. Python prints neither an int of thousands of digits nor endless nesting."""
    try:
        return f"{got!r:.80}"
    except ValueError:
        return "a number of thousands of digits"
    except RecursionError:
        return "something that is nested too deeply"
