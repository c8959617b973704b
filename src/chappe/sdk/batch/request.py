"""What somebody asks of a batch system, in our words, and the pieces of language that the dialects share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from chappe.core.arrays import DIALECTS
from chappe.core.ids import beginning_of, is_uuid7, number_of
from chappe.sdk.errors import Invalid

__all__ = [
    "DIALECTS",
    "Depends",
    "Named",
    "Request",
    "exports",
    "memory_bytes",
    "named",
    "number_of",
    "wall_s",
]


class Depends(NamedTuple):
    """What must end first: names of Jobs as they were typed, and whether success is asked for."""

    on: tuple[str, ...]
    succeed: bool


class Request(msgspec.Struct, frozen=True):
    """One submission. `cores`, `gpus` and `mem_bytes` are per node, `tasks` in all with `threads` each;
    `wall_s` None is without a limit.

    `enter` is the directory to run in ("" : the submitter's home); it must exist if `must_enter`. `out` and
    `err` may hold patterns of the dialect; `out` None is the dialect's default, `err` None goes with `out`.
    `shell` runs the script, "" : it says so itself.
    """

    dialect: str
    script: bytes
    args: tuple[str, ...] = ()
    name: str = ""
    site: str | None = None
    tasks: int = 1
    threads: int = 1
    cores: int = 1
    nodes: int = 1
    gpus: int = 0
    mem_bytes: int = 0
    wall_s: float | None = None
    array: str | None = None
    depends: Depends | None = None
    submitted_in: str = "/"
    enter: str = ""
    must_enter: bool = False
    out: str | None = None
    err: str | None = None
    joined: bool = False
    append: bool = False
    shell: str = ""
    env: Mapping[str, str] = {}
    queue: str = ""
    account: str = ""
    priority: int = 0
    not_before: float | None = None
    named: Mapping[str, int] = {}
    warn_signal: str | None = None
    warn_s: float | None = None
    restarts: bool = True
    notes: tuple[str, ...] = ()


class Named(NamedTuple):
    """A Job, an array, or some tasks of one, as a person names it.

    `prefix` begins its id; `tasks` are indices, None for all there are.
    """

    text: str
    prefix: str
    tasks: frozenset[int] | None = None


_NUMBER = re.compile(
    r"([0-9]{1,20})(?:\[\]|\[([0-9]{1,9})\]|_([0-9]{1,9})|_?\[([0-9,:-]{1,2000})\])?(?:\.[A-Za-z0-9._-]{1,100})?",
    re.ASCII,
)


def named(text: str) -> Named:
    """`123`, `123_7`, `123_[1-9]`, `123[7].host`, `123.host`, or one of our own ids. Raises Invalid."""
    from chappe.core.arrays import parse  # here: most names have no list of indices

    if is_uuid7(text):
        return Named(text, text)
    found = _NUMBER.fullmatch(text)
    if found is None:
        raise Invalid(f"{text[:60]!r} is no job's number", field="id")
    number, one, other, many = found.groups()
    tasks = None
    if one or other:
        tasks = frozenset({int(one or other)})
    elif many:
        tasks = frozenset(parse(many).of)
    return Named(text, beginning_of(int(number)), tasks)


_UNITS = {"": 20, "k": 10, "m": 20, "g": 30, "t": 40, "b": 0}


def memory_bytes(text: str, unit: str = "m") -> int:
    """Bytes as batch systems write them: `4G`, `4gb`, `4000` (in `unit`). Raises Invalid."""
    found = re.fullmatch(r"([0-9]{1,15})(?:([kmgt])b?|(b))?", text.strip().lower(), re.ASCII)
    if found is None:
        raise Invalid(f"{text[:40]!r} is no amount of memory: 4G, 512M", field="mem")
    return int(found[1]) << _UNITS[found[2] or found[3] or unit]


def wall_s(text: str, unit_s: int = 60) -> float | None:
    """Seconds as batch systems write a time: `90` (of `unit_s`), `1:30:00`, `2-12`, `1-06:30`.

    None for `UNLIMITED` and 0. Raises Invalid.
    """
    text = text.strip()
    if text.lower() in ("unlimited", "infinite", "-1"):
        return None
    found = re.fullmatch(r"(?:([0-9]{1,5})-)?([0-9]{1,9}(?::[0-9]{1,9}){0,2})", text, re.ASCII)
    if found is None:
        raise Invalid(f"{text[:40]!r} is no time: 90, 1:30:00 or 2-12:00:00", field="time")
    parts = [int(part) for part in found[2].split(":")]
    if found[1] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        total = int(found[1]) * 86_400 + hours * 3_600 + minutes * 60 + seconds
    elif len(parts) == 3:
        total = parts[0] * 3_600 + parts[1] * 60 + parts[2]
    elif len(parts) == 2:
        total = parts[0] * 60 + parts[1]
    else:
        total = parts[0] * unit_s
    return float(total) or None


#: What belongs to a machine or to a login, and is not carried to another.
_OWN = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "TMPDIR",
        "LOGNAME",
        "SHELL",
        "PWD",
        "OLDPWD",
        "TERM",
        "HOSTNAME",
        "SHLVL",
        "MAIL",
        "EDITOR",
        "DISPLAY",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "PYTHONPATH",
        "PYTHONHOME",
        "MANPATH",
        "_",
    ]
)
_OWN_BEGIN = (
    "SLURM_",
    "SBATCH_",
    "PBS_",
    "SGE_",
    "CHAPPE_",
    "SSH_",
    "XDG_",
    "BASH_",
    "LC_",
    "DBUS_",
)
_SECRET = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|PASS$|_PWD$|CREDENTIAL|PRIVATE|(API|ACCESS|AUTH)_?KEY",
    re.IGNORECASE,
)
_WORD = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")


def mentioned(script: bytes, environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Those variables of the submitter that the script names, but for what belongs to a machine, and the
    names of those that look like secrets and are left out."""
    words = {word.decode() for word in _WORD.findall(script)}
    some = {
        name: environ[name]
        for name in sorted(words & environ.keys())
        if name not in _OWN and not name.startswith(_OWN_BEGIN)
    }
    secrets = [name for name in some if _SECRET.search(name)]
    return {name: value for name, value in some.items() if name not in secrets}, secrets


def exports(
    text: str | None, script: bytes, environ: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """The variables to send, by a list such as `ALL,CASE=3,STEP` (None: `ALL`), and notes.

    ALL stands for what the script mentions: a whole environment belongs to its machine, and may hold what
    nobody should store. Raises Invalid.
    """
    env: dict[str, str] = {}
    notes: list[str] = []
    parts = ["ALL"] if text is None else _split(text)
    for part in parts:
        name, equals, value = part.partition("=")
        if part == "ALL":
            some, secrets = mentioned(script, environ)
            env = {**some, **env}
            notes += [
                f"{name} looks like a secret and is not sent: name it to send it"
                for name in secrets
            ]
        elif part in ("NONE", "NIL", ""):
            continue
        elif not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
            raise Invalid(f"{name[:40]!r} is no environment variable's name", field="export")
        elif equals:
            env[name] = value
        elif name in environ:
            env[name] = environ[name]
    return env, notes


def _split(text: str) -> Iterable[str]:
    """At commas that stand in no quotes; a pair of quotes around a value is taken off."""
    for found in re.finditer(r"""((?:[^,'"]|"[^"]*"|'[^']*'|['"])+)""", text):
        name, equals, value = found[1].partition("=")
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        yield (name + equals + value).strip()
