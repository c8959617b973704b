"""What a Job is: the signed spec and the unsigned envelope, and the checks both must pass.

The spec is signed, stored, granted and hashed as the bytes the client sent. Decoding gives `JobSpec`;
nothing ever encodes it again. The envelope (tags, data, priority) may be changed without a signature.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

import msgspec

from chappe.core import limits
from chappe.core.arrays import Task, check_task
from chappe.core.errors import Invalid, TooLarge
from chappe.core.ids import check_id

_TAG_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_RESOURCE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENVIRONMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_PYTHON = re.compile(r"[0-9]{1,2}\.[0-9]{1,3}")


class ParentPolicy(StrEnum):
    """What a Job does when a parent does not finish: fail, run anyway, or run with those that succeeded.

    `succeeded` fails only when no parent succeeded.
    """

    FAIL = "fail"
    ANYWAY = "anyway"
    SUCCEEDED = "succeeded"


class RetryOn(StrEnum):
    """Classes of outcome after which a Job may be started again.

    error: it exited ≠ 0, died of a signal, or could not be started. timeout: its wall-clock limit
    passed. lost: its allocation, node, pilot or launcher ended under it.
    """

    ERROR = "error"
    TIMEOUT = "timeout"
    LOST = "lost"


class Resources(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False
):
    """What one Job needs. `cores`, `mem_bytes` and `gpus` are per node, `ranks` in all.

    `wall_s` is the limit (TERM, then KILL); `estimate_s` the expected wall-clock time, used to prefetch,
    to decide whether a Job still fits before an allocation ends, and to fill the gaps before a large one.
    `gpus` is a whole number, or a share of one GPU in hundredths, below 1. `ranks_per_node` 0: as evenly as
    they go; `threads_per_rank` 0: what the node's cores allow. `named` are countable things of the Site,
    such as licences. With `node_tag` it runs on nodes that the Site's owner has set apart by this word, and
    without it on no such node.

    `warn_s` before its limit, or before the allocation ends, the Job gets `warn_signal`, to write its
    checkpoint. Such a Job may start in an allocation in which it cannot end; when its time runs out it
    is started again, as far as its attempts go.
    """

    cores: int = 1
    mem_bytes: int = 0
    wall_s: float | None = None
    estimate_s: float | None = None
    nodes: int = 1
    ranks: int = 1
    gpus: float = 0
    ranks_per_node: int = 0
    threads_per_rank: int = 0
    named: dict[str, int] = {}
    warn_s: float | None = None
    warn_signal: str = "USR1"
    node_tag: str = ""

    def __hash__(self) -> int:
        # A table has no hash; equality looks at it, and that is what counts.
        return hash(
            (self.cores, self.mem_bytes, self.wall_s, self.estimate_s, self.nodes, self.gpus)
        )

    @property
    def node_ranks(self) -> int:
        """How many ranks one node gets at most."""
        return self.ranks_per_node or -(-self.ranks // self.nodes)

    @property
    def node_cores(self) -> int:
        """The cores of one node: what was asked for, and no fewer than its ranks' threads."""
        return max(self.cores, self.node_ranks * max(1, self.threads_per_rank))

    @property
    def threads(self) -> int:
        """The threads of one rank."""
        return self.threads_per_rank or max(1, self.node_cores // self.node_ranks)

    @property
    def time_s(self) -> float | None:
        """How long it is expected to run: its estimate, else its limit; None when nobody knows, or
        when it writes checkpoints and may be cut short."""
        if self.warn_s is not None:
            return None
        return self.wall_s if self.estimate_s is None else self.estimate_s


WARN_SIGNALS = ("USR1", "USR2", "TERM", "INT", "HUP")
"""The signals that a Job may ask to be warned by."""


class Retries(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False
):
    """How often a Job may be started again, after which outcomes, and how long to wait (doubling)."""

    max: int = 2
    on: tuple[RetryOn, ...] = (RetryOn.LOST,)
    backoff_s: float = 0.0


class AppRef(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """An App by name; a version, when given, must be the Site's own."""

    name: str
    version: str | None = None


class FunctionRef(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False
):
    """A call of a Python function. `code` is the sha256 (hex) of the pickled function, which travels in
    the signed statement; `arguments` are the pickled (args, kwargs), part of the signed spec.

    `environment` is one of the Site's; `python` the version ("3.12") that pickled it; `own_process` asks
    for a process of its own instead of a warm worker.
    """

    name: str
    code: str
    arguments: bytes
    python: str
    environment: str = "default"
    own_process: bool = False


class JobSpec(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False
):
    """The signed part of a Job. Exactly one of `app`, `command` and `function` is given.

    `sites` are the ids of the Sites that may run it; `workdir` is relative to the Site's data
    directory (default `jobs/<id>`); `takeover_s` opts into being killed and started elsewhere when
    its pilot is out of contact for so long (see core.leases). `script` is the sha256 (hex) of a file that
    travels in the signed statement, and that a `command` finds as $CHAPPE_SCRIPT. `task` makes it one of an
    array.
    """

    id: str
    project: str
    sites: tuple[str, ...]
    app: AppRef | None = None
    command: tuple[str, ...] | None = None
    name: str = ""
    parameters: dict[str, Any] = {}
    workdir: str = ""
    env: dict[str, str] = {}
    resources: Resources = Resources()
    retries: Retries = Retries()
    parents: tuple[str, ...] = ()
    on_parent_failure: ParentPolicy = ParentPolicy.FAIL
    takeover_s: float | None = None
    not_before: float | None = None
    function: FunctionRef | None = None
    script: str | None = None
    task: Task | None = None

    @property
    def code(self) -> str | None:
        """The sha256 (hex) of what it needs of its signed statement: a pickled function, or a script."""
        return self.script if self.function is None else self.function.code

    @property
    def max_attempts(self) -> int:
        """How many starts the signature allows."""
        return 1 + self.retries.max

    @property
    def restarts(self) -> Retries:
        """When it is started again: a Job that writes checkpoints also when its time has run out."""
        if self.resources.warn_s is None or RetryOn.TIMEOUT in self.retries.on:
            return self.retries
        return msgspec.structs.replace(self.retries, on=(*self.retries.on, RetryOn.TIMEOUT))


class Envelope(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False
):
    """The unsigned part: what people and tools attach to a Job. A higher priority runs first."""

    tags: dict[str, str] = {}
    data: dict[str, Any] = {}
    priority: int = 0


_DEFAULT_RESOURCES = Resources()
_DEFAULT_RETRIES = Retries()
_spec_decoder = msgspec.json.Decoder(JobSpec)


def decode_spec(raw: bytes | msgspec.Raw) -> JobSpec:
    """Decode and check a spec from outside, or raise Invalid naming the field."""
    if len(raw) > limits.SPEC_BYTES:
        raise TooLarge(
            f"a job spec is {len(raw)} bytes, the limit is {limits.SPEC_BYTES}: put data in files",
            field="spec",
        )
    try:
        spec = _spec_decoder.decode(raw)
    except msgspec.ValidationError as e:
        raise Invalid(f"{e}", field=_field_of(e)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Invalid(f"the job spec is not JSON: {e}", field="spec") from None
    except RecursionError:
        raise Invalid("the job spec is nested too deeply", field="spec") from None
    check_spec(spec)
    return spec


def _field_of(error: msgspec.ValidationError) -> str:
    """The path in a msgspec message (`… - at `$.resources.cores``) as `resources.cores`."""
    found = re.search(r"`\$\.?([^`]*)`$", str(error))
    unknown = re.search(r"unknown field `([^`]*)`", str(error))
    parts = [found.group(1) if found else "", unknown.group(1) if unknown else ""]
    return ".".join(p for p in parts if p) or "spec"


def check_spec(spec: JobSpec) -> None:
    """Raise Invalid (naming the field and the remedy) unless the spec can be a Job."""
    check_id(spec.id, "id")
    if (spec.app is not None) + (spec.command is not None) + (spec.function is not None) != 1:
        raise Invalid("give exactly one of `app`, `command` and `function`", field="app")
    if not spec.sites:
        raise Invalid("give at least one site", field="sites")
    if len(spec.sites) > limits.SITES_PER_JOB or len(set(spec.sites)) != len(spec.sites):
        raise Invalid(f"sites must be distinct and at most {limits.SITES_PER_JOB}", field="sites")
    if len(spec.name) > limits.NAME_CHARS or not spec.name.isprintable():
        raise Invalid(
            f"a name is printable and at most {limits.NAME_CHARS} characters", field="name"
        )
    if spec.command is not None:
        _check_command(spec.command)
    if spec.function is not None:
        _check_function(spec)
    if spec.script is not None and (spec.command is None or not _SHA256.fullmatch(spec.script)):
        raise Invalid("a script is a sha256 in hexadecimal, and needs a command", field="script")
    if spec.task is not None:
        check_task(spec.task)
    if spec.workdir:
        check_relative(spec.workdir, "workdir")
    # Most Jobs keep the defaults, and a request may hold 10 000.
    if spec.resources != _DEFAULT_RESOURCES:
        check_resources(spec.resources)
    if spec.retries != _DEFAULT_RETRIES:
        _check_retries(spec.retries)
    _check_times(spec)
    if spec.env:
        _check_env(spec.env)
    if spec.parents:
        _check_parents(spec)


def _check_parents(spec: JobSpec) -> None:
    if len(spec.parents) > limits.PARENTS_PER_JOB:
        raise TooLarge(
            f"{len(spec.parents)} parents, the limit is {limits.PARENTS_PER_JOB}: "
            "gather them through an intermediate job",
            field="parents",
        )
    for parent in spec.parents:
        check_id(parent, "parents")
    if len(set(spec.parents)) != len(spec.parents):
        raise Invalid("a parent is named twice", field="parents")
    if spec.id in spec.parents:
        raise Invalid("a job cannot be its own parent", field="parents")


def check_relative(path: str, field: str) -> None:
    """Raise Invalid unless `path` is relative, printable and stays below its base."""
    if len(path) > limits.WORKDIR_CHARS or not path.isprintable():
        raise Invalid(
            f"a path is printable and at most {limits.WORKDIR_CHARS} characters", field=field
        )
    # Not by pathlib: every Job has a path or two, and a PurePosixPath costs as much as all other checks.
    if path.startswith(("/", "~")) or ".." in path.split("/"):
        raise Invalid(f"{path!r} must be relative and must not contain '..'", field=field)


def _check_command(command: tuple[str, ...]) -> None:
    if not command or not command[0]:
        raise Invalid("a command needs a program", field="command")
    if len(command) > limits.COMMAND_ARGS:
        raise TooLarge(f"a command has at most {limits.COMMAND_ARGS} arguments", field="command")
    if any("\0" in arg for arg in command):
        raise Invalid("an argument contains a NUL byte", field="command")


def _check_function(spec: JobSpec) -> None:
    f = spec.function
    if f is None:
        return
    if not _SHA256.fullmatch(f.code):
        raise Invalid("code is a sha256 in hexadecimal", field="function.code")
    if len(f.arguments) > limits.ARGUMENT_BYTES:
        raise TooLarge(
            f"the arguments are {len(f.arguments)} bytes, the limit is {limits.ARGUMENT_BYTES}: "
            "put large data in files at the site and pass their names",
            field="function.arguments",
        )
    if not f.name or len(f.name) > limits.NAME_CHARS or not f.name.isprintable():
        raise Invalid(
            f"a function's name is printable and at most {limits.NAME_CHARS} characters",
            field="function.name",
        )
    if not _ENVIRONMENT.fullmatch(f.environment):
        raise Invalid(
            "an environment's name is letters, digits and _ . -", field="function.environment"
        )
    if not _PYTHON.fullmatch(f.python):
        raise Invalid('python is a version, as "3.12"', field="function.python")
    if spec.task is not None:
        raise Invalid("a function gets its index as an argument: use map", field="task")
    if spec.parameters:
        raise Invalid("a function takes arguments, no parameters", field="parameters")


def check_resources(r: Resources) -> None:
    """Raise Invalid, naming the field, unless a Job can need this."""
    for name, value, low, high in (
        ("cores", r.cores, 1, limits.CORES_MAX),
        ("mem_bytes", r.mem_bytes, 0, 1 << 50),
        ("nodes", r.nodes, 1, 100_000),
        ("ranks", r.ranks, 1, 10_000_000),
        ("gpus", r.gpus, 0, 1_000),
        ("ranks_per_node", r.ranks_per_node, 0, limits.CORES_MAX),
        ("threads_per_rank", r.threads_per_rank, 0, limits.CORES_MAX),
    ):
        if not low <= value <= high:
            raise Invalid(f"{name} is {value}, must be {low} to {high}", field=f"resources.{name}")
    if r.ranks_per_node and r.ranks_per_node * r.nodes < r.ranks:
        raise Invalid(
            f"{r.nodes} nodes of {r.ranks_per_node} ranks are too few for {r.ranks} ranks",
            field="resources.ranks_per_node",
        )
    if r.node_cores > limits.CORES_MAX:
        raise Invalid(
            f"{r.node_ranks} ranks of {r.threads_per_rank} threads are more than "
            f"{limits.CORES_MAX} cores: take more nodes",
            field="resources.threads_per_rank",
        )
    if r.gpus != round(r.gpus, 2) or (r.gpus > 1 and r.gpus % 1):
        raise Invalid(
            f"gpus is {r.gpus:g}, must be a whole number, or a share of one in hundredths: 0.25",
            field="resources.gpus",
        )
    if r.warn_signal not in WARN_SIGNALS:
        raise Invalid(
            f"warn_signal must be one of {', '.join(WARN_SIGNALS)}", field="resources.warn_signal"
        )
    if r.node_tag and not _RESOURCE_NAME.fullmatch(r.node_tag):
        raise Invalid(
            f"{r.node_tag[:60]!r}: a tag is a letter, then letters, digits and _ . -",
            field="resources.node_tag",
        )
    _check_named(r.named)
    _check_seconds(r)


def _check_named(named: dict[str, int]) -> None:
    if len(named) > limits.NAMED_PER_JOB:
        raise TooLarge(f"at most {limits.NAMED_PER_JOB} named resources", field="resources.named")
    for name, count in named.items():
        if not _RESOURCE_NAME.fullmatch(name):
            raise Invalid(
                f"{name[:60]!r}: a name is a letter, then letters, digits and _ . -",
                field="resources.named",
            )
        if not 1 <= count <= limits.NAMED_MAX:
            raise Invalid(
                f"{name} is {count}, must be 1 to {limits.NAMED_MAX}",
                field=f"resources.named.{name}",
            )


def _check_seconds(r: Resources) -> None:
    for name, seconds in (
        ("wall_s", r.wall_s),
        ("estimate_s", r.estimate_s),
        ("warn_s", r.warn_s),
    ):
        if seconds is not None and not 0 < seconds <= limits.WALL_MAX_S:
            raise Invalid(
                f"{name} is {seconds}, must be above 0 and at most a year (seconds)",
                field=f"resources.{name}",
            )


def _check_retries(retries: Retries) -> None:
    if not 0 <= retries.max < limits.ATTEMPTS_MAX:
        raise Invalid(
            f"retries.max is {retries.max}, must be 0 to {limits.ATTEMPTS_MAX - 1}",
            field="retries.max",
        )
    if not 0 <= retries.backoff_s <= 86_400:
        raise Invalid("backoff_s must be 0 to 86400 seconds", field="retries.backoff_s")


def _check_times(spec: JobSpec) -> None:
    if spec.takeover_s is not None and not (
        limits.TAKEOVER_MIN_S <= spec.takeover_s <= limits.WALL_MAX_S
    ):
        raise Invalid(
            f"takeover_s must be at least {limits.TAKEOVER_MIN_S:.0f} seconds", field="takeover_s"
        )
    if spec.not_before is not None and not 0 <= spec.not_before < 1e11:
        raise Invalid("not_before is in seconds since 1970", field="not_before")


def _check_env(env: dict[str, str]) -> None:
    if len(env) > limits.ENV_PER_JOB:
        raise TooLarge(f"at most {limits.ENV_PER_JOB} environment variables", field="env")
    for name, value in env.items():
        if not _ENV_NAME.fullmatch(name):
            raise Invalid(f"{name[:60]!r} is no environment variable's name", field="env")
        if "\0" in value or len(value) > limits.STRING_CHARS:
            raise Invalid("a value is too long or contains a NUL byte", field=f"env.{name}")


def check_envelope(envelope: Envelope) -> None:
    """Raise Invalid unless tags, data and priority are within bounds."""
    if not -limits.PRIORITY_ABS <= envelope.priority <= limits.PRIORITY_ABS:
        raise Invalid(f"priority must be within ±{limits.PRIORITY_ABS}", field="priority")
    if len(envelope.tags) > limits.TAGS_PER_JOB:
        raise TooLarge(f"at most {limits.TAGS_PER_JOB} tags", field="tags")
    for key, value in envelope.tags.items():
        if not _TAG_KEY.fullmatch(key):
            raise Invalid(
                f"tag {key[:60]!r}: a key is a letter, then letters, digits and _ . -",
                field="tags",
            )
        if len(value) > limits.TAG_CHARS or "\0" in value:
            raise Invalid(
                f"the value is longer than {limits.TAG_CHARS} characters, or contains a NUL",
                field=f"tags.{key}",
            )
    if not envelope.data:
        return
    # Before anything that recurses: who reads a list must not need a deep stack for one Job of it.
    if _is_deeper(envelope.data, limits.NESTING):
        raise Invalid(f"data is nested deeper than {limits.NESTING} levels", field="data")
    if len(msgspec.json.encode(envelope.data)) > limits.DATA_BYTES:
        raise TooLarge(f"data is larger than {limits.DATA_BYTES} bytes", field="data")


def _is_deeper(value: Any, most: int) -> bool:
    """Whether lists and objects are nested more than `most` levels deep."""
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return any(True for _ in level)
