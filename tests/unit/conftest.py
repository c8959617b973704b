"""What unit tests of the store share: a real store, where writing costs nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from chappe.testing.place import Place, PostgresPlace, SqlitePlace
from chappe.testing.store import StoreRig

#: A directory in memory, where there is one: the disk is not what is tested, and its fsyncs take longest.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108


@pytest.fixture
def memory() -> Generator[Path, None, None]:
    """An empty directory, in memory where possible."""
    with tempfile.TemporaryDirectory(prefix="chappe-test-", dir=MEMORY) as directory:
        yield Path(directory)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of the store run on both databases, unless they are marked as being about SQLite."""
    if "place" not in metafunc.fixturenames:
        return
    of_the_store = metafunc.module.__name__.rpartition(".")[2].startswith("test_store_")
    both = of_the_store and not metafunc.definition.get_closest_marker("sqlite")
    metafunc.parametrize("place", ["sqlite", "postgresql"] if both else ["sqlite"], indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest, memory: Path) -> Place:
    """Where the store is."""
    if request.param == "sqlite":
        return SqlitePlace(memory / "hub.db")
    return PostgresPlace(request.getfixturevalue("databases"), memory / "data")


@pytest.fixture
def rig(place: Place) -> Generator[StoreRig, None, None]:
    """An open store with its owner, and no Site."""
    with StoreRig(place) as rig:
        yield rig
