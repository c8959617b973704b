"""What security tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chappe.testing.hub import RunningHub, start_hub
from tests.security.victim import Victim


@pytest.fixture(scope="session")
def open_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """A Hub that attackers may write to; nobody here looks at what others made."""
    with start_hub(tmp_path_factory.mktemp("attacked") / "hub") as running:
        yield running


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory, open_hub: RunningHub) -> Iterator[Victim]:
    """A Site whose one pilot talks with a stolen Hub. It is expected to survive all of this."""
    made = Victim(tmp_path_factory.mktemp("stolen"), open_hub)
    try:
        made.start()
        yield made
    finally:
        made.close()
