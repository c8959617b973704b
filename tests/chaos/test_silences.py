"""Silence is not death: what happens when somebody is not heard for more than a minute (see `silences`)."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from tests.chaos.silences import SCENARIOS


@pytest.mark.timeout(400)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_silence_is_not_death(scenario: str, outcomes: dict[str, Future[None]]) -> None:
    outcomes[scenario].result()
