"""From drafts to bytes: what is signed is what is sent, in requests that the Hub can take."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import msgspec
import numpy as np
import pytest

from chappe.core import limits
from chappe.core.jobs import decode_spec
from chappe.link.clock import new_id
from chappe.link.keys import SigningKey
from chappe.link.signing import check_grant, verify
from chappe.sdk import drafts, sending
from chappe.sdk.drafts import Draft
from chappe.sdk.errors import Invalid, NotFound, TooLarge
from chappe.sdk.handles import AppHandle
from chappe.wire.jobs import CreateJobs

PARIS = new_id()
CONTEXT = sending.Context(
    project="p", sites={"paris": PARIS, PARIS: PARIS}, key=SigningKey(bytes(32)), not_after=2e9
)
APP = AppHandle(drafts.template("paris", app="model"))


def decoded(body: bytes) -> CreateJobs:
    return msgspec.json.decode(body, type=CreateJobs)


def test_every_job_is_covered_by_its_signature() -> None:
    group = [APP.options(tags={"i": str(i)})(n=i) for i in range(2_100)]
    (body,) = sending.encode(group, CONTEXT)
    request = decoded(body)
    proofs = [verify(submission) for submission in request.submissions]
    assert [len(p) for p in proofs] == [1_000, 1_000, 100]
    for i, (draft, new) in enumerate(zip(group, request.jobs, strict=True)):
        assert new.submission is not None
        check_grant(new.spec, proofs[new.submission], new.idx, now=1e9)
        spec = decode_spec(new.spec)
        assert (spec.id, spec.project, spec.sites) == (draft.id, "p", (PARIS,))
        assert (spec.parameters, new.envelope.tags) == ({"n": i}, {"i": str(i)})


def test_the_same_draft_encodes_to_the_same_bytes() -> None:
    draft = APP.options(name="n", cores=2, wall_s=60)(x=1.5, y=[1, 2])
    (first,), (second,) = sending.encode([draft], CONTEXT), sending.encode([draft], CONTEXT)
    assert bytes(decoded(first).jobs[0].spec) == bytes(decoded(second).jobs[0].spec)


def test_what_scientists_have_at_hand_becomes_plain_data() -> None:
    draft = APP(
        a=np.float64(1.5), b=np.int32(2), c=np.arange(3), d=PurePosixPath("x/y"), e=np.bool_(1)
    )
    (body,) = sending.encode([draft], CONTEXT)
    parameters = decode_spec(decoded(body).jobs[0].spec).parameters
    assert parameters == {"a": 1.5, "b": 2, "c": [0, 1, 2], "d": "x/y", "e": True}


def test_what_is_no_data_is_named() -> None:
    with pytest.raises(Invalid, match="job ens-1 are not plain data: object") as error:
        sending.encode([APP.options(name="ens-1")(f=object())], CONTEXT)
    assert error.value.field == "parameters"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"cores": 0}, "resources.cores"),
        ({"cores": "4"}, "resources.cores"),
        ({"workdir": "../x"}, "workdir"),
        ({"env": {"A B": "1"}}, "env"),
        ({"priority": 10**9}, "priority"),
        ({"retries": -1}, "retries.max"),
    ],
)
def test_wrong_options_are_found_before_anything_is_sent(
    options: dict[str, Any], field: str
) -> None:
    with pytest.raises(Invalid) as error:
        sending.encode([APP.options(**options)()], CONTEXT)
    assert error.value.field == field


def test_an_unknown_site_is_answered_with_those_that_exist() -> None:
    lost = AppHandle(drafts.template("pariss", app="model"))
    with pytest.raises(NotFound, match=r"no site 'pariss' \(there are: paris\)"):
        sending.encode([lost()], CONTEXT)


def test_independent_jobs_go_a_thousand_a_request_in_any_order() -> None:
    plan = sending.plan([APP(n=i) for i in range(2_500)])
    assert [len(g) for g in plan.groups] == [1_000, 1_000, 500]
    assert not plan.in_order


def test_a_graph_travels_in_one_request_parents_first() -> None:
    a = APP()
    b = APP.options(parents=[a])()
    c = APP.options(parents=[a, b, new_id()])()
    plan = sending.plan([c, b, a, b])
    assert [[d.id for d in g] for g in plan.groups] == [[a.id, b.id, c.id]]


def test_a_graph_beyond_the_limit_is_cut_in_topological_order() -> None:
    chain: list[Draft] = [APP()]
    while len(chain) < 2 * limits.JOBS_PER_REQUEST + 5:
        chain.append(APP.options(parents=[chain[-1]])())
    plan = sending.plan(chain[::-1])
    assert plan.in_order
    assert [len(g) for g in plan.groups] == [limits.JOBS_PER_REQUEST, limits.JOBS_PER_REQUEST, 5]
    assert [d.id for g in plan.groups for d in g] == [d.id for d in chain]


def test_a_circle_is_named() -> None:
    a = APP()
    b = APP.options(parents=[a])()
    a.template = a.template.with_options({"parents": [b]})
    with pytest.raises(Invalid, match="circle") as error:
        sending.plan([a, b])
    assert error.value.code == "cycle"


def test_too_many_bytes_are_sent_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_BYTES", 30_000)
    group = [APP(text="x" * 1_000) for _ in range(100)]
    bodies = sending.encode(group, CONTEXT)
    assert len(bodies) == 8
    assert all(len(body) <= 30_000 for body in bodies)
    sent = [decode_spec(new.spec).id for body in bodies for new in decoded(body).jobs]
    assert sent == [draft.id for draft in group]


def test_one_job_that_is_too_large_says_so() -> None:
    with pytest.raises(TooLarge, match="put data in files"):
        sending.encode([APP(text="x" * limits.SPEC_BYTES)], CONTEXT)
