"""Queries and bodies: decoded strictly, refused with the field's name."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest

from chappe.core.errors import Invalid
from chappe.hub.route import Query, decode
from chappe.hub.table import ROUTES
from chappe.wire.jobs import ActOnJobs


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str | None = None
    limit: int = 10
    deep: bool = False
    tag: list[str] = []
    epoch: Annotated[int, msgspec.Meta(le=5)] = 0


class Needed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epoch: int


def query(text: str) -> Any:
    return Query(Example).decode(text.encode())


def test_a_query_is_decoded() -> None:
    assert query("") == Example()
    assert query("name=a%20b&limit=3&deep=1&tag=x%3D1&tag=y%3D2") == Example(
        "a b", 3, True, ["x=1", "y=2"]
    )


@pytest.mark.parametrize("text", ["null", "1", "true", ""])
def test_texts_stay_texts(text: str) -> None:
    assert query(f"name={text}").name == text


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("limit=ten", "limit"),
        ("limit=-1", "limit"),
        ("limit=1.0", "limit"),
        ("limit=²", "limit"),
        ("limit=" + "9" * 19, "limit"),
        ("limit=1&limit=2", "limit"),
        ("deep=yes", "deep"),
        ("epoch=6", "epoch"),
        ("nmae=x", "nmae"),
    ],
)
def test_a_wrong_query_names_the_parameter(text: str, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        query(text)
    assert refused.value.field == field


def test_a_parameter_that_is_missing_is_named() -> None:
    with pytest.raises(Invalid) as refused:
        Query(Needed).decode(b"")
    assert refused.value.field == "epoch"


def test_too_many_parameters_are_refused() -> None:
    with pytest.raises(Invalid, match="1000 parameters"):
        query("&".join(["tag=a=b"] * 1_001))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"filter": {"ids": [1]}}', "filter.ids[0]"),
        (b'{"filter": {"colour": "red"}}', "filter.colour"),
        (b'{"filtre": {}}', "filtre"),
        (b"{}", "filter"),
        (b"[]", None),
        (b'{"filter": ', "body"),
        (b"\xff", "body"),
        (b"", "body"),
        (b'{"filter": {"name": "\xff"}}', "body"),
    ],
)
def test_a_wrong_body_names_the_field(body: bytes, field: str | None) -> None:
    with pytest.raises(Invalid) as refused:
        decode(msgspec.json.Decoder(ActOnJobs), body)
    assert refused.value.field == field


def test_a_body_nested_without_end_is_refused() -> None:
    with pytest.raises(Invalid, match="nested"):
        decode(msgspec.json.Decoder(dict[str, Any]), b'{"a":' + b"[" * 100_000)


def test_every_route_is_there_once() -> None:
    assert len({(r.method, r.path) for r in ROUTES}) == len(ROUTES)


def test_a_fixed_path_comes_before_the_pattern_that_would_match_it() -> None:
    patterns: set[tuple[str, int]] = set()
    for route in ROUTES:
        depth = route.path.count("/")
        base = route.path.rpartition("/")[0]
        if route.path.endswith("}"):
            patterns.add((f"{route.method} {base}", depth))
        else:
            assert (f"{route.method} {base}", depth) not in patterns, route.path


def test_only_what_tells_nothing_needs_no_token() -> None:
    process = {"/healthz", "/readyz", "/metrics"}
    assert {r.path for r in ROUTES if not r.scopes} == process | {"/v1/login", "/v1/join"}
