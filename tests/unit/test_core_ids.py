"""Ids: made, recognised and read."""

from __future__ import annotations

import uuid

import pytest

from chappe.core.errors import Invalid
from chappe.core.ids import check_id, created_ms, is_uuid7, uuid7

MS = 1_800_000_000_123


@pytest.mark.parametrize("entropy", [bytes(10), b"\xff" * 10, bytes(range(10))])
@pytest.mark.parametrize("ms", [0, 1, MS, 2**48 - 1])
def test_an_id_is_a_uuid_of_version_7(ms: int, entropy: bytes) -> None:
    text = uuid7(ms, entropy)
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert is_uuid7(text)
    assert created_ms(text) == ms


def test_ids_sort_by_their_time() -> None:
    made = [uuid7(ms, b"\xff" * 10) for ms in range(MS, MS + 3)]
    assert made == sorted(made)
    assert uuid7(MS, b"\xff" * 10) < uuid7(MS + 1, bytes(10))


def test_all_of_the_entropy_but_six_bits_is_kept() -> None:
    base = uuid7(MS, bytes(10))
    differ = [uuid7(MS, (1 << bit).to_bytes(10, "big")) != base for bit in range(80)]
    assert sum(differ) == 74


GOOD = uuid7(MS, bytes(range(10)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD.upper(),
        GOOD.replace("-", ""),
        "{" + GOOD + "}",
        GOOD + "\n",
        " " + GOOD,
        GOOD[:-1],
        str(uuid.UUID(int=0)),
        "018bcfe5-6800-4000-8000-000000000000",  # version 4
        "018bcfe5-6800-7000-c000-000000000000",  # another variant
        "018bcfe5-6800-7000-8000-00000000000g",
        "\u066018bcfe5-6800-7000-8000-000000000000",  # a digit (Arabic), but not one of ASCII
    ],
)
def test_other_texts_are_refused_by_the_name_of_their_field(text: str) -> None:
    assert not is_uuid7(text)
    with pytest.raises(Invalid) as caught:
        check_id(text, "parents")
    assert caught.value.field == "parents"
    assert len(caught.value.message) < 200


def test_a_good_id_is_handed_back() -> None:
    assert check_id(GOOD, "id") == GOOD


def test_a_long_text_is_not_repeated_whole() -> None:
    with pytest.raises(Invalid) as caught:
        check_id("x" * 100_000, "id")
    assert len(caught.value.message) < 200
