"""The Flux adapter as text. All of it is synthetic: it follows flux-core's manual (flux-batch, flux-jobs,
flux-cancel, flux-environment), and what is known of its commands' errors. No machine said so."""

from __future__ import annotations

import pytest

from chappe.core.errors import Invalid
from chappe.site.schedulers import make
from chappe.site.schedulers.base import Batch, SchedulerDown, SubmitRefused, SubmitUnclear
from chappe.site.schedulers.flux import Flux

ADAPTER = Flux()
BATCH = Batch(
    "chappe-x",
    "s",
    "/site",
    "/site/sessions/s",
    "python",
    cores=4,
    gpus=1,
    wall_s=90_061.2,
    queue="batch",
    account="proj",
    constraint="mi300",
)

SYNTHETIC_JOBS = """\
fA1|DEPEND|||chappe-a
fA2|SCHED|||chappe-b
fA3|RUN|||chappe-c
fA4|CLEANUP|0||chappe-d
fA5|COMPLETED|0||chappe-e
fA6|FAILED|3||chappe-f
fA7|FAILED|-9||chappe-g
fA8|FAILED|1|node-failure|chappe-h
fA9|CANCELED|-128|cancel|chappe-i
fAA|TIMEOUT|143|timeout|chappe-j
fAB|FAILED|1|alloc|chappe-k
fAC|DREAMING|||chappe-l
"""
GONE = "JobID fZZZ unknown\n"
DOWN = "flux-jobs: ERROR: Unable to connect to Flux: Connection refused\n"


def changed(**change: object) -> Batch:
    return Batch(**({f: getattr(BATCH, f) for f in BATCH.__struct_fields__} | change))


def wishes(batch: Batch) -> list[str]:
    lines = ADAPTER.render_script(batch).splitlines()
    return [line.removeprefix("# flux: ") for line in lines if line.startswith("# flux: ")]


def test_it_says_that_nobody_tried_it() -> None:
    assert make("flux", "/nowhere").quirks.verified == ""


def test_wishes() -> None:
    assert wishes(BATCH) == [
        "--job-name=chappe-x",
        "--output=/site/sessions/s/batch.out",
        "--nodes=1",
        "--nslots=1",
        "--cores-per-slot=4",
        "--gpus-per-slot=1",
        "--time-limit=90062s",
        "--signal=SIGTERM@30s",
        "--queue=batch",
        "--setattr=system.bank=proj",
        "--requires=mi300",
    ]
    assert "--exclusive" in wishes(changed(cores=0))


def test_the_script_takes_a_hangup_for_term() -> None:
    text = ADAPTER.render_script(BATCH)
    assert "' TERM INT HUP\n" in text
    assert "(trap '' HUP; exec python -P -m chappe.pilot" in text


def test_its_wishes_stand_together_at_the_top() -> None:
    lines = ADAPTER.render_script(BATCH).splitlines()
    count = len(wishes(BATCH))
    assert all(line.startswith("# flux: ") for line in lines[1 : 1 + count])


@pytest.mark.parametrize(
    "change",
    [
        {"qos": "low"},
        {"reservation": "r"},
        {"mem_bytes": 1 << 30},
        {"nodes": 2},
        {"session_dir": "/a b"},
    ],
)
def test_what_it_has_no_words_for_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        ADAPTER.render_script(changed(**change))


@pytest.mark.parametrize("first", ["f", "ƒ"])
def test_states(first: str) -> None:
    text = "".join(first + line[1:] + "\n" for line in SYNTHETIC_JOBS.splitlines())
    states = ADAPTER.parse_status(text)
    assert {id.removeprefix("fA"): str(state.phase) for id, state in states.items()} == {
        "1": "pending",
        "2": "pending",
        "3": "running",
        "4": "running",
        "5": "ended",
        "6": "failed",
        "7": "failed",
        "8": "unknown",
        "9": "cancelled",
        "A": "ended",
        "B": "failed",
        "C": "unknown",
    }
    assert "status 3" in states["fA6"].message
    assert "signal 9" in states["fA7"].message
    assert "limit" in states["fAA"].message
    assert "alloc" in states["fAB"].message


def test_ids_that_are_gone_are_no_failure_and_all_else_is() -> None:
    assert set(ADAPTER.parse_status("fA5|COMPLETED|0||chappe-e\n", GONE, 1)) == {"fA5"}
    for words in ("", DOWN, GONE + DOWN, "flux: error: unknown option\n"):
        with pytest.raises(SchedulerDown):
            ADAPTER.parse_status("", words, 1)


def test_a_job_is_found_by_its_exact_name_the_oldest_first() -> None:
    text = "fBB1|RUN|||chappe-c\n" + SYNTHETIC_JOBS
    assert ADAPTER.parse_find(text, "chappe-c") == ["fA3", "fBB1"]
    assert ADAPTER.parse_find(text, "chappe") == []


def test_cancels() -> None:
    ADAPTER.parse_cancel("", "flux-cancel: ERROR: ƒA5: job is inactive\n", 1)
    ADAPTER.parse_cancel("", "flux-cancel: ERROR: fA5: unknown job id\n", 1)
    for words in ("", DOWN, "flux-cancel: ERROR: fA5: Operation not permitted\n"):
        with pytest.raises(SchedulerDown):
            ADAPTER.parse_cancel("", words, 1)


def test_what_flux_batch_says() -> None:
    assert ADAPTER.parse_submit("fM7Zq9AKHno\n", "", 0) == "fM7Zq9AKHno"
    assert ADAPTER.parse_submit("ƒM7Zq9AKHno\n", "", 0) == "fM7Zq9AKHno"
    for words, error in (
        ("flux-batch: ERROR: [Errno 22] Invalid queue 'no' specified", SubmitRefused),
        ("flux-batch: ERROR: [Errno 22] unsatisfiable request", SubmitRefused),
        ("flux-batch: ERROR: Unable to connect to Flux: Connection refused", SchedulerDown),
        ("flux-batch: ERROR: job submission is disabled: maintenance", SchedulerDown),
        ("", SubmitUnclear),
        ("Killed", SubmitUnclear),
    ):
        with pytest.raises(error):
            ADAPTER.parse_submit("", words, 1)
    with pytest.raises(SubmitUnclear):
        ADAPTER.parse_submit("flux 0.61\n", "", 0)
