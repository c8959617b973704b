"""The PBS adapters as text. `TORQUE` was recorded from slurm-wlm-torque 22.05.8 on Debian 12; what is called
synthetic follows the reference guides of PBS Professional 2022.1 and Torque 6.1: no machine said it."""

from __future__ import annotations

import pytest

from chappe.core.errors import Invalid
from chappe.site.schedulers.base import (
    Batch,
    Phase,
    SchedulerDown,
    SubmitRefused,
    SubmitUnclear,
)
from chappe.site.schedulers.pbs import Pbs, Torque

PBS, TORQUE_ADAPTER = Pbs(), Torque()
BATCH = Batch(
    "chappe-x",
    "s",
    "/site",
    "/site/sessions/s",
    "python",
    nodes=2,
    cores=4,
    gpus=1,
    mem_bytes=3 << 30,
    wall_s=90_061.2,
    queue="workq",
    account="acc",
    constraint="arch=linux",
)

TORQUE = """\
Job Id:\t15
\tJob_Name = chappe-0123456789-0123456789-0123456789-01
\tJob_Owner = root@localhost
\tjob_state = R
\tqueue = debug
\tctime = Fri Nov 20 18:04:43 2026
\texec_host = node1/2
\tResource_List.walltime = 00:02:00
\tResource_List.nodect = 1

Job Id:\t14
\tJob_Name = chappe-b
\tjob_state = C
"""

SYNTHETIC_PBS = """\
Job Id: 1234.pbs01
    Job_Name = chappe-00000000-0000-7000-8000-000000000000
    Job_Owner = alice@login1.example.org
    job_state = F
    Exit_status = 0
    Submit_arguments = -N chappe-00000000-0000-7000-8000-000000000000 /lustre/alice/
\tsite/sessions/x/batch.sh
    comment = Job run at Fri Nov 20 at 10:00 on (node1:ncpus=4) and finished

Job Id: 1235.pbs01
    Job_Name = chappe-b
    job_state = F
    Exit_status = -29

Job Id: 1236.pbs01
    Job_Name = chappe-c
    job_state = F
    Exit_status = 271

Job Id: 1237.pbs01
    Job_Name = chappe-d
    job_state = Q
    comment = Not Running: Insufficient amount of resource: ncpus

Job Id: 1238.pbs01
    Job_Name = chappe-e
    job_state = E

Job Id: 1239.pbs01
    Job_Name = chappe-f
    job_state = F
    Exit_status = 3

Job Id: 1240.pbs01
    Job_Name = chappe-g
    job_state = ?
"""


def directives(text: str) -> set[str]:
    return {line.removeprefix("#PBS ") for line in text.splitlines() if line.startswith("#PBS ")}


def test_wishes_of_pbs_professional() -> None:
    assert directives(PBS.render_script(BATCH)) >= {
        "-N chappe-x",
        "-l select=2:ncpus=4:ngpus=1:mem=3072mb:arch=linux",
        "-l place=scatter",
        "-l walltime=25:01:02",
        "-q workq",
        "-A acc",
        "-r n",
    }


def test_wishes_of_torque() -> None:
    found = directives(TORQUE_ADAPTER.render_script(BATCH))
    assert {"-l nodes=2:ppn=4:gpus=1:arch=linux", "-l mem=6144mb"} <= found


@pytest.mark.parametrize(
    "change",
    [
        {"qos": "low"},
        {"reservation": "r"},
        {"cores": 0},
        {"session_dir": "/a b"},
        {"constraint": "fast,walltime=999:00:00"},
    ],
)
def test_what_pbs_has_no_words_for_is_refused(change: dict[str, object]) -> None:
    facts = {f: getattr(BATCH, f) for f in BATCH.__struct_fields__} | change
    with pytest.raises(Invalid):
        PBS.render_script(Batch(**facts))


def test_recorded_states() -> None:
    states = TORQUE_ADAPTER.parse_status(TORQUE)
    assert states["15"].phase is Phase.RUNNING
    assert states["15"].name == "chappe-0123456789-0123456789-0123456789-01"
    assert states["14"].phase is Phase.ENDED
    assert TORQUE_ADAPTER.parse_find(TORQUE, "chappe-b") == ["14"]


def test_synthetic_states() -> None:
    states = PBS.parse_status(SYNTHETIC_PBS)
    assert {i: str(s.phase) for i, s in states.items()} == {
        "1234": "ended",
        "1235": "ended",
        "1236": "cancelled",
        "1237": "pending",
        "1238": "running",
        "1239": "failed",
        "1240": "unknown",
    }
    assert "limit" in states["1235"].message
    assert "Insufficient" in states["1237"].message
    assert "status 3" in states["1239"].message


def test_a_job_struck_off_after_its_node_failed_has_not_ended() -> None:
    """Synthetic, after the reference guides: one that may not be run again is deleted when its node is lost,
    and its node, which would tell how it ended, is not there to tell."""
    for adapter, state in ((PBS, "F"), (TORQUE_ADAPTER, "C")):
        lost = f"Job Id: 7.pbs01\n    Job_Name = chappe-x\n    job_state = {state}\n"
        assert adapter.parse_status(lost)["7"].phase is Phase.ENDED, "it never ran"
        lost += "    exec_host = node1/0\n"
        assert adapter.parse_status(lost)["7"].phase is Phase.ENDED, "as Slurm's commands tell it"
        lost += "    server = pbs01\n"
        assert adapter.parse_status(lost)["7"].phase is Phase.UNKNOWN
        assert "deleted" in adapter.parse_status(lost)["7"].message
        lost += "    exit_status = 271\n"
        assert adapter.parse_status(lost)["7"].phase is Phase.CANCELLED


def test_ids_that_are_gone_are_no_failure_and_all_else_is() -> None:
    gone = "qstat: Unknown Job Id 99.pbs01\n"
    assert set(PBS.parse_status(SYNTHETIC_PBS, gone, 153)) >= {"1234"}
    assert PBS.parse_status("", gone, 153) == {}
    for words in ("", "pbs_iff: cannot connect to pbs01:15001", gone + "Connection refused"):
        with pytest.raises(SchedulerDown):
            PBS.parse_status("", words, 255)
    PBS.parse_cancel("", "qdel: Job has finished 12.pbs01", 35)
    with pytest.raises(SchedulerDown):
        PBS.parse_cancel("", "qdel: cannot connect to server pbs01", 1)


def test_what_qsub_says() -> None:
    assert PBS.parse_submit("1234.pbs01.example.org\n", "", 0) == "1234"
    assert TORQUE_ADAPTER.parse_submit("15\n", "", 0) == "15"
    for words, error in (
        ("qsub: Unknown queue", SubmitRefused),
        ("qsub: Job violates queue and/or server resource limits", SubmitRefused),
        ("sbatch: error: Batch job submission failed: Invalid partition name", SubmitRefused),
        ("qsub: would exceed queue generic's per-user limit", SchedulerDown),
        ("qsub: cannot connect to server pbs01 (errno=111)", SchedulerDown),
        ("qsub: End of File", SubmitUnclear),
        ("", SubmitUnclear),
    ):
        with pytest.raises(error):
            PBS.parse_submit("", words, 1)
    with pytest.raises(SubmitUnclear):
        PBS.parse_submit("Your job has been submitted", "", 0)
