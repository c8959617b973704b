"""The types of the wire: all of them by name, and samples of each."""

from __future__ import annotations

import enum
import functools
from typing import Any

import msgspec
from msgspec import inspect

from chappe.hub.openapi import RAW_FIELDS
from chappe.hub.table import ROUTES
from chappe.wire.events import ErrorReply

UUID = "0192f3a0-0000-7000-8000-000000000001"
NUMBER = 7


@functools.cache
def types() -> dict[str, type[msgspec.Struct]]:
    """Every struct that a route takes or gives, and those that travel inside as bytes."""
    found: dict[str, type[msgspec.Struct]] = {}
    todo: list[Any] = [ErrorReply, *RAW_FIELDS.values()]
    for route in ROUTES:
        signature = route.signature
        todo += [signature.body, signature.reply] if signature.is_json else [signature.body]
    known = [t for t in todo if isinstance(t, type) and issubclass(t, msgspec.Struct)]
    queue: list[inspect.Type] = list(inspect.multi_type_info(known))
    while queue:
        info = queue.pop()
        if isinstance(info, inspect.StructType):
            if info.cls.__name__ in found:
                continue
            found[info.cls.__name__] = info.cls
            queue += [field.type for field in info.fields]
        queue += _inner(info)
    return found


def _inner(info: inspect.Type) -> list[inspect.Type]:
    match info:
        case inspect.UnionType():
            return list(info.types)
        case inspect.CollectionType():
            return [info.item_type]
        case inspect.TupleType():
            return list(info.item_types)
        case inspect.DictType():
            return [info.key_type, info.value_type]
        case inspect.Metadata():
            return [info.type]
    return []


def filled(kind: type[msgspec.Struct], *, whole: bool = True) -> bytes:
    """A struct as JSON, with every field (`whole`), or with those only that must be there."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return msgspec.json.encode(_struct(info, whole, ()))


def _struct(info: inspect.StructType, whole: bool, above: tuple[type, ...]) -> Any:
    name = info.cls.__name__
    values: dict[str, Any] = {}
    for field in info.fields:
        if not whole and not field.required and not info.array_like:
            continue
        if (name, field.name) in RAW_FIELDS:
            raw = inspect.type_info(RAW_FIELDS[name, field.name])
            assert isinstance(raw, inspect.StructType)
            values[field.encode_name] = _struct(raw, whole, (*above, info.cls))
        else:
            value = _value(field.type, whole, (*above, info.cls), field.name)
            # What is as usual is left out: these are not as usual.
            values[field.encode_name] = _another(field.type, value, field.default)
    if info.array_like:
        return list(values.values())
    return ({info.tag_field: info.tag} if info.tag_field else {}) | values


def _value(info: inspect.Type, whole: bool, above: tuple[type, ...], name: str) -> Any:
    match info:
        case inspect.StructType():
            return None if info.cls in above else _struct(info, whole, above)
        case inspect.Metadata():
            return _value(info.type, whole, above, name)
        case inspect.UnionType():
            some = [t for t in info.types if not isinstance(t, inspect.NoneType)]
            return _value(some[0], whole, above, name)
        case inspect.CollectionType():
            one = _value(info.item_type, whole, above, name)
            return [] if one is None else [one]
        case inspect.TupleType():
            return [_value(t, whole, above, name) for t in info.item_types]
        case inspect.DictType():
            return {"key": _value(info.value_type, whole, above, name)}
        case inspect.EnumType():
            members: type[enum.Enum] = info.cls
            return next(iter(members)).value
        case inspect.LiteralType():
            return info.values[0]
        case inspect.BoolType():
            return True
        case inspect.IntType() | inspect.FloatType():
            return _number(info)
        case inspect.StrType():
            # The one pattern that there is, is a digest's.
            return UUID if info.pattern is None else "a" * 64
        case inspect.BytesType():
            return "AAAA"
        case inspect.NoneType():
            return None
        case inspect.AnyType() | inspect.RawType():
            return {"any": 1}
    raise AssertionError(f"{name}: no sample is known for {info}")


def _another(info: inspect.Type, value: Any, default: Any) -> Any:
    """Another value than the default, where there is one."""
    if value is True and default is True:
        return False
    if isinstance(info, inspect.EnumType):
        return next((m.value for m in info.cls if m is not default), value)
    return value


def _number(info: inspect.IntType | inspect.FloatType) -> int | float:
    most = info.le if info.le is not None else NUMBER
    return min(NUMBER, most)


def covers(whole: Any, part: Any) -> bool:
    """Whether `whole` says all that `part` says."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and covers(whole[key], value) for key, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(whole) >= len(part) and all(map(covers, whole, part))
    return bool(whole == part)
