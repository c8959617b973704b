"""Creating Jobs: all or none, harmless when repeated, signed or not, whole graphs at once."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from chappe.core import limits
from chappe.core.errors import ChappeError, Conflict, Gone, Invalid, TooLarge
from chappe.core.ids import uuid7
from chappe.core.jobs import AppRef, Envelope, JobSpec, ParentPolicy, Resources
from chappe.core.parameters import Kind, Parameter
from chappe.store import create, prepare, queries, sites
from chappe.testing.store import TRUE, Signer, StoreRig, cores
from chappe.wire.jobs import CreateJobs, JobFilter, NewJob
from chappe.wire.sites import AppView

MODEL = AppView(
    "model",
    "2",
    "0" * 64,
    parameters={"dt": Parameter(Kind.FLOAT, required=True)},
    unsigned=True,
    allow_env=["DEBUG"],
)


def codes(verdicts: list[Any]) -> list[str]:
    return [v["code"] if isinstance(v, dict) else v.code for v in verdicts]


def seq(rig: StoreRig) -> int:
    return rig.store.head(rig.user.project_n)


def jobs(rig: StoreRig) -> int:
    return int(rig.sql("SELECT count(*) FROM job")[0][0])


def test_a_job_is_created_with_one_event(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    before = seq(rig)
    job = rig.spec(site, name="first", workdir="runs/1")
    reply = rig.submit(job, envelopes=[Envelope({"exp": "a"}, {"x": [1]}, 7)])
    assert codes(reply.verdicts) == ["created"]
    assert reply.cursor == f"1:{before}"
    view = rig.job(job.id)
    assert (view.state, view.phase, view.name, view.workdir) == (
        "PREPROCESSED",
        "runnable",
        "first",
        "runs/1",
    )
    assert (view.tags, view.data, view.priority) == ({"exp": "a"}, {"x": [1]}, 7)
    assert (view.site, view.sites, view.attempt, view.epoch) == (site.id, [site.id], 0, 0)
    assert seq(rig) == before + 1


def test_the_bytes_are_kept_as_they_came(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    job = rig.spec(site)
    odd = b' {"sites" : ["%s"],\n "app": {"name":"true"}, "project": "%s", "id": "%s"} ' % (
        site.id.encode(),
        rig.user.project_id.encode(),
        job.id.encode(),
    )
    rig.submit(odd, signed=True)
    found = rig.ask(queries.signed, rig.user, job.id)
    assert bytes(found.spec) == odd
    (grant,) = site.add_pilot().sync(capacity=cores(1)).grants
    assert bytes(grant.spec) == odd


# -- again -----------------------------------------------------------------------------------------


def test_the_same_again_exists_and_changes_nothing(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    body = rig.request(*[rig.spec(site) for _ in range(3)], signed=True)
    rig.create(body)
    before = seq(rig), rig.store.writer.catalog.commit_no
    assert codes(rig.create(body).verdicts) == ["exists"] * 3
    assert (seq(rig), rig.store.writer.catalog.commit_no) == before


def test_the_order_of_an_envelopes_keys_is_no_difference(rig: StoreRig) -> None:
    job = rig.spec(rig.add_site("paris"))
    rig.submit(job, envelopes=[Envelope({"a": "1", "b": "2"}, {"x": {"p": 1, "q": 2}})])
    again = rig.submit(job, envelopes=[Envelope({"b": "2", "a": "1"}, {"x": {"q": 2, "p": 1}})])
    assert codes(again.verdicts) == ["exists"]


def test_what_exists_may_come_together_with_what_is_new(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    old, new = rig.spec(site), rig.spec(site)
    rig.submit(old)
    assert codes(rig.submit(new, old).verdicts) == ["created", "exists"]


@pytest.mark.parametrize("what", ["spec", "envelope"])
def test_another_body_under_the_same_id_is_a_conflict(rig: StoreRig, what: str) -> None:
    job = rig.spec(rig.add_site("paris"))
    rig.submit(job)
    other = msgspec.structs.replace(job, name="other") if what == "spec" else job
    with pytest.raises(Conflict, match="different job") as caught:
        rig.submit(other, envelopes=[Envelope(priority=int(what == "envelope"))])
    assert caught.value.details[0]["id"] == job.id
    assert rig.job(job.id).priority == 0


def test_a_deleted_job_is_gone(rig: StoreRig) -> None:
    job = rig.spec(rig.add_site("paris"))
    rig.submit(job)
    rig.cancel(job)
    rig.delete(job)
    with pytest.raises(Gone, match="deleted"):
        rig.submit(job)


# -- all or none ------------------------------------------------------------------------------------


def test_bad_items_are_all_named_and_nothing_is_created(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    good = [rig.spec(site) for _ in range(3)]
    unknown_app = rig.spec(site, app=AppRef("flase"))
    escape = rig.spec(site, workdir="../x")
    with pytest.raises(Invalid, match="nothing was created") as caught:
        rig.submit(good[0], unknown_app, good[1], escape, b"{", good[2])
    assert [(v["id"], v["field"]) for v in caught.value.details] == [
        (unknown_app.id, "app.name"),
        (escape.id, "workdir"),
        ("#4", "spec"),
    ]
    assert jobs(rig) == 0


def test_conflicts_and_unknown_parents_are_named_together(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    old = rig.spec(site)
    rig.submit(old)
    orphan = rig.spec(site, parents=(rig.new_id(),))
    fine = rig.spec(site)
    with pytest.raises(ChappeError) as caught:
        rig.submit(msgspec.structs.replace(old, name="x"), fine, orphan)
    assert codes(caught.value.details) == ["conflict", "unknown_parent"]
    assert jobs(rig) == 1


def test_at_most_a_hundred_bad_items_are_described(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    with pytest.raises(Invalid) as caught:
        rig.submit(*[rig.spec(site, workdir="/x") for _ in range(150)])
    assert len(caught.value.details) == 100


def test_one_id_twice_in_a_request(rig: StoreRig) -> None:
    job = rig.spec(rig.add_site("paris"))
    with pytest.raises(Invalid, match="same id"):
        rig.submit(job, job)


@pytest.mark.parametrize(("count", "kind"), [(0, Invalid), (limits.JOBS_PER_REQUEST + 1, TooLarge)])
def test_the_size_of_a_request(rig: StoreRig, count: int, kind: type[Invalid]) -> None:
    body = CreateJobs([NewJob(msgspec.Raw(b"{}"))] * count)
    with pytest.raises(kind) as caught:
        rig.create(body)
    assert caught.value.field == "jobs"


# -- ids, projects, sites, apps ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "code"), [(-91.0, "id_too_old"), (-89.0, None), (0.9, None), (1.1, "invalid")]
)
def test_the_age_of_an_id(rig: StoreRig, days: float, code: str | None) -> None:
    """An id older than the tombstones could have been deleted already; nobody would know."""
    made = uuid7(int((rig.clock() + days * 86_400) * 1000), b"0123456789")
    job = rig.spec(rig.add_site("paris"), id=made)
    if code is None:
        assert codes(rig.submit(job).verdicts) == ["created"]
    else:
        with pytest.raises(Invalid) as caught:
            rig.submit(job)
        assert (caught.value.code, caught.value.field) == (code, "id")


def test_a_spec_for_another_project(rig: StoreRig) -> None:
    job = msgspec.structs.replace(rig.spec(rig.add_site("paris")), project=rig.new_id())
    with pytest.raises(Invalid, match="token is for project") as caught:
        rig.submit(job)
    assert caught.value.field == "project"


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"sites": ("x",)}, "sites", "there is no site 'x'"),
        ({"app": AppRef("modle")}, "app.name", "has no app 'modle' (it has: model, true)"),
        ({"app": AppRef("model", "1")}, "app.version", "has version 2 of model"),
        ({"parameters": {}}, "parameters.dt", "must be given"),
        ({"parameters": {"dt": "x"}}, "parameters.dt", "a number"),
        ({"parameters": {"dt": 1, "y": 1}}, "parameters.y", "no parameter 'y'"),
        ({"env": {"LD_PRELOAD": "x"}}, "env.LD_PRELOAD", "does not let jobs set"),
    ],
)
def test_what_the_site_would_not_run(
    rig: StoreRig, fields: dict[str, Any], field: str, words: str
) -> None:
    site = rig.add_site("paris", [MODEL, TRUE])
    good = rig.spec(site, app=AppRef("model", "2"), parameters={"dt": 1}, env={"DEBUG": "1"})
    with pytest.raises(Invalid) as caught:
        rig.submit(msgspec.structs.replace(good, **fields))
    assert caught.value.field == field
    assert words in caught.value.message
    rig.submit(good)


def test_each_of_several_sites_must_be_able(rig: StoreRig) -> None:
    paris, rome = rig.add_site("paris"), rig.add_site("rome", [])
    with pytest.raises(Invalid, match=r"site rome has no app 'true' \(it has: none\)"):
        rig.submit(rig.spec(paris, rome))


def test_a_site_that_is_deleted_between_check_and_transaction(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    body = rig.request(rig.spec(site))
    prepared = prepare.prepare(rig.store.writer.catalog, rig.user, body, rig.clock())
    rig.do(sites.delete_site, rig.user, site.id)
    with pytest.raises(Invalid, match="deleted meanwhile"):
        rig.do(create.create_jobs, rig.user, prepared)
    assert jobs(rig) == 0


def test_too_many_shapes(rig: StoreRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SHAPES_PER_PROJECT", 3)
    site = rig.add_site("paris")
    many = [rig.spec(site, resources=Resources(cores=n)) for n in (1, 2, 3, 4)]
    with pytest.raises(ChappeError) as caught:
        rig.submit(*many)
    assert (caught.value.code, caught.value.transient) == ("too_many_shapes", True)
    assert jobs(rig) == 0
    # What was interned on the way is forgotten again: memory is what is on disk.
    assert not rig.store.writer.catalog.shapes
    rig.submit(*many[:3])
    rig.submit(rig.spec(site, resources=Resources(cores=2)))


# -- signatures -------------------------------------------------------------------------------------


def test_a_raw_command_must_be_signed(rig: StoreRig) -> None:
    job = rig.spec(rig.add_site("paris"), command=("true",))
    with pytest.raises(Invalid) as caught:
        rig.submit(job)
    assert caught.value.code == "unsigned"
    rig.submit(job, signed=True)
    assert rig.job(job.id).signed


def test_an_app_that_is_not_marked_wants_a_signature(rig: StoreRig) -> None:
    job = rig.spec(rig.add_site("paris"), app=AppRef("signed"))
    with pytest.raises(Invalid, match="only for signed jobs") as caught:
        rig.submit(job)
    assert caught.value.code == "unsigned"
    rig.submit(job, signed=True)


def altered(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    spec = bytes(body.jobs[0].spec) + b" "
    return CreateJobs([NewJob(msgspec.Raw(spec), submission=0)], body.submissions)


def other_place(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    return CreateJobs([msgspec.structs.replace(body.jobs[0], idx=1)], body.submissions)


def beyond(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    return CreateJobs([msgspec.structs.replace(body.jobs[0], idx=2)], body.submissions)


def negative(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    return CreateJobs([msgspec.structs.replace(body.jobs[0], idx=-1)], body.submissions)


def no_submission(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    return CreateJobs(body.jobs)


def flipped(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    (s,) = body.submissions
    sig = bytearray(base64.b64decode(s.sig))
    sig[5] ^= 1
    bad = msgspec.structs.replace(s, sig=base64.b64encode(sig).decode())
    return CreateJobs(body.jobs, [bad])


def other_key(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    """Signed by one key in the name of another."""
    (s,) = body.submissions
    return CreateJobs(body.jobs, [Signer(2).sign(s.id, bytes(s.statement))])


def other_project(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    specs = [bytes(j.spec) for j in body.jobs]
    until = rig.clock() + 100
    return CreateJobs(body.jobs, [rig.signer.submission(rig.new_id(), rig.new_id(), specs, until)])


def late(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    specs = [bytes(j.spec) for j in body.jobs]
    project = rig.user.project_id
    return CreateJobs(body.jobs, [rig.signer.submission(rig.new_id(), project, specs, rig.clock())])


def statement(rig: StoreRig, body: CreateJobs, **fields: Any) -> CreateJobs:
    given = msgspec.json.decode(body.submissions[0].statement)
    made = rig.signer.sign(rig.new_id(), msgspec.json.encode(given | fields))
    return CreateJobs(body.jobs, [made])


def no_hashes(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    return statement(rig, body, hashes="")


def half_a_hash(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    return statement(rig, body, hashes=base64.b64encode(b"x" * 48).decode())


def no_base64(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    return statement(rig, body, hashes="***")


def too_many_hashes(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    return statement(rig, body, hashes=base64.b64encode(bytes(32 * 1_001)).decode())


def attempts(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    return statement(rig, body, max_attempts=limits.ATTEMPTS_MAX + 1)


def short_key(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    return statement(rig, body, key="YWJj")


def no_json(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    return CreateJobs(body.jobs, [rig.signer.sign(rig.new_id(), b"{")])


def bad_id(rig: StoreRig, body: CreateJobs) -> CreateJobs:
    return CreateJobs(body.jobs, [msgspec.structs.replace(body.submissions[0], id="x")])


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (altered, "altered"),
        (other_place, "altered"),
        (beyond, "invalid"),
        (negative, "invalid"),
        (no_submission, "invalid"),
        (flipped, "bad_signature"),
        (other_key, "bad_signature"),
        (other_project, "invalid"),
        (late, "expired"),
        (no_hashes, "invalid"),
        (half_a_hash, "invalid"),
        (no_base64, "invalid"),
        (too_many_hashes, "invalid"),
        (attempts, "invalid"),
        (short_key, "invalid"),
        (no_json, "invalid"),
        (bad_id, "invalid"),
    ],
)
def test_submissions_that_are_refused(rig: StoreRig, spoil: Any, code: str) -> None:
    site = rig.add_site("paris")
    body = rig.request(rig.spec(site), rig.spec(site), signed=True)
    with pytest.raises(Invalid) as caught:
        rig.create(spoil(rig, body))
    assert caught.value.code == code
    assert caught.value.field
    assert jobs(rig) == 0
    assert not rig.sql("SELECT 1 FROM submission")
    rig.create(body)


def test_a_statement_may_sign_more_attempts_than_the_spec(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    a, b = rig.spec(site), rig.spec(site)
    rig.submit(a, signed=True, max_attempts=9)
    rig.submit(b, signed=True)
    assert (rig.job(a.id).max_attempts, rig.job(b.id).max_attempts) == (9, 3)


def test_another_submission_under_a_known_id_is_a_conflict(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    first = rig.request(rig.spec(site), signed=True)
    rig.create(first)
    second = rig.request(rig.spec(site), signed=True)
    stolen = msgspec.structs.replace(second.submissions[0], id=first.submissions[0].id)
    with pytest.raises(Conflict, match="different submission"):
        rig.create(CreateJobs(second.jobs, [stolen]))
    assert jobs(rig) == 1


def test_a_submission_with_foreign_text_around_the_statement_is_not_read(rig: StoreRig) -> None:
    """What is stored is text: bytes that are no UTF-8 are refused before they are stored."""
    job = rig.spec(rig.add_site("paris"))
    body = rig.request(job, signed=True)
    given = bytes(body.submissions[0].statement)
    odd = rig.signer.sign(rig.new_id(), given[:-1] + b',"note":"\xff"}')
    with pytest.raises(Invalid, match="cannot be read"):
        rig.create(CreateJobs(body.jobs, [odd]))


# -- graphs -----------------------------------------------------------------------------------------


def test_a_parent_that_does_not_exist(rig: StoreRig) -> None:
    missing = rig.new_id()
    with pytest.raises(Invalid, match=missing) as caught:
        rig.submit(rig.spec(rig.add_site("paris"), parents=(missing,)))
    assert (caught.value.code, caught.value.field) == ("unknown_parent", "parents")


def test_a_circle(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    a, b = rig.new_id(), rig.new_id()
    with pytest.raises(Invalid) as caught:
        rig.submit(rig.spec(site, id=a, parents=(b,)), rig.spec(site, id=b, parents=(a,)))
    assert caught.value.code == "cycle"
    assert a in caught.value.message
    assert b in caught.value.message


@pytest.mark.sqlite  # one generation at a time, some seconds on PostgreSQL
def test_ten_thousand_jobs_of_one_chain_in_one_request(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    ids = [rig.new_id() for _ in range(10_000)]
    chain = [rig.spec(site, id=id, parents=(ids[i - 1],) if i else ()) for i, id in enumerate(ids)]
    # Children may come before their parents.
    assert set(codes(rig.submit(*reversed(chain)).verdicts)) == {"created"}
    states = dict(rig.sql("SELECT state, count(*) FROM job GROUP BY state"))
    assert states == {"AWAITING_PARENTS": 9_999, "PREPROCESSED": 1}
    # A failure runs through all that follow, a hundred in a transaction and without recursion.
    rig.cancel(chain[8_500])
    assert dict(rig.sql("SELECT state, count(*) FROM job GROUP BY state"))["FAILED"] == 100
    assert rig.settle() == 14
    states = dict(rig.sql("SELECT state, count(*) FROM job GROUP BY state"))
    assert states == {
        "PREPROCESSED": 1,
        "AWAITING_PARENTS": 8_499,
        "CANCELLED": 1,
        "FAILED": 1_499,
    }


def parent_in(rig: StoreRig, site: Any, state: str) -> JobSpec:
    """A Job that is (or was) in this state."""
    job = rig.spec(site)
    rig.submit(job)
    if state == "running":
        return job
    if state == "cancelled":
        rig.cancel(job)
        return job
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=cores(1)).grants
    pilot.run(grant, exit=1 if state in ("failed", "deleted") else 0)
    site.end(pilot)
    if state == "deleted":
        rig.delete(job)
    return job


@pytest.mark.parametrize(
    ("parents", "policy", "state"),
    [
        (["finished"], "fail", "PREPROCESSED"),
        (["failed"], "fail", "FAILED"),
        (["cancelled"], "fail", "FAILED"),
        (["deleted"], "fail", "FAILED"),
        (["failed"], "anyway", "PREPROCESSED"),
        (["deleted"], "anyway", "PREPROCESSED"),
        (["finished", "failed"], "succeeded", "PREPROCESSED"),
        (["failed", "deleted"], "succeeded", "FAILED"),
        (["finished", "running"], "fail", "AWAITING_PARENTS"),
        (["failed", "running"], "fail", "FAILED"),  # hopeless already
        (["failed", "running"], "anyway", "AWAITING_PARENTS"),
        (["failed", "running"], "succeeded", "AWAITING_PARENTS"),
    ],
)
def test_parents_that_are_final_already(
    rig: StoreRig, parents: list[str], policy: str, state: str
) -> None:
    site = rig.add_site("paris")
    made = tuple(parent_in(rig, site, p).id for p in parents)
    child = rig.spec(site, parents=made, on_parent_failure=ParentPolicy(policy))
    rig.submit(child)
    view = rig.job(child.id)
    assert view.state == state
    if state == "FAILED":
        assert view.outcome is not None
        assert view.outcome.reason == "parent"
        assert "did not finish" in view.outcome.message
    if state == "AWAITING_PARENTS":
        assert view.waiting_parents == 1


@pytest.mark.parametrize(
    ("policy", "exits", "state"),
    [
        ("fail", [0, 0], "PREPROCESSED"),
        ("fail", [0, 1], "FAILED"),
        ("anyway", [1, 1], "PREPROCESSED"),
        ("succeeded", [0, 1], "PREPROCESSED"),
        ("succeeded", [1, 1], "FAILED"),
    ],
)
def test_children_are_woken_by_the_end_of_the_last_parent(
    rig: StoreRig, policy: str, exits: list[int], state: str
) -> None:
    site = rig.add_site("paris")
    parents = [rig.spec(site) for _ in exits]
    child = rig.spec(
        site, parents=tuple(p.id for p in parents), on_parent_failure=ParentPolicy(policy)
    )
    rig.submit(child, *parents)
    pilot = site.add_pilot()
    grants = {g.job: g for g in pilot.sync(capacity=cores(2)).grants}
    assert set(grants) == {p.id for p in parents}
    reports = [
        pilot.end(grants[p.id], exit=e, overtakes=True) for p, e in zip(parents, exits, strict=True)
    ]
    pilot.sync(reports=reports)
    assert rig.job(child.id).state == state


def test_a_child_keeps_the_time_before_which_it_is_not_to_start(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    parent = rig.spec(site)
    child = rig.spec(site, parents=(parent.id,), not_before=rig.clock() + 500)
    rig.submit(parent, child)
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=cores(2)).grants
    pilot.run(grant)
    assert (rig.job(child.id).state, rig.job(child.id).not_before) == (
        "PREPROCESSED",
        rig.clock() + 500,
    )
    assert not pilot.sync(capacity=cores(2)).grants


def test_tags_are_indexed(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    a, b = rig.spec(site), rig.spec(site)
    rig.submit(a, b, envelopes=[Envelope({"exp": "x", "n": "1"}), Envelope({"exp": "x"})])
    page = rig.ask(queries.list_jobs, rig.user, JobFilter(tags={"exp": "x", "n": "1"}), 10, None)
    assert [j.id for j in page.jobs] == [a.id]
