"""The Apps of a Site: read from `apps/*.toml`, checked, compiled once, published, and described.

Every error says where: file, line, field, what is wrong and what to do about it.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from chappe.core import limits
from chappe.core.errors import Invalid
from chappe.core.hooks import HookName
from chappe.core.parameters import Parameter, Validator, compile_validator
from chappe.link.appdef import App, Files, Hook, Hooks, check_app
from chappe.link.templates import Command, compile_command
from chappe.wire.sites import AppView

__all__ = [
    "App",
    "AppProblem",
    "Files",
    "LoadedApp",
    "load_app",
    "load_apps",
    "parse_app",
    "reference",
    "to_view",
]

_LONGEST = limits.MIB


class AppProblem(Invalid):
    """An App's definition is wrong; the message begins with `file:line: field:`."""

    default_code = "app"


@dataclass(frozen=True, slots=True)
class LoadedApp:
    """An App ready for use: `digest` is the sha256 of its definition, `validate` completes and checks a
    Job's parameters, `command` renders its argv, `hooks` those of its hooks."""

    app: App
    digest: str
    validate: Validator
    command: Command
    path: Path
    hooks: Mapping[HookName, Command]


def load_apps(directory: Path) -> dict[str, LoadedApp]:
    """All Apps of a directory, by name. Raises AppProblem for the first that is wrong."""
    apps: dict[str, LoadedApp] = {}
    for path in sorted(directory.glob("*.toml")):
        loaded = load_app(path)
        other = apps.get(loaded.app.name)
        if other is not None:
            raise AppProblem(
                f"{path}: name: there is an app {loaded.app.name!r} in {other.path} already: "
                "rename one of them",
                field="name",
            )
        apps[loaded.app.name] = loaded
    if len(apps) > limits.APPS_PER_SITE:
        raise AppProblem(f"{directory}: {len(apps)} apps, the limit is {limits.APPS_PER_SITE}")
    return apps


def load_app(path: Path) -> LoadedApp:
    """Read, check and compile one App. Raises AppProblem."""
    try:
        if path.stat().st_size > _LONGEST:
            raise AppProblem(f"{path}: larger than {_LONGEST} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise AppProblem(f"{path}: cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise AppProblem(f"{path}: is not UTF-8 text: {e.reason} at byte {e.start}") from None
    app = parse_app(text, str(path))
    try:
        validate = compile_validator(app.parameters)
        command = compile_command(app)
        hooks = {
            name: _compile_hook(app, name, hook, path.parent)
            for name, hook in app.hooks.given().items()
        }
    except Invalid as e:
        raise _problem(str(path), text, e.field or "", e.message) from None
    return LoadedApp(app, digest(app), validate, command, path, hooks)


def _compile_hook(app: App, name: HookName, hook: Hook, directory: Path) -> Command:
    """A hook as a command: like the App's own, with its preamble. Raises Invalid naming the field."""
    if isinstance(hook, str):
        file = (directory / hook).absolute()
        if not file.is_file():
            raise Invalid(f"there is no file {file}", field=f"hooks.{name}")
        # The pilot runs with the Python that the Site's owner chose for it.
        argv: tuple[str, ...] = (sys.executable, "{% raw %}" + str(file) + "{% endraw %}")
    else:
        argv = hook
    try:
        return compile_command(msgspec.structs.replace(app, command=argv, shell=None))
    except Invalid as e:
        raise Invalid(e.message, field=f"hooks.{name}") from None


def parse_app(text: str, where: str) -> App:
    """The App that TOML `text` defines; `where` (a file's path) begins the messages. Raises AppProblem."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        found = re.search(r" \(at line (\d+), column (\d+)\)$", str(e))
        line, what = (found[1], str(e)[: found.start()]) if found else ("1", str(e))
        raise AppProblem(f"{where}:{line}: not valid TOML: {what}") from None
    try:
        _check_named(table)
        app = msgspec.convert(table, App)
    except msgspec.ValidationError as e:
        field, what = _explain(str(e))
        raise _problem(where, text, field, what) from None
    try:
        check_app(app)
    except Invalid as e:
        raise _problem(where, text, e.field or "", e.message) from None
    return app


def _check_named(table: dict[str, Any]) -> None:
    """Convert what stands under free names one by one: msgspec's message for the whole leaves them out."""
    for field, kind in (("parameters", Parameter), ("env", str)):
        named = table.get(field)
        for name, value in named.items() if isinstance(named, dict) else ():
            try:
                msgspec.convert(value, kind)
            except msgspec.ValidationError as e:
                inner, what = _explain(str(e))
                path = ".".join(part for part in (field, name, inner) if part)
                raise msgspec.ValidationError(f"{what} - at `$.{path}`") from None


def digest(app: App) -> str:
    """sha256 (hex) of the definition in a canonical encoding: comments and layout do not count."""
    return hashlib.sha256(msgspec.json.encode(app, order="deterministic")).hexdigest()


def to_view(loaded: LoadedApp) -> AppView:
    """The App as the Site publishes it: without its command, its environment and its preamble."""
    app = loaded.app
    return AppView(
        name=app.name,
        version=app.version,
        digest=loaded.digest,
        description=app.description,
        parameters=app.parameters,
        unsigned=app.unsigned,
        own_directory=app.files.own_directory,
        result=app.files.result,
        allow_env=list(app.allow_env),
    )


def reference() -> str:
    """Every field of an App's file as Markdown tables, for the documentation."""
    parts = []
    for title, struct in (
        ("Fields", App),
        ("`[files]`", Files),
        ("`[hooks]`", Hooks),
        ("`[parameters.NAME]`", Parameter),
    ):
        rows = "\n".join(_rows(struct))
        parts.append(f"### {title}\n\n| field | type | default | |\n|---|---|---|---|\n{rows}\n")
    return "\n".join(parts)


_PARAMETER_HELP = {
    "type": "`string`, `int`, `float`, `bool`, `path`, `choice` or `list`.",
    "help": "A sentence for people.",
    "default": "The value of Jobs that do not give one. Without it: the first choice, `min`, zero or empty.",
    "required": "true: every Job must give it.",
    "min": "Least number.",
    "max": "Greatest number.",
    "choices": "What a `choice` may be.",
    "items": "The type of a list's items.",
    "pattern": "A regular expression that must match the whole text.",
}


def _rows(struct: type[msgspec.Struct]) -> Iterator[str]:
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        hint = hints[field.name]
        help_ = _PARAMETER_HELP.get(field.name, "")
        for meta in getattr(hint, "__metadata__", ()):
            help_ = meta.description
        yield f"| `{field.name}` | {_type_words(hint)} | {_default_words(field)} | {help_} |"


def _type_words(hint: Any) -> str:
    plain = str(getattr(hint, "__origin__", hint))
    for word, meaning in (
        ("dict", "table"),
        ("tuple", "list of text"),
        ("Files", "table"),
        ("Hooks", "table"),
        ("str | tuple", "list of text, or text"),
        ("Literal", "text"),
        ("Kind", "text"),
        ("bool", "true or false"),
        ("float", "number"),
        ("str", "text"),
    ):
        if word in plain:
            return meaning
    return "any"


def _default_words(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "must be given"
    default = field.default
    if default is msgspec.NODEFAULT:
        default = field.default_factory() if callable(field.default_factory) else None
    if default is None or isinstance(default, msgspec.Struct) or default in ("", (), {}):
        return "–"
    return f"`{msgspec.json.encode(default).decode()}`"


def _explain(message: str) -> tuple[str, str]:
    """(field, words) of a msgspec message such as `Expected `str`, got `int` - at `$.version``."""
    found = re.search(r" - at `(?:key in )?\$\.?([^`]*)`$", message)
    field = found[1] if found else ""
    what = message[: found.start()] if found else message
    unknown = re.search(r"unknown field `([^`]*)`", what)
    if unknown:
        return f"{field}.{unknown[1]}".lstrip("."), "there is no such field: mind the spelling"
    missing = re.search(r"missing required field `([^`]*)`", what)
    if missing:
        return f"{field}.{missing[1]}".lstrip("."), "this field must be given"
    if "Expected `str" in what:
        what += ": put it in quotes"
    return re.sub(r"\[\.\.\.\]|\[\d+\]", "", field), what


def _problem(where: str, text: str, field: str, what: str) -> AppProblem:
    line = _line_of(text, field)
    return AppProblem(f"{where}:{line}: {field + ': ' if field else ''}{what}", field=field or None)


def _line_of(text: str, field: str) -> int:
    """The line where a dotted field stands, else its table's, else 1 (a scan: tomllib tells none)."""
    parts = field.split(".") if field else []
    table: list[str] = []
    best, depth = 1, 0
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\[?([^\]]+)\]", line)
        key = re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line)
        if header:
            table = _keys(header[1])
            here = table
        elif key:
            here = table + _keys(key[1])
        else:
            continue
        common = here if here == parts[: len(here)] else []
        if len(common) > depth:
            best, depth = number, len(common)
    return best


def _keys(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]
