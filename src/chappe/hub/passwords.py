"""Passwords: hashed by scrypt beside the event loop, a few at a time, and guessed only so often.

An attempt costs about 0.3 s and 32 MiB on purpose. A name that nobody has costs the same and is answered
the same. Attempts are counted before they are judged: per name and address, per address, and per name, so
that one stranger cannot lock a user out from everywhere, nor many strangers guess one name without end.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from chappe.core import limits
from chappe.core.errors import Busy, Invalid

T = TypeVar("T")

#: scrypt's cost: 2^15 blocks of 8 × 128 bytes, three times over (as OWASP advises for 32 MiB).
LOG_N, R, P = 15, 8, 3
WAITING = 16

#: Failed attempts that are let through at once, and seconds after which one more is.
BURST = {"both": 8, "address": 40, "name": 200}
REFILL_S = 30.0
KEYS = 10_000

#: What a name that nobody has is compared with.
_NOBODY = f"scrypt${LOG_N}${R}${P}${'A' * 22}==${'A' * 43}="


def check_new(password: str) -> None:
    """Raise Invalid for a password that is too short or too long. Nothing else is asked of it."""
    if len(password) < limits.PASSWORD_MIN_CHARS:
        raise Invalid(
            f"a password has at least {limits.PASSWORD_MIN_CHARS} characters", field="password"
        )
    if len(password.encode()) > limits.PASSWORD_BYTES:
        raise Invalid(f"a password has at most {limits.PASSWORD_BYTES} bytes", field="password")


def hash_password(password: str) -> str:
    """What is stored of a password: `scrypt$log n$r$p$salt$hash`. Takes about 0.3 s."""
    salt = secrets.token_bytes(16)
    key = _scrypt(password, salt, LOG_N, R, P)
    texts = (base64.b64encode(part).decode() for part in (salt, key))
    return "$".join(("scrypt", str(LOG_N), str(R), str(P), *texts))


def is_right(password: str, stored: str | None) -> bool:
    """Whether a password is that of a stored hash; None: of nobody, which takes as long. About 0.3 s."""
    _, log_n, r, p, salt, key = (stored or _NOBODY).split("$")
    found = _scrypt(password, base64.b64decode(salt), int(log_n), int(r), int(p))
    same = hmac.compare_digest(found, base64.b64decode(key))
    return same and stored is not None


def _scrypt(password: str, salt: bytes, log_n: int, r: int, p: int) -> bytes:
    # No password that could have been set is longer; and what is compared must not cost more by its length.
    given = password.encode("utf-8", "surrogatepass")[: limits.PASSWORD_BYTES + 1]
    return hashlib.scrypt(
        given, salt=salt, n=1 << log_n, r=r, p=p, maxmem=256 * limits.MIB, dklen=32
    )


class Attempts:
    """How often whom and where from a password was tried of late. `boot` gives seconds that only rise."""

    def __init__(self, boot: Callable[[], float]) -> None:
        self._boot = boot
        #: key → (failures, as of when); they drain by one every REFILL_S.
        self._failures: OrderedDict[tuple[str, str, str], tuple[float, float]] = OrderedDict()

    def begin(self, name: str | None, address: str) -> None:
        """Count an attempt (None: one that names nobody). Raises Busy when there were too many; it then
        changes nothing."""
        now = self._boot()
        keys = _keys(name, address)
        for key in keys:
            over = self._now(key, now) + 1 - BURST[key[0]]
            if over > 0:
                raise Busy(
                    "too many attempts to log in: wait before the next",
                    code="too_many_attempts",
                    details={"retry_after_s": max(1, round(over * REFILL_S))},
                )
        for key in keys:
            self._failures[key] = (self._now(key, now) + 1, now)
            self._failures.move_to_end(key)
        while len(self._failures) > KEYS:
            self._failures.popitem(last=False)

    def succeeded(self, name: str | None, address: str) -> None:
        """The attempt was right, so it does not count."""
        now = self._boot()
        for key in _keys(name, address):
            left = self._now(key, now) - 1
            if left > 0:
                self._failures[key] = (left, now)
            else:
                self._failures.pop(key, None)

    def _now(self, key: tuple[str, str, str], now: float) -> float:
        failures, at = self._failures.get(key, (0.0, now))
        return max(0.0, failures - (now - at) / REFILL_S)


def _keys(name: str | None, address: str) -> list[tuple[str, str, str]]:
    place = ("address", "", address)
    if name is None:
        return [place]
    short = name[:64]
    return [("both", short, address), place, ("name", short, "")]


class Passwords:
    """Compares and hashes passwords, on a thread of its own; Busy when too many wait."""

    def __init__(self, boot: Callable[[], float]) -> None:
        self.attempts = Attempts(boot)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chappe-password")
        self._waiting = 0

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    async def is_right(self, password: str, stored: str | None) -> bool:
        """`is_right`, beside the loop."""
        return await self._run(is_right, password, stored)

    async def hash(self, password: str) -> str:
        """`hash_password`, beside the loop. Raises Invalid for one that will not do."""
        check_new(password)
        return await self._run(hash_password, password)

    async def _run(self, fn: Callable[..., T], *args: str | None) -> T:
        if self._waiting >= WAITING:
            raise Busy("too many log-ins at this moment; try again", code="too_many_attempts")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, fn, *args)
        finally:
            self._waiting -= 1
