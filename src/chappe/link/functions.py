"""Python functions at a Site: whether its owner allows them, and the environments that they run in.

`[functions]` of site.toml says it, the agent hands it to its pilots, and a pilot's admission obeys it. A
function is arbitrary code of the person who signed it, exactly as a raw command is.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from chappe.core import limits
from chappe.core.errors import Invalid
from chappe.link.appdef import Files

DEFAULT = "default"
"""The environment of functions that name none; it need not be written down."""
SHARED = "functions"
"""Where, below the data directory, functions work that have no directory of their own and name none."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class FunctionEnvironment(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True
):
    """A table `[functions.environments.NAME]`: a Python interpreter, and how functions run in it."""

    python: Annotated[
        str,
        Meta(
            description="The interpreter, an absolute path on all nodes; it needs Chappe installed. "
            "Empty: the pilot's own."
        ),
    ] = ""
    preload: Annotated[
        tuple[str, ...],
        Meta(description="Modules imported once, before any worker is forked."),
    ] = ()
    env: Annotated[
        dict[str, str], Meta(description="Environment variables of the interpreter and its calls.")
    ] = {}
    own_directory: Annotated[
        bool,
        Meta(
            description="true: each attempt works in a directory of its own, "
            "`data/<workdir>/attempt-<n>`. false: all work in `data/<workdir>` (`functions` when a "
            "Job names none)."
        ),
    ] = True
    log: Annotated[
        Literal["file", "shared", "none"],
        Meta(
            description="Where what a function prints goes: `file`, to `stdout.log` in its directory; "
            "`shared`, to one log of the pilot's session; `none`, nowhere."
        ),
    ] = "file"
    recycle_calls: Annotated[
        int,
        Meta(ge=1, le=10_000_000, description="A worker is replaced after so many calls."),
    ] = 10_000
    recycle_bytes: Annotated[
        int,
        Meta(
            ge=limits.MIB,
            description="A worker is replaced when it has grown by so many bytes since it began.",
        ),
    ] = 1024 * limits.MIB
    result_bytes: Annotated[
        int,
        Meta(
            ge=limits.RESULT_BYTES,
            description="The largest result: above 1 MiB it stays in a file at the Site, and above "
            "this the call fails.",
        ),
    ] = 1024 * limits.MIB

    @property
    def files(self) -> Files:
        """Where its functions work and what they leave, in the terms of Apps."""
        return Files(own_directory=self.own_directory, log=self.log)


class FunctionRules(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Python functions that users sign. They are code of their authors, as raw commands are."""

    allowed: Annotated[
        bool, Meta(description="true: signed functions of trusted keys may run here.")
    ] = False
    environments: Annotated[
        dict[str, FunctionEnvironment],
        Meta(
            description="Named interpreters, as tables `[functions.environments.NAME]`. `default` "
            "exists without being written."
        ),
    ] = {}

    def environment(self, name: str) -> FunctionEnvironment | None:
        """The environment of this name, None when there is none."""
        found = self.environments.get(name)
        return FunctionEnvironment() if found is None and name == DEFAULT else found


NO_FUNCTIONS = FunctionRules()
"""What a Site says that says nothing."""


def check_rules(rules: FunctionRules) -> None:
    """Raise Invalid naming the field that cannot be."""
    for name, environment in rules.environments.items():
        where = f"functions.environments.{name}"
        if not _NAME.fullmatch(name):
            raise Invalid(f"{name[:60]!r} is no environment's name", field="functions.environments")
        if environment.python and not environment.python.startswith("/"):
            raise Invalid("python must be an absolute path", field=f"{where}.python")
        for module in environment.preload:
            if not _MODULE.fullmatch(module):
                raise Invalid(f"{module[:60]!r} is no module", field=f"{where}.preload")
        for variable, value in environment.env.items():
            if not _ENV_NAME.fullmatch(variable) or "\0" in value:
                raise Invalid(f"{variable[:60]!r} cannot be a variable", field=f"{where}.env")
