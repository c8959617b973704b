"""Sealed values: what a Site signs, and that nothing else is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chappe.core.leases import Outcome, Reason
from chappe.link import values
from chappe.link.clock import new_id
from chappe.link.journal import End
from chappe.link.keys import SigningKey
from chappe.link.results import VALUE, ResultProblem
from chappe.link.values import Envelope, Seal, ValueProblem, unseal

SITE, JOB = new_id(), new_id()


@pytest.fixture
def seal(tmp_path: Path) -> Seal:
    return Seal(SITE, tmp_path / "secrets")


def key_of(seal: Seal) -> Any:
    return lambda site, named: seal.key().public_b64 if site == SITE else ""


def ended(reference: str, exit_: int = 0) -> End:
    return End(JOB, 1, 2, "end", 0.0, Outcome(Reason.EXIT, exit=exit_), result=reference)


def test_what_is_sealed_is_opened_again_and_says_where_it_comes_from(seal: Seal) -> None:
    result = values.delivered(ended(values.inline(values.MSGPACK, b"\x01")), seal)
    assert result.media == VALUE
    opened = unseal(result.data, JOB, key_of(seal))
    assert opened.body == b"\x01"
    said = opened.statement
    assert (said.site, said.job, said.attempt, said.media) == (SITE, JOB, 2, values.MSGPACK)
    # The undertaker may deliver what the pilot had hashed already.
    again = values.delivered(ended(values.inline(values.MSGPACK, b"\x01")), seal)
    assert again.sha256 == result.sha256


def test_what_ranks_leave_is_found_when_it_is_wanted_an_exception_first(
    seal: Seal, tmp_path: Path
) -> None:
    stem = f"{tmp_path}/result"
    reference = values.left_at(stem)
    assert values.is_left(reference)
    with pytest.raises(ResultProblem, match="left no value"):
        values.delivered(ended(reference), seal)
    Path(stem + values.VALUE_LEFT).write_text(values.inline(values.MSGPACK, b"\x02"))
    result = values.delivered(ended(reference), seal)
    assert unseal(result.data, JOB, key_of(seal)).body == b"\x02"
    Path(stem + values.ERROR).write_text(values.inline(values.EXCEPTION, b"\x80"))
    result = values.delivered(ended(reference, 1), seal)
    assert unseal(result.data, JOB, key_of(seal)).statement.media == values.EXCEPTION


@pytest.mark.parametrize("text", ["", "nonsense", "value:;left,/etc/hostname", "value:"])
def test_ranks_that_leave_nonsense_leave_nothing(seal: Seal, tmp_path: Path, text: str) -> None:
    stem = f"{tmp_path}/result"
    Path(stem + values.VALUE_LEFT).write_text(text)
    with pytest.raises(ResultProblem):
        values.delivered(ended(values.left_at(stem)), seal)


def test_a_value_in_a_file_is_sealed_and_an_apps_file_is_not(seal: Seal, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(b"[1]")
    result = values.delivered(ended(values.in_file(values.PICKLE, str(path))), seal)
    assert unseal(result.data, JOB, key_of(seal)).body == b"[1]"
    assert values.delivered(ended(str(path)), seal).data == b"[1]"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (values.MISSING, "ended without a value"),
        ("value:x;base64,!", "can be read"),
        ("value:x;file,/no/such/file", "left no file"),
        ("value:x;file,/dev/zero", "not a plain file"),
    ],
)
def test_a_reference_to_nothing_is_a_problem(seal: Seal, reference: str, words: str) -> None:
    with pytest.raises(ResultProblem, match=words):
        values.delivered(ended(reference), seal)


def test_a_key_that_others_may_read_signs_nothing(seal: Seal, tmp_path: Path) -> None:
    seal.key()
    (tmp_path / "secrets" / values.KEY_FILE).chmod(0o644)
    with pytest.raises(ResultProblem, match="the site cannot sign it"):
        values.delivered(ended(values.inline("m", b"")), Seal(SITE, tmp_path / "secrets"))


def test_no_altered_envelope_is_opened(seal: Seal) -> None:
    good = values.delivered(ended(values.inline(values.PICKLE, b"body")), seal).data
    envelope = msgspec.msgpack.decode(good, type=Envelope)
    said = msgspec.json.decode(envelope.statement, type=values.Statement)
    eve = SigningKey(bytes(32))

    def signed_by(signer: SigningKey, **changes: Any) -> Envelope:
        statement = msgspec.json.encode(msgspec.structs.replace(said, **changes))
        return Envelope(statement, signer.sign(values.PREFIX + statement), envelope.body)

    bad = {
        "its signature": msgspec.structs.replace(envelope, sig=bytes(64)),
        "its body": msgspec.structs.replace(envelope, body=b"evil"),
        "its statement": msgspec.structs.replace(
            envelope, statement=envelope.statement.replace(b'"attempt":2', b'"attempt":3')
        ),
        "eve as herself": signed_by(eve, key=eve.public_b64),
        "eve as the site": signed_by(eve),
        "the site, another job": signed_by(seal.key(), job=new_id()),
        "the site, another site": signed_by(seal.key(), site=new_id()),
        "another version": signed_by(seal.key(), v=2),
        "another purpose": Envelope(
            envelope.statement, seal.key().sign(envelope.statement), envelope.body
        ),
        "no key": signed_by(seal.key(), key="AAAA"),
    }
    for what, one in bad.items():
        with pytest.raises(ValueProblem):
            raise AssertionError(what, unseal(msgspec.msgpack.encode(one), JOB, key_of(seal)))
    assert unseal(good, JOB, key_of(seal)).body == b"body"


@given(st.binary(max_size=200))
def test_nonsense_is_a_value_problem(data: bytes) -> None:
    with pytest.raises(ValueProblem):
        unseal(data, JOB, lambda site, named: named)
