"""Versions of the wire may differ by one (promise I17): what was recorded is understood, and understands us.

The recordings of a version that was released are never changed. When one of these tests fails, the change
it found needs another way (a new field with a default, a new route), or a new WIRE_VERSION; see
`record_wire`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from starlette.types import Message

from chappe.hub import loops
from chappe.hub.app import create_app, openapi_document
from chappe.hub.state import Hub
from chappe.link.clock import boottime
from chappe.store.dialect import sql
from chappe.testing.clock import FakeClock
from chappe.testing.store import StoreRig
from chappe.wire.events import WIRE_VERSION
from tests.contract.wire_tap import OWNER, bytes_of
from tests.contract.wire_types import covers, filled, types

HERE = Path(__file__).parent
RECORDED = sorted(HERE.glob("wire_v*"))
#: Later than any commit of the recorded hub: pilots say what they were shown.
COMMITS = 1_000_000


@cache
def samples(version: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((version / "samples.json").read_bytes())
    return found


@cache
def document(version: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((version / "openapi.json").read_bytes())
    return found


def schemas(version: Path) -> dict[str, Any]:
    found: dict[str, Any] = document(version)["components"]["schemas"]
    return found


def valid(version: Path, schema: dict[str, Any], value: Any) -> None:
    """Raise unless `value` is what that version took it for."""
    _validator(version, json.dumps(schema)).validate(value)


@cache
def _validator(version: Path, schema: str) -> Any:
    components = {"components": {"schemas": schemas(version)}}
    return jsonschema_rs.validator_for(json.loads(schema) | components)


@cache
def today() -> dict[str, Any]:
    return openapi_document()


def each(of: Callable[[Path], Iterable[str]]) -> list[Any]:
    return [
        pytest.param(version, name, id=f"{version.name}-{name}")
        for version in RECORDED
        for name in of(version)
    ]


def test_this_version_and_the_one_before_it_are_recorded() -> None:
    versions = [int(path.name.removeprefix("wire_v")) for path in RECORDED]
    assert versions == [v for v in (WIRE_VERSION - 1, WIRE_VERSION) if v > 0]


@pytest.mark.parametrize(("version", "name"), each(samples))
def test_what_was_said_then_is_understood_now(version: Path, name: str) -> None:
    """With all fields: each has the meaning that it had."""
    sample = samples(version)[name]
    kind = types()[name]
    decoded = msgspec.json.decode(json.dumps(sample), type=kind)
    assert covers(json.loads(msgspec.json.encode(decoded)), sample)


@pytest.mark.parametrize(("version", "name"), each(samples))
@pytest.mark.parametrize("whole", [True, False], ids=["all", "least"])
def test_what_is_said_now_was_understood_then(version: Path, name: str, whole: bool) -> None:
    """With all fields: those that are new are passed over. Bodies of users' requests are strict, on purpose:
    a hub must not do half of what it was asked; new fields there are for hubs that know them."""
    schema = schemas(version).get(name)
    kind = types()[name]
    strict = bool(kind.__struct_config__.forbid_unknown_fields)
    if schema is None or (strict and whole):
        schema = {}
    valid(version, schema, json.loads(filled(kind, whole=whole)))


@pytest.mark.parametrize(("version", "name"), each(schemas))
def test_no_word_is_new_to_who_knew_them_all(version: Path, name: str) -> None:
    """A value of an enumeration that the other side does not know makes it refuse the whole reply."""
    then = schemas(version)[name].get("enum")
    now = today()["components"]["schemas"].get(name, {}).get("enum")
    if then is not None and now is not None:
        assert set(now) <= set(then)


@pytest.mark.parametrize("version", RECORDED, ids=lambda path: path.name)
def test_every_route_is_still_there(version: Path) -> None:
    now = today()["paths"]
    for path, methods in document(version)["paths"].items():
        for method, then in methods.items():
            operation = now[path][method]
            assert set(then["responses"]) & {"200", "204"} <= set(operation["responses"])
            required = {
                p["name"] for p in operation.get("parameters", []) if p.get("required", False)
            }
            assert required <= {p["name"] for p in then.get("parameters", [])}


@pytest.mark.parametrize("version", RECORDED, ids=lambda path: path.name)
def test_a_recorded_day_can_be_lived_again(version: Path, tmp_path: Path) -> None:
    """What agent, pilot and SDK of that version said is answered as it was, in their words."""
    first, *lines = map(json.loads, (version / "exchanges.jsonl").read_text().splitlines())
    assert {line["as"] != OWNER for line in lines} == {True, False}
    clock = FakeClock(lines[0]["at"])
    with StoreRig(tmp_path / "hub.db", clock) as rig:
        rig.do(lambda tx: tx.write(sql("UPDATE project SET id = :id"), id=first["project"]))
        rig.do(lambda tx: setattr(tx.catalog, "commit_no", COMMITS))
        rig.do(lambda tx: tx.write(sql("UPDATE project SET id = id")))
        rig.restart()
        asyncio.run(_live(rig, clock, lines, version))


async def _live(
    rig: StoreRig, clock: FakeClock, lines: list[dict[str, Any]], version: Path
) -> None:
    hub = Hub(rig.store, clock, boottime)
    hub.start()
    upkeep = asyncio.create_task(loops.run(hub))
    app = create_app(hub)
    tokens = {OWNER: rig.token}
    try:
        for number, line in enumerate(lines):
            clock.now = max(clock.now, line["at"])
            status, reply = await _ask(app, line, tokens.get(line["as"], ""))
            told = f"{number}: {line['method']} {line['path']}: {reply!r}"
            assert status == line["status"], told
            schema = _schema_of(line, document(version))
            if schema is None:
                continue
            before, now = json.loads(line["reply"]), json.loads(reply)
            valid(version, schema, now)
            if line["path"] == "/v1/jobs/counts":
                assert now == before
            if "token" in before:
                tokens[f"token of {line['no']}"] = now["token"]
    finally:
        hub.stop()
        await upkeep
        hub.close()


def _schema_of(line: dict[str, Any], then: dict[str, Any]) -> dict[str, Any] | None:
    """What a reply had to be in that version; None where it was not JSON."""
    path = line["path"].partition("?")[0]
    (operation,) = [
        methods[line["method"].lower()]
        for template, methods in then["paths"].items()
        if line["method"].lower() in methods
        and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path)
        and (template == path or path not in then["paths"])
    ]
    content = operation["responses"].get(str(line["status"]), {}).get("content", {})
    if "application/json" not in content:
        return None
    schema: dict[str, Any] = content["application/json"]["schema"]
    return schema


async def _ask(app: Any, line: dict[str, Any], token: str) -> tuple[int, bytes]:
    path, _, query = line["path"].partition("?")
    headers = [(b"content-type", line["media"].encode())] if line["media"] else []
    body = bytes_of(line["request"])
    scope = {
        "type": "http",
        "method": line["method"],
        "path": path,
        "query_string": query.encode(),
        "headers": [*headers, (b"authorization", f"Bearer {token}".encode())],
        "client": ("127.0.0.1", 1),
    }
    asked = iter([{"type": "http.request", "body": body, "more_body": False}])
    status, reply = 0, bytearray()

    async def receive() -> Message:
        message = next(asked, None)
        if message is not None:
            return message
        # A client that asked to wait for news leaves soon: the news came in the next exchanges.
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)
        reply.extend(message.get("body", b""))

    await app(scope, receive, send)
    return status, bytes(reply)
