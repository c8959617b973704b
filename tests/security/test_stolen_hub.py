"""An attacker has the hub's database, disk, TLS key and tokens, and meets a real Site with its own server.

Whatever it grants, no process starts that the user did not sign or the owner did not mark: every App here
leaves a witness when it runs, and each refusal has its own reason. The last tests show what such an
attacker *can* do, so that SECURITY.md says all of it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chappe.core import limits
from chappe.core.leases import Reason
from chappe.link.clock import new_id
from chappe.wire.jobs import ParentPage, ParentView
from chappe.wire.submission import Statement, Submission
from chappe.wire.sync import Grant, JobEpoch, Kill
from tests.security.evil_hub import Answer
from tests.security.victim import Victim, granted, job_of


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    made = Victim(tmp_path_factory.mktemp("stolen"))
    try:
        made.start()
        yield made
    finally:
        made.close()


def refused(
    victim: Victim,
    code: str,
    spec: bytes,
    submission: Submission | None = None,
    **changes: Any,
) -> str:
    """Grant it, and see it refused for this reason, and nothing started by it; the words it was told."""
    before = victim.witness()
    job = victim.run(spec, submission, **changes)
    report = victim.hub.report(job, changes.get("epoch", 1))
    assert (report.kind, report.reason) == ("refused", code), report
    assert victim.witness() == before
    assert report.outcome is not None
    return report.outcome.message


def not_again(victim: Victim, spec: bytes, submission: Submission, **changes: Any) -> None:
    """Grant what ran before at this Session: it finds its own claim, and takes it for a lost start."""
    before = victim.witness()
    job = victim.run(spec, submission, **changes)
    report = victim.hub.report(job, changes.get("epoch", 1))
    assert report.outcome is not None
    assert report.outcome.reason == Reason.LAUNCHER_LOST
    assert "claimed its start before" in report.outcome.message
    assert victim.witness() == before


def works(victim: Victim, session: str | None = None) -> None:
    """The Site is still there, and runs what Ada signed: the refusals were no accident."""
    spec = victim.spec()
    submission = victim.sign(spec)
    victim.hub.grant(granted(spec, submission), [submission], session)
    report = victim.hub.report(job_of(spec))
    assert (report.kind, report.outcome and report.outcome.exit) == ("end", 0), report
    assert victim.runs(job_of(spec)) == 1


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


# --- Apps and their values


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"parameters": {"n": 10}}, "bad_parameters"),
        ({"parameters": {"n": 1e308}}, "bad_parameters"),
        ({"parameters": {"n": 1.5}}, "bad_parameters"),
        ({"parameters": {"n": "1; id"}}, "bad_parameters"),
        ({"parameters": {"n": True}}, "bad_parameters"),
        ({"parameters": {"n": [1]}}, "bad_parameters"),
        ({"parameters": {"text": {"a": 1}}}, "bad_parameters"),
        ({"parameters": {"text": "a\0b"}}, "bad_parameters"),
        ({"parameters": {"text": "x" * 20_000}}, "bad_parameters"),
        ({"parameters": {"python": "/bin/sh"}}, "bad_parameters"),
        ({"parameters": {"job_id": "x"}}, "bad_parameters"),
        ({"env": {"LD_PRELOAD": "evil.so"}}, "env_not_allowed"),
        ({"env": {"PATH": "."}}, "env_not_allowed"),
        ({"env": {"CHAPPE_DATA": "/"}}, "env_not_allowed"),
        ({"env": {"A=B": ""}}, "bad_spec"),
        ({"app": {"name": "form", "version": "0"}}, "app_version"),
        ({"app": {"name": "../form"}}, "app_unknown"),
        ({"app": {"name": "model"}}, "unsigned"),
        ({"command": ["/bin/sh"]}, "bad_spec"),
        ({"preamble": "id"}, "bad_spec"),
    ],
)
def test_an_unsigned_job_keeps_to_what_the_owner_marked(
    victim: Victim, changes: dict[str, Any], code: str
) -> None:
    refused(victim, code, victim.spec("form", **changes))


def test_a_signed_job_gets_the_version_that_was_signed(victim: Victim) -> None:
    spec = victim.spec(app={"name": "model", "version": "1"})
    refused(victim, "app_version", spec, victim.sign(spec))


# --- paths


@pytest.mark.parametrize(
    "workdir", ["..", "a/../../b", "/etc", "//etc", "~root", "a\nb", "a\0b", "\u202e", "x" * 1001]
)
def test_a_workdir_that_leaves_the_data_is_refused(victim: Victim, workdir: str) -> None:
    refused(victim, "bad_spec", victim.spec("form", workdir=workdir))


def test_a_workdir_behind_a_link_is_refused(victim: Victim, tmp_path: Path) -> None:
    (victim.paths.data / "leads-out").symlink_to(tmp_path)
    refused(victim, "bad_path", victim.spec("form", workdir="leads-out"))
    refused(victim, "bad_path", victim.spec("form", workdir="leads-out/deeper"))
    spec = victim.spec("form", workdir="attempts")
    (victim.paths.data / "attempts").mkdir()
    (victim.paths.data / "attempts" / "attempt-1").symlink_to(tmp_path)
    refused(victim, "bad_path", spec)
    assert list(tmp_path.iterdir()) == []


# --- what it says about parents


def npy(descr: str = "'|O'", data: bytes = b"") -> bytes:
    """An .npy file of Python objects: its data is a pickle."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}".encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


class Evil:
    """Unpickled, it would leave a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def npz(member: bytes, name: str = "a.npy") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, member)
    return file.getvalue()


BAD_RESULTS: dict[str, tuple[str | None, Callable[[bytes], bytes]]] = {
    "pickle in npy": ("application/x-npy", lambda code: npy(data=code)),
    "fields of objects": ("application/x-npy", lambda code: npy("[('x', 'f8'), ('y', 'O')]", code)),
    "pickle in npz": ("application/x-npz", lambda code: npz(npy(data=code))),
    "pickle beside arrays": ("application/x-npz", lambda code: npz(code, "a.pkl")),
    "bare pickle as npy": ("application/x-npy", lambda code: code),
    "bare pickle as npz": ("application/x-npz", lambda code: code),
    "bare pickle as json": ("application/json", lambda code: code),
    "unknown kind": ("application/x-python-pickle", lambda code: code),
    "path as kind": ("../../../apps/evil.toml", lambda code: code),
    "no kind": (None, lambda code: code),
}


def child(victim: Victim, view: ParentView, result: bytes | None = None) -> bytes:
    """A signed child of one parent, of which the Hub says `view`."""
    spec = victim.spec(parents=[view.id], on_parent_failure="anyway")
    victim.hub.parents[job_of(spec)] = ParentPage([view])
    if result is not None:
        victim.hub.results[view.id] = result
    return spec


@pytest.mark.parametrize("what", BAD_RESULTS)
def test_a_parents_result_that_could_be_code_is_not_handed_on(
    victim: Victim, tmp_path: Path, what: str
) -> None:
    media, make = BAD_RESULTS[what]
    data = make(pickle.dumps(Evil(str(tmp_path / "ran"))))
    digest = hashlib.sha256(data).hexdigest()
    view = ParentView(new_id(), "p", "JOB_FINISHED", victim.site, result_sha256=digest, media=media)
    spec = child(victim, view, data)
    words = refused(victim, "parents", spec, victim.sign(spec))
    assert view.id in words
    assert not (tmp_path / "ran").exists()
    assert not list(victim.paths.root.rglob(f"{view.id}*"))


def test_other_bytes_than_announced_are_no_result(victim: Victim) -> None:
    view = ParentView(
        new_id(), "p", "JOB_FINISHED", result_sha256="0" * 64, media="application/json"
    )
    spec = child(victim, view, b"{}")
    assert "sha256" in refused(victim, "parents", spec, victim.sign(spec))


@pytest.mark.parametrize("workdir", ["../..", "/etc", "leads", "a/../../b", "~root", "a\nb"])
def test_a_parents_directory_lies_below_the_data(
    victim: Victim, tmp_path: Path, workdir: str
) -> None:
    link = victim.paths.data / "leads"
    if not link.is_symlink():
        link.symlink_to(tmp_path.parent)
    view = ParentView(new_id(), "p", "JOB_FINISHED", victim.site, workdir=workdir)
    spec = child(victim, view)
    refused(victim, "parents", spec, victim.sign(spec))


def test_only_the_signed_parents_count(victim: Victim, tmp_path: Path) -> None:
    own = ParentView(new_id(), "p", "JOB_FINISHED")
    spec = child(victim, own)
    victim.hub.parents[job_of(spec)] = ParentPage(
        [ParentView(str(tmp_path / "evil"), "x", "JOB_FINISHED", result_sha256="0" * 64)]
    )
    words = refused(victim, "parents", spec, victim.sign(spec))
    assert "does not know" in words
    for page in (b"{", b"null", b'{"parents":[1]}', b"[" * 100_000):
        spec = victim.spec(parents=[own.id])
        victim.hub.parents[job_of(spec)] = page
        refused(victim, "parents", spec, victim.sign(spec))


def test_nothing_is_asked_or_written_for_a_job_that_was_not_admitted(
    victim: Victim, tmp_path: Path
) -> None:
    """Also while nobody can say who is trusted: then it is not known whose the parents are."""
    asked = list(victim.hub.asked)
    refused(victim, "unsigned", victim.spec(parents=[new_id()]))
    victim.paths.trusted_keys.chmod(0o666)
    try:
        target = str(tmp_path / "evil")
        spec = victim.spec(parents=["../" * 20 + target, target], id=target)
        victim.hub.say(Answer(grants=[granted(spec)]))
        victim.hub.answered()
    finally:
        victim.paths.trusted_keys.chmod(0o644)
    assert victim.hub.asked == asked
    assert list(tmp_path.iterdir()) == []
    works(victim)


# --- nonsense


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
    refused(victim, "too_large", victim.spec("form", resources={"cores": 2**30}))
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
        "key",
        "project",
        "not_after",
        "hashes",
        "max_attempts",
        "v",
    }
