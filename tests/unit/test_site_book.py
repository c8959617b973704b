"""The book of BatchJobs: the fold of its entries, safe from crashes and damage."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from chappe.link.clock import new_id
from chappe.site import book as book_module
from chappe.site.batch import BatchJobs
from chappe.site.book import (
    Accepted,
    Book,
    Buried,
    CancelAsked,
    Entry,
    Forgotten,
    Intended,
    Registered,
    Said,
    Submitted,
    Unknown,
    Wanted,
)
from chappe.site.config import SiteConfig
from chappe.site.elastic import Elastic
from chappe.site.paths import SitePaths
from chappe.site.schedulers.base import Phase
from chappe.site.wakeup import Wakeups
from chappe.wire.sites import BatchJobIntent


def life(ident: str) -> list[Entry]:
    return [
        Wanted(ident, BatchJobIntent(), new_id(), kept=True, at=1.0),
        Registered(ident),
        Intended(ident),
        Submitted(ident, "77"),
        Said(ident, Phase.RUNNING, "", 2.0),
        Accepted(ident, "running"),
        Said(ident, Phase.FAILED, "killed", 3.0),
        Buried(ident),
    ]


def test_the_state_for_the_hub_after_each_entry(tmp_path: Path) -> None:
    ident = new_id()
    book = Book(tmp_path / "book")
    states = []
    for entry in life(ident):
        book.add(entry)
        states.append(book.batches[ident].state)
    # The end is reported only when the dead pilot is buried.
    assert states == [
        "requested",
        "requested",
        "requested",
        "submitted",
        "running",
        "running",
        "running",
        "failed",
    ]
    book.close()


def test_a_reopened_book_says_the_same_wherever_it_was_cut(tmp_path: Path) -> None:
    ident = new_id()
    entries = life(ident)
    for length in range(1, len(entries) + 1):
        path = tmp_path / f"book-{length}"
        book = Book(path)
        for entry in entries[:length]:
            book.add(entry)
        before = book.batches[ident]
        book.close()
        with path.open("ab") as f:
            f.write(b"\x05\x00\x00")  # a torn tail
        again = Book(path)
        assert again.batches[ident] == before
        again.close()


def test_what_is_over_and_reported_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "book"
    book = Book(path)
    kept = new_id()
    book.add(Wanted(kept, BatchJobIntent(), new_id(), kept=False, at=1.0), CancelAsked(kept))
    for _ in range(600):
        ident = new_id()
        book.add(*life(ident), Forgotten(ident))
    assert list(book.batches) == [kept]
    assert path.stat().st_size < 400_000
    book.close()
    again = Book(path)
    assert list(again.batches) == [kept]
    assert again.batches[kept].cancel
    again.close()


def test_what_is_over_is_remembered_for_a_hub_that_asks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book_module, "OVER_MOST", 3)
    path = tmp_path / "book"
    book = Book(path)
    idents = [new_id() for _ in range(5)]
    for ident, state in zip(
        idents, ("ended", "failed", "cancelled", "ended", "failed"), strict=True
    ):
        book.add(*life(ident), Forgotten(ident, state))
    book.close()
    again = Book(path)
    assert not again.batches
    assert again.over == {idents[2]: "cancelled", idents[3]: "ended", idents[4]: "failed"}
    again.close()


def test_a_session_that_the_hub_forgot_is_to_be_registered_again(tmp_path: Path) -> None:
    path = tmp_path / "book"
    book = Book(path)
    ident = new_id()
    book.add(*life(ident)[:6])
    entries = len(book.batches[ident].entries)
    for _ in range(5):
        book.add(Unknown(ident))
        assert (book.batches[ident].registered, book.batches[ident].accepted) == (
            False,
            "requested",
        )
        book.add(Registered(ident))
    assert len(book.batches[ident].entries) < entries, "however often, it grows no longer"
    before = book.batches[ident]
    assert before.registered
    book.close()
    again = Book(path)
    assert again.batches[ident] == before
    again.close()


def test_a_session_is_named_also_while_it_is_registered_again(tmp_path: Path) -> None:
    """Or a restored hub would think that it knows all, and grant again what runs there."""
    book = Book(tmp_path / "book")
    jobs = BatchJobs(
        SitePaths.of(tmp_path), cast(SiteConfig, None), book, cast(Elastic, None), Wakeups()
    )
    ident = new_id()
    book.add(*life(ident)[:6])
    session = book.batches[ident].session
    assert jobs.sessions() == [session]
    jobs.unknown([session])
    assert not book.batches[ident].registered
    assert jobs.sessions() == [session]
    jobs.unknown([session])
    assert sum(isinstance(e, Unknown) for e in book.batches[ident].entries) <= 1
    book.add(Said(ident, Phase.FAILED, "killed", 3.0))
    assert jobs.sessions() == []
    book.close()


def test_after_damage_what_may_have_been_submitted_counts_as_intended(tmp_path: Path) -> None:
    ident = new_id()
    path = tmp_path / "book"
    book = Book(path)
    book.add(*life(ident)[:2])
    size = path.stat().st_size
    book.add(*life(ident)[2:4])
    book.close()
    data = bytearray(path.read_bytes())
    data[size + 20] ^= 0xFF
    path.write_bytes(data)
    again = Book(path)
    assert again.batches[ident].registered
    assert again.batches[ident].intended, "or it would be submitted without looking for it first"
    assert again.batches[ident].scheduler_id is None
    again.close()
    assert len(list(tmp_path.glob("book.corrupt-*"))) == 1
