"""What security tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chappe.testing.hub import RunningHub, start_hub


@pytest.fixture(scope="session")
def open_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """A Hub that attackers may write to; nobody here looks at what others made."""
    with start_hub(tmp_path_factory.mktemp("attacked") / "hub") as running:
        yield running
