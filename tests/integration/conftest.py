"""What integration tests share."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from chappe.testing.hub import RunningHub, start_hub


@pytest.fixture
def hub(tmp_path: Path) -> Generator[RunningHub, None, None]:
    """A Hub of this test's own: TLS, auth, a fresh database, a free port."""
    running = start_hub(tmp_path / "hub")
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Generator[RunningHub, None, None]:
    """A Hub that tests share which neither stop it nor look at what others made."""
    running = start_hub(tmp_path_factory.mktemp("shared") / "hub")
    try:
        yield running
    finally:
        running.stop()
