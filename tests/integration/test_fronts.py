"""The commands of batch systems against a real Hub and a real Site: scripts and orchestrators as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from unittest import mock

import pytest

from chappe.cli import fronts
from tests.integration import sdk_rig
from tests.integration.sdk_rig import WITHIN_S, Place, Said

#: Somebody's own, written for Slurm. It knows nothing of Chappe.
ORCHESTRATOR = r"""
import json, re, subprocess, time

def run(*argv):
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

def submit(*argv):
    return re.fullmatch(r"Submitted batch job (\d+)\n", run("sbatch", *argv))[1]

cases = {submit("-J", f"case{n}", "--output=case%x.log", "case.sh", str(n)): n for n in (0, 1, 2)}
after = submit("--dependency=afterany:" + ":".join(cases), "--wrap", "cat case*.log > all.log")
endless = run("sbatch", "--parsable", "--wrap", "sleep 1000").strip()
while endless in run("squeue", "-h", "-t", "PD", "-o", "%i").split():
    time.sleep(0.1)
run("scancel", endless)
states = {}
everything = [*cases, after, endless]
while len(states) < len(everything):
    time.sleep(0.1)
    for line in run("squeue", "-h", "-t", "all", "-j", ",".join(everything), "-o", "%i %T").splitlines():
        job, state = line.split()
        if state not in ("PENDING", "RUNNING", "COMPLETING"):
            states[job] = state
print(json.dumps([states[job] for job in everything]))
"""
CASE = """#!/bin/bash
#SBATCH --ntasks=1 --time=00:10:00   # ten minutes
#SBATCH --mem=64M
echo "case $1 of $SLURM_JOB_NAME in $(pwd -P)"
exit $1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place, None, None]:
    with sdk_rig.place(tmp_path_factory.mktemp("fronts")) as made:
        yield made


class Shell:
    """A directory in which somebody types the commands of batch systems."""

    def __init__(self, place: Place, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.place = place
        self.directory = directory
        self._capsys = capsys

    def __call__(self, name: str, *argv: str, **environ: str) -> Said:
        """Run one command in this process: starting a Python takes longer than most of them."""
        old = os.getcwd()
        os.chdir(self.directory)
        self._capsys.readouterr()
        try:
            with (
                mock.patch.dict(os.environ, {**self.place.environment, **environ}),
                mock.patch.object(sys, "argv", [name, *argv]),
            ):
                os.environ.pop("CHAPPE_SITE", None)
                with pytest.raises(SystemExit) as ended:
                    getattr(fronts, name)()
        finally:
            os.chdir(old)
        printed = self._capsys.readouterr()
        return Said(int(ended.value.code or 0), printed.out, printed.err)

    def submit(self, *argv: str) -> str:
        """The number of a job."""
        done = self("sbatch", "--parsable", *argv)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def finished(self, *argv: str) -> Said:
        """Submit and wait."""
        return self("sbatch", "--wait", *argv)


@pytest.fixture
def shell(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(place, tmp_path, capsys)


def test_an_orchestrator_that_knows_slurm_runs_as_it_is(place: Place, tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sbatch", "squeue", "scancel"):
        (commands / name).write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -m chappe.cli.fronts {name} "$@"\n'
        )
        (commands / name).chmod(0o755)
    (tmp_path / "case.sh").write_text(CASE)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("CHAPPE_")}
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", ORCHESTRATOR],
        cwd=tmp_path,
        env=inherited | place.environment | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=2 * WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["COMPLETED", "FAILED", "FAILED", "COMPLETED", "CANCELLED"]
    here = tmp_path.resolve()
    expected = [f"case {n} of case{n} in {here}" for n in (0, 1, 2)]
    assert (tmp_path / "all.log").read_text().splitlines() == expected


def test_what_is_in_a_flag_is_never_read_as_shell(shell: Shell, tmp_path: Path) -> None:
    evil = 'x\'; touch pwned; echo "$(touch pwned)" `touch pwned`\n#SBATCH --array=1-9\n'
    inner = tmp_path / evil.replace("/", "_")
    inner.mkdir()
    (tmp_path / "job.sh").write_text(
        '#!/bin/sh\nprintf "%s|" "$@" "$VALUE" "$SLURM_JOB_NAME" "$PWD" > "$1"\n'
    )
    out = tmp_path / "args"
    done = shell.finished(
        *("-J", evil, "-D", str(inner), "-o", f"{evil}.%j", "-e", f"{evil}.err", "-A", evil),
        *("-p", evil, f"--export=VALUE={evil.replace(',', '')}", "--comment", evil),
        *(str(tmp_path / "job.sh"), str(out), evil),
    )
    assert done.returncode == 0, done.stderr
    words = out.read_text().split("|")
    assert words[1] == words[3] == evil
    assert words[2] == evil.strip()
    assert words[4] == str(inner)
    assert not list(tmp_path.rglob("pwned"))
    listed = shell("squeue", "-t", "all", "-h", "-o", "%P|%a|%j", "-p", "nothing like it")
    assert (listed.returncode, listed.stdout) == (0, "")


def test_an_array_its_outputs_its_limit_and_its_tasks(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "task.sh").write_text(
        "#!/bin/sh\n#SBATCH -a 1-4%2 -o task-%A_%2a.txt\necho $SLURM_ARRAY_TASK_ID $SLURM_JOB_ID $CASE\n"
    )
    done = shell("sbatch", "task.sh", CASE="7")
    number = done.stdout.split()[-1]
    # A job that waits for all of it.
    assert shell.finished("-d", f"afterok:{number}", "--wrap", "true").returncode == 0
    for i in (1, 2, 3, 4):
        text = (tmp_path / f"task-{number}_{i:02}.txt").read_text()
        assert text == f"{i} {number}_{i} 7\n"
    one = shell("squeue", "-h", "-t", "all", "-j", f"{number}_3", "-o", "%i %F %K %T")
    assert one.stdout == f"{number}_3 {number} 3 COMPLETED\n"
    endless = shell.submit("-a", "1-3", "-n", "50000", "--wrap", "sleep 1000")
    assert shell("squeue", "-h", "-o", "%i").stdout.split() == [f"{endless}_[1-3]"]
    assert shell("scancel", f"{endless}_2").returncode == 0
    assert shell("squeue", "-h", "-j", endless, "-o", "%K").stdout == "1,3\n"
    # Conditions mean one's own jobs, unless somebody is named.
    assert shell("scancel", "-t", "PENDING", LOGNAME="somebody").returncode == 0
    assert shell("squeue", "-h", "-j", endless, "-o", "%K").stdout == "1,3\n"
    assert shell("scancel", "-t", "PENDING").returncode == 0
    assert shell("squeue", "-h").stdout == ""
    assert shell("squeue", "-h", "-j", endless).returncode == 0


def test_what_slurm_says_of_mistakes(shell: Shell, tmp_path: Path) -> None:
    for name, argv, says in (
        ("squeue", ("-j", "5"), "Invalid job id specified"),
        ("scancel", ("5",), "Invalid job id specified"),
        ("scancel", (), "No job identification"),
        ("sbatch", ("gone.sh",), "Unable to open file gone.sh"),
        ("sbatch", ("-d", "afterok:5", "--wrap", "true"), "Job dependency problem"),
        ("sbatch", ("-M", "lyon", "--wrap", "true"), "no site 'lyon'"),
        ("sbatch", ("--exclusive", "--wrap", "true"), "--cpus-per-task"),
    ):
        done = shell(name, *argv)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"{name}: error: "), done.stderr
        assert says in done.stderr
    away = shell("squeue", CHAPPE_CONFIG=str(tmp_path / "none"))
    assert (away.returncode, "Unable to contact slurm controller" in away.stderr) == (1, True)


def test_a_directory_that_the_site_does_not_have(shell: Shell, tmp_path: Path) -> None:
    asked = shell.finished("-D", str(tmp_path / "none"), "--wrap", "true")
    assert asked.returncode == 1
    with shell.place.client() as client:
        (job, *_) = client.jobs(name="wrap")
        assert "cannot be entered here" in job.logs()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    mine = Shell(shell.place, elsewhere, shell._capsys)
    number = mine.submit("-n", "50000", "--wrap", "true")  # waits for ever
    ready = mine.submit("-J", "homeless", "-d", f"afterany:{number}", "--wrap", "echo I ran")
    elsewhere.rmdir()
    assert shell("scancel", number).returncode == 0
    assert shell.finished("-d", f"afterany:{ready}", "--wrap", "true").returncode == 0
    with shell.place.client() as client:
        (job,) = client.jobs(name="homeless")
        assert job.phase == "finished"
        # Its output stays where `chappe job logs` finds it.
        assert "I ran" in job.logs()


def test_scripts_for_pbs(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "job.pbs").write_text(
        "#PBS -N tide -l select=1:ncpus=2:mem=64mb,walltime=00:10:00\n#PBS -j oe\n"
        'cd "$PBS_O_WORKDIR"\necho "$PBS_JOBID $NCPUS $CASE"; [[ 1 == 1 ]] && exit 3\n'
    )
    done = shell("qsub", "-v", "CASE=5", "-W", "block=true", "job.pbs")
    assert done.returncode == 3, done.stderr
    id = done.stdout.strip()
    number = id.removesuffix(".chappe")
    assert (tmp_path / f"tide.o{number}").read_text() == f"{id} 2 5\n"
    gone = shell("qstat", id)
    assert (gone.returncode, "Job has finished" in gone.stderr) == (35, True)
    full = json.loads(shell("qstat", "-x", "-f", "-F", "json", id).stdout)["Jobs"][id]
    assert (full["job_state"], full["Exit_status"], full["Job_Name"]) == ("F", 3, "tide")
    array = shell("qsub", "-J", "1-3", "-l", "ncpus=50000", "job.pbs").stdout.strip()
    assert array.endswith("[].chappe")
    assert shell("qstat").stdout.splitlines()[2].split()[0] == array
    one = array.replace("[]", "[2]")
    assert shell("qstat", one).stdout.splitlines()[2].split()[0] == one
    assert shell("qdel", one).returncode == 0
    assert len(shell("qstat", "-t", array).stdout.splitlines()) == 5
    assert shell("qdel", array).returncode == 0
    assert shell("qstat").stdout == ""
    assert shell("qdel", "999").returncode == 153
    assert shell("qdel", array).returncode == 35
    assert shell("qstat", "999.chappe").returncode == 153
    assert shell("qsub", "-I").returncode == 2


def test_help_and_version_need_no_hub(shell: Shell, tmp_path: Path) -> None:
    for name, flag in (("sbatch", "--help"), ("squeue", "--version"), ("qstat", "--version")):
        done = shell(name, flag, CHAPPE_CONFIG=str(tmp_path / "none"))
        assert done.returncode == 0
        assert done.stdout
