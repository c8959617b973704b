"""Commands that found nothing to say, and stay until a commit brings them something.

A pilot's poll that waits for work would otherwise look when it hears of a commit: two hops between threads
and an fsync later than it could. So it stays with the writer, which runs it again within the very
transaction that made the work: create and grant share a commit. Only the writer's thread runs what stays;
whoever waits may let go of it at any time, from any thread, and then has the last answer or a better one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

#: Of those that stay for one Site so many look within one transaction; a hint has the others look.
LOOKS = 8


class Stay(NamedTuple):
    """How a command stays: for work at Site `site` (None: for none) it is run again as `fn`, with the same
    arguments, until `is_over` says of an answer that it is one."""

    site: int | None
    fn: Callable[..., Any]
    is_over: Callable[[Any], bool]


@dataclass(slots=True, eq=False)
class Command:
    """What waits for the writer. `future` has its answer after the commit."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    future: Future[Any]
    stay: Stay | None = None
    #: While it stays: its last answer, whether the writer runs it now, and whether nobody waits for more.
    answer: Any = None
    is_running: bool = False
    is_left: bool = False

    def stays_for(self, site: int, answer: Any) -> bool:
        """Whether it is to be run again for work at `site` after this answer."""
        return self.stay is not None and self.stay.site == site and not self.stay.is_over(answer)


class Standing:
    """The commands that stay."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_site: dict[int | None, dict[Command, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_site.values()))

    def begin(self, site: int) -> list[Command]:
        """Those that stay for a Site and are to be run now, the one that came first at the head. Each comes
        back by `settle` or `fail`."""
        with self._lock:
            found = list(islice(self._by_site.get(site, ()), LOOKS))
            for command in found:
                command.is_running = True
            return found

    def has_more(self, site: int) -> bool:
        """Whether more stay for a Site than look within one transaction."""
        return len(self._by_site.get(site, ())) > LOOKS

    def settle(self, command: Command, answer: Any) -> None:
        """After the commit: give the answer, or let the command stay."""
        with self._lock:
            stays = self._keep(command, answer)
        if not stays:
            command.future.set_result(answer)

    def fail(self, command: Command) -> None:
        """What ran was rolled back: it stays as it was."""
        with self._lock:
            command.is_running = False
            gone = command.is_left and self._drop(command)
        if gone:
            command.future.set_result(command.answer)

    def refuse(self, command: Command, refusal: BaseException) -> None:
        """After the commit: it can never be answered."""
        with self._lock:
            self._drop(command)
        command.future.set_exception(refusal)

    def leave(self, command: Command) -> None:
        """Nobody waits for more than there is: answer `command` now, or when the writer is done with it."""
        with self._lock:
            command.is_left = True
            gone = not command.is_running and self._drop(command)
        if gone:
            command.future.set_result(command.answer)

    def _keep(self, command: Command, answer: Any) -> bool:
        """Whether it stays, behind all others."""
        self._drop(command)
        command.is_running = False
        if command.stay is None or command.is_left or command.stay.is_over(answer):
            return False
        command.answer = answer
        self._by_site.setdefault(command.stay.site, {})[command] = None
        return True

    def _drop(self, command: Command) -> bool:
        """Take it out; whether it was there."""
        if command.stay is None:
            return False
        among = self._by_site.get(command.stay.site)
        if among is None or command not in among:
            return False
        del among[command]
        if not among:
            del self._by_site[command.stay.site]
        return True
