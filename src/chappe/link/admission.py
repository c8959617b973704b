"""Whether a Site starts what it was granted: the last word, and the only one that a stolen Hub cannot have.

A Job that a trusted person signed may run an App or a raw command, as it was signed: these bytes, this id,
this project, these Sites, so many attempts, until then. A Job without a signature may use only Apps that the
Site's owner marked `unsigned`. Each refusal has a code of its own, and is final; it is no attempt.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from chappe.core.errors import Invalid
from chappe.core.jobs import FunctionRef, JobSpec, decode_spec
from chappe.core.parameters import Value
from chappe.link.apps import LoadedApp
from chappe.link.functions import DEFAULT, NO_FUNCTIONS, FunctionEnvironment, FunctionRules
from chappe.link.signing import SignatureProblem, VerifiedSubmission, check_grant
from chappe.wire.sync import Grant


@dataclass(frozen=True, slots=True)
class Admitted:
    """The grant may start. Without an `app` the spec's `command` is the argv (a signed raw command), or
    its `function` is called. `code`, as signed, is the function's pickle or the command's script, and
    `environment` where the function runs.

    `parameters` are complete and checked. `not_after` is the signature's end (seconds since 1970), None
    for an unsigned Job.
    """

    spec: JobSpec
    app: LoadedApp | None
    parameters: dict[str, Value]
    not_after: float | None
    max_attempts: int
    code: bytes = b""
    environment: FunctionEnvironment | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """The grant must not start: a code for programs, words for the user.

    Codes: unsigned bad_signature untrusted_key altered expired bad_spec id_mismatch wrong_project
    wrong_site attempts app_unknown app_version env_not_allowed bad_parameters
    functions_not_allowed environment_unknown code_missing.
    """

    code: str
    message: str


def admit(
    grant: Grant,
    verified: VerifiedSubmission | SignatureProblem | None,
    *,
    trusted: Container[str],
    apps: Mapping[str, LoadedApp],
    site: str,
    project: str,
    now: float,
    functions: FunctionRules = NO_FUNCTIONS,
) -> Admitted | Refusal:
    """Decide about one grant at a Site (`site` and `project` are ids, `now` seconds since 1970).

    `verified` is what `signing.verify` gave or raised for the grant's submission, None for a grant
    without one. Nothing in the spec is believed before its signature is checked. The ledger is asked
    afterwards, just before the start (link.ledger).
    """
    if isinstance(verified, SignatureProblem):
        return Refusal(verified.code, verified.message)
    if verified is not None:
        refusal = _check_signature(grant, verified, trusted, project, now)
        if refusal is not None:
            return refusal
    elif grant.submission is not None:
        return Refusal("bad_signature", "the signature that this job refers to did not come along")
    try:
        spec = decode_spec(grant.spec)
    except Invalid as e:
        return Refusal("bad_spec", f"{e.field or 'spec'}: {e.message}")
    most = spec.max_attempts
    if verified is not None and verified.max_attempts is not None:
        most = verified.max_attempts
    refusal = _check_place(grant, spec, most, site, project)
    if refusal is not None:
        return refusal
    not_after = verified.not_after if verified is not None else None
    if spec.function is not None:
        return _admit_function(spec, spec.function, verified, functions, most)
    if spec.app is None:
        if verified is None:
            return Refusal(
                "unsigned", "a command of its own needs a signature: submit it with a key"
            )
        code = b""
        if spec.script is not None:
            found = verified.code.get(spec.script)
            if found is None:
                return Refusal("code_missing", "the signed submission does not hold the script")
            code = found
        return Admitted(spec, None, {}, not_after, most, code)
    return _admit_app(spec, apps, most, not_after)


def _check_signature(
    grant: Grant, verified: VerifiedSubmission, trusted: Container[str], project: str, now: float
) -> Refusal | None:
    if grant.submission != verified.id:
        return Refusal("altered", "the job came with the signature of another submission")
    if verified.key not in trusted:
        return Refusal(
            "untrusted_key",
            f"the key {verified.key} is not among the site's trusted_keys: "
            "its owner can add it there",
        )
    if verified.project != project:
        return Refusal("wrong_project", f"it was signed for project {verified.project}")
    try:
        check_grant(grant.spec, verified, grant.idx, now)
    except SignatureProblem as e:
        return Refusal(e.code, e.message)
    return None


def _check_place(grant: Grant, spec: JobSpec, most: int, site: str, project: str) -> Refusal | None:
    """Whether this is the Job, the project, the Site and the attempt that the spec speaks about."""
    if spec.id != grant.job:
        return Refusal("id_mismatch", f"granted as {grant.job}, but the spec is of {spec.id}")
    if spec.project != project:
        return Refusal("wrong_project", f"the job belongs to project {spec.project}")
    if site not in spec.sites:
        return Refusal("wrong_site", f"the job may run at {', '.join(spec.sites)} only")
    if not 1 <= grant.attempt <= most:
        return Refusal(
            "attempts", f"attempt {grant.attempt}, but at most {most} were allowed: sign a retry"
        )
    return None


def _admit_function(
    spec: JobSpec,
    function: FunctionRef,
    verified: VerifiedSubmission | None,
    rules: FunctionRules,
    most: int,
) -> Admitted | Refusal:
    """A function is its author's code: it needs the signature, the owner's leave, and its very bytes."""
    if verified is None:
        return Refusal("unsigned", "a function needs a signature: submit it with a key")
    if not rules.allowed:
        return Refusal(
            "functions_not_allowed",
            "the site runs no functions: its owner can set `allowed = true` under [functions] "
            "in site.toml",
        )
    environment = rules.environment(function.environment)
    if environment is None:
        known = ", ".join(sorted({DEFAULT, *rules.environments}))
        return Refusal(
            "environment_unknown",
            f"the site has no environment {function.environment!r} for functions (it has: {known})",
        )
    code = verified.code.get(function.code)
    if code is None:
        return Refusal("code_missing", "the signed submission does not hold the function's code")
    return Admitted(spec, None, {}, verified.not_after, most, code, environment)


def _admit_app(
    spec: JobSpec, apps: Mapping[str, LoadedApp], most: int, not_after: float | None
) -> Admitted | Refusal:
    """Check the Job against the App; `not_after` None means that it is unsigned."""
    if spec.app is None:
        raise ValueError("a spec without an app")
    loaded = apps.get(spec.app.name)
    if loaded is None:
        return Refusal("app_unknown", f"the site has no app {spec.app.name!r}")
    app = loaded.app
    if not_after is None and not app.unsigned:
        return Refusal("unsigned", f"the app {app.name} takes signed jobs only")
    if spec.app.version is not None and spec.app.version != app.version:
        return Refusal(
            "app_version",
            f"the job wants {app.name} {spec.app.version}, the site has {app.version}",
        )
    for name in spec.env:
        if name not in app.allow_env:
            return Refusal(
                "env_not_allowed",
                f"the app {app.name} does not let jobs set {name} (it allows: "
                f"{', '.join(app.allow_env) or 'nothing'})",
            )
    try:
        parameters = loaded.validate(spec.parameters)
    except Invalid as e:
        return Refusal("bad_parameters", f"{e.field}: {e.message}")
    return Admitted(spec, loaded, parameters, not_after, most)
