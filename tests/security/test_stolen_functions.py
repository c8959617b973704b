"""A stolen Hub and functions: whose code a Site calls, and whose values a user loads."""

from __future__ import annotations

import base64
import hashlib
import pickle
import sqlite3
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import chappe
from chappe import Client
from chappe.link import values
from chappe.link.clock import new_id
from chappe.link.keys import SigningKey
from chappe.link.results import VALUE
from chappe.link.signing import make_submissions
from chappe.link.values import Envelope, ValueProblem
from chappe.sdk import pickling
from chappe.sdk.functions import PYTHON
from chappe.site.init import public_key
from chappe.wire.submission import Statement, Submission
from tests.integration import sdk_rig
from tests.integration.sdk_rig import SITE, Place
from tests.security.victim import Victim, job_of, refused

WITHIN_S = 60.0


# --- the Site: whose code it calls


def witness(extra: str = "") -> None:
    """Leave a line with the Job's id, as every App of the victim does."""
    import os

    with open(os.environ["CHAPPE_DATA"] + "/witness", "a") as file:
        file.write(os.environ["CHAPPE_JOB_ID"] + extra + "\n")


def evil() -> None:
    """What the attacker would like to have called."""
    import os

    with open(os.environ["CHAPPE_DATA"] + "/evil", "w"):
        pass


def pickled(function: Any) -> bytes:
    return pickling.dumps(function)


CODE, EVIL = pickled(witness), pickled(evil)
NOTHING = pickle.dumps(((), {}))


def spec_of(
    victim: Victim, code: bytes = CODE, arguments: bytes = NOTHING, **changes: Any
) -> bytes:
    function = {
        "name": "witness",
        "code": hashlib.sha256(code).hexdigest(),
        "arguments": base64.b64encode(arguments).decode(),
        "python": PYTHON,
        **changes.pop("function", {}),
    }
    return victim.spec(None, function=function, **changes)


def sign(victim: Victim, spec: bytes, *codes: bytes, key: SigningKey | None = None) -> Submission:
    not_after = 4e9
    (made,) = make_submissions(key or victim.ada, victim.project, [spec], not_after, None, codes)
    return made


def test_a_signed_function_is_called_and_its_value_is_sealed(victim: Victim) -> None:
    spec = spec_of(victim)
    job = victim.run(spec, sign(victim, spec, CODE))
    report = victim.hub.report(job)
    assert (report.kind, report.outcome and report.outcome.exit) == ("end", 0), report
    assert victim.runs(job) == 1
    key = public_key(victim.paths.root).key
    opened = values.unseal(report.body, job, lambda site, _: key if site == victim.site else "")
    assert (report.media, opened.statement.media, opened.body) == (VALUE, values.MSGPACK, b"\xc0")


def test_an_unsigned_function_is_refused(victim: Victim) -> None:
    refused(victim, "unsigned", spec_of(victim))


def test_a_strangers_function_is_refused(victim: Victim) -> None:
    spec = spec_of(victim)
    refused(victim, "untrusted_key", spec, sign(victim, spec, CODE, key=victim.eve))


def test_other_code_under_a_signature_is_refused(victim: Victim) -> None:
    spec = spec_of(victim)
    honest = sign(victim, spec, CODE)
    said = msgspec.json.decode(honest.statement, type=Statement)
    swapped = msgspec.structs.replace(said, code=(base64.b64encode(EVIL).decode(),))
    altered = Submission(honest.id, msgspec.Raw(msgspec.json.encode(swapped)), honest.sig)
    refused(victim, "bad_signature", spec, altered)
    # Ada signed the one, and the other: each only under its own name.
    again = spec_of(victim)
    refused(victim, "code_missing", again, sign(victim, again, EVIL))
    assert not (victim.paths.data / "evil").exists()


def test_code_that_did_not_come_along_is_not_found_elsewhere(victim: Victim) -> None:
    """Not even where it was signed before, at the same Site."""
    known = spec_of(victim)
    victim.hub.report(victim.run(known, sign(victim, known, CODE)))
    spec = spec_of(victim)
    refused(victim, "code_missing", spec, sign(victim, spec))


def test_other_arguments_or_another_function_are_refused(victim: Victim) -> None:
    spec = spec_of(victim)
    submission = sign(victim, spec, CODE, EVIL)
    ident = job_of(spec)
    for changed in (
        spec_of(victim, arguments=pickle.dumps((("x",), {})), id=ident),
        spec_of(victim, EVIL, id=ident),
        spec_of(victim, id=ident, function={"own_process": True}),
        spec_of(victim, id=ident, function={"environment": "other"}),
        victim.spec(None, id=ident, command=["/bin/sh", "-c", "touch evil"]),
    ):
        refused(victim, "altered", changed, submission)
    assert not (victim.paths.data / "evil").exists()


def test_an_environment_that_the_owner_did_not_write_is_refused(victim: Victim) -> None:
    spec = spec_of(victim, function={"environment": "../../tmp"})
    refused(victim, "bad_spec", spec, sign(victim, spec, CODE))
    spec = spec_of(victim, function={"environment": "other"})
    assert "default" in refused(victim, "environment_unknown", spec, sign(victim, spec, CODE))


def test_a_statement_full_of_code_is_refused(victim: Victim) -> None:
    spec = spec_of(victim)
    many = [CODE, *(b"%d" % n for n in range(16))]
    refused(victim, "bad_signature", spec, sign(victim, spec, *many))
    refused(victim, "bad_signature", spec, sign(victim, spec, CODE, b"x" * 300_000))


# --- the user: whose values are loaded


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place, None, None]:
    with sdk_rig.place(tmp_path_factory.mktemp("thief")) as made:
        yield made


@pytest.fixture
def client(place: Place) -> Generator[Client, None, None]:
    with place.client() as made:
        yield made


class Thief:
    """Who has the Hub's database, and writes what it likes into it."""

    def __init__(self, place: Place) -> None:
        self._path = place.hub.data / "hub.sqlite"
        self.site = place.directory / SITE

    def result(self, job: str) -> tuple[str, bytes]:
        with sqlite3.connect(self._path) as db:
            row = db.execute(
                "SELECT media, body FROM result WHERE job = (SELECT n FROM job WHERE id = ?)",
                (job,),
            ).fetchone()
        db.close()
        return row[0], row[1]

    def put(self, job: str, media: str, body: bytes) -> None:
        sha256 = hashlib.sha256(body).hexdigest()
        with sqlite3.connect(self._path) as db:
            db.execute(
                "UPDATE result SET media = ?, body = ?, sha256 = ? "
                "WHERE job = (SELECT n FROM job WHERE id = ?)",
                (media, body, sha256, job),
            )
            db.execute(
                "UPDATE job SET outcome = json_set(outcome, '$.result_sha256', ?) WHERE id = ?",
                (sha256, job),
            )
        db.close()

    def forged(self, client: Client, job: str, media: str, body: bytes, key: SigningKey) -> bytes:
        """An envelope for this Job as its Site would make it, signed by another."""
        said = values.Statement(
            client.job(job).refresh().site or "",
            job,
            1,
            media,
            hashlib.sha256(body).hexdigest(),
            key.public_b64,
        )
        statement = msgspec.json.encode(said)
        return msgspec.msgpack.encode(
            Envelope(statement, key.sign(values.PREFIX + statement), body)
        )


def test_no_value_of_the_thief_is_loaded(client: Client, place: Place, tmp_path: Path) -> None:
    thief = Thief(place)
    give = chappe.app(lambda n: (n, "mine"), site=SITE)
    mine, other = client.submit([give(1), give(2)])
    assert [job.result(WITHIN_S) for job in (mine, other)] == [(1, "mine"), (2, "mine")]
    honest, anothers = thief.result(mine.id), thief.result(other.id)
    assert honest[0] == VALUE
    bomb = tmp_path / "bomb"
    evil = pickle.dumps(Bomb(bomb))
    eve = SigningKey(bytes(32))
    envelope = msgspec.msgpack.decode(honest[1], type=Envelope)
    attacks: dict[str, tuple[str, bytes]] = {
        "another job's value": anothers,
        "a bare pickle": (values.PICKLE, evil),
        "a pickle said to be json": ("application/json", evil),
        "unsigned data": ("application/json", b'"mine"'),
        "unsigned bytes": ("image/png", b"mine"),
        "another body": (VALUE, msgspec.msgpack.encode(Envelope(*_pair(envelope), evil))),
        "signed by eve": (VALUE, thief.forged(client, mine.id, values.PICKLE, evil, eve)),
        "an exception of eve's": (
            VALUE,
            thief.forged(
                client,
                mine.id,
                values.EXCEPTION,
                msgspec.msgpack.encode(values.RemoteException("E", "", "", evil)),
                eve,
            ),
        ),
        "nothing": (VALUE, b""),
        "nonsense": (VALUE, msgspec.msgpack.encode((b"{}", b"", b""))),
    }
    for what, (media, body) in attacks.items():
        thief.put(mine.id, media, body)
        for _ in range(2):
            with pytest.raises((ValueProblem, chappe.SiteKeyChanged)):
                raise AssertionError(what, mine.result())
        assert not bomb.exists(), what
    thief.put(mine.id, *honest)
    assert mine.result() == (1, "mine")


def _pair(envelope: Envelope) -> tuple[bytes, bytes]:
    return envelope.statement, envelope.sig


def test_an_executor_loads_nothing_of_the_thief_either(client: Client, place: Place) -> None:
    """Its results come many at a time, by another route."""
    thief = Thief(place)
    give = chappe.app(lambda n: [n], site=SITE)
    job = client.submit(give, 1)
    assert job.result(WITHIN_S) == [1]
    found = client._run(client._engine.results([job.id, new_id()]))
    assert found.keys() == {job.id}
    thief.put(job.id, "application/json", b"[2]")
    with pytest.raises(ValueProblem):
        job.result()


def test_a_failure_cannot_be_made_a_success_nor_a_retry_get_other_code(
    client: Client, place: Place
) -> None:
    """A retry beyond what was signed is signed anew: with the code that was signed before, and no other."""
    thief = Thief(place)

    def fail() -> None:
        raise LookupError("always")

    job = client.submit(chappe.app(fail, site=SITE, retries=0))
    with pytest.raises(LookupError):
        job.result(WITHIN_S)
    honest = thief.result(job.id)
    thief.put(job.id, "application/json", b"42")
    with pytest.raises(ValueProblem):
        job.result()
    thief.put(job.id, *honest)
    job.retry()
    with pytest.raises(LookupError):
        job.wait(WITHIN_S).result()
    assert job.attempt == 2
