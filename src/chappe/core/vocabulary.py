"""What messages may say: codes of libIGCM, native types, and what each is about.

A code and a type are two names of one kind of message. Messages of the dialect of 2014–15 use some codes
for something else; what they mean then stands in a table of its own. What is in no table is a kind as
well: it is stored and shown, and changes no state.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NamedTuple


class Phase(IntEnum):
    """The order among messages of the same time."""

    START = 0
    PROGRESS = 1
    COMMAND = 2
    END = 3
    FATAL = 4


class Scope(StrEnum):
    """What a kind of message is about: the simulation, one of its three kinds of jobs, or neither."""

    SIMULATION = "simulation"
    COMPUTE = "compute"
    POST = "post"
    CHECKER = "checker"
    NONE = ""


class Kind(NamedTuple):
    """A kind of message. `code` is empty where libIGCM has none, `type` where nobody knows it."""

    type: str
    code: str
    scope: Scope
    phase: Phase


_KINDS = (
    Kind("simulation.started", "0000", Scope.SIMULATION, Phase.START),
    Kind("simulation.ended", "0100", Scope.SIMULATION, Phase.END),
    Kind("job.started", "1000", Scope.COMPUTE, Phase.START),
    Kind("job.period", "1001", Scope.COMPUTE, Phase.PROGRESS),
    Kind("job.ended", "1100", Scope.COMPUTE, Phase.END),
    Kind("command.failed", "1900", Scope.COMPUTE, Phase.COMMAND),
    Kind("job.fatal", "1999", Scope.COMPUTE, Phase.FATAL),
    Kind("post.started", "2000", Scope.POST, Phase.START),
    Kind("post.ended", "2100", Scope.POST, Phase.END),
    Kind("post.command_failed", "2900", Scope.POST, Phase.COMMAND),
    Kind("post.fatal", "2999", Scope.POST, Phase.FATAL),
    Kind("checker.started", "3000", Scope.CHECKER, Phase.START),
    Kind("checker.ended", "3100", Scope.CHECKER, Phase.END),
    Kind("checker.command_failed", "3900", Scope.CHECKER, Phase.COMMAND),
    Kind("checker.fatal", "3999", Scope.CHECKER, Phase.FATAL),
    Kind("io", "7000", Scope.NONE, Phase.PROGRESS),
    Kind("accounting", "7010", Scope.NONE, Phase.PROGRESS),
    Kind("accounting.jobs", "7011", Scope.NONE, Phase.PROGRESS),
    Kind("metric.sets", "7100", Scope.NONE, Phase.PROGRESS),
    Kind("supervision.detect", "8000", Scope.NONE, Phase.PROGRESS),
    Kind("supervision.format", "8100", Scope.NONE, Phase.PROGRESS),
    Kind("supervision.dispatch", "8200", Scope.NONE, Phase.PROGRESS),
    Kind("simulation.purged", "8888", Scope.SIMULATION, Phase.PROGRESS),
    Kind("internal.vocabulary", "-1000", Scope.NONE, Phase.PROGRESS),
    Kind("internal.front_end", "-2000", Scope.NONE, Phase.PROGRESS),
    Kind("internal.mail", "-3000", Scope.NONE, Phase.PROGRESS),
    Kind("internal.alert", "-4000", Scope.NONE, Phase.PROGRESS),
    # Without a code. The card is the attachment of a 0000, brought as a message of its own: `card`.
    Kind("simulation.card", "", Scope.SIMULATION, Phase.PROGRESS),
    Kind("heartbeat", "", Scope.NONE, Phase.PROGRESS),
    Kind("metric", "", Scope.NONE, Phase.PROGRESS),
    Kind("log", "", Scope.NONE, Phase.PROGRESS),
)

BY_TYPE: dict[str, Kind] = {kind.type: kind for kind in _KINDS}
BY_CODE: dict[str, Kind] = {kind.code: kind for kind in _KINDS if kind.code} | {
    "9000": Kind("command.failed", "1900", Scope.COMPUTE, Phase.COMMAND),
    "9999": Kind("job.fatal", "1999", Scope.COMPUTE, Phase.FATAL),
}
#: The dialect of 2014–15: calls of shell functions were pushed and popped.
BY_CODE_2014: dict[str, Kind] = BY_CODE | {
    "2000": Kind("command.pushed", "", Scope.NONE, Phase.PROGRESS),
    "3000": Kind("command.popped", "", Scope.NONE, Phase.PROGRESS),
    "4000": Kind("command.pushed", "", Scope.NONE, Phase.PROGRESS),
    "4100": Kind("command.popped", "", Scope.NONE, Phase.PROGRESS),
    "4900": Kind("command.failed", "1900", Scope.COMPUTE, Phase.COMMAND),
}
KINDS: dict[str, Kind] = {kind.type: kind for kind in (*BY_CODE_2014.values(), *_KINDS)}

UNKNOWN = Kind("", "", Scope.NONE, Phase.PROGRESS)


def kind_of(type: str) -> Kind:
    """The kind of a message by its type; UNKNOWN for types that nobody knows."""
    return KINDS.get(type, UNKNOWN)
