"""Launchers as functions: from a request to a command, from last words to what went wrong."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

import pytest

from chappe.core.errors import Invalid
from chappe.pilot.launchers import LAUNCHERS
from chappe.pilot.launchers.allocation import Found, expand, nodes
from chappe.pilot.launchers.base import Failure, HandRequest, Launch, Ranks, version_of
from chappe.pilot.launchers.choose import Machine, for_hands, for_ranks, kind_of_mpiexec

EVEN = Ranks("PROGRAM", ["model", "-x"], ["a", "b"], [2, 2], hostfile="/job/hosts")
UNEVEN = EVEN._replace(counts=[3, 1])


def launch(name: str, request: Ranks) -> Launch:
    ranks = LAUNCHERS[name].ranks
    assert ranks is not None
    return ranks(request)


def hand(name: str) -> list[str]:
    start = LAUNCHERS[name].hand
    assert start is not None
    return start(HandRequest("PROGRAM", "b", 3, ["py", "a b"], {"CHAPPE_SESSION": "s 1"}))


STARTING = [name for name, launcher in LAUNCHERS.items() if launcher.ranks and launcher.programs]


@pytest.mark.parametrize("name", STARTING)
def test_every_launcher_starts_the_command_unchanged_with_the_owner_s_words_before_it(
    name: str,
) -> None:
    request = EVEN._replace(argv=["model", "{count} $x", ""], extra=["--mine"])
    argv = launch(name, request).argv
    assert argv[0] == "PROGRAM"
    assert argv[-4:] == ["--mine", "model", "{count} $x", ""]


def options(argv: Sequence[str]) -> str:
    return " ".join(argv)


def test_srun_names_its_nodes_and_shares_them_with_the_hands() -> None:
    made = launch("srun", EVEN._replace(threads=4, gpus=2, binding="core"))
    assert options(made.argv) == (
        "PROGRAM --nodes=2 --ntasks=4 --kill-on-bad-exit=1 --nodelist=a,b --ntasks-per-node=2 "
        "--cpus-per-task=4 --cpu-bind=cores --gpus-per-node=2 --overlap --export=ALL model -x"
    )
    assert not made.hostfile
    assert "--overlap" not in launch("srun", EVEN._replace(version=(20, 2))).argv
    assert "--overlap" in hand("srun")


def test_srun_is_told_of_uneven_ranks_one_by_one() -> None:
    made = launch("srun", UNEVEN)
    assert "--distribution=arbitrary" in made.argv
    assert made.hostfile == "a\na\na\nb\n"
    assert made.env == {"SLURM_HOSTFILE": "/job/hosts"}


def test_open_mpi_gets_a_host_file_and_the_names_of_variables() -> None:
    made = launch("openmpi", UNEVEN._replace(env=["A", "B"], threads=2, binding="core", root=True))
    assert made.hostfile == "a slots=3\nb slots=1\n"
    assert options(made.argv) == (
        "PROGRAM --hostfile /job/hosts -n 4 --map-by slot:PE=2 --bind-to core --allow-run-as-root "
        "-x A -x B model -x"
    )


@pytest.mark.parametrize("version", [(4, 1, 4), (5, 0, 3)])
def test_open_mpi_reaches_emulated_nodes_by_an_agent_that_it_can_cut_into_words(
    version: tuple[int, ...],
) -> None:
    argv = launch("openmpi", EVEN._replace(emulated=True, version=version)).argv
    agent = next(word for word in argv if "CHAPPE_NODE" in word)
    command = [*agent.split(" "), "n1", 'printf "%s|" $CHAPPE_NODE', "'a b'"]
    ran = subprocess.run(command, capture_output=True, check=True)
    assert ran.stdout.decode() == "n1|a b|"
    assert ("--prtemca" in argv) == (version >= (5,))


def test_hydra_and_intel_mpi_get_counts_in_their_host_file() -> None:
    for name in ("hydra", "intelmpi"):
        assert launch(name, UNEVEN).hostfile == "a:3\nb:1\n"
    assert "core:2" in launch("hydra", EVEN._replace(threads=2, binding="core")).argv
    pinned = options(launch("intelmpi", EVEN._replace(threads=2, binding="core")).argv)
    assert "-genv I_MPI_PIN_DOMAIN 2" in pinned


def test_pals_gives_all_nodes_but_the_last_the_same() -> None:
    made = launch("pals", EVEN._replace(hosts=["a", "b", "c"], counts=[2, 2, 1], threads=3))
    assert "-n 5 --ppn 2 --hosts a,b,c --envall --depth 3" in options(made.argv)
    with pytest.raises(Invalid, match="ranks_per_node"):
        launch("pals", EVEN._replace(counts=[1, 2]))


def test_jsrun_is_told_the_host_and_the_cores_of_each_rank() -> None:
    lines = launch("jsrun", UNEVEN._replace(threads=2, gpus=1)).hostfile.splitlines()
    assert [line for line in lines if line.startswith("rank")] == [
        "rank: 0: { hostname: a ; cpu: {0-1} ; gpu: {0-0} } : app 0",
        "rank: 1: { hostname: a ; cpu: {2-3} ; gpu: {0-0} } : app 0",
        "rank: 2: { hostname: a ; cpu: {4-5} ; gpu: {0-0} } : app 0",
        "rank: 3: { hostname: b ; cpu: {0-1} ; gpu: {0-0} } : app 0",
    ]


def test_flux_wants_the_same_everywhere() -> None:
    made = launch("flux", EVEN._replace(threads=2, gpus=2))
    assert "--cores-per-task=2 --requires=hosts:a,b --gpus-per-task=1" in options(made.argv)
    with pytest.raises(Invalid, match="the same number"):
        launch("flux", UNEVEN)


def test_what_takes_no_variables_along_gets_them_in_its_words() -> None:
    line = hand("ssh")[-1]
    assert shlex.split(line) == ["exec", "env", "CHAPPE_SESSION=s 1", "py", "a b"]
    assert hand("pbsdsh") == ["PROGRAM", "-n", "3", "--", "env", "CHAPPE_SESSION=s 1", "py", "a b"]
    assert hand("flux") == ["PROGRAM", "exec", "--rank=3", "py", "a b"]


@pytest.mark.parametrize(
    ("name", "text", "failure"),
    [
        # Open MPI 4.1.4, recorded here.
        (
            "openmpi",
            "mpiexec noticed that process rank 1 with PID 30372 on node n0 exited on signal 9 (Killed).",
            Failure(1, signal=9, node="n0"),
        ),
        (
            "openmpi",
            "the job to be terminated. The first process to do so was:\n\n"
            "  Process name: [[7152,1],2]\n  Exit code:    3\n",
            Failure(2, exit=3),
        ),
        (
            "openmpi",
            "ORTE has lost communication with a remote daemon.\n\n  HNP daemon   : [[5290,0],0] on node vm\n"
            "  Remote daemon: [[5290,0],2] on node n1\n",
            Failure(node="n1", lost=True),
        ),
        # The others are synthetic, after their documentation.
        ("srun", "srun: error: n1: task 3: Killed\n", Failure(3, signal=9, node="n1")),
        (
            "srun",
            "srun: error: n1: tasks 2-3: Exited with exit code 4\n",
            Failure(2, exit=4, node="n1"),
        ),
        ("srun", "srun: error: Node failure on n2\n", Failure(node="n2", lost=True)),
        (
            "hydra",
            "=   PID 4242 RUNNING AT n1\n=   EXIT CODE: 9\n"
            "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)\n",
            Failure(signal=9, node="n1"),
        ),
        (
            "intelmpi",
            "=   RANK 1 PID 42 RUNNING AT n1\n=   KILLED BY SIGNAL: 9 (Killed)\n",
            Failure(signal=9, node="n1"),
        ),
        ("pals", "x1000: rank 3 died from signal 11\n", Failure(3, signal=11, node="x1000")),
        ("flux", "flux-job: task(s) 3 exited with exit code 137\n", Failure(3, signal=9)),
    ],
)
def test_last_words_tell_which_rank_died_of_what(name: str, text: str, failure: Failure) -> None:
    found = LAUNCHERS[name].failure(f"noise\n{text}")
    assert found == failure
    assert failure.words()


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("text", ["", "rank 1 is happy\n", "Killed\n" * 100])
def test_other_words_tell_nothing(name: str, text: str) -> None:
    assert LAUNCHERS[name].failure(text) is None


def test_slurm_s_short_names_are_written_out() -> None:
    assert expand("n[01-03,7],m5") == ["n01", "n02", "n03", "n7", "m5"]
    assert expand("r[1-2]n[8-9]") == ["r1n8", "r1n9", "r2n8", "r2n9"]
    for wrong in ("n[1-", "n[a-b]", "n[1-999999999]", "n]1["):
        with pytest.raises(Invalid, match="cannot be understood"):
            expand(wrong)


def test_each_scheduler_names_the_nodes_in_its_own_way() -> None:
    files = {
        "/pbs": "a\na\nb\n",
        "/sge": "a 2 q@a UNDEFINED\nb 2 q@b <NULL>\n",
        "/lsf": "a\na\nb\nb\n",
    }
    two = [Found("a", 0), Found("b", 2)]
    assert nodes({"PBS_NODEFILE": "/pbs"}, files.__getitem__) == two
    assert nodes({"LSB_DJOB_HOSTFILE": "/lsf"}, files.__getitem__) == two
    assert [n.name for n in nodes({"PE_HOSTFILE": "/sge"}, files.__getitem__)] == ["a", "b"]
    slurm = {"SLURM_JOB_NODELIST": "n[1-2]"}
    assert nodes(slurm, files.__getitem__) == [Found("n1", 0), Found("n2", 1)]
    assert nodes({}, files.__getitem__) == []


def machine(*programs: str, said: str = "", **environ: str) -> Machine:
    return Machine(
        environ, lambda name: f"/bin/{name}" if name in programs else None, lambda _: said
    )


OPEN_MPI = "mpiexec (OpenRTE) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/\n"


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (machine("srun", "mpiexec", said=OPEN_MPI, SLURM_JOB_ID="1"), "srun"),
        (machine("srun", "mpiexec", said=OPEN_MPI), "openmpi"),
        (machine("jsrun", "mpiexec", said=OPEN_MPI, LSB_JOBID="1"), "jsrun"),
        (machine("flux", FLUX_URI="local://x"), "flux"),
        (machine("mpiexec", "palstat", PBS_JOBID="1"), "pals"),
        (machine("mpiexec", said="HYDRA build details:\n    Version: 4.0.2"), "hydra"),
        (
            machine("mpiexec", said="Intel(R) MPI Library for Linux* OS, Version 2021.9"),
            "intelmpi",
        ),
        (machine("mpiexec", said="something new"), "fork"),
        (machine(), "fork"),
    ],
)
def test_ranks_are_started_by_what_is_there(found: Machine, name: str) -> None:
    chosen = for_ranks("auto", found)
    assert chosen.launcher.name == name
    assert chosen.why


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (machine("srun", "ssh", said="slurm 22.05.8", SLURM_JOB_ID="1"), "srun"),
        (machine("pbsdsh", "ssh", PBS_JOBID="1"), "pbsdsh"),
        (machine("flux", "ssh", FLUX_URI="x"), "flux"),
        (machine("ssh"), "ssh"),
        (machine(), "ssh"),
    ],
)
def test_hands_are_started_by_what_is_there(found: Machine, name: str) -> None:
    assert for_hands("auto", found).launcher.name == name


def test_the_owner_s_word_counts_and_a_missing_command_is_said() -> None:
    assert "not in PATH" in for_ranks("hydra", machine()).why
    assert for_ranks("srun", machine("srun", said="slurm 22.05.8")).version == (22, 5, 8)
    with pytest.raises(Invalid, match=r"no launcher 'mpirun'") as caught:
        for_ranks("mpirun", machine())
    assert caught.value.field == "[launch] ranks"


def test_versions_and_kinds_are_read_from_what_commands_print() -> None:
    assert version_of(OPEN_MPI) == (4, 1, 4)
    assert version_of("none") == ()
    assert kind_of_mpiexec("mpirun (Open MPI) 5.0.3") == "openmpi"
    assert kind_of_mpiexec("") == ""
