"""From drafts to signed requests: resolve, encode once, sign, cut to the Hub's limits.

A spec is encoded once; those bytes are what is hashed, signed, sent and stored. Jobs that do not depend
on each other travel 1 000 a request, so that a few requests can be on their way at once. Jobs that do
travel together, up to 10 000: all of such a request is created or none; larger graphs are cut in
topological order and sent one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import msgspec

from chappe.core import limits
from chappe.core.dag import check_acyclic
from chappe.core.jobs import FunctionRef, JobSpec, check_envelope, decode_spec
from chappe.link.keys import SigningKey
from chappe.link.signing import make_submissions
from chappe.sdk.drafts import Draft, Template
from chappe.sdk.errors import Invalid, NotFound, TooLarge
from chappe.wire.jobs import CreateJobs, NewJob
from chappe.wire.submission import Submission


class Plan(msgspec.Struct, frozen=True):
    """Groups of drafts, one request each; `in_order` when a group needs those before it."""

    groups: list[list[Draft]]
    in_order: bool


class Context(msgspec.Struct, frozen=True):
    """What turns names into ids and bytes into signed bytes. `sites` maps names and ids to ids."""

    project: str
    sites: Mapping[str, str]
    key: SigningKey
    not_after: float


def plan(drafts: Sequence[Draft]) -> Plan:
    """Cut drafts into requests. Raises Invalid when they depend on each other in a circle."""
    by_id = {draft.id: draft for draft in drafts}
    if any(parent in by_id for draft in by_id.values() for parent in draft.template.parents):
        ordered = [by_id[one] for one in _topological(by_id)]
        return Plan(list(_cut(ordered, limits.JOBS_PER_REQUEST)), in_order=True)
    # Code is sent once a request, and an array is created all or none.
    together = any(draft.task is not None or _code(draft) for draft in by_id.values())
    most = limits.JOBS_PER_REQUEST if together else limits.JOBS_PER_SUBMISSION
    return Plan(list(_cut(list(by_id.values()), most)), in_order=False)


def encode(group: Sequence[Draft], context: Context) -> list[bytes]:
    """The bodies of `POST /v1/jobs` that create a group: one, or more where it is too many bytes."""
    specs = _specs(group, context)
    jobs: list[NewJob] = []
    submissions: list[Submission] = []
    for start, end, codes in _signed_together(group):
        some = specs[start:end]
        submissions += make_submissions(
            context.key, context.project, some, context.not_after, code=codes
        )
        jobs += [
            NewJob(msgspec.Raw(spec), draft.template.envelope, len(submissions) - 1, idx)
            for idx, (draft, spec) in enumerate(zip(group[start:end], some, strict=True))
        ]
    body = _encoder.encode(CreateJobs(jobs, submissions))
    if len(body) <= limits.BODY_BYTES:
        return [body]
    if len(group) == 1:
        raise TooLarge(
            f"a job of {len(body)} bytes cannot be sent: put data in files", field="parameters"
        )
    half = len(group) // 2
    return [*encode(group[:half], context), *encode(group[half:], context)]


def _signed_together(group: Sequence[Draft]) -> Iterator[tuple[int, int, list[bytes]]]:
    """Cut a group into what one statement signs: (start, end, the code that it carries)."""
    start, size = 0, 0
    codes: dict[str, bytes] = {}
    for i, draft in enumerate(group):
        code = _code(draft)
        new = code is not None and code[0] not in codes
        more = len(code[1]) if code is not None and new else 0
        if (
            i - start == limits.JOBS_PER_SUBMISSION
            or size + more > limits.CODE_BYTES
            or len(codes) + new > limits.CODES_PER_SUBMISSION
        ):
            yield start, i, list(codes.values())
            start, size, codes = i, 0, {}
            more = len(code[1]) if code is not None else 0
        if code is not None:
            codes[code[0]] = code[1]
            size += more
    yield start, len(group), list(codes.values())


def _specs(group: Sequence[Draft], context: Context) -> list[bytes]:
    """Each draft's spec as the bytes that are signed. The first of each template is checked here."""
    resolved: dict[int, tuple[str, ...]] = {}
    specs: list[bytes] = []
    for draft in group:
        t = draft.template
        sites = resolved.get(id(t))
        spec = JobSpec(
            draft.id,
            context.project,
            _sites(t, context) if sites is None else sites,
            t.app,
            t.command,
            draft.name,
            draft.parameters,
            t.workdir,
            t.env,
            t.resources,
            t.retries,
            t.parents,
            t.on_parent_failure,
            t.takeover_s,
            t.not_before,
            _function(draft),
            None if t.script is None else t.script.sha256,
            draft.task,
        )
        raw = _encode_spec(spec)
        if sites is None:
            decode_spec(raw)
            check_envelope(t.envelope)
            resolved[id(t)] = spec.sites
        specs.append(raw)
    return specs


def _code(draft: Draft) -> tuple[str, bytes] | None:
    """What a Job needs of its statement: the sha256 and the bytes of its function or its script."""
    carried = draft.template.function or draft.template.script
    return None if carried is None else (carried.sha256, carried.code)


def _function(draft: Draft) -> FunctionRef | None:
    f = draft.template.function
    if f is None:
        return None
    return FunctionRef(f.name, f.sha256, draft.arguments, f.python, f.environment, f.own_process)


def _encode_spec(spec: JobSpec) -> bytes:
    try:
        return _encoder.encode(spec)
    except (TypeError, ValueError, OverflowError) as e:
        raise Invalid(
            f"the parameters or options of job {spec.name or spec.id} are not plain data: {e}",
            field="parameters",
        ) from None


def _plain(value: Any) -> Any:
    """What JSON has no word for: NumPy numbers and arrays, and paths, which scientists have at hand."""
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r:.60}")


_encoder = msgspec.json.Encoder(enc_hook=_plain)


def _sites(template: Template, context: Context) -> tuple[str, ...]:
    found = []
    for name in template.sites:
        site = context.sites.get(name)
        if site is None:
            # Only names are listed: a known id stands beside its name in the mapping.
            known = ", ".join(sorted(n for n, i in context.sites.items() if n != i)) or "none yet"
            raise NotFound(f"there is no site {name!r} (there are: {known})", field="sites")
        found.append(site)
    return tuple(found)


def _cut(drafts: list[Draft], most: int) -> Iterator[list[Draft]]:
    for start in range(0, len(drafts), most):
        yield drafts[start : start + most]


def _topological(by_id: Mapping[str, Draft]) -> list[str]:
    """Ids with every parent before its children, else as given."""
    parents = {
        one: [p for p in draft.template.parents if p in by_id] for one, draft in by_id.items()
    }
    check_acyclic(parents)
    waiting = {one: len(ps) for one, ps in parents.items()}
    children: dict[str, list[str]] = {}
    for one, ps in parents.items():
        for parent in ps:
            children.setdefault(parent, []).append(one)
    ordered = [one for one, n in waiting.items() if n == 0]
    for one in ordered:  # grows while it is read: each id enters when its last parent is in
        for child in children.get(one, ()):
            waiting[child] -= 1
            if waiting[child] == 0:
                ordered.append(child)
    return ordered
