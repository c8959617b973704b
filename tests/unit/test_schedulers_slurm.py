"""The Slurm adapter as text: scripts that it writes, answers that it reads (of Slurm 22.05.8)."""

from __future__ import annotations

from pathlib import Path

import pytest

from chappe.core.errors import Invalid
from chappe.core.policy import NotAllowed
from chappe.site import config as site_config
from chappe.site.explain import explain_policy, preview
from chappe.site.schedulers.base import (
    Batch,
    Phase,
    SchedulerDown,
    SubmitRefused,
    SubmitUnclear,
)
from chappe.site.schedulers.slurm import Slurm, clock

SLURM = Slurm()
BATCH = Batch("chappe-x", "s", "/site", "/site/sessions/s", "/usr/bin/python3", nodes=2, cores=4)
SACCT_OFF = "Slurm accounting storage is disabled"


def directives(batch: Batch) -> list[str]:
    lines = SLURM.render_script(batch).splitlines()
    head = [line for line in lines[1:] if line.startswith("#SBATCH ")]
    assert lines[1 : 1 + len(head)] == head, "all directives stand before the first command"
    return [line.removeprefix("#SBATCH ") for line in head]


def test_every_wish_is_a_directive() -> None:
    batch = Batch(
        **{f: getattr(BATCH, f) for f in ("name", "session", "site_dir", "session_dir", "python")},
        nodes=3,
        cores=8,
        gpus=2,
        mem_bytes=(1 << 30) + 1,
        wall_s=90_061.5,
        queue="gpu",
        account="acc",
        qos="low",
        reservation="res",
        constraint="a&b",
        directives=("--licenses=x:1",),
    )
    assert set(directives(batch)) >= {
        "--nodes=3",
        "--cpus-per-task=8",
        "--gres=gpu:2",
        "--mem=1025M",
        "--time=1-01:01:02",
        "--partition=gpu",
        "--account=acc",
        "--qos=low",
        "--reservation=res",
        "--constraint=a&b",
        "--licenses=x:1",
        "--job-name=chappe-x",
        "--comment=chappe-x",
        "--no-requeue",
    }


def test_all_of_a_node_is_asked_for_with_its_memory() -> None:
    whole = Batch("n", "s", "/site", "/site/s", "python")
    assert {"--exclusive", "--mem=0"} <= set(directives(whole))
    assert not [d for d in directives(whole) if d.startswith(("--cpus", "--time", "--partition"))]


@pytest.mark.parametrize("path", ['/a"b', "/a\nb", "/a$b", "/a%b", "/a`b", "/a\\b", "/a'b"])
def test_a_directory_that_would_change_the_script_is_refused(path: str) -> None:
    with pytest.raises(Invalid, match="cannot be named"):
        SLURM.render_script(Batch("n", "s", path, "/site/s", "python"))


def test_a_line_break_in_a_directive_never_reaches_the_script() -> None:
    bad = Batch("n", "s", "/site", "/site/s", "python", directives=("--x\n#SBATCH --uid=0",))
    with pytest.raises(Invalid, match="control characters"):
        SLURM.render_script(bad)


@pytest.mark.parametrize(("seconds", "text"), [(1, "0-00:00:01"), (3600.2, "0-01:00:01")])
def test_times_are_rounded_up(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("stdout", "id"),
    [("42\n", "42"), ("42;cluster\n", "42"), ("Welcome!\n# quota: 3\n1234567\n", "1234567")],
)
def test_the_id_is_read_whatever_a_wrapper_says_before(stdout: str, id: str) -> None:
    assert SLURM.parse_submit(stdout, "sbatch: warning: be nice", 0) == id


PREFIX = "sbatch: error: Batch job submission failed: "


@pytest.mark.parametrize(
    ("stderr", "error"),
    [
        ("sbatch: error: invalid partition specified: nope", SubmitRefused),
        (f"{PREFIX}Requested node configuration is not available", SubmitRefused),
        ("sbatch: error: Memory specification can not be satisfied", SubmitRefused),
        (f"{PREFIX}Invalid account or account/partition combination specified", SubmitRefused),
        (f"{PREFIX}Job violates accounting/QOS policy (job submit limit)", SubmitRefused),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit\n" + PREFIX + "violates", SchedulerDown),
        (f"{PREFIX}Unable to contact slurm controller (connect failure)", SchedulerDown),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping", SchedulerDown),
        (f"{PREFIX}Socket timed out on send/recv operation", SubmitUnclear),
        (
            "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
            f"{PREFIX}Socket timed out on send/recv operation",
            SubmitUnclear,
        ),
        (f"{PREFIX}Zero Bytes were transmitted or received", SubmitUnclear),
        ("", SubmitUnclear),
    ],
)
def test_what_sbatch_says_is_refusal_absence_or_nothing_certain(
    stderr: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        SLURM.parse_submit("", stderr, 1)


SQUEUE = """\
1|RUNNING|chappe-a|None
2|PENDING|chappe-b|Resources
3|COMPLETING|chappe-c|None
4|CANCELLED|chappe-d|None
5|FAILED|chappe-e|NonZeroExitCode
6|TIMEOUT|chappe-f|TimeLimit
7|NODE_FAIL|chappe-g|NodeDown
8|PENDING|chappe-h|launch failed requeued held
9|REQUEUE_HOLD|chappe-i|JobHeldUser
10|SOMETHING_NEW|chappe-j|None
11|PENDING|chappe-k|PartitionConfig
"""


def test_states_of_the_queue() -> None:
    states = SLURM.parse_status(SQUEUE)
    assert {i: str(s.phase) for i, s in states.items()} == {
        "1": "running",
        "2": "pending",
        "3": "running",
        "4": "cancelled",
        "5": "failed",
        "6": "ended",
        "7": "unknown",
        "8": "pending",
        "9": "pending",
        "10": "unknown",
        "11": "pending",
    }
    assert [i for i, s in states.items() if s.too_wide] == ["11"]
    assert states["1"].name == "chappe-a"
    assert "limit" in states["6"].message
    assert states["8"].message == "launch failed requeued held"


def test_of_one_id_that_is_gone_squeue_fails_and_that_tells_nothing() -> None:
    said = "slurm_load_jobs error: Invalid job id specified\n"
    assert SLURM.parse_status("", said, 1) == {}
    with pytest.raises(SchedulerDown, match="contact"):
        SLURM.parse_status("", "slurm_load_jobs error: Unable to contact slurm controller", 1)


SACCT = """\
1|COMPLETED|chappe-a|0:0
2|FAILED|chappe-b|3:0
3|FAILED|chappe-c|0:15
4|CANCELLED by 1000|chappe-d|0:0
5|PENDING|chappe-e|0:0
6|RUNNING|chappe-f|0:0
7|OUT_OF_MEMORY|chappe-g|0:125
8|NODE_FAIL|chappe-h|1:0
"""


def test_the_accounting_is_believed_about_ends_only() -> None:
    states = SLURM.parse_history(SACCT)
    assert {i: str(s.phase) for i, s in states.items()} == {
        "1": "ended",
        "2": "failed",
        "3": "failed",
        "4": "cancelled",
        "7": "failed",
    }
    assert "exit status 3" in states["2"].message
    assert "signal 15" in states["3"].message
    assert SLURM.parse_history("", SACCT_OFF, 1) == {}
    assert SLURM.parse_find("", "chappe-a", SACCT_OFF, 1) == []
    with pytest.raises(SchedulerDown):
        SLURM.parse_history("", "slurmdbd: Connection refused", 1)


def test_a_name_is_found_exactly() -> None:
    rows = "12|chappe-x\n7|chappe-x\n9|chappe-xy\nnonsense\n|chappe-x\n"
    assert SLURM.parse_find(rows, "chappe-x") == ["7", "12"]


# --- what the site's owner sees before anything is submitted


def site(tmp_path: Path, settings: str) -> Path:
    text = site_config.TEMPLATE.replace('# kind = "local"', 'kind = "slurm"', 1)
    for line in settings.splitlines():
        key = line.split(" = ")[0]
        head, mark, tail = text.partition(f"\n# {key} = ")
        assert mark, key
        text = f"{head}\n{line}\n{tail.partition(chr(10))[2]}"
    (tmp_path / "site.toml").write_text(text)
    return tmp_path


def test_the_preview_is_the_script_with_the_site_s_defaults(tmp_path: Path) -> None:
    place = site(
        tmp_path,
        'queue = "batch"\nprologue = ["module load python"]\nepilogue = ["echo bye"]\n'
        'job_extra_directives = ["--mail-type=NONE"]\nshell = "/bin/bash -l"',
    )
    shown = preview(place, nodes=2, wall_s=60.0)
    lines = shown.script.splitlines()
    assert lines[0] == "#!/bin/bash -l"
    assert "#SBATCH --partition=batch" in lines
    assert "#SBATCH --mail-type=NONE" in lines
    begins = next(n for n, line in enumerate(lines) if "-m chappe.pilot" in line)
    assert lines.index("module load python") < begins < lines.index("echo bye")
    assert shown.command[0] == "sbatch"
    assert "--partition=other" in preview(place, queue="other").script


def test_a_template_of_the_site_s_own_takes_the_place_of_ours(tmp_path: Path) -> None:
    place = site(tmp_path, 'template = "batch.j2"')
    (place / "batch.j2").write_text(
        "#!/bin/sh\n{% for d in directives %}{{ d }}\n{% endfor %}#SBATCH --hint=nomultithread\n"
        "{{ environment }}\necho on {{ batch.nodes }}\n{{ pilot }}\n"
    )
    text = preview(place, nodes=2).script
    assert "#SBATCH --hint=nomultithread" in text
    assert "echo on 2" in text
    for broken, says in (("#!/bin/sh\n", "pilot"), ("{{ nothing }}", "nothing"), ("{% if", "line")):
        (place / "batch.j2").write_text(broken)
        with pytest.raises(Invalid, match=says):
            preview(place)
    (place / "batch.j2").unlink()
    with pytest.raises(Invalid, match="cannot be read"):
        preview(place)


def test_the_preview_refuses_what_the_agent_would(tmp_path: Path) -> None:
    place = site(tmp_path, 'accounts = ["ours"]')
    with pytest.raises(NotAllowed, match="ours"):
        preview(place, account="theirs")
    with pytest.raises(Invalid, match="no name"):
        preview(place, queue="a\nb")
    assert preview(place, account="ours").script
    assert any("Accounts: ours" in line for line in explain_policy(place).words)
    assert SLURM.parse_status("1|RUNNING|chappe-a|None")["1"].phase is Phase.RUNNING
