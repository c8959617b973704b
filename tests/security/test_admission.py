"""A Hub in an attacker's hands grants what it likes; the Site starts only what was signed or marked.

Each attack is refused with its own code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chappe.link import signing
from chappe.link.admission import Admitted, Refusal, admit
from chappe.link.apps import LoadedApp, load_apps
from chappe.link.clock import new_id
from chappe.link.keys import SigningKey
from chappe.link.signing import SignatureProblem, VerifiedSubmission
from chappe.wire.submission import Submission
from chappe.wire.sync import Grant

NOW = 1_000.0


@dataclass
class World:
    """One Site, its Apps, a person it trusts, and one it does not."""

    apps: dict[str, LoadedApp]
    site: str = field(default_factory=new_id)
    project: str = field(default_factory=new_id)
    ada: SigningKey = field(default_factory=lambda: SigningKey(bytes(range(32))))
    eve: SigningKey = field(default_factory=lambda: SigningKey(bytes(32)))

    def spec(self, **changes: Any) -> bytes:
        fields = {
            "id": new_id(),
            "project": self.project,
            "sites": [self.site],
            "app": {"name": "model"},
            "parameters": {"dt": 3},
            **changes,
        }
        return msgspec.json.encode({k: v for k, v in fields.items() if v is not None})

    def signed(
        self, spec: bytes, key: SigningKey | None = None, **changes: Any
    ) -> tuple[Grant, VerifiedSubmission]:
        project = changes.pop("project", self.project)
        not_after = changes.pop("not_after", NOW + 1)
        attempts = changes.pop("max_attempts", None)
        (made,) = signing.make_submissions(key or self.ada, project, [spec], not_after, attempts)
        grant = self.grant(spec, submission=made.id, **changes)
        return grant, signing.verify(made)

    def grant(self, spec: bytes, **changes: Any) -> Grant:
        fields = {
            "job": msgspec.json.decode(spec).get("id", ""),
            "epoch": 1,
            "attempt": 1,
            "spec": msgspec.Raw(spec),
            **changes,
        }
        return Grant(**fields)

    def decide(
        self, grant: Grant, verified: VerifiedSubmission | SignatureProblem | None
    ) -> Admitted | Refusal:
        return admit(
            grant,
            verified,
            trusted=frozenset({self.ada.public_b64}),
            apps=self.apps,
            site=self.site,
            project=self.project,
            now=NOW,
        )

    def code(
        self, grant: Grant, verified: VerifiedSubmission | SignatureProblem | None = None
    ) -> str:
        decision = self.decide(grant, verified)
        assert isinstance(decision, Refusal), decision
        assert decision.message
        return decision.code


@pytest.fixture
def world(tmp_path: Path) -> World:
    for name, unsigned in (("model", "false"), ("form", "true")):
        (tmp_path / f"{name}.toml").write_text(
            f'name = "{name}"\nversion = "2"\nunsigned = {unsigned}\n'
            'command = ["run", "{{ dt }}"]\nallow_env = ["DEBUG"]\n'
            '[parameters.dt]\ntype = "int"\nmax = 9\n'
        )
    return World(load_apps(tmp_path))


def test_what_a_trusted_person_signed_may_start(world: World) -> None:
    grant, verified = world.signed(world.spec(env={"DEBUG": "1"}))
    decision = world.decide(grant, verified)
    assert isinstance(decision, Admitted)
    assert decision.app is world.apps["model"]
    assert decision.parameters == {"dt": 3}
    assert (decision.not_after, decision.max_attempts) == (NOW + 1, 3)


def test_a_signed_command_of_its_own_may_start(world: World) -> None:
    grant, verified = world.signed(world.spec(app=None, command=["id", "$(x)"]))
    decision = world.decide(grant, verified)
    assert isinstance(decision, Admitted)
    assert decision.app is None
    assert decision.spec.command == ("id", "$(x)")


def test_an_unsigned_job_may_use_an_app_that_is_marked(world: World) -> None:
    decision = world.decide(world.grant(world.spec(app={"name": "form"})), None)
    assert isinstance(decision, Admitted)
    assert decision.not_after is None


def test_an_unsigned_job_may_use_nothing_else(world: World) -> None:
    assert world.code(world.grant(world.spec())) == "unsigned"
    assert world.code(world.grant(world.spec(app=None, command=["id"]))) == "unsigned"


def test_an_unsigned_job_keeps_to_the_apps_rules(world: World) -> None:
    form = {"name": "form"}
    for changes, code in (
        ({"parameters": {"dt": 10}}, "bad_parameters"),
        ({"parameters": {"dt": "3; id"}}, "bad_parameters"),
        ({"parameters": {"other": 1}}, "bad_parameters"),
        ({"env": {"LD_PRELOAD": "evil.so"}}, "env_not_allowed"),
        ({"app": {"name": "form", "version": "1"}}, "app_version"),
        ({"workdir": "../../.ssh"}, "bad_spec"),
        ({"workdir": "/etc"}, "bad_spec"),
        ({"surprise": 1}, "bad_spec"),
    ):
        assert world.code(world.grant(world.spec(**{"app": form, **changes}))) == code


def test_one_changed_byte_is_altered(world: World) -> None:
    spec = world.spec()
    grant, verified = world.signed(spec)
    for changed in (spec.replace(b'"dt":3', b'"dt":4'), spec + b" ", spec[:-1]):
        forged = msgspec.structs.replace(grant, spec=msgspec.Raw(changed))
        assert world.code(forged, verified) == "altered"
    assert world.code(msgspec.structs.replace(grant, idx=1), verified) == "altered"
    assert world.code(msgspec.structs.replace(grant, idx=-1), verified) == "altered"


def test_a_signature_of_another_submission_does_not_serve(world: World) -> None:
    grant, _ = world.signed(world.spec())
    _, other = world.signed(world.spec())
    assert world.code(grant, other) == "altered"
    assert world.code(msgspec.structs.replace(grant, submission=None), other) == "altered"


def test_a_signature_that_was_left_out_is_missed(world: World) -> None:
    grant, _ = world.signed(world.spec(app={"name": "form"}))
    assert world.code(grant, None) == "bad_signature"


def test_a_forged_statement_is_refused(world: World) -> None:
    spec = world.spec()
    (made,) = signing.make_submissions(world.eve, world.project, [spec], NOW + 1)
    statement = bytes(made.statement)
    posing = statement.replace(world.eve.public_b64.encode(), world.ada.public_b64.encode())
    assert posing != statement
    with pytest.raises(SignatureProblem) as caught:
        signing.verify(Submission(made.id, msgspec.Raw(posing), made.sig))
    assert world.code(world.grant(spec, submission=made.id), caught.value) == "bad_signature"


def test_somebody_elses_signature_is_untrusted(world: World) -> None:
    assert world.code(*world.signed(world.spec(), key=world.eve)) == "untrusted_key"


def test_after_not_after_it_is_expired(world: World) -> None:
    assert world.code(*world.signed(world.spec(), not_after=NOW - 1)) == "expired"


def test_it_cannot_be_moved_to_another_site(world: World) -> None:
    assert world.code(*world.signed(world.spec(sites=[new_id()]))) == "wrong_site"


def test_it_cannot_be_moved_to_another_project(world: World) -> None:
    other = new_id()
    assert world.code(*world.signed(world.spec(project=other), project=other)) == "wrong_project"
    assert world.code(*world.signed(world.spec(project=other))) == "wrong_project"
    assert world.code(*world.signed(world.spec(), project=other)) == "wrong_project"


def test_it_cannot_be_granted_under_another_id(world: World) -> None:
    assert world.code(*world.signed(world.spec(), job=new_id())) == "id_mismatch"


def test_attempts_end_where_the_signature_says(world: World) -> None:
    spec = world.spec(retries={"max": 1})
    for attempt, attempts, admitted in (
        (2, None, True),
        (3, None, False),
        (0, None, False),
        (-1, None, False),
        (3, 3, True),
        (2, 1, False),
    ):
        grant, verified = world.signed(spec, attempt=attempt, max_attempts=attempts)
        decision = world.decide(grant, verified)
        if admitted:
            assert isinstance(decision, Admitted)
        else:
            assert isinstance(decision, Refusal)
            assert decision.code == "attempts"


def test_a_signed_job_keeps_to_the_sites_apps(world: World) -> None:
    for changes, code in (
        ({"app": {"name": "rm"}}, "app_unknown"),
        ({"app": {"name": "model", "version": "1"}}, "app_version"),
        ({"parameters": {"dt": 10}}, "bad_parameters"),
        ({"env": {"PATH": "evil"}}, "env_not_allowed"),
    ):
        assert world.code(*world.signed(world.spec(**changes))) == code


@pytest.mark.parametrize("spec", [b"{}", b"[]", b"null", b'{"id": 1}'])
def test_what_is_no_spec_is_refused_even_when_signed(world: World, spec: bytes) -> None:
    (made,) = signing.make_submissions(world.ada, world.project, [spec], NOW + 1)
    grant = Grant(new_id(), 1, 1, msgspec.Raw(spec), submission=made.id)
    assert world.code(grant, signing.verify(made)) == "bad_spec"
