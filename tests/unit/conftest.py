"""What unit tests of the store share: a real store, where writing costs nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from chappe.testing.store import StoreRig

#: A directory in memory, where there is one: the disk is not what is tested, and its fsyncs take longest.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108


@pytest.fixture
def memory() -> Generator[Path, None, None]:
    """An empty directory, in memory where possible."""
    with tempfile.TemporaryDirectory(prefix="chappe-test-", dir=MEMORY) as directory:
        yield Path(directory)


@pytest.fixture
def rig(memory: Path) -> Generator[StoreRig, None, None]:
    """An open store with its owner, and no Site."""
    with StoreRig(memory / "hub.db") as rig:
        yield rig
