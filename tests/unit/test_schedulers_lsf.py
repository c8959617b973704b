"""The LSF adapter as text. All of it is synthetic: it follows IBM's command reference for Spectrum LSF 10.1
(bsub, bjobs -o, bkill, "Termination reasons displayed by bacct, bhist, and bjobs"). No machine said so."""

from __future__ import annotations

import pytest

from chappe.core.errors import Invalid
from chappe.site.schedulers import make
from chappe.site.schedulers.base import Batch, SchedulerDown, SubmitRefused, SubmitUnclear
from chappe.site.schedulers.lsf import Lsf

ADAPTER = Lsf()
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
    queue="normal",
    account="proj",
    reservation="user1#0",
    constraint="type==any",
)

SYNTHETIC_BJOBS = """\
101|PEND|-|chappe-a|-
102|PSUSP|-|chappe-b|-
103|RUN|-|chappe-c|-
104|USUSP|-|chappe-d|-
105|DONE|-|chappe-e|-
106|EXIT|3|chappe-f|-
107|EXIT|130|chappe-g|TERM_OWNER: job killed by owner
108|EXIT|140|chappe-h|TERM_RUNLIMIT: job killed after reaching LSF run time limit
109|EXIT|137|chappe-i|TERM_MEMLIMIT: job killed after reaching LSF memory usage limit
110|UNKWN|-|chappe-j|-
111|ZOMBI|-|chappe-k|-
112|NEW|-|chappe-l|-
"""
NOT_FOUND = "Job <999> is not found\n"
DOWN = "LSF is down. Please wait ...\n"


def changed(**change: object) -> Batch:
    return Batch(**({f: getattr(BATCH, f) for f in BATCH.__struct_fields__} | change))


def test_it_says_that_nobody_tried_it() -> None:
    assert make("lsf", "/nowhere").quirks.verified == ""


def test_wishes() -> None:
    text = ADAPTER.render_script(BATCH)
    found = [line.removeprefix("#BSUB ") for line in text.splitlines() if line.startswith("#BSUB ")]
    assert found == [
        "-J chappe-x",
        "-oo /site/sessions/s/batch.out",
        "-rn",
        "-n 8",
        '-R "span[ptile=4]"',
        '-R "rusage[mem=3072MB/host]"',
        '-gpu "num=1"',
        '-R "select[type==any]"',
        "-W 1502",
        "-q normal",
        "-P proj",
        "-U user1#0",
    ]
    assert "' TERM INT USR2\n" in text
    assert "(trap '' INT USR2; exec python -P -m chappe.pilot" in text


@pytest.mark.parametrize("change", [{"qos": "low"}, {"cores": 0}, {"session_dir": "/a b"}])
def test_what_it_has_no_words_for_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        ADAPTER.render_script(changed(**change))


def test_the_script_goes_in_by_standard_input_and_no_word_of_it_to_a_shell() -> None:
    shell, _, line, *words = ADAPTER.submit_command("/a b/$(x).sh", "chappe-x")
    assert shell == "/bin/sh"
    assert line == 'exec bsub -J "$1" <"$0"'
    assert words == ["/a b/$(x).sh", "chappe-x"]


def test_states() -> None:
    states = ADAPTER.parse_status(SYNTHETIC_BJOBS)
    assert {int(id) - 100: str(state.phase) for id, state in states.items()} == {
        1: "pending",
        2: "pending",
        3: "running",
        4: "running",
        5: "ended",
        6: "failed",
        7: "cancelled",
        8: "ended",
        9: "failed",
        10: "unknown",
        11: "unknown",
        12: "unknown",
    }
    assert "status 3" in states["106"].message
    assert "limit" in states["108"].message
    assert "MEMLIMIT" in states["109"].message


def test_ids_that_are_gone_are_no_failure_and_all_else_is() -> None:
    assert set(ADAPTER.parse_status("105|DONE|-|chappe-e|-\n", NOT_FOUND, 255)) == {"105"}
    assert ADAPTER.parse_status("", "No job found\n", 255) == {}
    for words in ("", DOWN, NOT_FOUND + DOWN):
        with pytest.raises(SchedulerDown):
            ADAPTER.parse_status("", words, 255)


def test_a_job_is_found_by_its_exact_name() -> None:
    assert ADAPTER.parse_find(SYNTHETIC_BJOBS, "chappe-c") == ["103"]
    assert ADAPTER.parse_find(SYNTHETIC_BJOBS, "chappe") == []
    assert ADAPTER.parse_find("", "chappe-z", "Job <chappe-z> is not found\n", 255) == []


def test_cancels() -> None:
    going = "Job <103> is being terminated\n"
    ADAPTER.parse_cancel(going, "Job <105>: Job has already finished\n", 255)
    ADAPTER.parse_cancel("", "Job <999>: No matching job found\n", 255)
    for words in ("", DOWN, "Job <1>: User permission denied\n"):
        with pytest.raises(SchedulerDown):
            ADAPTER.parse_cancel(going, words if words else "Killed\n", 255)


def test_what_bsub_says() -> None:
    talk = "Verifying project account...\nJob <7274791> is submitted to default queue <normal>.\n"
    assert ADAPTER.parse_submit(talk, "", 0) == "7274791"
    for words, error in (
        ("no_queue: No such queue. Job not submitted.", SubmitRefused),
        ("Request aborted by esub. Job not submitted.", SubmitRefused),
        (
            "Pending job threshold reached. Retrying in 60 seconds... Job not submitted.",
            SchedulerDown,
        ),
        (DOWN, SubmitUnclear),
        ("", SubmitUnclear),
    ):
        with pytest.raises(error):
            ADAPTER.parse_submit("", words, 255)
    with pytest.raises(SubmitUnclear):
        ADAPTER.parse_submit("Verifying project account...\n", "", 0)
