"""What a machine says of itself, and what becomes of it in site.toml.

The outputs of Slurm were recorded: slurm-wlm 22.05.8 of Debian 12, two emulated nodes, 2026-11. Those of PBS
and Grid Engine are synthetic, after their manuals.
"""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chappe.site import config, machine
from chappe.site.machine import Machine, Partition

SINFO = "debug*|up|1:00:00|2|2|2000|(null)\nlong|up|infinite|1|2|2000|(null)\n"
_REST = (
    "AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL QoS=N/A DisableRootJobs=NO "
    "ExclusiveUser=NO GraceTime=0 Hidden=NO"
)
SCONTROL = (
    f"PartitionName=debug {_REST} MaxNodes=UNLIMITED MaxTime=01:00:00 MinNodes=0 State=UP "
    "TotalCPUs=4 TotalNodes=2 JobDefaults=(null) TRES=cpu=4,mem=4000M,node=2,billing=4\n"
    f"PartitionName=long {_REST} MaxNodes=4 MaxTime=UNLIMITED MinNodes=0 State=UP TotalCPUs=2\n"
)
QSTAT = """Queue: workq
    queue_type = Execution
    total_jobs = 0
    resources_max.walltime = 24:00:00
    resources_max.nodect = 4
    enabled = True
    started = True

Queue: route
    queue_type = Route
    enabled = True
    started = True

Queue: shut
    queue_type = Execution
    enabled = False
    started = True

"""
QCONF = {
    "all.q": "qname          all.q\nh_rt           INFINITY\ninitial_state  default\n",
    "short.q": "qname          short.q\nh_rt           01:00:00\ninitial_state  disabled\n",
}
MOUNTS = r"""proc /proc proc rw 0 0
10.0.0.1@tcp:/work /lustre/work lustre rw 0 0
nas:/export /net/a\040b nfs4 rw 0 0
/dev/sda1 / ext4 rw 0 0
"""


def test_slurm() -> None:
    debug, long = machine.slurm(SINFO, SCONTROL)
    assert debug == Partition("debug", True, True, 2, 2, 2000, "", 0, 3600.0)
    assert long == Partition("long", False, True, 1, 2, 2000, "", 4, 0.0)
    mixed = (
        "gpu|up|2-00:00:00|2|64|256000+|gpu:a100:4(S:0-1)\ngpu|up|2-00:00:00|8|32|128000|(null)\n"
    )
    (gpu,) = machine.slurm(mixed + "old|down|1:00|1|1|1|(null)\n", "")[:1]
    assert gpu == Partition("gpu", False, True, 10, 64, 256_000, "gpu:a100:4", 0, 172_800.0)
    assert not machine.slurm("old|down|1:00|1|1|1|(null)\n", "")[0].open


def test_pbs_and_grid_engine() -> None:
    assert machine.pbs(QSTAT) == (
        Partition("workq", nodes_max=4, wall_s_max=86_400.0),
        Partition("shut", open=False),
    )
    assert machine.grid_engine(QCONF) == (
        Partition("all.q"),
        Partition("short.q", open=False, wall_s_max=3600.0),
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1-00:00:00", 86_400.0),
        ("2-12", 216_000.0),
        ("24:00:00", 86_400.0),
        ("30:00", 1800.0),
        ("infinite", 0.0),
        ("UNLIMITED", 0.0),
        ("INFINITY", 0.0),
        ("", 0.0),
        ("9999-00:00:00", 0.0),
    ],
)
def test_limits_of_time(text: str, seconds: float) -> None:
    (part,) = machine.slurm(f"p|up|{text}|1|1|1|(null)\n", "")
    assert part.wall_s_max == seconds


def test_the_surroundings() -> None:
    assert machine.shared_file_systems(MOUNTS) == (
        ("/lustre/work", "lustre"),
        ("/net/a b", "nfs4"),
    )
    assert machine.modules({"LMOD_CMD": "x", "LMOD_VERSION": "8.7"}) == "Lmod 8.7"
    assert machine.modules({"MODULESHOME": "x"}) == "environment modules"
    assert machine.modules({}) == ""
    assert machine.scratch({"SCRATCH": "/s", "HOME": "/h"}) == (("SCRATCH", "/s"),)


def test_what_was_found_stands_in_a_file_that_the_agent_reads() -> None:
    found = Machine(
        kind="slurm",
        version="22.05.8",
        partitions=machine.slurm(SINFO, SCONTROL),
        interfaces=(("ib0", "10.0.0.1"),),
        modules="Lmod 8.7",
        shared=(("/lustre/work", "lustre"),),
        scratch=(("SCRATCH", "/s"),),
    )
    text = machine.written(config.TEMPLATE, found, ("local", "slurm"))
    read = config.parse(text, "site.toml")
    assert (read.scheduler.kind, read.scheduler.queue) == ("slurm", "debug")
    assert read.scheduler.shell == "/bin/bash -l"
    assert set(read.policy.queues) == {"debug", "long"}
    assert read.policy.queues["debug"].wall_s_max == 3600.0
    assert read.policy.queues["long"].nodes_max == 4
    for remark in (
        "# ib0 has the address 10.0.0.1",
        "# debug: 2 nodes, 2 cores",
        "# $SCRATCH is /s",
    ):
        assert remark in text


@pytest.mark.parametrize("kind", ["", "pbs", "lsf"])
def test_without_an_adapter_only_remarks_are_written(kind: str) -> None:
    text = machine.written(config.TEMPLATE, Machine(kind=kind), ("local", "slurm"))
    assert tomllib.loads(text) == tomllib.loads(config.TEMPLATE)
    assert ("no adapter" in text) == bool(kind)


@given(st.text(), st.text(), st.text())
def test_whatever_a_machine_prints_the_file_can_be_read(one: str, two: str, three: str) -> None:
    machine.pbs(f"Queue: {one}\n    queue_type = Execution\n    {two}")
    machine.grid_engine({one: two})
    parts = machine.slurm(f"{one}*|up|{two}|{three}|1|1|(null)\nok|up|1|1|1|1|gpu\n{two}", three)
    found = Machine("slurm", one, parts, ((two, three),), one, ((one, two),), ((two, one),))
    text = machine.written(config.TEMPLATE, found, ("slurm",))
    assert config.parse(text, "site.toml").scheduler.kind == "slurm"
