"""The pilot's log: lines of JSON, bounded, and never a reason to stop."""

from __future__ import annotations

from pathlib import Path

import msgspec

from chappe.pilot.log import LogFile, open_log


def test_a_line_is_a_json_object(tmp_path: Path) -> None:
    log, file = open_log(tmp_path / "pilot.log", "s1")
    log.info("begin", cores=2, path=Path("/x"))
    log.debug("nothing of this")
    file.close()
    (line,) = (tmp_path / "pilot.log").read_bytes().splitlines()
    said = msgspec.json.decode(line)
    assert (said["event"], said["session"], said["cores"], said["path"], said["level"]) == (
        "begin",
        "s1",
        2,
        "/x",
        "info",
    )


def test_it_is_bounded(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "pilot.log", limit_bytes=100)
    for k in range(30):
        file.msg(f"line {k:04}")
    file.close()
    sizes = [(tmp_path / name).stat().st_size for name in ("pilot.log", "pilot.log.1")]
    assert max(sizes) <= 100
    assert (tmp_path / "pilot.log").read_text().endswith("line 0029\n")


def test_a_full_disk_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "pilot.log")
    file.close()
    file.stream = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115 - closed below
    file.msg("lost")
    file.close()
