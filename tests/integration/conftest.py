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
