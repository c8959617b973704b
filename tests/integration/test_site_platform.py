"""`chappe site init --platform` on machines that are real, or that look like it."""

from __future__ import annotations

from pathlib import Path

import pytest

from chappe.site import config, machine, machine_probe
from chappe.testing.slurm import SlurmCluster
from tests.integration.test_site_service import put


def test_on_a_real_slurm(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in slurm.environ.items():
        monkeypatch.setenv(name, value)
    found = machine_probe.look()
    assert found.kind == "slurm"
    assert found.version
    default = next(part for part in found.partitions if part.default)
    assert (default.name, default.wall_s_max) == ("debug", 3600.0)
    text = machine.written(config.TEMPLATE, found, ("slurm",))
    assert config.parse(text, "site.toml").scheduler.queue == "debug"


def test_on_a_machine_with_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine_probe.look().kind == ""


def test_commands_that_fail_or_print_nonsense_are_facts_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    put(tmp_path, "sinfo", "#!/bin/sh\nprintf '\\377\\000|||\\n'\n")
    put(tmp_path, "sbatch", "#!/bin/sh\n")
    put(tmp_path, "scontrol", "#!/bin/sh\nexit 1\n")
    found = machine_probe.look()
    assert (found.kind, found.partitions) == ("slurm", ())
    put(tmp_path, "qconf", "#!/bin/sh\necho all.q\n")
    put(tmp_path, "qsub", "#!/bin/sh\n")
    (tmp_path / "sinfo").unlink()
    found = machine_probe.look()
    assert (found.kind, [part.name for part in found.partitions]) == ("gridengine", ["all.q"])
