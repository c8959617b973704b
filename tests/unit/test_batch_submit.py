"""sbatch and qsub: what their flags and directives come to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from chappe.core.ids import number_of
from chappe.sdk.batch import flags, qsub, sbatch
from chappe.sdk.batch.making import WRAPPER, make, numbered_id
from chappe.sdk.batch.request import Depends, Request, exports, named
from chappe.sdk.drafts import Draft
from chappe.sdk.errors import Invalid, TooLarge

NOW = 1_800_000_000.0
SCRIPT = b"#!/bin/bash\ntrue\n"


def slurm(*argv: str, script: bytes = SCRIPT, **environ: str) -> Request:
    line = sbatch.command([*argv, "job.sh"])
    return sbatch.submission(line, script, environ, "/there/run", NOW).request


def pbs(*argv: str, script: bytes = SCRIPT, **environ: str) -> Request:
    line = qsub.command([*argv, "job.sh"])
    return qsub.submission(line, script, environ, "/there/run", NOW).request


def made(request: Request) -> list[Draft]:
    return make(request, numbered_id(), "paris", "eva", "login1", [])


def command(draft: Draft) -> tuple[str, ...]:
    assert draft.template.command is not None
    assert draft.template.command[:3] == ("/bin/sh", "-c", WRAPPER)
    return draft.template.command[4:]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("--job-name=run#3", "run"),
        ("--job-name=run #3", "run"),
        ('--job-name="x # y"', "x # y"),
        ("-J a#b -c 2", "a"),
    ],
)
def test_a_directive_ends_where_slurm_s_own_ends(line: str, name: str) -> None:
    """So did sbatch of Slurm 22.05 read these lines: `#` begins a comment, also in a word."""
    assert slurm(script=f"#!/bin/sh\n#SBATCH {line}\ntrue\n".encode()).name == name
    assert slurm("--job-name=run#3").name == "run#3"


@pytest.mark.parametrize(
    ("argv", "fields"),
    [
        ("-J a -t 90", {"name": "a", "wall_s": 5400.0}),
        ("--time=1:30", {"wall_s": 90.0}),
        ("--time 1:30:00", {"wall_s": 5400.0}),
        ("-t2-12", {"wall_s": 216_000.0}),
        ("-t 1-02:03", {"wall_s": 93_780.0}),
        ("-t 1-02:03:04", {"wall_s": 93_784.0}),
        ("-t UNLIMITED", {"wall_s": None}),
        ("-n 8 -c 2", {"nodes": 1, "cores": 16, "tasks": 8, "threads": 2}),
        ("-N 2 -n 8", {"nodes": 2, "cores": 4}),
        ("-N 2 --ntasks-per-node=4 -c 2", {"nodes": 2, "cores": 8, "tasks": 8}),
        ("-N 2-4", {"nodes": 2, "cores": 1}),
        ("-N 4 -n 2", {"nodes": 2}),
        ("--mem=4G", {"mem_bytes": 4 << 30}),
        ("--mem 4000", {"mem_bytes": 4000 << 20}),
        ("--mem-per-cpu=1G -c 4", {"mem_bytes": 4 << 30}),
        ("--gres=gpu:2", {"gpus": 2}),
        ("--gres=gpu:a100:2", {"gpus": 2}),
        ("--gres=gpu", {"gpus": 1}),
        ("-G 4 -N 2 -n 2", {"gpus": 2}),
        ("--gpus-per-node=a100:3", {"gpus": 3}),
        ("-a 1-9%2", {"array": "1-9%2"}),
        ("-d afterok:1:2,afterok:3", {"depends": Depends(("1", "2", "3"), True)}),
        ("--dependency=afterany:7_3", {"depends": Depends(("7_3",), False)}),
        ("-D sub", {"enter": "/there/run/sub", "must_enter": True}),
        ("--chdir=/x", {"enter": "/x", "must_enter": True}),
        ("", {"enter": "/there/run", "must_enter": False, "name": "job.sh", "site": None}),
        ("-p long -A acct -M paris", {"queue": "long", "account": "acct", "site": "paris"}),
        ("--begin=now+2hours", {"not_before": NOW + 7200}),
        ("-L matlab:2,idl", {"named": {"matlab": 2, "idl": 1}}),
        ("--signal=B:USR1@120", {"warn_signal": "USR1", "warn_s": 120.0}),
        ("--signal=SIGTERM", {"warn_signal": "TERM", "warn_s": 60.0}),
        ("--nice=100", {"priority": -100}),
        ("--no-requeue --open-mode=append", {"restarts": False, "append": True}),
        ("--job-n=short", {"name": "short"}),
    ],
)
def test_sbatch_flags(argv: str, fields: Mapping[str, Any]) -> None:
    request = slurm(*argv.split())
    assert {name: getattr(request, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--exclusive", "cpus-per-task"),
        ("--nodelist=n1", "cannot choose nodes"),
        ("-d afternotok:1", "afterok or afterany"),
        ("-d singleton", "afterok or afterany"),
        ("-d afterok:1,afterany:2", "success of all"),
        ("-d afterok:1?afterok:2", "success of all"),
        ("-d 5", "no dependency"),
        ("--gres=nvme:1", "GPUs only"),
        ("--fortran", "not understood"),
        ("--tim=5 --out=x --no=5", "ambiguous"),
        ("-n x", "whole number"),
        ("-n 0", "whole number"),
        ("--mem=lots", "amount of memory"),
        ("-t soon", "no time"),
        ("--begin=teatime", "no time"),
        ("-H", "job hold"),
        ("-M a,b", "one site"),
        ("-Z", "not understood"),
    ],
)
def test_what_sbatch_cannot_do_is_refused_with_a_remedy(argv: str, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        slurm(*argv.split())


def test_the_command_line_comes_before_the_environment_and_that_before_the_script() -> None:
    script = b"""#!/bin/bash
# a comment

#SBATCH --job-name="two words" --time=1  # and a comment
#SBATCH -n 2 -c 2
#SBATCHX not ours
##SBATCH -n 99
echo
#SBATCH -n 100
"""
    request = slurm("-n", "3", script=script, SBATCH_TIMELIMIT="2", SBATCH_PARTITION="env")
    assert (request.name, request.wall_s, request.cores) == ("two words", 120.0, 6)
    assert request.queue == "env"


def test_arguments_after_the_script_are_its_own() -> None:
    line = sbatch.command(["-n", "2", "job.sh", "-n", "--time=x", "a b"])
    assert (line.path, line.args) == ("job.sh", ("-n", "--time=x", "a b"))
    assert sbatch.command(["--wrap", "x"]).path is None
    with pytest.raises(flags.Usage, match="not permitted with --wrap"):
        sbatch.command(["--wrap", "x", "job.sh"])


@pytest.mark.parametrize("script", [b"", b"echo no head\n", b"#!/bin/sh\r\ntrue\r\n"])
def test_what_sbatch_itself_refuses_as_a_script(script: bytes) -> None:
    with pytest.raises(flags.Usage):
        slurm(script=script)


def test_what_is_harmless_is_ignored_with_a_note_once() -> None:
    script = b"#!/bin/sh\n#SBATCH --mail-type=ALL -C haswell\n#SBATCH --mail-type=END\n"
    request = slurm("--qos=x", "-v", "--comment=c", script=script)
    assert len(request.notes) == 3
    assert any("mail-type" in note and "mailed" in note for note in request.notes)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (None, {"CASE": "3"}),
        ("ALL", {"CASE": "3"}),
        ("NONE", {}),
        ("ALL,NEW=x y,OTHER", {"CASE": "3", "NEW": "x y", "OTHER": "o"}),
        ("CASE,GONE", {"CASE": "3"}),
        ("A='1,2',B=\"3,4\"", {"A": "1,2", "B": "3,4"}),
        ("API_TOKEN", {"API_TOKEN": "s"}),
    ],
)
def test_only_what_the_script_mentions_or_the_user_names_leaves_the_machine(
    given: str | None, sent: dict[str, str]
) -> None:
    environ = {"CASE": "3", "OTHER": "o", "PATH": "/bin", "HOME": "/h", "API_TOKEN": "s"}
    script = b"#!/bin/sh\nPATH=/x:$PATH ./run ${CASE} $HOME $API_TOKEN\n"
    env, notes = exports(given, script, environ)
    assert env == sent
    assert bool(notes) == ("API_TOKEN" not in sent and given in (None, "ALL", "ALL,NEW=x y,OTHER"))


@pytest.mark.parametrize(
    "name", ["DB_PASS", "MYSQL_PWD", "PGPASSWORD", "KEY_PASSPHRASE", "AWS_ACCESS_KEY_ID", "AUTHKEY"]
)
def test_what_looks_like_a_secret_is_sent_only_by_its_name(name: str) -> None:
    script = f"#!/bin/sh\n./run ${name} $N_PASSES\n".encode()
    environ = {name: "s", "N_PASSES": "3"}
    env, notes = exports(None, script, environ)
    assert env == {"N_PASSES": "3"}
    assert [name in note for note in notes] == [True]
    assert exports(name, script, environ) == ({name: "s"}, [])
    with pytest.raises(Invalid, match="environment variable"):
        exports("A B=1", script, environ)


def test_outputs_are_named_as_slurm_names_them() -> None:
    (one,) = made(slurm())
    number = number_of(one.id)
    assert command(one)[2:5] == (f"/there/run/slurm-{number}.out", "", "no")
    (one,) = made(slurm("-o", "%x-%j-%u-%%-%A.txt", "-e", "e%a"))
    number = number_of(one.id)
    assert command(one)[2:5] == (f"job.sh-{number}-eva-%-{number}.txt", "e4294967294", "yes")
    first, second = made(slurm("-a", "7,12", "-o", "%A_%3a.log"))
    number = number_of(first.id)
    assert [command(one)[2] for one in (first, second)] == [
        f"{number}_007.log",
        f"{number}_012.log",
    ]
    assert number_of(second.id) == number
    with pytest.raises(Invalid, match="%N cannot be told"):
        made(slurm("-o", "%N"))


def test_values_stay_arguments_whatever_is_in_them() -> None:
    evil = 'x\'; touch pwned; "$(id)"\n#SBATCH -n 9'
    request = slurm("-J", evil, "-o", evil, "-D", f"/{evil}", "-p", evil)
    (draft,) = made(msgspec.structs.replace(request, args=(evil,)))
    words = command(draft)
    assert words[0] == f"/{evil}"
    assert words[-1] == words[2] == evil
    assert draft.name.isprintable()
    assert draft.template.resources.cores == 1


def test_a_number_gives_back_its_id_alone_and_two_never_have_the_same() -> None:
    ids = {numbered_id() for _ in range(5_000)}
    assert len({number_of(one) for one in ids}) == 5_000
    one = ids.pop()
    assert named(str(number_of(one))).prefix == one[:18]


@pytest.mark.parametrize(
    ("text", "tasks"),
    [
        ("243737573126226", None),
        ("243737573126226_7", {7}),
        ("243737573126226_[1-3,9]", {1, 2, 3, 9}),
        ("243737573126226[7].chappe", {7}),
        ("243737573126226[].chappe", None),
        ("243737573126226.host.example.org", None),
    ],
)
def test_jobs_are_named_in_both_dialects(text: str, tasks: set[int] | None) -> None:
    found = named(text)
    assert found.prefix == named("243737573126226").prefix
    assert found.tasks == tasks


@pytest.mark.parametrize("text", ["", "x", "-1", "1;2", "1_", "1_x", "9" * 20, "1\n", "1_[9-1]"])
def test_what_names_no_job(text: str) -> None:
    with pytest.raises(Invalid):
        named(text)


@pytest.mark.parametrize(
    ("argv", "fields"),
    [
        (
            "-N a -q long@paris -A acct",
            {"name": "a", "queue": "long", "site": "paris", "account": "acct"},
        ),
        ("-l walltime=1:30:00", {"wall_s": 5400.0}),
        ("-l walltime=90", {"wall_s": 90.0}),
        (
            "-l select=2:ncpus=4:mem=8gb:ngpus=1",
            {"nodes": 2, "cores": 4, "mem_bytes": 8 << 30, "gpus": 1},
        ),
        ("-l select=1:mpiprocs=4:ompthreads=2", {"cores": 8}),
        (
            "-l nodes=2:ppn=8:gpus=2,walltime=10:00",
            {"nodes": 2, "cores": 8, "gpus": 2, "wall_s": 600.0},
        ),
        ("-l nodes=1:ppn=4,pmem=1gb", {"cores": 4, "mem_bytes": 4 << 30}),
        ("-l ncpus=3 -l mem=100kb", {"cores": 3, "mem_bytes": 100 << 10}),
        ("-l procs=5", {"cores": 5}),
        ("-l matlab=2", {"named": {"matlab": 2}}),
        ("-l nodes=node17+node18:ppn=1", None),
        ("-J 1-9:2", {"array": "1-9:2"}),
        ("-t 1-9%2", {"array": "1-9%2"}),
        ("-W depend=afterok:1.h:2.h", {"depends": Depends(("1.h", "2.h"), True)}),
        ("-W depend=afteranyarray:1[].h", {"depends": Depends(("1[].h",), False)}),
        ("-W umask=022,depend=afterok:1,block=true", {"depends": Depends(("1",), True)}),
        ("-v A=1,B -p -10 -r n", {"env": {"A": "1", "B": "b"}, "priority": -10, "restarts": False}),
        ("", {"env": {}, "enter": "", "submitted_in": "/there/run", "shell": ""}),
        (
            "-d /x -j oe -S /bin/zsh",
            {"enter": "/x", "must_enter": True, "joined": True, "shell": "/bin/zsh"},
        ),
    ],
)
def test_qsub_flags(argv: str, fields: Mapping[str, Any] | None) -> None:
    if fields is None:
        with pytest.raises(flags.Usage, match="differ"):
            pbs(*argv.split())
        return
    request = pbs(*argv.split(), B="b")
    assert {name: getattr(request, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("-I", "no terminal"),
        ("-h", "job hold"),
        ("-W stagein=a@b:c", "in the script"),
        ("-l select=1:ncpus=2+1:ncpus=4", "same on all nodes"),
        ("-l waltime=1:00", "whole number"),
        ("-l select=1:colour=red", "cannot be asked"),
        ("-S /bin/sh;id", "path of a shell"),
        ("-a 9999", "no time"),
    ],
)
def test_what_qsub_cannot_do_is_refused_with_a_remedy(argv: str, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        pbs(*argv.split())


def test_pbs_outputs_stand_where_the_job_was_submitted() -> None:
    (one,) = made(pbs("-N", "run"))
    number = number_of(one.id)
    assert command(one)[2:5] == (f"/there/run/run.o{number}", f"/there/run/run.e{number}", "no")
    (one,) = made(pbs("-o", "host:/log/", "-j", "oe"))
    assert command(one)[2:4] == (f"/log/job.sh.o{number_of(one.id)}", "")
    tasks = made(pbs("-J", "1-2", "-o", "out.^array_index^"))
    assert [command(one)[2] for one in tasks] == ["/there/run/out.1", "/there/run/out.2"]


def test_qsub_runs_a_command_behind_dashes_and_arguments_of_a_script() -> None:
    line = qsub.command(["-N", "x", "--", "/bin/echo", "a b"])
    told = qsub.submission(line, b"", {}, "/", NOW)
    assert told.request.args == ("/bin/echo", "a b")
    assert pbs("-F", "a 'b c'").args == ("a", "b c")
    assert pbs("-C", "##", script=b"echo\n").shell == "bash"
    with pytest.raises(flags.Usage, match="in -F"):
        qsub.command(["job.sh", "x"])


def test_resources_of_the_command_line_replace_those_of_the_script_one_by_one() -> None:
    script = b"#!/bin/sh\n#PBS -l ncpus=2,mem=1gb\n#PBS -l walltime=10:00\n"
    request = pbs("-l", "ncpus=4", script=script)
    assert (request.cores, request.mem_bytes, request.wall_s) == (4, 1 << 30, 600.0)


def test_a_script_has_a_limit() -> None:
    with pytest.raises(TooLarge):
        made(slurm(script=b"#!/bin/sh\n" + b"x" * 300_000))
