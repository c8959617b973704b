"""The Grid Engine adapter as text. What is called recorded was said by Son of Grid Engine 8.1.9 on Debian 12,
on 20 November 2026; columns of `qacct` that are not read were left out."""

from __future__ import annotations

import pytest

from chappe.core.errors import Invalid
from chappe.site.schedulers.base import Batch, Phase, SchedulerDown, SubmitRefused, SubmitUnclear
from chappe.site.schedulers.gridengine import GridEngine

ADAPTER = GridEngine()
BATCH = Batch(
    "chappe-x",
    "s",
    "/site",
    "/site/sessions/s",
    "python",
    cores=4,
    gpus=1,
    mem_bytes=3 << 30,
    wall_s=90_061.2,
    queue="all.q",
    account="proj",
    reservation="7",
    constraint="arch=lx-amd64",
)

RECORDED_QSTAT = """\
<?xml version='1.0'?>
<job_info  xmlns:xsd="http://arc.liv.ac.uk/repos/darcs/sge/source/dist/util/resources/schemas/qstat/qstat.xsd">
  <queue_info>
    <job_list state="running">
      <JB_job_number>2</JB_job_number>
      <JAT_prio>0.50000</JAT_prio>
      <JB_name>chappe-x1</JB_name>
      <JB_owner>root</JB_owner>
      <state>STATE</state>
      <JAT_start_time>2026-11-20T18:37:47</JAT_start_time>
      <queue_name>all.q@vm</queue_name>
      <slots>1</slots>
    </job_list>
  </queue_info>
  <job_info>
    <job_list state="zombie">
      <JB_job_number>10</JB_job_number>
      <JAT_prio>0.00000</JAT_prio>
      <JB_name>chappe-x1</JB_name>
      <JB_owner>root</JB_owner>
      <state>z</state>
      <JB_submission_time>2026-11-20T18:39:09</JB_submission_time>
      <queue_name></queue_name>
      <slots>1</slots>
    </job_list>
  </job_info>
</job_info>
"""

RECORDED_QACCT = """\
==============================================================
qname        all.q
jobname      chappe-x1
jobnumber    2
taskid       undefined
qsub_time    Fri Nov 20 18:37:47 2026
failed       0
exit_status  3
ru_wallclock 3s
==============================================================
qname        all.q
jobname      chappe-k1
jobnumber    7
failed       0
exit_status  0
==============================================================
qname        all.q
jobname      chappe-k2
jobnumber    8
failed       37  : qmaster enforced h_rt, h_cpu, or h_vmem limit
exit_status  137                  (Killed)
==============================================================
qname        all.q
jobname      chappe-k3
jobnumber    9
failed       100 : assumedly after job
exit_status  137                  (Killed)
"""
RECORDED_NO_MASTER = """\
error: commlib error: got select error (Connection refused)
Unable to run job: unable to send message to qmaster using port 37450 on host "vm": got send error
Exiting.
"""


def changed(**change: object) -> Batch:
    return Batch(**({f: getattr(BATCH, f) for f in BATCH.__struct_fields__} | change))


def directives(batch: Batch) -> set[str]:
    text = ADAPTER.render_script(batch)
    return {line.removeprefix("#$ ") for line in text.splitlines() if line.startswith("#$ ")}


def test_wishes() -> None:
    assert directives(BATCH) == {
        "-N chappe-x",
        "-j y",
        "-o /site/sessions/s/batch.out",
        "-r n",
        "-notify",
        "-S /bin/sh",
        "-pe smp 4",
        "-l mem_free=768M",
        "-l gpu=1",
        "-l arch=lx-amd64",
        "-l h_rt=90062,s_rt=90032",
        "-q all.q",
        "-P proj",
        "-ar 7",
    }


def test_the_shell_is_named_without_its_options() -> None:
    change = {"shell": "/bin/bash -l"}
    assert "-S /bin/bash" in directives(changed(**change))


def test_several_nodes_are_for_an_environment_of_the_site() -> None:
    with pytest.raises(Invalid, match="parallel environment"):
        ADAPTER.render_script(changed(nodes=2))
    found = directives(changed(nodes=2, directives=("-pe mpi 8",)))
    assert "-pe mpi 8" in found
    assert "-pe smp 4" not in found


@pytest.mark.parametrize("change", [{"qos": "low"}, {"cores": 0}, {"session_dir": "/a b"}])
def test_what_it_has_no_words_for_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        ADAPTER.render_script(changed(**change))


def test_the_script_takes_its_notices_for_term_and_the_pilot_ignores_them() -> None:
    text = ADAPTER.render_script(BATCH)
    assert "' TERM INT USR1 USR2\n" in text
    assert "(trap '' USR1 USR2; exec python -P -m chappe.pilot" in text


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        ("qw", "pending"),
        ("hqw", "pending"),
        ("Eqw", "pending"),
        ("t", "running"),
        ("r", "running"),
        ("Rr", "running"),
        ("dr", "running"),
        ("T", "running"),
        ("?", "unknown"),
        ("", "unknown"),
    ],
)
def test_recorded_states_of_the_queue(state: str, phase: str) -> None:
    """Recorded, but for letters: `qw`, `hqw`, `t`, `r` and `dr` were seen, the others stand in qstat(1)."""
    states = ADAPTER.parse_status(RECORDED_QSTAT.replace("STATE", state))
    assert (states["2"].phase, states["2"].name) == (phase, "chappe-x1")
    assert states["10"].phase is Phase.ENDED


def test_recorded_ends() -> None:
    states = ADAPTER.parse_history(RECORDED_QACCT)
    assert {id: str(s.phase) for id, s in states.items()} == {
        "2": "failed",
        "7": "ended",
        "8": "ended",
        "9": "cancelled",
    }
    assert "status 3" in states["2"].message
    assert "limit" in states["8"].message


def test_a_job_is_found_by_its_exact_name() -> None:
    assert ADAPTER.parse_find(RECORDED_QSTAT, "chappe-x1") == ["2", "10"]
    assert ADAPTER.parse_find(RECORDED_QACCT, "chappe-k1") == ["7"]
    assert ADAPTER.parse_find(RECORDED_QACCT, "chappe-k") == []
    nothing = "no jobs running since startup\n"
    for words in ("error: job name nope not found\n", nothing):
        assert ADAPTER.parse_find("", "nope", words, 1) == []


def test_what_is_no_answer_says_nothing() -> None:
    with pytest.raises(SchedulerDown):
        ADAPTER.parse_status("", RECORDED_NO_MASTER, 1)
    for words in ("", "<?xml version='1.0'?><job_info>", "Segmentation fault"):
        with pytest.raises(SchedulerDown):
            ADAPTER.parse_status(words)
    with pytest.raises(SchedulerDown):
        ADAPTER.parse_history("", "accounting: Permission denied", 1)


def test_recorded_cancels() -> None:
    gone = 'denied: job "999" does not exist\n'
    ADAPTER.parse_cancel(f"root has deleted job 10\n{gone}", "", 1)
    for words in (RECORDED_NO_MASTER, "", gone + RECORDED_NO_MASTER):
        with pytest.raises(SchedulerDown):
            ADAPTER.parse_cancel("", words, 1)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            'Unable to run job: Job was rejected because job requests unknown queue "nowhere"\nExiting.',
            SubmitRefused,
        ),
        ('Unable to run job: attribute "h_rt" is not a time value\nExiting.', SubmitRefused),
        (
            'Unable to run job: job rejected: the requested parallel environment "mpi" does not exist',
            SubmitRefused,
        ),
        (
            "Unable to run job: job rejected: your user id 0 is lower than minimum user id 1000 of cluster "
            "configuration\nExiting.",
            SubmitRefused,
        ),
        (RECORDED_NO_MASTER, SchedulerDown),
        ("", SubmitUnclear),
        ("Killed", SubmitUnclear),
    ],
)
def test_recorded_refusals(words: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        ADAPTER.parse_submit("", words, 1)


def test_the_id_is_the_last_line_that_is_a_number() -> None:
    assert ADAPTER.parse_submit("welcome to the 2nd cluster\n42\n", "", 0) == "42"
    with pytest.raises(SubmitUnclear):
        ADAPTER.parse_submit('Your job 2 ("chappe-x1") has been submitted\n', "", 0)
