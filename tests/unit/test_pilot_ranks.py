"""Which command starts a Job's ranks, and what it is told of the nodes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chappe.core.errors import Invalid
from chappe.core.jobs import Resources
from chappe.pilot.ranks import command, spread
from chappe.pilot.session import Options

MPI = Options(
    ranks=("mpiexec", "-n", "{ranks}", "--ppn={ranks_per_node}", "-f", "{hostfile}", "{x}"),
    host_line="{node} slots={ranks}",
)


def test_ranks_are_spread_over_the_nodes_of_the_job(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    wanted = Resources(nodes=2, ranks=3)
    argv = command(["model", "{ranks}"], MPI, wanted, ["a", "b"], str(hostfile))
    assert argv[:6] == ["mpiexec", "-n", "3", "--ppn=2", "-f", str(hostfile)]
    assert argv[6:] == ["{x}", "model", "{ranks}"]  # the Job's own words are nobody's template
    assert hostfile.read_text() == "a slots=2\nb slots=1\n"


def test_a_node_without_a_name_is_this_one(tmp_path: Path) -> None:
    options = Options(ranks=("srun", "-w", "{hosts}", "-N{nodes}", "-c{threads}"))
    wanted = Resources(ranks=2, threads_per_rank=4)
    argv = command(["x"], options, wanted, [""], str(tmp_path / "hosts"))
    assert argv == ["srun", "-w", os.uname().nodename, "-N1", "-c4", "x"]


def test_one_rank_needs_no_command(tmp_path: Path) -> None:
    assert command(["x"], MPI, Resources(cores=4), [""], str(tmp_path / "hosts")) == ["x"]
    assert not (tmp_path / "hosts").exists()


def test_without_a_command_ranks_stay_on_one_node_and_start_themselves(tmp_path: Path) -> None:
    hosts = str(tmp_path / "hosts")
    assert command(["x"], Options(), Resources(ranks=4), [""], hosts) == ["x"]
    with pytest.raises(Invalid, match=r"\[pilot\] ranks"):
        command(["x"], Options(), Resources(nodes=2), ["a", "b"], hosts)


@pytest.mark.parametrize(
    ("resources", "counts"),
    [
        (Resources(nodes=2, ranks=4), [2, 2]),
        (Resources(nodes=3, ranks=4), [2, 1, 1]),
        (Resources(nodes=3, ranks=9, ranks_per_node=4), [4, 4, 1]),
        (Resources(nodes=3, ranks=3, ranks_per_node=3), [1, 1, 1]),
        (Resources(nodes=3, ranks=1), [1, 0, 0]),
    ],
)
def test_each_node_gets_its_ranks(resources: Resources, counts: list[int]) -> None:
    assert spread(resources, resources.nodes) == counts
