"""An attacker has the hub's database, disk, TLS key and tokens, and meets a real Site with its own server.

Whatever it grants, no process starts that the user did not sign or the owner did not mark: every App here
leaves a witness when it runs, and each refusal has its own reason. The last tests show what such an
attacker *can* do, so that SECURITY.md says all of it.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from chappe.core.leases import Reason
from chappe.link.clock import new_id
from chappe.wire.jobs import ParentView
from chappe.wire.submission import Statement, Submission
from chappe.wire.sync import Kill
from tests.security.evil_hub import Answer
from tests.security.victim import Victim, child, granted, job_of, not_again, refused, works

# --- signatures


def test_what_nobody_signed_is_not_run(victim: Victim) -> None:
    refused(victim, "unsigned", victim.spec())
    refused(victim, "unsigned", victim.command())
    # A good signature exists, and is not the one that the grant names.
    spec = victim.command()
    other = victim.spec("form")
    refused(victim, "altered", spec, victim.sign(other))
    works(victim)


def test_a_signature_that_did_not_come_along_starts_nothing(victim: Victim) -> None:
    spec = victim.command()
    before = victim.witness()
    victim.hub.grant(granted(spec, submission=None, epoch=1))
    refused_first = victim.hub.report(job_of(spec))
    assert refused_first.reason == "unsigned"
    victim.hub.grant(granted(spec, victim.sign(spec), epoch=2))
    victim.hub.returns(job_of(spec))
    assert victim.witness() == before


FULL: dict[str, Any] = {
    "name": "run",
    "workdir": "w",
    "env": {"DEBUG": "1"},
    "resources": {"cores": 1, "wall_s": 60},
    "retries": {"max": 1},
    "on_parent_failure": "anyway",
    "takeover_s": 60,
    "not_before": 1,
}
ALTERED: dict[str, Any] = {
    "id": lambda v: new_id(),
    "project": lambda v: new_id(),
    "sites": lambda v: [v.site, new_id()],
    "app": lambda v: {"name": "form"},
    "command": lambda v: ["/bin/sh"],
    "parameters": lambda v: {"dt": 4},
    "name": lambda v: "walk",
    "workdir": lambda v: "x",
    "env": lambda v: {"DEBUG": "2"},
    "resources": lambda v: {"cores": 1, "wall_s": 61},
    "retries": lambda v: {"max": 999},
    "parents": lambda v: [new_id()],
    "on_parent_failure": lambda v: "succeeded",
    "takeover_s": lambda v: 61,
    "not_before": lambda v: 2,
}


@pytest.mark.parametrize("field", ALTERED)
def test_each_altered_field_is_noticed(victim: Victim, field: str) -> None:
    spec = victim.spec(**FULL)
    submission = victim.sign(spec)
    fields = msgspec.json.decode(spec)
    changed = msgspec.json.encode({**fields, field: ALTERED[field](victim)})
    assert changed != spec
    refused(victim, "altered", changed, submission)


def test_one_more_blank_is_another_job(victim: Victim) -> None:
    spec = victim.spec()
    refused(victim, "altered", spec.replace(b"{", b"{ ", 1), victim.sign(spec))
    again = spec.replace(b'"dt":3', b'"dt":3,"dt":4')
    refused(victim, "altered", again, victim.sign(spec), epoch=2)


@pytest.mark.parametrize("idx", [1, 2, -1, -2, 2**40])
def test_the_place_in_the_list_of_hashes_counts(victim: Victim, idx: int) -> None:
    spec, other = victim.spec(), victim.command()
    refused(victim, "altered", spec, victim.sign(spec, other), idx=idx)


def test_an_unknown_persons_signature_is_worth_nothing(victim: Victim) -> None:
    spec = victim.command()
    words = refused(victim, "untrusted_key", spec, victim.sign(spec, key=victim.eve))
    assert victim.eve.public_b64 in words


def _statement(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def changed(statement: bytes) -> bytes:
        fields = msgspec.json.decode(statement)
        change(fields)
        return msgspec.json.encode(fields)

    return changed


FORGED: dict[str, Callable[[bytes], bytes]] = {
    "blank": lambda s: s.replace(b"{", b"{ "),
    "not_after": _statement(lambda f: f.update(not_after=9e9)),
    "max_attempts": _statement(lambda f: f.update(max_attempts=1000)),
    "project": _statement(lambda f: f.update(project=new_id())),
    "code": _statement(lambda f: f.update(code=["AAAA"])),
    "hashes": _statement(
        lambda f: f.update(hashes=base64.b64encode(hashlib.sha256(b"x").digest()).decode())
    ),
    "key": _statement(lambda f: f.update(key=base64.b64encode(bytes(range(32))).decode())),
    "zero key": _statement(lambda f: f.update(key=base64.b64encode(bytes(32)).decode())),
    "version": _statement(lambda f: f.update(v=2)),
    "extra field": _statement(lambda f: f.update(trust="me")),
    "no object": lambda s: b"[]",
    "bad text": lambda s: b'{"key":"\xff"}',
    "many attempts": _statement(lambda f: f.update(max_attempts=10**30)),
    "no time": _statement(lambda f: f.update(not_after="never")),
}


@pytest.mark.parametrize("what", FORGED)
def test_altered_bytes_of_a_statement_are_no_signature(victim: Victim, what: str) -> None:
    spec = victim.spec()
    # Ada signed nothing here; where her key is named, it is named by Eve.
    made = victim.sign(spec, key=victim.eve)
    forged = Submission(made.id, msgspec.Raw(FORGED[what](bytes(made.statement))), made.sig)
    refused(victim, "bad_signature", spec, forged)


@pytest.mark.parametrize(
    "sig", ["", "AAAA", "no base64!", "é", base64.b64encode(bytes(64)).decode()]
)
def test_a_signature_that_is_none_is_refused(victim: Victim, sig: str) -> None:
    spec = victim.spec()
    made = victim.sign(spec)
    refused(victim, "bad_signature", spec, Submission(made.id, made.statement, sig))


def test_a_signature_of_something_else_with_adas_key_does_not_serve(victim: Victim) -> None:
    """Without its prefix a signature is for another purpose, whoever made it."""
    spec = victim.spec()
    made = victim.sign(spec)
    bare = base64.b64encode(victim.ada.sign(bytes(made.statement))).decode()
    refused(victim, "bad_signature", spec, Submission(made.id, made.statement, bare))


def test_what_expired_stays_expired(victim: Victim) -> None:
    spec = victim.spec()
    refused(victim, "expired", spec, victim.sign(spec, not_after=time.time() - 1))
    refused(victim, "expired", spec, victim.sign(spec, not_after=-1e308), epoch=2)


def test_what_is_for_another_site_or_project_is_not_for_this_one(victim: Victim) -> None:
    spec = victim.spec(sites=[new_id()])
    refused(victim, "wrong_site", spec, victim.sign(spec))
    other = new_id()
    spec = victim.spec(project=other)
    refused(victim, "wrong_project", spec, victim.sign(spec, project=other))
    spec = victim.spec()
    refused(victim, "wrong_project", spec, victim.sign(spec, project=other))


def test_a_job_runs_under_its_own_id_only(victim: Victim) -> None:
    a, b = victim.spec(), victim.command()
    submission = victim.sign(a, b)
    refused(victim, "id_mismatch", a, submission, job=job_of(b))
    refused(victim, "id_mismatch", b, submission, job=job_of(a), idx=1)


@pytest.mark.parametrize("attempt", [0, -1, 3, 1000, 2**40])
def test_attempts_end_where_the_signature_says(victim: Victim, attempt: int) -> None:
    spec = victim.spec(retries={"max": 1})
    refused(victim, "attempts", spec, victim.sign(spec), attempt=attempt)
    spec = victim.spec(retries={"max": 999})
    refused(victim, "attempts", spec, victim.sign(spec, max_attempts=1), attempt=max(attempt, 2))


# --- replays


def test_what_ran_does_not_run_again(victim: Victim) -> None:
    spec = victim.spec()
    submission = victim.sign(spec)
    job = victim.run(spec, submission)
    assert victim.hub.report(job).kind == "end"
    not_again(victim, spec, submission, epoch=2)
    not_again(victim, spec, submission, epoch=2**40)
    again = victim.sign(spec, max_attempts=1000)  # also not under another signature of the same
    not_again(victim, spec, again, epoch=2**40 + 1)
    assert victim.runs(job) == 1


def test_the_same_grant_again_is_refused_as_well(victim: Victim) -> None:
    spec = victim.spec()
    submission = victim.sign(spec)
    job = victim.run(spec, submission)
    assert victim.hub.report(job).kind == "end"
    victim.hub.reports.clear()
    not_again(victim, spec, submission)
    assert victim.runs(job) == 1


def test_what_runs_is_not_started_beside_itself(victim: Victim) -> None:
    spec = victim.spec("slow")
    submission = victim.sign(spec)
    job = victim.run(spec, submission)
    victim.hub.wait(lambda: victim.runs(job), "the first start")
    refused(victim, "replayed", spec, submission, epoch=2, attempt=2)
    (victim.paths.data / f"go.{job}").touch()
    assert victim.hub.report(job).kind == "end"
    assert victim.runs(job) == 1


# --- what it can do (SECURITY.md says so)


def test_it_can_start_marked_apps_within_their_types(victim: Victim) -> None:
    spec = victim.spec("form", parameters={"text": "$(id) `id`; rm -rf ~", "n": 9}, workdir="w/x")
    job = victim.run(spec)
    assert victim.hub.report(job).kind == "end"
    assert victim.said(job) == "$(id) `id`; rm -rf ~\n"


def test_it_can_start_signed_jobs_early_in_any_order_with_false_results(victim: Victim) -> None:
    data = b'{"energy": -1}'
    view = ParentView(
        new_id(),
        "never ran",
        "JOB_FINISHED",
        result_sha256=hashlib.sha256(data).hexdigest(),
        media="application/json",
    )
    second, first = child(victim, view, data), victim.spec()
    submission = victim.sign(first, second)
    for spec, idx in ((second, 1), (first, 0)):
        job = victim.run(spec, submission, idx=idx)
        assert victim.hub.report(job).kind == "end"
        assert victim.runs(job) == 1


def test_it_can_start_a_signed_job_as_often_as_was_allowed(victim: Victim) -> None:
    spec = victim.spec(retries={"max": 2})
    submission = victim.sign(spec)
    for attempt in (3, 1, 2):  # though each succeeds
        job = victim.run(spec, submission, epoch=attempt, attempt=attempt)
        assert victim.hub.report(job, attempt).kind == "end"
    refused(victim, "attempts", spec, submission, epoch=4, attempt=4)
    assert victim.runs(job) == 3


def test_it_can_end_what_runs(victim: Victim) -> None:
    spec = victim.spec("slow")
    job = victim.run(spec, victim.sign(spec))
    victim.hub.wait(lambda: victim.runs(job), "its start")
    victim.hub.say(Answer(kill=[Kill(job, 1, "cancelled")]))
    report = victim.hub.report(job)
    assert report.outcome is not None
    assert report.outcome.reason == Reason.CANCELLED


def test_the_statement_is_what_the_attacks_took_it_for() -> None:
    """Who adds a field to the statement, adds an attack to FORGED."""
    assert set(Statement.__struct_fields__) == {
        "code",
        "key",
        "project",
        "not_after",
        "hashes",
        "max_attempts",
        "v",
    }
