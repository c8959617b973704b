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
from chappe.core.hooks import HookName
from chappe.core.jobs import check_relative
from chappe.core.parameters import Parameter
from chappe.link.results import media_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_RESERVED_ENV = "CHAPPE_"
#: How a simulation reports is for whoever runs it to say.
_FREE_ENV = "CHAPPE_EMIT_"


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
    cleanup: Annotated[
        tuple[str, ...],
        _doc(
            "Patterns of files to remove from the Job's directory after its last attempt, as "
            '`["*.tmp", "restart/*.nc"]`. Never the result; directories and what links lead to stay.'
        ),
    ] = ()
    scratch: Annotated[
        bool,
        _doc(
            "true: each attempt has a private directory on its node, `CHAPPE_SCRATCH`, removed with "
            "all that is in it when the attempt ends."
        ),
    ] = False
    count_io: Annotated[
        bool,
        _doc(
            "true: bytes and calls that the Job's processes read and wrote, and the files in its own "
            "directory, are counted into its usage."
        ),
    ] = False


Hook = str | tuple[str, ...]


class Hooks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[hooks]`: the Site's own code around a Job's run, each in a process of its own."""

    preprocess: Annotated[
        Hook | None,
        _doc(
            "Runs before the command. A list is a command like `command`; a text is a Python file "
            "below `apps/`. If it fails, the Job is not run and has failed."
        ),
    ] = None
    postprocess: Annotated[
        Hook | None, _doc("Runs after the command exited with 0. If it fails, the Job has failed.")
    ] = None
    on_error: Annotated[
        Hook | None, _doc("Runs after the command failed, and may restart the Job.")
    ] = None
    on_timeout: Annotated[
        Hook | None, _doc("Runs after the Job's time limit ended the command.")
    ] = None
    limit_s: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=86_400,
            description="Seconds that each hook may take; then it is ended, and has failed.",
        ),
    ] = 60.0

    def given(self) -> dict[HookName, Hook]:
        """The hooks that there are."""
        found = {name: getattr(self, name) for name in HookName}
        return {name: hook for name, hook in found.items() if hook is not None}


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
    hooks: Annotated[Hooks, _doc("Table `[hooks]`: the Site's own code around each run.")] = Hooks()


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
    if app.files.count_io and not app.files.own_directory:
        # The files of several Jobs cannot be told apart; half a count would pass for the whole.
        raise Invalid("own_directory = true is needed to count", field="files.count_io")
    if app.files.cleanup and not app.files.own_directory:
        raise Invalid(
            "own_directory = true is needed: else it would remove what other jobs still use",
            field="files.cleanup",
        )
    _check_cleanup(app.files.cleanup)
    for name, hook in app.hooks.given().items():
        if not hook or not hook[0]:
            raise Invalid("a hook needs a program", field=f"hooks.{name}")
        if isinstance(hook, str):
            _relative(hook, f"hooks.{name}")
            if not hook.endswith(".py"):
                raise Invalid(
                    'a text names a Python file, as "fix.py"; write a command as a list',
                    field=f"hooks.{name}",
                )


def _check_cleanup(patterns: tuple[str, ...]) -> None:
    if len(patterns) > limits.CLEANUP_PATTERNS:
        raise Invalid(f"at most {limits.CLEANUP_PATTERNS} patterns", field="files.cleanup")
    for pattern in patterns:
        _relative(pattern, "files.cleanup")
        if not pattern or "**" in pattern or pattern.endswith("/"):
            raise Invalid(
                f"{pattern!r}: name files, as *.tmp or restart/*.nc; `**` is not possible",
                field="files.cleanup",
            )


def _relative(path: str, field: str) -> None:
    try:
        check_relative(path, field)
    except Invalid as e:
        raise Invalid(e.message, field=field) from None


def _check_env(app: App) -> None:
    for field, names in (("env", tuple(app.env)), ("allow_env", app.allow_env)):
        for name in names:
            if not _ENV_NAME.fullmatch(name):
                raise Invalid(f"{name[:60]!r} is no environment variable's name", field=field)
            if name.startswith(_RESERVED_ENV) and not name.startswith(_FREE_ENV):
                raise Invalid(f"{name}: names that begin with CHAPPE_ are ours", field=field)
    for name, value in app.env.items():
        if "\0" in value:
            raise Invalid("the value contains a NUL byte", field=f"env.{name}")
