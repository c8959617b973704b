"""What may be asked of a machine's scheduler, and the check that keeps it from being anything else.

These values become lines of a batch script, so they are held to an alphabet in which no scheduler and no
shell sees an end of line, a quotation or an expansion. They come from the Hub without a signature; so nothing
here is a program. Shell text around a pilot (modules, environments) is the Site owner's, in site.toml, and
further directives are taken only as far as the owner's policy names them (`core.policy`).
"""

from __future__ import annotations

import re

import msgspec

from chappe.core import limits
from chappe.core.errors import Invalid

NODES_MAX = 100_000
DIRECTIVES_MAX = 20

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@%+/-]{0,99}")
_FEATURES = re.compile(r"[A-Za-z0-9\[(][A-Za-z0-9_.:,&|*()\[\]=-]{0,199}")
_DIRECTIVE = re.compile(
    r"-{1,2}[A-Za-z][A-Za-z0-9-]{0,40}([ =][A-Za-z0-9_.,:@%/+=*&|()\[\]-]{1,200})?"
)


class BatchJobIntent(msgspec.Struct, frozen=True, omit_defaults=True):
    """What we ask the scheduler for: nodes; of each `cores` (0: all), `gpus` and `mem_bytes` (0: what the
    scheduler gives); wall-clock limit (None: the Site's). Empty texts leave the choice to the Site.

    Whoever only shows one passes over what a newer version added; whoever acts on one reads it as a
    StrictIntent, for an allocation without a wish that was not understood is not the one that was wanted."""

    nodes: int = 1
    cores: int = 0
    wall_s: float | None = None
    gpus: int = 0
    mem_bytes: int = 0
    queue: str = ""
    account: str = ""
    qos: str = ""
    reservation: str = ""
    constraint: str = ""
    job_extra_directives: tuple[str, ...] = ()


class StrictIntent(BatchJobIntent, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One of which every wish must be known."""


def read_intent(raw: bytes) -> BatchJobIntent:
    """The intent that these bytes (JSON) say. Raises Invalid, naming a wish that is unknown, or wrong."""
    try:
        msgspec.json.decode(raw, type=StrictIntent)
        intent = msgspec.json.decode(raw, type=BatchJobIntent)
    except (msgspec.DecodeError, RecursionError) as e:
        raise Invalid(f"what is wished for is not understood here: {e}", field="intent") from e
    check_intent(intent)
    return intent


def check_intent(intent: BatchJobIntent, of: str = "intent") -> None:
    """Raise Invalid, naming the field, for what no scheduler should be shown."""
    for name, least, most in (
        ("nodes", 1, NODES_MAX),
        ("cores", 0, limits.CORES_MAX),
        ("gpus", 0, limits.CORES_MAX),
        ("mem_bytes", 0, 1 << 60),
    ):
        if not least <= getattr(intent, name) <= most:
            raise Invalid(f"{name} must be between {least} and {most}", field=f"{of}.{name}")
    # A limit that is no number compares as false, too.
    if intent.wall_s is not None and not 0 < intent.wall_s <= limits.WALL_MAX_S:
        raise Invalid(
            "wall_s must be above 0, at most a year (seconds)",
            field=f"{of}.wall_s",
        )
    for name in ("queue", "account", "qos", "reservation"):
        check_word(getattr(intent, name), f"{of}.{name}")
    if intent.constraint and not _FEATURES.fullmatch(intent.constraint):
        raise Invalid(
            "a constraint is names of features with & | , * ( ) [ ] = and no blanks",
            field=f"{of}.constraint",
        )
    if len(intent.job_extra_directives) > DIRECTIVES_MAX:
        raise Invalid(
            f"at most {DIRECTIVES_MAX} further directives are taken",
            field=f"{of}.job_extra_directives",
        )
    for directive in intent.job_extra_directives:
        if not _DIRECTIVE.fullmatch(directive):
            raise Invalid(
                f"{directive[:60]!r} is no option as `--name=value` or `-n value`, of letters, digits and "
                "_.,:@%/+=*&|()[]-",
                field=f"{of}.job_extra_directives",
            )


def check_word(value: str, field: str) -> None:
    """Raise Invalid unless `value` is empty or a name as schedulers give them."""
    if value and not _WORD.fullmatch(value):
        raise Invalid(
            f"{value[:60]!r} is no name: letters and digits, then also _.:@%+/- (at most 100)",
            field=field,
        )
