"""The hub cuts behind the newest backup that is whole and of its own incarnation, or not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from chappe.core.errors import Invalid
from chappe.hub.main import HubOptions, _retention
from chappe.hub.retention import Retention, newest, retain
from chappe.hub.state import Hub
from chappe.link.clock import boottime
from chappe.store.backup import Manifest, backups_of, manifest_path
from chappe.testing.store import StoreRig
from tests.unit.test_store_retention import done, head, seqs

DAY_S = 86_400.0


def backup(rig: StoreRig, file: Path) -> Manifest:
    return backups_of(rig.store.url).backup(file, rig.clock())


def cut(rig: StoreRig, directory: Path) -> list[str]:
    """Retention of one day; what was logged."""

    async def run() -> None:
        hub = Hub(rig.store, rig.clock, boottime)
        hub.start()
        try:
            await retain(hub, Retention(DAY_S, directory))
        finally:
            hub.stop()
            hub.close()

    with capture_logs() as logs:
        asyncio.run(run())
    return [entry["event"] for entry in logs]


def test_without_a_backup_nothing_is_cut(rig: StoreRig, tmp_path: Path) -> None:
    done(rig.add_site("paris").add_pilot())
    rig.clock.advance(10 * DAY_S)
    before = seqs(rig)
    assert cut(rig, tmp_path) == ["nothing is cut: no backup holds it"]
    assert seqs(rig) == before


def test_the_cut_is_behind_the_newest_backup(rig: StoreRig, tmp_path: Path) -> None:
    pilot = rig.add_site("paris").add_pilot()
    done(pilot)
    backup(rig, tmp_path / "a")
    done(pilot)
    held = head(rig)
    backup(rig, tmp_path / "b")
    done(pilot)
    rig.clock.advance(10 * DAY_S)
    assert cut(rig, tmp_path) == ["events cut"]
    assert seqs(rig)[0] == held + 1


def test_a_damaged_backup_is_passed_over(rig: StoreRig, tmp_path: Path) -> None:
    pilot = rig.add_site("paris").add_pilot()
    done(pilot)
    held = head(rig)
    good = backup(rig, tmp_path / "a")
    done(pilot)
    backup(rig, tmp_path / "b")
    data = bytearray((tmp_path / "b").read_bytes())
    data[1000] ^= 1
    (tmp_path / "b").write_bytes(data)
    (tmp_path / "c.manifest").write_bytes(b"nonsense")
    assert newest(tmp_path, 1) == good
    rig.clock.advance(10 * DAY_S)
    assert "a backup cannot be used" in cut(rig, tmp_path)
    assert seqs(rig)[0] == held + 1


def test_a_backup_of_another_incarnation_holds_another_past(rig: StoreRig, tmp_path: Path) -> None:
    done(rig.add_site("paris").add_pilot())
    made = backup(rig, tmp_path / "a")
    rig.do(lambda tx: tx.renumber(2))
    rig.clock.advance(10 * DAY_S)
    before = seqs(rig)
    assert cut(rig, tmp_path) == ["nothing is cut: no backup holds it"]
    assert seqs(rig) == before
    later = msgspec.structs.replace(made, incarnation=2, sha256="0" * 64)
    manifest_path(tmp_path / "a").write_bytes(msgspec.json.encode(later))
    assert newest(tmp_path, 2) is None


@pytest.mark.parametrize(("days", "backups"), [(-1.0, Path("x")), (1.0, None)])
def test_a_rule_without_backups_is_refused(days: float, backups: Path | None) -> None:
    with pytest.raises(Invalid):
        _retention(HubOptions(Path("data"), keep_days=days, backups=backups))
    assert _retention(HubOptions(Path("data"), backups=backups)) is None
