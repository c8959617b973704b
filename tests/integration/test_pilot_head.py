"""The pilot against a real Hub: Jobs from grant to verdict, cancels, drains, crashes of head and launcher."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chappe.testing.hub import RunningHub
from tests.integration.pilot_rig import RealSite


@pytest.fixture
async def site(hub: RunningHub, tmp_path: Path) -> AsyncIterator[RealSite]:
    """A Site at a Hub of this test's own."""
    made = RealSite(tmp_path / "site", hub.url, hub.token, hub.project, hub.ca_file or None)
    await made.register()
    yield made
    await made.close()


async def test_a_job_runs_and_its_end_is_reported(site: RealSite) -> None:
    pilot = await site.session()
    await pilot.start()
    (good, bad) = await site.submit(
        [site.dir.spec("sh", text="echo hello"), site.dir.spec("sh", text="echo oh >&2; exit 3")]
    )
    view = await site.reaches(good, "JOB_FINISHED")
    assert view.attempt == 1
    assert view.outcome is not None
    assert view.outcome.usage is not None
    assert view.outcome.usage.max_rss_bytes > 0
    log = site.dir.path / "data" / "jobs" / good / "attempt-1" / "stdout.log"
    assert log.read_text() == "hello\n"
    failed = await site.reaches(bad, "FAILED")
    assert failed.outcome is not None
    assert (failed.outcome.exit, failed.outcome.tail) == (3, "oh\n")
