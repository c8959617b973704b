"""What an App is: the fields of `apps/NAME.toml`, and the checks they must pass.

An App is the owner's word on what may run at the Site, and with which values: Jobs fill in its parameters and
nothing else. The comments on the fields are the reference that the documentation prints.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from chappe.core import limits
from chappe.core.errors import Invalid
from chappe.core.jobs import check_relative
from chappe.core.parameters import Parameter
from chappe.link.results import media_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_RESERVED_ENV = "CHAPPE_"


def _doc(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class Files(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[files]`: where a Job works and what it leaves."""

    own_directory: Annotated[
        bool,
        _doc(
            "true: each attempt has a directory of its own, `data/<workdir>/attempt-<n>`. "
            "false: all work in `data/<workdir>`."
        ),
    ] = True
    log: Annotated[
        Literal["file", "shared", "none"],
        _doc(
            "Where standard output goes: `file`, to `stdout.log` in the Job's directory; `shared`, "
            "to one log of the pilot's session; `none`, nowhere."
        ),
    ] = "file"
    separate_stderr: Annotated[
        bool,
        _doc("true: standard error goes to `stderr.log` in the Job's directory, else with stdout."),
    ] = False
    result: Annotated[
        str | None,
        _doc(
            "The one result file, relative to the Job's directory, at most 1 MiB; its suffix says "
            "what it is: `.msgpack`, `.npy`, `.npz`, `.arrow`, `.png` or `.json`. A Job that exits 0 "
            "without it has failed."
        ),
    ] = None


class App(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something runnable at a Site, as its owner wrote it down."""

    name: Annotated[
        str, _doc("What Jobs call it: letters, digits and `_ . -`, unique at the Site.")
    ]
    version: Annotated[
        str, _doc('A text, as `"1"`. A Job that asks for another version is refused.')
    ]
    description: Annotated[str, _doc("A sentence for people.")] = ""
    command: Annotated[
        tuple[str, ...] | None,
        _doc(
            "The program and its arguments. Each element is a template, rendered on its own and "
            "never split; an element that is only `{{ list }}` becomes one argument per item."
        ),
    ] = None
    shell: Annotated[
        str | None,
        _doc(
            "Instead of `command`: a template of shell text for `/bin/sh -c`. Every `{{ value }}` "
            "is quoted for you: it is one word, whatever it holds."
        ),
    ] = None
    preamble: Annotated[
        str, _doc("Shell text that runs first, in the same shell, as `module load`. No template.")
    ] = ""
    env: Annotated[dict[str, str], _doc("Environment variables of every Job of this App.")] = {}
    allow_env: Annotated[
        tuple[str, ...], _doc("Names of environment variables that a Job may set itself.")
    ] = ()
    unsigned: Annotated[
        bool, _doc("true: Jobs without a trusted signature may use it (a web form, supervision).")
    ] = False
    parameters: Annotated[
        dict[str, Parameter], _doc("Tables `[parameters.NAME]`: what a Job may choose.")
    ] = {}
    files: Annotated[Files, _doc("Table `[files]`: directories, logs, result.")] = Files()


def check_app(app: App) -> None:
    """Raise Invalid, naming the field, unless the App makes sense (templates are checked elsewhere)."""
    if not _NAME.fullmatch(app.name):
        raise Invalid(
            f"{app.name[:60]!r} is no name: use letters, digits and _ . - (at most 100)",
            field="name",
        )
    if not app.version or len(app.version) > 100 or not app.version.isprintable():
        raise Invalid('a version is a short printable text, as "1"', field="version")
    if (app.command is None) == (app.shell is None):
        raise Invalid("give exactly one of `command` and `shell`", field="command")
    if app.command is not None and (not app.command or not app.command[0]):
        raise Invalid("a command needs a program", field="command")
    if app.command is not None and len(app.command) > limits.COMMAND_ARGS:
        raise Invalid(f"at most {limits.COMMAND_ARGS} arguments are possible", field="command")
    if "\0" in app.preamble:
        raise Invalid("the text contains a NUL byte", field="preamble")
    if len(app.parameters) > limits.PARAMETERS_PER_APP:
        raise Invalid(f"at most {limits.PARAMETERS_PER_APP} parameters", field="parameters")
    _check_env(app)
    if app.files.result is not None:
        try:
            check_relative(app.files.result, "files.result")
            media_of(app.files.result)
        except Invalid as e:
            raise Invalid(e.message, field="files.result") from None


def _check_env(app: App) -> None:
    for field, names in (("env", tuple(app.env)), ("allow_env", app.allow_env)):
        for name in names:
            if not _ENV_NAME.fullmatch(name):
                raise Invalid(f"{name[:60]!r} is no environment variable's name", field=field)
            if name.startswith(_RESERVED_ENV):
                raise Invalid(f"{name}: names that begin with CHAPPE_ are ours", field=field)
    for name, value in app.env.items():
        if "\0" in value:
            raise Invalid("the value contains a NUL byte", field=f"env.{name}")
