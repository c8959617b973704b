"""What is to run, before it is sent: drafts, and the options that go with them.

A draft has its id already. So a whole graph is built in memory, children naming their parents, and is
then sent in one request; sending it twice creates it once.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Protocol, TypedDict, TypeVar

import msgspec

from chappe.core import arrays, limits
from chappe.core.ids import is_uuid7
from chappe.core.jobs import AppRef, Envelope, ParentPolicy, Resources, Retries, RetryOn
from chappe.link.clock import new_id
from chappe.sdk.errors import Invalid, TooLarge

_Choice = TypeVar("_Choice", ParentPolicy, RetryOn)


class HasId(Protocol):
    """A draft or a Job: what may be named as a parent."""

    @property
    def id(self) -> str:
        """The Job's id."""


class Options(TypedDict, total=False):
    """Everything about a Job but its parameters. Nothing here is needed; defaults suit a small Job.

    name: what people call it; need not be unique.
    cores, mem_bytes, gpus: what it needs on each node; gpus may be a share of one: 0.5.
    nodes, ranks, ranks_per_node, threads_per_rank: for MPI and OpenMP.
    named: how many it needs of countable things of the Site: {"licence": 1}.
    node_tag: run on nodes that the Site's owner set apart by this word.
    warn_s: so long before its time is up it gets warn_signal ("USR1"), writes a checkpoint, and is
    started again later.
    wall_s: the limit, after which it is ended. estimate_s: how long it usually takes.
    retries: how often it may be started again (2); retry_on: after which outcomes, of "error",
    "timeout", "lost" (only "lost"); backoff_s: the first wait before that, doubling.
    parents: drafts, Jobs or ids that must end first; on_parent_failure: "fail", "anyway" or "succeeded".
    tags: for filters. data: anything JSON. priority: a higher one runs first.
    workdir: relative to the Site's data directory (jobs/<id>); env: variables that the App allows.
    takeover_s: run it elsewhere when its pilot is out of contact for so long (it may then start twice).
    not_before: an aware datetime, or seconds since 1970, before which it does not start.
    """

    name: str
    cores: int
    mem_bytes: int
    gpus: float
    nodes: int
    ranks: int
    ranks_per_node: int
    threads_per_rank: int
    named: Mapping[str, int]
    node_tag: str
    warn_s: float | None
    warn_signal: str
    wall_s: float | None
    estimate_s: float | None
    retries: int
    retry_on: Sequence[str]
    backoff_s: float
    parents: Sequence[HasId | str]
    on_parent_failure: str
    tags: Mapping[str, str]
    data: Mapping[str, Any]
    priority: int
    workdir: str
    env: Mapping[str, str]
    takeover_s: float | None
    not_before: datetime | float | None


_RESOURCES = (
    *("cores", "mem_bytes", "gpus", "nodes", "ranks", "ranks_per_node", "threads_per_rank"),
    *("wall_s", "estimate_s", "named", "node_tag", "warn_s", "warn_signal"),
)
_ENVELOPE = ("tags", "data", "priority")
_PLAIN = ("name", "workdir", "env", "takeover_s")
_NO_OPTIONS = Resources(), Retries(), Envelope()


class FunctionCode(msgspec.Struct, frozen=True, eq=False):
    """A pickled function: what its Jobs are called, the bytes and their sha256, and where they fit."""

    name: str
    code: bytes
    sha256: str
    python: str
    environment: str
    own_process: bool


class Script(msgspec.Struct, frozen=True, eq=False):
    """A script that travels with a command, which finds it as $CHAPPE_SCRIPT, and its sha256."""

    code: bytes
    sha256: str


def script(code: bytes) -> Script:
    """A script of these bytes. Raises TooLarge."""
    if len(code) > limits.CODE_BYTES:
        raise TooLarge(
            f"the script is {len(code)} bytes, the limit is {limits.CODE_BYTES}: put data in files",
            field="script",
        )
    return Script(code, hashlib.sha256(code).hexdigest())


class Template(msgspec.Struct, frozen=True, eq=False):
    """What Jobs of one kind share. One object serves them all, so that a Job costs microseconds."""

    sites: tuple[str, ...]
    app: AppRef | None = None
    command: tuple[str, ...] | None = None
    name: str = ""
    workdir: str = ""
    env: dict[str, str] = {}
    resources: Resources = _NO_OPTIONS[0]
    retries: Retries = _NO_OPTIONS[1]
    envelope: Envelope = _NO_OPTIONS[2]
    parents: tuple[str, ...] = ()
    on_parent_failure: ParentPolicy = ParentPolicy.FAIL
    takeover_s: float | None = None
    not_before: float | None = None
    function: FunctionCode | None = None
    script: Script | None = None

    def with_options(self, options: Mapping[str, Any]) -> Template:
        """A template that differs by `options`. Raises Invalid for a name or a value that cannot be."""
        changes: dict[str, Any] = {}
        parts: dict[str, dict[str, Any]] = {"resources": {}, "retries": {}, "envelope": {}}
        for name, value in options.items():
            if name in _RESOURCES:
                parts["resources"][name] = dict(value) if isinstance(value, Mapping) else value
            elif name in _RETRIES:
                parts["retries"][_RETRIES[name]] = _retry_option(name, value)
            elif name in _ENVELOPE:
                parts["envelope"][name] = dict(value) if isinstance(value, Mapping) else value
            elif name in _PLAIN:
                changes[name] = dict(value) if isinstance(value, Mapping) else value
            elif name in _SPECIAL:
                changes[name] = _SPECIAL[name](value)
            else:
                raise Invalid(_unknown(name), field=name)
        for part, values in parts.items():
            if values:
                changes[part] = msgspec.structs.replace(getattr(self, part), **values)
        return msgspec.structs.replace(self, **changes)


class Draft:
    """One Job that is not sent yet. Made by calling an App; hand it to `submit`, or name it as a parent."""

    __slots__ = ("arguments", "id", "name", "parameters", "task", "template")

    def __init__(
        self, template: Template, parameters: dict[str, Any], name: str | None = None
    ) -> None:
        self.id = new_id()
        self.template = template
        self.parameters = parameters
        #: Of a function: the pickled (args, kwargs).
        self.arguments = b""
        self.name = template.name if name is None else name
        #: Which task of an array it is.
        self.task: arrays.Task | None = None

    def array(self, indices: str | Iterable[int], dialect: str = "") -> list[Draft]:
        """This Job once for each index, told by $CHAPPE_TASK_INDEX: `"1-100:5"`, `"1,4,7-9"`, or numbers.

        The array has this draft's id up to the last digits, its tasks the names `name[7]`. With `"1-100%20"`
        at most 20 run at once: they form 20 lines, and each waits for the end of the one before it, however
        that was. `dialect` adds the variables of a batch system: "slurm", "pbs" or "sge".
        """
        if self.template.function is not None:
            raise Invalid("a function gets its index as an argument: use map", field="array")
        counted = _indices(indices)
        first = arrays.first_id(self.id)
        ids = arrays.task_ids(first, len(counted.of))
        made: list[Draft] = []
        for id, task in zip(ids, arrays.tasks(first, counted, dialect), strict=True):
            draft = Draft(self.template, self.parameters)
            draft.id, draft.task = id, task
            draft.name = f"{self.name}[{task.index}]" if self.name else ""
            made.append(draft)
        if 0 < counted.at_once < len(made):
            _in_lines(made, counted.at_once)
        return made

    def __repr__(self) -> str:
        t = self.template
        what = t.app.name if t.app else t.function.name if t.function else "command"
        return f"<Draft {self.name or what} {self.id}>"


def template(
    sites: str | Iterable[str],
    *,
    app: str | None = None,
    version: str | None = None,
    command: Sequence[str] | None = None,
) -> Template:
    """The template of an App's or a raw command's Jobs at one of `sites` (names or ids)."""
    names = (sites,) if isinstance(sites, str) else tuple(sites)
    if not names:
        raise Invalid("give at least one site", field="sites")
    if isinstance(command, str):
        raise Invalid(
            'a command is a list of arguments: ["echo", "a b"], not one text', field="command"
        )
    return Template(
        sites=names,
        app=None if app is None else AppRef(app, version),
        command=None if command is None else tuple(str(arg) for arg in command),
    )


def many(
    template: Template, parameters: Iterable[Mapping[str, Any]], names: Iterable[str] | None
) -> list[Draft]:
    """One draft for each set of parameters, named in turn when `names` are given."""
    if names is None:
        return [Draft(template, dict(each)) for each in parameters]
    try:
        pairs = list(zip(parameters, names, strict=True))
    except ValueError:
        raise Invalid("give as many names as sets of parameters", field="names") from None
    return [Draft(template, dict(each), name) for each, name in pairs]


def _indices(given: str | Iterable[int]) -> arrays.Indices:
    if isinstance(given, str):
        return arrays.parse(given)
    # One more than there may be, so that a range of a billion is refused and not written out.
    some = [int(index) for index in islice(given, limits.JOBS_PER_REQUEST + 1)]
    return arrays.check_indices(set(some))


def _in_lines(drafts: Sequence[Draft], lines: int) -> None:
    """Let each draft wait for the one `lines` before it, so that no more than `lines` run at once."""
    if drafts[0].template.parents and (
        drafts[0].template.on_parent_failure is not ParentPolicy.ANYWAY
    ):
        raise Invalid(
            "tasks that run so many at once wait for each other, however those end: they cannot also "
            "wait for the success of a parent. Leave out the %, or take on_parent_failure=anyway",
            field="array",
        )
    for before, draft in zip(drafts, drafts[lines:], strict=False):
        draft.template = msgspec.structs.replace(
            draft.template, parents=(before.id,), on_parent_failure=ParentPolicy.ANYWAY
        )


def one_or_more(site: str | None, sites: Sequence[str]) -> Sequence[str]:
    """The Sites that `site` or `sites` names; exactly one of the two must be given."""
    if (site is None) == (not sites):
        raise Invalid('give one site, or several: site="paris" or sites=[…]', field="site")
    return sites if site is None else [site]


def ids_of(jobs: Iterable[HasId | str]) -> list[str]:
    """The ids of drafts, Jobs or ids, in their order."""
    return [job if isinstance(job, str) else job.id for job in jobs]


def event_filters(
    kinds: Sequence[str],
    jobs: Sequence[HasId | str],
    final: bool,
    tags: Mapping[str, str] | None,
) -> dict[str, Any]:
    """The feed's query parameters."""
    filters: dict[str, Any] = {}
    if kinds:
        filters["kind"] = [kinds] if isinstance(kinds, str) else list(kinds)
    if jobs:
        filters["job"] = ids_of(jobs)
    if final:
        filters["final"] = 1
    if tags:
        filters["tag"] = [f"{key}={value}" for key, value in tags.items()]
    return filters


def parameters_of(mapping: Mapping[str, Any] | None, named: dict[str, Any]) -> dict[str, Any]:
    """Parameters from one mapping, keywords, or both; naming one twice is Invalid."""
    if not mapping:
        return named
    twice = mapping.keys() & named.keys()
    if twice:
        raise Invalid(f"parameter {min(twice)!r} is given twice", field=f"parameters.{min(twice)}")
    return {**mapping, **named}


def _retry_option(name: str, value: Any) -> Any:
    if name != "retry_on":
        return value
    names = (value,) if isinstance(value, str) else value
    return tuple(_choice(RetryOn, "retry_on", one) for one in names)


def _parents(value: Sequence[HasId | str]) -> tuple[str, ...]:
    """The ids of parents, each once, in the order given."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        value = [value]
    ids = dict.fromkeys(p if isinstance(p, str) else p.id for p in value)
    for one in ids:
        if not is_uuid7(one):
            raise Invalid(
                f"{one[:60]!r} is no job's id: give a draft, a job or a full id", field="parents"
            )
    return tuple(ids)


def _policy(value: str) -> ParentPolicy:
    return _choice(ParentPolicy, "on_parent_failure", value)


def _instant(value: datetime | float | None) -> float | None:
    if not isinstance(value, datetime):
        return value
    if value.tzinfo is None:
        raise Invalid("a time needs its zone: datetime.now(UTC), for example", field="not_before")
    return value.timestamp()


def _choice(kind: type[_Choice], field: str, value: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        raise Invalid(f"{value!r} is none of {', '.join(kind)}", field=field) from None


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, Options.__annotations__, 1)
    hint = f", did you mean {near[0]!r}?" if near else ": " + ", ".join(Options.__annotations__)
    return f"there is no option {name!r}{hint}"


_RETRIES = {"retries": "max", "retry_on": "on", "backoff_s": "backoff_s"}
_SPECIAL: dict[str, Callable[[Any], Any]] = {
    "parents": _parents,
    "on_parent_failure": _policy,
    "not_before": _instant,
}
