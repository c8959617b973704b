"""Command lines and directives of batch systems, read by a table of what each flag means to us.

Every flag stands in its dialect's table: taken, ignored in silence, ignored with a note because nothing
depends on it, or refused with what to do instead. A flag that stands in no table is refused as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from chappe.sdk.errors import Invalid

Takes = Literal["value", "nothing", "maybe"]
Does = Literal["take", "join", "quiet", "note", "refuse"]


class Flag(NamedTuple):
    """One flag: `long` and `short` names without dashes (either may be empty), whether it has a value
    (`maybe`: only behind `=`), and what is done with it.

    Of a flag that is given twice the last one counts; with `join` all values, with commas between.
    `about` is the note for one that is ignored, the remedy for one that is refused.
    """

    long: str
    short: str = ""
    takes: Takes = "value"
    does: Does = "take"
    about: str = ""

    @property
    def name(self) -> str:
        """What the value is found under."""
        return self.long or self.short

    def __str__(self) -> str:
        names = [f"-{self.short}"] if self.short else []
        return ", ".join([*names, f"--{self.long}"] if self.long else names)


class Read(NamedTuple):
    """What a command line said: flags with their last values ("" for those without), the words that are no
    flags, the notes for its user, and whether the words stood behind two dashes."""

    values: dict[str, str]
    words: list[str]
    notes: list[str]
    dashes: bool = False


class Usage(Invalid):
    """A command line that cannot be obeyed; the message says why, and what to do instead."""

    default_code = "usage"


def read(table: Sequence[Flag], argv: Sequence[str], *, stops: bool = True) -> Read:
    """Read a command line as getopt does. Raises Usage.

    With `stops` flags end at the first word, as those of a script follow its name; otherwise words may stand
    between them.
    """
    longs = {flag.long: flag for flag in table if flag.long}
    shorts = {flag.short: flag for flag in table if flag.short}
    found = Read({}, [], [])
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            first = not found.words
            found.words.extend(rest)
            return found._replace(dashes=first)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            _take(found, _long(longs, name), value if equals else None, rest)
        elif word.startswith("-") and len(word) > 1:
            _cluster(found, shorts, word[1:], rest)
        else:
            found.words.append(word)
            if stops:
                found.words.extend(rest)
                break
    return found


def _long(table: dict[str, Flag], name: str) -> Flag:
    """A flag by its long name, or by an unambiguous beginning of it."""
    if name in table:
        return table[name]
    begun = [flag for long, flag in table.items() if long.startswith(name)] if name else []
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise Usage(f"--{name[:40]} is ambiguous: {', '.join(map(str, begun))}")
    near = difflib.get_close_matches(name, table, 1)
    hint = f"; did you mean --{near[0]}?" if near else ""
    raise Usage(f"--{name[:40]} is not understood{hint}")


def _cluster(found: Read, table: dict[str, Flag], letters: str, rest: list[str]) -> None:
    """`-hv`, `-n4` and `-n 4`: flags of one letter, the last with its value."""
    while letters:
        letter, letters = letters[0], letters[1:]
        flag = table.get(letter)
        if flag is None:
            raise Usage(f"-{letter} is not understood")
        if flag.takes == "value":
            _take(found, flag, letters or None, rest)
            return
        _take(found, flag, None, rest)


def _take(found: Read, flag: Flag, value: str | None, rest: list[str]) -> None:
    if flag.takes == "value" and value is None:
        if not rest:
            raise Usage(f"{flag} needs a value")
        value = rest.pop(0)
    if flag.takes == "nothing" and value is not None:
        raise Usage(f"{flag} takes no value")
    if flag.does == "refuse":
        raise Usage(f"{flag} is not possible here: {flag.about}")
    if flag.does == "note":
        note = f"{flag} is ignored: {flag.about}"
        if note not in found.notes:
            found.notes.append(note)
    elif flag.does == "take":
        found.values[flag.name] = value or ""
    elif flag.does == "join":
        before = found.values.get(flag.name)
        found.values[flag.name] = (value or "") if before is None else f"{before},{value or ''}"


def quiet(*names: str, takes: Takes = "nothing") -> Iterable[Flag]:
    """Flags that change nothing here."""
    return (_flag(name, takes, "quiet", "") for name in names)


def noted(about: str, *names: str, takes: Takes = "value") -> Iterable[Flag]:
    """Flags that are ignored, for one reason."""
    return (_flag(name, takes, "note", about) for name in names)


def refused(about: str, *names: str, takes: Takes = "value") -> Iterable[Flag]:
    """Flags that are refused, with one remedy."""
    return (_flag(name, takes, "refuse", about) for name in names)


def _flag(name: str, takes: Takes, does: Does, about: str) -> Flag:
    long, _, short = name.partition("|")
    return Flag(long, short, takes, does, about)
