"""A stolen Hub that answers nonsense, too much, or about what is not there: the Site goes on."""

from __future__ import annotations

import msgspec
import pytest

from chappe.core import limits
from chappe.core.leases import Reason
from chappe.link.clock import new_id
from chappe.wire.sync import Grant, JobEpoch, Kill
from tests.security.evil_hub import Answer
from tests.security.victim import Victim, granted, job_of, refused, works

GARBAGE = {
    "empty": b"",
    "half": b'{"incarnation":1',
    "null": b"null",
    "list": b"[]",
    "bad text": b'{"incarnation":"\xff"}',
    "deep": b'{"grants":' + b"[" * 100_000,
    "deep spec": b'{"incarnation":1,"commit_no":1,"request_no":1,"ttl_s":1,"grants":[{"job":"x","epoch":1,'
    b'"attempt":1,"spec":' + b"[" * 50_000 + b"]" * 50_000 + b"}]}",
    "huge numbers": b'{"incarnation":' + b"9" * 30 + b',"commit_no":1,"request_no":1,"ttl_s":1}',
    "digits": b'{"incarnation":' + b"9" * 10_000 + b"}",
    "infinite": b'{"incarnation":1,"commit_no":1,"request_no":1,"ttl_s":1e999}',
    "huge epoch": b'{"incarnation":1,"commit_no":1,"request_no":1,"ttl_s":1,"kill":[["x",'
    + b"9" * 25
    + b',""]]}',
    "too long": b" " * (2 * limits.BODY_BYTES + 1),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_is_no_answer_and_does_no_harm(victim: Victim, what: str) -> None:
    (session,) = victim.sessions()
    head = victim.pilot(session)
    victim.hub.say(Answer(raw=GARBAGE[what]))
    victim.hub.answered()
    works(victim)
    assert victim.pilot(session) == head


NONSENSE: list[bytes] = [
    b"{}",
    b"[]",
    b"null",
    b'"spec"',
    b"1e400",
    b'{"parents":["\xff"]}',
    b'{"id":1}',
    b'{"resources":{"cores":-1}}',
    b'{"resources":{"cores":' + b"9" * 40 + b"}}",
    b'{"resources":{"estimate_s":-1e308},"takeover_s":-1e308}',
    b'{"takeover_s":1e308,"parents":[]}',
    b'{"parents":{}}',
    b"[" * 500 + b"]" * 500,
]


@pytest.mark.parametrize("spec", NONSENSE, ids=range(len(NONSENSE)))
def test_a_spec_that_is_none_is_refused(victim: Victim, spec: bytes) -> None:
    (session,) = victim.sessions()
    head, job, before = victim.pilot(session), new_id(), victim.witness()
    submission = victim.sign(spec)  # even though Ada signed it
    grant = Grant(job, 1, 1, msgspec.Raw(spec), submission.id, priority=-(2**53))
    victim.hub.grant(grant, [submission])
    report = victim.hub.report(job)
    assert report.kind == "refused"
    assert report.reason in ("bad_spec", "too_large"), report
    assert victim.witness() == before
    assert victim.pilot(session) == head


def test_more_resources_than_there_are_is_refused(victim: Victim) -> None:
    refused(victim, "bad_spec", victim.spec("form", resources={"cores": 2**30}))
    refused(victim, "too_large", victim.spec("form", resources={"cores": 60_000}))
    refused(victim, "too_large", victim.spec("form", resources={"mem_bytes": 2**49}))


def test_grants_without_end_have_an_end(victim: Victim) -> None:
    (session,) = victim.sessions()
    head, before = victim.pilot(session), victim.witness()
    template = victim.spec()
    ident = job_of(template).encode()
    jobs = [new_id() for _ in range(limits.HELD_PER_SESSION + 1_000)]
    grants = [granted(template.replace(ident, job.encode())) for job in jobs]
    victim.hub.say(Answer(grants=grants))
    victim.hub.report(jobs[limits.HELD_PER_SESSION - 1])
    works(victim)
    reported = {r.job for _, r in victim.hub.reports}
    assert not reported & set(jobs[limits.HELD_PER_SESSION :])
    assert len(victim.witness()) == len(before) + 1
    assert victim.pilot(session) == head


def test_orders_about_what_it_does_not_hold_change_nothing(victim: Victim) -> None:
    spec = victim.spec("slow")
    submission = victim.sign(spec)
    job = victim.run(spec, submission)
    victim.hub.wait(lambda: victim.runs(job), "its start")
    others = [new_id(), "", "x" * 1000, "../..", job]
    victim.hub.say(
        Answer(
            kill=[Kill(other, 2, "cancelled") for other in others],
            unknown=[JobEpoch(other, 2) for other in others],
        )
    )
    victim.hub.answered()
    works(victim)
    (victim.paths.data / f"go.{job}").touch()
    report = victim.hub.report(job)
    assert report.outcome is not None
    assert (report.outcome.reason, report.outcome.exit) == (Reason.EXIT, 0)
