"""A full disk at the Hub: commands fail and say so, reads go on, nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import re
import resource
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from chappe.core.jobs import Envelope, JobSpec
from chappe.store import queries
from chappe.store.tx import Tx
from chappe.testing.store import PilotRig, SiteRig, StoreRig, cores, held
from tests.property.machine_check import Checker

pytestmark = pytest.mark.sqlite

Squeeze = Callable[[StoreRig], contextlib.AbstractContextManager[None]]
PADDING = Envelope(data={"padding": "x" * 8_000})


@contextlib.contextmanager
def few_pages(rig: StoreRig) -> Iterator[None]:
    """The database may not grow: SQLite answers as for a full disk (SQLITE_FULL)."""

    def limit(tx: Tx, pages: int) -> None:
        tx.conn.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    rig.do(limit, rig.sql("PRAGMA page_count")[0][0] + 20)
    yield
    rig.do(limit, 1 << 30)


@contextlib.contextmanager
def small_files(rig: StoreRig) -> Iterator[None]:
    """No file may grow: the write to the WAL fails half-way (SQLITE_IOERR), as on a disk that breaks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = Path(f"{rig.path}-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 200_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    """What is logged; nothing is printed, for tracebacks with all their locals take seconds."""
    with capture_logs() as logs:
        yield logs


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris")


@pytest.fixture
def pilot(site: SiteRig) -> PilotRig:
    return site.add_pilot()


def fill(rig: StoreRig, site: SiteRig) -> tuple[list[JobSpec], list[JobSpec]]:
    """Create until it fails, and a few times more: (acknowledged, refused)."""
    acknowledged: list[JobSpec] = []
    refused: list[JobSpec] = []
    for _ in range(500):
        batch = [rig.spec(site) for _ in range(5)]
        try:
            rig.submit(*batch, envelopes=[PADDING] * 5)
            acknowledged += batch
        except OperationalError as error:
            if not re.search("disk is full|disk I/O error", str(error)):
                raise
            refused += batch
            if len(refused) == 15:
                return acknowledged, refused
    raise AssertionError("the disk was never full")


@pytest.mark.parametrize("squeeze", [few_pages, small_files])
def test_a_full_disk(
    rig: StoreRig,
    site: SiteRig,
    pilot: PilotRig,
    squeeze: Squeeze,
    logs: list[MutableMapping[str, Any]],
) -> None:
    first = rig.spec(site)
    rig.submit(first)
    (grant,) = pilot.sync(capacity=cores(1)).grants
    checker = Checker(rig)
    with squeeze(rig):
        acknowledged, refused = fill(rig, site)
        # Reads go on, and see exactly what was acknowledged.
        assert rig.states(*acknowledged) == ["PREPROCESSED"] * len(acknowledged)
        assert sum(row[3] for row in rig.ask(queries.counts, rig.user).counts) == 1 + len(
            acknowledged
        )
        checker.check()
    # There is room again: what was refused goes through, and a pilot that waited goes on as if nothing was.
    rig.submit(*refused)
    report = pilot.start(grant)
    reply = pilot.sync(held=[held(grant)], reports=[report])
    assert [v.verdict for v in reply.verdicts] == ["applied"]
    checker.check()
    rig.restart()
    checker.check()
    assert rig.states(first, *acknowledged, *refused) == ["RUNNING"] + ["PREPROCESSED"] * (
        len(acknowledged) + len(refused)
    )
    assert rig.sql("PRAGMA integrity_check")[0][0] == "ok"
    assert {"command failed"} == {entry["event"] for entry in logs}


@pytest.mark.parametrize("squeeze", [few_pages, small_files])
def test_a_sync_that_could_not_be_stored_is_repeated_whole(
    rig: StoreRig, site: SiteRig, pilot: PilotRig, squeeze: Squeeze
) -> None:
    jobs = [rig.spec(site) for _ in range(50)]
    rig.submit(*jobs, envelopes=[PADDING] * 50)
    grants = pilot.sync(capacity=cores(50)).grants
    request = pilot.request(
        reports=[pilot.end(g, exit=1, overtakes=True, tail="x" * 4_000) for g in grants]
    )
    with squeeze(rig):
        fill(rig, site)
        with pytest.raises(OperationalError):
            pilot.send(request)
        assert rig.states(*jobs) == ["PREPROCESSED"] * 50
    reply = pilot.send(request)
    assert {v.verdict for v in reply.verdicts} == {"applied"}
    assert rig.states(*jobs) == ["FAILED"] * 50
    Checker(rig).check()
