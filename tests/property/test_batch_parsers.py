"""Whatever somebody types for sbatch, qsub, squeue or qstat is understood or refused in words, never a crash.

What is understood can be signed."""

from __future__ import annotations

import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chappe.core.jobs import check_envelope, decode_spec
from chappe.link.clock import new_id
from chappe.link.keys import SigningKey
from chappe.sdk import sending
from chappe.sdk.batch import qstat, qsub, sbatch, squeue
from chappe.sdk.batch.flags import Flag
from chappe.sdk.batch.making import make, numbered_id
from chappe.sdk.batch.request import Request, exports, memory_bytes, named, wall_s
from chappe.sdk.batch.seen import ranges, see
from chappe.sdk.errors import Invalid
from chappe.wire.jobs import JobView

PARIS = new_id()
CONTEXT = sending.Context(
    project="p", sites={"paris": PARIS}, key=SigningKey(bytes(32)), not_after=2e9
)
NASTY = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            *(
                "1",
                "4",
                "0",
                "-1",
                "2-4",
                "1-10:2%3",
                "1:30:00",
                "2-12",
                "UNLIMITED",
                "4G",
                "0",
                "99999",
            ),
            *("afterok:1", "afterok:1:2,afterany:3", "gpu:a100:2", "gpu", "ALL,A=1", "B:USR1@60"),
            *(
                "select=2:ncpus=4:mem=1gb",
                "nodes=1:ppn=4,walltime=10:00",
                "depend=afterok:1",
                "now+1hour",
            ),
            *(
                "%j.out",
                "%9a",
                "%N",
                "a\nb",
                "'\"$(x)`",
                "\0",
                "²",
                "\udcff",
                "é",
                "a,b",
                "1_[2,3]",
            ),
        ]
    ),
)


def lines(table: tuple[Flag, ...]) -> st.SearchStrategy[list[str]]:
    """Command lines with flags that exist, and with some that do not."""
    names = [f"--{flag.long}" for flag in table if flag.long]
    names += [f"-{flag.short}" for flag in table if flag.short]
    word = st.one_of(st.sampled_from(names), NASTY)
    joined = st.builds(lambda name, value: f"{name}={value}", st.sampled_from(names), NASTY)
    return st.lists(st.one_of(word, joined), max_size=8)


SCRIPTS = st.one_of(
    st.binary(max_size=60),
    st.lists(NASTY, max_size=4).map(
        lambda words: (
            b"#!/bin/sh\n#SBATCH "
            + " ".join(words).encode("utf-8", "replace")
            + b"\n#PBS -N x\ntrue\n"
        )
    ),
)


def signable(request: Request) -> None:
    try:
        made = make(request, numbered_id(), "paris", "eva", "host", [])
        some = made[:3]
        sending.encode(some, CONTEXT)
    except Invalid:
        return
    for draft in some:
        check_envelope(draft.template.envelope)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(lines(sbatch.FLAGS), SCRIPTS)
def test_sbatch(argv: list[str], script: bytes) -> None:
    try:
        line = sbatch.command(argv)
        told = sbatch.submission(line, script, {"A": "1"}, "/here", 1.8e9)
    except Invalid:
        return
    signable(told.request)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(lines(qsub.FLAGS), SCRIPTS)
def test_qsub(argv: list[str], script: bytes) -> None:
    try:
        line = qsub.command(argv)
        told = qsub.submission(line, script, {"A": "1"}, "/here", 1.8e9)
    except Invalid:
        return
    signable(told.request)


@settings(deadline=None)
@given(
    lines(squeue.SQUEUE), st.sampled_from([squeue.SQUEUE, squeue.SCANCEL, qstat.QSTAT, qstat.QDEL])
)
def test_commands_that_ask(argv: list[str], table: tuple[Flag, ...]) -> None:
    view = JobView(
        new_id(), "a\nb", "RUNNING", "running", [], 1.0, 2.0, data={"batch": {"user": 5}}
    )
    context = squeue.Context(time.time(), {})
    try:
        values, words, _ = squeue.flags(table, argv)
        asked = squeue.asked(values, words, "eva")
        asked.holds(see(view))
        rows = squeue.rows([see(view)], each=False)
        form = values.get("format", squeue.DEFAULT)
        (line,) = squeue.text(rows, form, context, header=False)
        assert "a\nb" not in line
        squeue.columns(rows, values.get("Format", "jobid"), context, header=True)
    except Invalid:
        return


@given(st.text(max_size=30))
def test_pieces(text: str) -> None:
    for read in (memory_bytes, wall_s, named, sbatch.dependency):
        try:
            read(text)
        except Invalid:
            continue
    try:
        exports(text, b"A B C", {"A": "1"})
    except Invalid:
        return


@given(st.sets(st.integers(0, 50)))
def test_ranges_say_all_and_nothing_else(indices: set[int]) -> None:
    said: set[int] = set()
    for part in filter(None, ranges(list(indices)).split(",")):
        first, _, last = part.partition("-")
        said.update(range(int(first), int(last or first) + 1))
    assert said == indices


def test_what_a_script_says_reaches_its_spec() -> None:
    line = sbatch.command(["-n", "4"])
    told = sbatch.submission(line, b"#!/bin/sh\n#SBATCH -n 2 -J x\n", {}, "/here", 1.8e9)
    made = make(told.request, numbered_id(), "paris", "eva", "host", [])
    (body,) = sending.encode(made, CONTEXT)
    assert b'"cores":4' in body
    assert decode_spec(sending._specs(made, CONTEXT)[0]).name == "x"
