"""Arrays and scripts as the SDK sends them."""

from __future__ import annotations

import hashlib
import itertools

import msgspec
import pytest

from chappe.core import limits
from chappe.core.jobs import ParentPolicy, decode_spec
from chappe.link.clock import new_id
from chappe.link.keys import SigningKey
from chappe.link.signing import check_grant, verify
from chappe.sdk import drafts, sending
from chappe.sdk.drafts import Draft, FunctionCode, Template
from chappe.sdk.errors import Invalid, TooLarge
from chappe.wire.jobs import CreateJobs

PARIS = new_id()
CONTEXT = sending.Context(
    project="p", sites={"paris": PARIS}, key=SigningKey(bytes(32)), not_after=2e9
)


def command(**options: object) -> Draft:
    return Draft(drafts.template("paris", command=["run"]).with_options(options), {})


def test_ten_thousand_tasks_are_one_request_signed_like_any_other() -> None:
    script = drafts.script(b"#!/bin/sh\nexit 0\n" * 100)
    template = msgspec.structs.replace(command().template, script=script)
    array = Draft(template, {}, "run").array("1-10000", "slurm")
    plan = sending.plan(array)
    assert [len(group) for group in plan.groups] == [limits.JOBS_PER_REQUEST]
    (body,) = sending.encode(plan.groups[0], CONTEXT)
    request = msgspec.json.decode(body, type=CreateJobs)
    proofs = [verify(submission) for submission in request.submissions]
    assert [list(proof.code) for proof in proofs] == [[script.sha256]] * 10
    for place in (0, 999, 1_000, 9_999):
        new = request.jobs[place]
        assert new.submission is not None
        check_grant(new.spec, proofs[new.submission], new.idx, now=1e9)
        spec = decode_spec(new.spec)
        assert spec.task is not None
        assert (spec.task.index, spec.task.dialect) == (place + 1, "slurm")
        assert (spec.name, spec.script) == (f"run[{place + 1}]", script.sha256)


def test_at_most_so_many_at_once_are_lines_that_wait_however_the_one_before_ended() -> None:
    array = command().array("0-9%4")
    parents = {draft.id: draft.template.parents for draft in array}
    ids = [draft.id for draft in array]
    assert [parents[one] for one in ids[:4]] == [()] * 4
    assert [parents[one] for one in ids[4:]] == [(one,) for one in ids[:6]]
    assert {draft.template.on_parent_failure for draft in array[4:]} == {ParentPolicy.ANYWAY}
    plan = sending.plan(array)
    assert ([len(group) for group in plan.groups], plan.in_order) == ([10], True)
    assert not any(draft.template.parents for draft in command().array("0-9%10"))


def test_lines_and_a_parent_that_must_succeed_exclude_each_other() -> None:
    before = command()
    with pytest.raises(Invalid, match="anyway"):
        command(parents=[before]).array("1-9%2")
    mixed = command(parents=[before], on_parent_failure="anyway").array("1-3%2")
    assert [draft.template.parents for draft in mixed] == [
        (before.id,),
        (before.id,),
        (mixed[0].id,),
    ]
    assert len(command(parents=[before]).array("1-9")) == 9


def test_indices_may_be_numbers_of_any_kind_and_not_too_many() -> None:
    made = command(name="a").array(i * i for i in (3, 1, 2))
    assert [draft.name for draft in made] == ["a[1]", "a[4]", "a[9]"]
    with pytest.raises(TooLarge):
        command().array(itertools.count())
    with pytest.raises(Invalid):
        command().array([])
    with pytest.raises(Invalid):
        command().array([-1])


def test_a_function_is_no_array() -> None:
    template = Template(("paris",), function=FunctionCode("f", b"", "0" * 64, "3.12", "x", False))
    with pytest.raises(Invalid, match="use map"):
        Draft(template, {}).array("1-2")


def test_a_script_has_its_hash_and_its_limit() -> None:
    assert drafts.script(b"x").sha256 == hashlib.sha256(b"x").hexdigest()
    with pytest.raises(TooLarge, match="limit"):
        drafts.script(bytes(limits.CODE_BYTES + 1))
