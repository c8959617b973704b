"""Drafts from a command line's texts, or from a file of JSON objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from chappe.sdk import drafts, texts
from chappe.sdk.drafts import Draft
from chappe.sdk.errors import Invalid, NotFound

if TYPE_CHECKING:
    from chappe.sdk.sync import Client

_LINES = msgspec.json.Decoder(dict[str, Any])


def from_texts(
    client: Client,
    app: str,
    sites: Sequence[str],
    params: Sequence[str],
    options: dict[str, Any],
) -> Draft:
    """One draft; texts become values of the types that the App declares at the first Site."""
    offered = client.apps(sites[0])
    view = next((one for one in offered if one.name == app), None)
    if view is None:
        names = client.site_names()
        if sites[0] not in names and sites[0] not in names.values():
            there = ", ".join(sorted(names.values())) or "none yet"
            raise NotFound(f"there is no site {sites[0]!r} (there are: {there})", field="site")
        known = ", ".join(sorted(one.name for one in offered)) or "none"
        raise NotFound(f"site {sites[0]} offers no app {app!r} (it has: {known})", field="app")
    values = texts.parameters(view.parameters, params)
    return client.app(app, sites=list(sites)).options(**options)(values)


def read(
    data: bytes,
    app: str | None,
    sites: Sequence[str],
    options: dict[str, Any],
) -> list[Draft]:
    """Drafts from JSON (one object, or a list) or JSON lines; the command line gives defaults.

    Raises Invalid naming the object, counted from 1.
    """
    made: list[Draft] = []
    named: dict[str, Draft | None] = {}
    for number, item in enumerate(_objects(data), 1):
        try:
            draft = _draft(item, app, sites, options, named)
        except Invalid as error:
            raise Invalid(f"job {number} of the file: {error.message}", field=error.field) from None
        made.append(draft)
        if draft.name:
            named[draft.name] = None if draft.name in named else draft
    if not made:
        raise Invalid("the file holds no job", field="file")
    return made


def _draft(
    item: dict[str, Any],
    app: str | None,
    sites: Sequence[str],
    options: dict[str, Any],
    named: dict[str, Draft | None],
) -> Draft:
    rest = dict(item)
    name, command = rest.pop("app", None), rest.pop("command", None)
    site = rest.pop("sites", None) or rest.pop("site", None) or list(sites)
    version, parameters = rest.pop("version", None), rest.pop("parameters", {})
    if command is None and name is None:
        name = app
    if (name is None) == (command is None):
        raise Invalid("give exactly one of app and command", field="app")
    if not isinstance(parameters, dict):
        raise Invalid("parameters are an object", field="parameters")
    if "parents" in rest:
        rest["parents"] = [_parent(parent, named) for parent in rest["parents"]]
    template = drafts.template(site, app=name, version=version, command=command)
    return Draft(template.with_options({**options, **rest}), parameters)


def _parent(text: str, named: dict[str, Draft | None]) -> Draft | str:
    """The draft of that name from further up in the file, else the text, which must be an id."""
    found = named.get(text, text)
    if found is None:
        raise Invalid(f"{text!r} is the name of several jobs", field="parents")
    return found


def _objects(data: bytes) -> list[dict[str, Any]]:
    try:
        if data.lstrip().startswith(b"["):
            return msgspec.json.decode(data, type=list[dict[str, Any]])
        try:
            return [msgspec.json.decode(data, type=dict[str, Any])]
        except msgspec.DecodeError:
            return _LINES.decode_lines(data)
    except msgspec.DecodeError as e:
        raise Invalid(f"the file is neither JSON nor JSON lines: {e}", field="file") from None
