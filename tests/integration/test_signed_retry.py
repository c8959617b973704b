"""A retry beyond what the first signature allowed: signed anew, for bytes that this key has signed before."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.integration.sdk_rig import SITE, WITHIN_S, Place, place

SECOND_TIME = ["sh", "-c", "test $CHAPPE_ATTEMPT -gt 1"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place, None, None]:
    with place(tmp_path_factory.mktemp("signed")) as made:
        yield made


def test_a_retry_beyond_the_signed_attempts_is_signed_anew(here: Place) -> None:
    with here.client() as client:
        job = client.run(SITE, SECOND_TIME, retries=0)
        assert job.wait(WITHIN_S).state == "FAILED"
        job.retry()
        assert job.wait(WITHIN_S).state == "JOB_FINISHED"
        assert job.refresh().attempt == 2


def test_another_key_does_not_sign_for_the_first(here: Place, tmp_path: Path) -> None:
    with here.client() as client:
        job = client.run(SITE, ["false"], retries=0).wait(WITHIN_S)
    done = here.chappe("job", "retry", job.id, CHAPPE_KEY=str(tmp_path / "other"))
    assert done.returncode == 5
    assert "another key signed it" in done.stderr
