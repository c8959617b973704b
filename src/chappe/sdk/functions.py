"""Python functions as Apps: `@chappe.app(site="paris")`.

The function is pickled when a Job is made of it, with all of the user's own code that it uses, so it runs
at the Site as it stands here; packages that it imports must be there. The pickle travels in the signed
submission, once for all its Jobs, and the arguments in each Job's signed spec.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, ParamSpec, Self, TypeVar, Unpack, overload

import msgspec

from chappe.core import limits
from chappe.sdk import drafts, pickling
from chappe.sdk.drafts import Draft, FunctionCode, Options, Template
from chappe.sdk.errors import Invalid, TooLarge

P = ParamSpec("P")
R = TypeVar("R")

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


class FunctionApp(Generic[P, R]):
    """A function at one Site or several. Call it to draft a Job; give it to `client.submit` or `client.map`
    to run it there; `local` is the function itself."""

    def __init__(
        self, function: Callable[P, R], template: Template, environment: str, own_process: bool
    ) -> None:
        functools.update_wrapper(self, function)
        #: The function, to be called here.
        self.local = function
        self._template = template
        self._environment = environment
        self._own_process = own_process

    @property
    def sites(self) -> tuple[str, ...]:
        """The Sites that may run its Jobs, as they were given."""
        return self._template.sites

    def options(self, **options: Unpack[Options]) -> Self:
        """The same function with other options (see Options: name, cores, parents, tags, retries …)."""
        changed = object.__new__(type(self))
        changed.__dict__.update(self.__dict__)
        changed._template = self._template.with_options(options)
        return changed

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Draft:
        """A draft of one call: it has its id, and is not sent yet."""
        return self.drafts([(args, kwargs)])[0]

    def drafts(
        self,
        calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]],
        names: Iterable[str] | None = None,
    ) -> list[Draft]:
        """One draft for each (args, kwargs); the function is pickled once. Raises Invalid, TooLarge."""
        template = msgspec.structs.replace(self._template, function=self._pickled())
        made = []
        for args, kwargs in calls:
            draft = Draft(template, {})
            draft.arguments = _arguments(tuple(args), kwargs)
            made.append(draft)
        if names is not None:
            for draft, name in zip(made, names, strict=True):
                draft.name = name
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        # Where a function is sent that calls this one, the function itself is meant.
        return _itself, (self.local,)

    def __repr__(self) -> str:
        return f"<FunctionApp {self.local.__name__} at {', '.join(self.sites)}>"

    def _pickled(self) -> FunctionCode:
        name = getattr(self.local, "__qualname__", type(self.local).__name__)
        try:
            code = pickling.dumps(self.local)
        except Exception as e:
            raise Invalid(f"{name} cannot be pickled: {e}", field="function") from e
        if len(code) > limits.CODE_BYTES:
            raise TooLarge(
                f"{name} is {len(code)} bytes pickled, the limit is {limits.CODE_BYTES}: it holds data; "
                "put that in files at the site, or give it as arguments",
                field="function",
            )
        return FunctionCode(
            name.replace("<", "").replace(">", "")[-limits.NAME_CHARS :],
            code,
            hashlib.sha256(code).hexdigest(),
            PYTHON,
            self._environment,
            self._own_process,
        )


@overload
def app(
    function: Callable[P, R],
    /,
    *,
    site: str | None = None,
    sites: Sequence[str] = (),
    environment: str = "default",
    process: str = "warm",
    **options: Unpack[Options],
) -> FunctionApp[P, R]: ...
@overload
def app(
    *,
    site: str | None = None,
    sites: Sequence[str] = (),
    environment: str = "default",
    process: str = "warm",
    **options: Unpack[Options],
) -> Callable[[Callable[P, R]], FunctionApp[P, R]]: ...
def app(
    function: Callable[..., Any] | None = None,
    /,
    *,
    site: str | None = None,
    sites: Sequence[str] = (),
    environment: str = "default",
    process: str = "warm",
    **options: Unpack[Options],
) -> Any:
    """Make a function an App: `@chappe.app(site="paris", cores=2)`, or `chappe.app(f, site="paris")`.

    `environment` is one of the Site's. `process="own"` gives each call a process of its own; otherwise
    calls share warm workers, one at a time. The other options are those of all Jobs (see Options).
    """
    if process not in ("warm", "own"):
        raise Invalid(f'process is "warm" or "own", not {process!r}', field="process")
    template = drafts.template(drafts.one_or_more(site, sites)).with_options(options)

    def make(function: Callable[..., Any]) -> FunctionApp[..., Any]:
        if not callable(function):
            raise Invalid(f"{function!r} cannot be called", field="function")
        return FunctionApp(function, template, environment, process == "own")

    return make if function is None else make(function)


def as_app(function: Callable[..., Any]) -> FunctionApp[..., Any]:
    """`function` if it is an App. Raises Invalid with the remedy."""
    if isinstance(function, FunctionApp):
        return function
    raise Invalid(
        f"say where {getattr(function, '__name__', function)!r} is to run: decorate it with "
        '@chappe.app(site="…"), or give chappe.app(function, site="…")',
        field="site",
    )


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    try:
        found = pickling.dumps((args, dict(kwargs)))
    except Exception as e:
        raise Invalid(f"the arguments cannot be pickled: {e}", field="arguments") from e
    if len(found) > limits.ARGUMENT_BYTES:
        raise TooLarge(
            f"the arguments are {len(found)} bytes pickled, the limit is {limits.ARGUMENT_BYTES}: put large "
            "data in files at the site and give their names",
            field="arguments",
        )
    return found


def _itself(function: Any) -> Any:
    return function
