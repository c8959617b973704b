"""Passwords: what is stored of them, what a guess costs, and how many guesses there are."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from chappe.core import limits
from chappe.core.errors import Busy, Invalid
from chappe.hub import passwords
from chappe.hub.passwords import BURST, REFILL_S, Attempts, Passwords, hash_password, is_right

RIGHT = "correct horse"


@pytest.fixture(scope="module")
def stored() -> str:
    return hash_password(RIGHT)


def test_a_hash_is_salted_and_says_what_it_cost(stored: str) -> None:
    assert stored.startswith("scrypt$15$8$3$")
    assert RIGHT not in stored
    assert hash_password(RIGHT) != stored


def test_only_the_password_is_right(stored: str) -> None:
    assert is_right(RIGHT, stored)
    for wrong in ("", RIGHT[:-1], RIGHT + " ", RIGHT.upper(), "\udcff" * 12, "x" * 100_000):
        assert not is_right(wrong, stored)


def test_nobodys_password_is_never_right_and_costs_the_same(
    monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    costs: list[tuple[Any, ...]] = []
    real = passwords._scrypt

    def counted(password: str, salt: bytes, *cost: int) -> bytes:
        costs.append((len(salt), *cost))
        return real(password, salt, *cost)

    monkeypatch.setattr(passwords, "_scrypt", counted)
    assert not is_right(RIGHT, None)
    assert is_right(RIGHT, stored)
    assert len(set(costs)) == 1


def test_an_older_hash_of_another_cost_is_still_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "LOG_N", 10)
    cheap = hash_password(RIGHT)
    monkeypatch.undo()
    assert is_right(RIGHT, cheap)


@pytest.mark.parametrize("password", ["", "x" * 9, "é" * 513])
def test_passwords_that_will_not_do(password: str) -> None:
    with pytest.raises(Invalid) as refused:
        passwords.check_new(password)
    assert refused.value.field == "password"


def test_a_long_password_counts_as_a_whole() -> None:
    longest = "x" * limits.PASSWORD_BYTES
    passwords.check_new(longest)
    stored = hash_password(longest)
    assert is_right(longest, stored)
    assert not is_right(longest + "y", stored)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def attempts() -> tuple[Attempts, Clock]:
    clock = Clock()
    return Attempts(clock), clock


def test_guessing_ends_and_goes_on_slowly() -> None:
    tried, clock = attempts()
    for _ in range(BURST["both"]):
        tried.begin("ann", "10.0.0.1")
    for _ in range(3):
        with pytest.raises(Busy) as refused:
            tried.begin("ann", "10.0.0.1")
    assert refused.value.code == "too_many_attempts"
    assert refused.value.details == {"retry_after_s": round(REFILL_S)}
    # Another user there, and the same from elsewhere, are not kept out.
    tried.begin("bob", "10.0.0.1")
    tried.begin("ann", "10.0.0.2")
    clock.now += REFILL_S
    tried.begin("ann", "10.0.0.1")
    with pytest.raises(Busy):
        tried.begin("ann", "10.0.0.1")


def test_one_address_cannot_try_many_names() -> None:
    tried, _ = attempts()
    for i in range(BURST["address"]):
        tried.begin(f"user{i}", "10.0.0.1")
    with pytest.raises(Busy):
        tried.begin("ann", "10.0.0.1")
    with pytest.raises(Busy):
        tried.begin(None, "10.0.0.1")


def test_many_addresses_cannot_try_one_name_without_end() -> None:
    tried, _ = attempts()
    for i in range(BURST["name"]):
        tried.begin("ann", f"10.0.1.{i}")
    with pytest.raises(Busy):
        tried.begin("ann", "10.0.2.1")


def test_what_is_right_does_not_count() -> None:
    tried, _ = attempts()
    for _ in range(10 * BURST["address"]):
        tried.begin("ann", "10.0.0.1")
        tried.succeeded("ann", "10.0.0.1")
    assert not tried._failures


def test_the_memory_of_attempts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "KEYS", 10)
    tried, _ = attempts()
    for i in range(100):
        tried.begin(f"user{i}" * 50, f"10.0.0.{i}")
    assert len(tried._failures) == 10
    assert all(len(name) <= 64 for _, name, _ in tried._failures)


async def test_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(passwords, "is_right", lambda *_: gate.wait())
    work = Passwords(Clock())
    waiting = [asyncio.ensure_future(work.is_right("x", None)) for _ in range(passwords.WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await work.is_right("x", None)
    gate.set()
    assert await asyncio.gather(*waiting) == [True] * passwords.WAITING
    work.close()
