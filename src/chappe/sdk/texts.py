"""Parameters as text (a command line, a form) become values of the types that the App declares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from chappe.core.parameters import Kind, Parameter
from chappe.sdk.errors import Invalid

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


def pairs(texts: Iterable[str], field: str) -> list[tuple[str, str]]:
    """`name=value` texts, split at the first `=`. Raises Invalid naming `field`."""
    found = []
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise Invalid(f"{text[:80]!r} is not of the form name=value", field=field)
        found.append((name, value))
    return found


def parameters(schema: Mapping[str, Parameter], texts: Iterable[str]) -> dict[str, Any]:
    """`name=value` texts by an App's schema. A list is given by repeating its name, or as JSON."""
    values: dict[str, Any] = {}
    for name, text in pairs(texts, "parameters"):
        declared = schema.get(name)
        if declared is None:
            known = ", ".join(schema) or "none"
            raise Invalid(
                f"the app has no parameter {name!r} (it has: {known})", field=f"parameters.{name}"
            )
        if declared.type is Kind.LIST:
            values.setdefault(name, []).extend(_items(name, declared, text))
        elif name in values:
            raise Invalid(f"parameter {name!r} is given twice", field=f"parameters.{name}")
        else:
            values[name] = _scalar(name, declared.type, text)
    return values


def _items(name: str, declared: Parameter, text: str) -> list[Any]:
    if text.startswith("["):
        try:
            return msgspec.json.decode(text, type=list[Any])
        except msgspec.DecodeError as e:
            raise Invalid(
                f"{text[:80]!r} is no JSON list: {e}", field=f"parameters.{name}"
            ) from None
    return [_scalar(name, declared.items, text)]


def _scalar(name: str, kind: Kind, text: str) -> Any:
    try:
        if kind is Kind.INT:
            return int(text)
        if kind is Kind.FLOAT:
            return float(text)
    except ValueError:
        raise Invalid(f"{text[:80]!r} is no {kind}", field=f"parameters.{name}") from None
    if kind is Kind.BOOL:
        if text.lower() not in _TRUE | _FALSE:
            raise Invalid(f"{text[:80]!r} is neither true nor false", field=f"parameters.{name}")
        return text.lower() in _TRUE
    return text
