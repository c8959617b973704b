"""Which command starts a Job's ranks, and what it is told of the nodes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from chappe.core.errors import Invalid
from chappe.core.jobs import Resources
from chappe.core.shapes import gpu_parts
from chappe.pilot.hosts import HostsOptions
from chappe.pilot.nodes import Need
from chappe.pilot.placement import Placement, Slot
from chappe.pilot.ranks import Starter, spread
from chappe.pilot.session import LaunchOptions, Options, Session
from chappe.testing.nodes import big, plain

MPI = Options(
    ranks=("mpiexec", "-n", "{ranks}", "--ppn={ranks_per_node}", "-f", "{hostfile}", "{x}"),
    host_line="{node} slots={ranks}",
)


def session(options: Options, hosts: HostsOptions | None = None) -> Session:
    hosts = hosts or HostsOptions()
    return Session("s", "p", "x", "paris", "http://h", "/site", options=options, hosts=hosts)


def slot(*names: str, resources: Resources | None = None) -> Slot:
    r = resources or Resources()
    placed = Placement([big(name=name) if r.gpus else plain(range(4), name=name) for name in names])
    taken = placed.take(Need(r.node_cores, 0, gpu_parts(r.gpus), len(names)))
    assert taken is not None
    return taken


def command(
    argv: list[str], options: Options, wanted: Resources, names: list[str], hostfile: str
) -> list[str]:
    place = slot(*names, resources=wanted)
    return Starter(session(options)).start(argv, {}, wanted, place, hostfile)[0]


def test_ranks_are_spread_over_the_nodes_of_the_job(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    wanted = Resources(nodes=2, ranks=3)
    argv = command(["model", "{ranks}"], MPI, wanted, ["a", "b"], str(hostfile))
    assert argv[:6] == ["mpiexec", "-n", "3", "--ppn=2", "-f", str(hostfile)]
    assert argv[6:] == ["{x}", "model", "{ranks}"]  # the Job's own words are nobody's template
    assert hostfile.read_text() == "a slots=2\nb slots=1\n"


def test_a_node_without_a_name_is_this_one(tmp_path: Path) -> None:
    options = Options(ranks=("srun", "-w", "{hosts}", "-N{nodes}", "-c{threads}"))
    wanted = Resources(ranks=2, threads_per_rank=2)
    argv = command(["x"], options, wanted, [""], str(tmp_path / "hosts"))
    assert argv == ["srun", "-w", os.uname().nodename, "-N1", "-c2", "x"]


def test_one_rank_needs_no_command(tmp_path: Path) -> None:
    assert command(["x"], MPI, Resources(cores=4), [""], str(tmp_path / "hosts")) == ["x"]
    assert not (tmp_path / "hosts").exists()


def test_without_a_launcher_ranks_stay_on_one_node_and_start_themselves(tmp_path: Path) -> None:
    hosts = str(tmp_path / "hosts")
    assert command(["x"], Options(), Resources(ranks=4), [""], hosts) == ["x"]
    with pytest.raises(Invalid, match=r"\[launch\] ranks"):
        command(["x"], Options(), Resources(nodes=2), ["a", "b"], hosts)


def test_a_launcher_of_an_unknown_name_is_refused_with_the_names_that_there_are() -> None:
    options = Options(launch=LaunchOptions(ranks="mpirun"))
    with pytest.raises(Invalid, match="it is one of auto, srun, openmpi"):
        command(["x"], options, Resources(ranks=2), [""], "/nowhere")


def test_what_the_allocation_says_reaches_the_launcher_and_nothing_else_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_JWT", "SECRET"):
        monkeypatch.setenv(name, "7")
    starter = Starter(session(Options(launch=LaunchOptions(ranks="srun"))))
    wanted = Resources(nodes=2, ranks=2)
    hostfile = str(tmp_path / "hosts")
    argv, env = starter.start(["x"], {"A": "1"}, wanted, slot("a", "b"), hostfile)
    assert env == {"SLURM_JOB_ID": "7", "A": "1"}
    # It would bear the name of the node that srun runs on.
    assert argv[-4:] == ["env", "-u", "CHAPPE_NODE", "x"]


def test_a_job_finds_on_each_of_its_nodes_the_gpus_that_it_has_there(tmp_path: Path) -> None:
    emulated = HostsOptions(kind="emulated", nodes=2)
    options = Options(launch=LaunchOptions(ranks="openmpi"))
    wanted = Resources(nodes=2, ranks=2, gpus=1)
    place = slot("a", "b.cluster", resources=wanted)
    place.shares[1] = place.shares[1]._replace(gpus={"gpu3": 100})
    starter = Starter(session(options, emulated))
    argv, _ = starter.start(["printenv"], {}, wanted, place, str(tmp_path / "hosts"))
    assert "CUDA_VISIBLE_DEVICES" not in argv
    at = argv.index("/bin/sh")
    for node, gpu in (("a", "gpu0"), ("b.cluster", "gpu3"), ("b", "gpu3")):
        env = {"CHAPPE_NODE": node, "CUDA_VISIBLE_DEVICES": "wrong"}
        said = subprocess.run(
            [*argv[at:], "CUDA_VISIBLE_DEVICES"], env=env, capture_output=True, check=True
        )
        assert said.stdout.decode() == f"{gpu}\n"


@pytest.mark.parametrize(("cores", "bound"), [(4, "core"), (2, "none")])
def test_ranks_are_bound_only_where_the_job_has_whole_nodes(
    cores: int, bound: str, tmp_path: Path
) -> None:
    options = Options(launch=LaunchOptions(ranks="openmpi", binding="core"))
    wanted = Resources(ranks=2, cores=cores)
    argv = command(["x"], options, wanted, ["a"], str(tmp_path / "hosts"))
    assert argv[argv.index("--bind-to") + 1] == bound


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
