"""A route as data: method, path, and its handler, whose annotations say the rest.

Who may call it is looked up in the table of `core.access`, under its method and path.

The types of body, query and reply are read from the handler's signature
`async def handler(call: Call[Body, Query]) -> Reply`, so the OpenAPI document, the decoder and the code
that the type checker sees cannot differ.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from chappe.core import limits
from chappe.core.access import RULES, Party, Row
from chappe.core.errors import Invalid
from chappe.hub.call import Call, Content, Stream

Handler = Callable[[Call[Any, Any]], Awaitable[Any]]

_FIELD = re.compile(r"`\$\.?([^`]*)`$")
_NAMED = re.compile(r"(?:unknown|required) field `([^`]*)`")


@dataclass(frozen=True)
class Route:
    """One route. `errors` are the statuses beyond the usual ones. KeyError when no rule says whom it is for.

    `media` is the type of a reply that is not JSON; `limit_bytes` bounds the body, `takes` are the types of
    one that the handler decodes; `status` is that of a reply.
    """

    method: str
    path: str
    handler: Handler
    errors: tuple[int, ...] = ()
    media: str = "application/json"
    limit_bytes: int = limits.BODY_BYTES
    takes: tuple[str, ...] = ("*/*",)
    status: int = 200

    def __post_init__(self) -> None:
        if self.action not in RULES:
            raise KeyError(f"{self.action} has no row in the table of chappe.core.access")

    @property
    def action(self) -> str:
        """Its name in the table of rules."""
        return f"{self.method} {self.path}"

    @property
    def rule(self) -> Row:
        """Whom it is for, and how far it reaches; empty: no token is needed."""
        return RULES[self.action]

    @property
    def scopes(self) -> frozenset[str]:
        """The kinds of tokens that may call it; empty: none is needed."""
        own = {Party.SITE, Party.SESSION, Party.PRODUCER}
        return frozenset(party.value if party in own else "user" for party in self.rule)

    @property
    def signature(self) -> Signature:
        """The handler's types."""
        hints = typing.get_type_hints(self.handler)
        body, query = typing.get_args(hints["call"])
        return Signature(_or_none(body), _or_none(query), _or_none(hints["return"]))

    @property
    def parameters(self) -> list[str]:
        """The names in the path's braces."""
        return re.findall(r"{(\w+)}", self.path)


@dataclass(frozen=True, slots=True)
class Signature:
    """Types of a handler; None where there is nothing. A body of `bytes` is taken as it is."""

    body: type[Any] | None
    query: type[Any] | None
    reply: type[Any] | None

    @property
    def is_json(self) -> bool:
        """Whether the reply is a wire type."""
        return self.reply not in (None, Content, Stream)


def _or_none(hint: Any) -> type[Any] | None:
    return None if hint is types.NoneType else hint


def decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """The body, or Invalid naming the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as e:
        raise Invalid(f"{e}", field=field_of(e)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Invalid(f"the body is not JSON: {e}", field="body", code="malformed") from None
    except RecursionError:
        raise Invalid("the body is nested too deeply", field="body", code="malformed") from None


def field_of(error: msgspec.ValidationError) -> str | None:
    """The field that a message of msgspec is about."""
    words = str(error)
    place, named = _FIELD.search(words), _NAMED.search(words)
    parts = [place.group(1) if place else "", named.group(1) if named else ""]
    return ".".join(p for p in parts if p) or None


class Query:
    """Decodes a query string into a struct. Texts stay texts: `name=null` is a name."""

    def __init__(self, struct: type[Any]) -> None:
        self._struct = struct
        self._parse: Mapping[str, Callable[[str], Any]] = {
            f.encode_name: _parser(f.type) for f in msgspec.structs.fields(struct)
        }
        self._lists = {f.encode_name for f in msgspec.structs.fields(struct) if _is_list(f.type)}

    def decode(self, query: bytes) -> Any:
        """The struct, or Invalid naming the parameter."""
        found: dict[str, Any] = {}
        try:
            pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=1_000)
        except ValueError:
            raise Invalid("more than 1000 parameters in the URL; use the POST form") from None
        for name, text in pairs:
            parse = self._parse.get(name)
            if parse is None:
                known = ", ".join(sorted(self._parse)) or "none"
                raise Invalid(
                    f"there is no parameter {name[:60]!r}; known: {known}", field=name[:60]
                )
            try:
                value = parse(text)
            except ValueError as e:
                raise Invalid(f"{name}: {e}", field=name) from None
            if name in self._lists:
                found.setdefault(name, []).append(value)
            elif name in found:
                raise Invalid(f"{name} is given twice", field=name)
            else:
                found[name] = value
        try:
            return msgspec.convert(found, self._struct)
        except msgspec.ValidationError as e:
            raise Invalid(f"{e}", field=field_of(e)) from None


def _plain(hint: Any) -> Any:
    """`X` of `X | None` and `Annotated[X, ...]`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = [a for a in typing.get_args(hint) if a is not types.NoneType]
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    return hint


def _is_list(hint: Any) -> bool:
    return typing.get_origin(_plain(hint)) is list


def _parser(hint: Any) -> Callable[[str], Any]:
    plain = _plain(hint)
    if typing.get_origin(plain) is list:
        plain = _plain(typing.get_args(plain)[0])
    if issubclass(plain, StrEnum):
        return str
    parsers: dict[Any, Callable[[str], Any]] = {str: str, int: _int, float: _float, bool: _bool}
    return parsers[plain]


def _int(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ValueError(f"{text[:40]!r} is not a whole number")
    return int(text)


def _float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or len(text) > 40:
        raise ValueError(f"{text[:40]!r} is not a number")
    return number


def _bool(text: str) -> bool:
    if text not in ("0", "1", "false", "true"):
        raise ValueError(f"{text[:40]!r} is neither 1 nor 0")
    return text in ("1", "true")
