"""The user's key, signed submissions, and whom a Site trusts."""

from __future__ import annotations

import base64
import os
import stat
import threading
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from chappe.link import keys, signing, trust
from chappe.wire.submission import SIGNATURE_PREFIX, Statement, Submission

PROJECT = "01a1f89f-8056-7773-affa-8b196ab7c2a5"


@pytest.fixture
def key(tmp_path: Path) -> keys.SigningKey:
    return keys.load_or_create(tmp_path / "config" / "key")


# --- the key file ---


def test_the_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "config" / "key"
    first = keys.load_or_create(path)
    assert keys.load_or_create(path).public_b64 == first.public_b64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["key"]
    seed = path.read_text().split()[1]
    assert seed not in repr(first)


def test_makers_at_the_same_time_get_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "key"
    gate = threading.Barrier(8)
    made: list[str] = []

    def work() -> None:
        gate.wait()
        made.append(keys.load_or_create(path).public_b64)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1
    assert os.listdir(tmp_path) == ["key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_key_that_others_may_open_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    keys.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(keys.KeyProblem, match=f"chmod 600 {path}"):
        keys.load_or_create(path)


def test_a_key_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    keys.load_or_create(path)
    me = os.geteuid()
    monkeypatch.setattr("chappe.link.keys.os.geteuid", lambda: me + 1)
    with pytest.raises(keys.KeyProblem, match="belongs to user"):
        keys.load(path)


@pytest.mark.parametrize("text", [b"", b"ed25519 AAAA\n", b"rsa x\n", b"\xff\xfe", b"ed25519 !!\n"])
def test_what_is_no_key_is_said_to_be_none(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(keys.KeyProblem, match="holds no key"):
        keys.load(path)


def test_a_pipe_in_the_place_of_the_key_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key", 0o600)
    with pytest.raises(keys.KeyProblem, match="not a plain file"):
        keys.load(tmp_path / "key")


def test_a_key_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(keys.KeyProblem, match="CHAPPE_KEY"):
        keys.load_or_create(tmp_path / "file" / "key")


def test_the_environment_names_another_key() -> None:
    assert keys.default_path({"CHAPPE_KEY": "/x/y"}) == Path("/x/y")
    assert keys.default_path({}).name == "key"


# --- submissions ---


def test_each_spec_is_covered_by_its_submission(key: keys.SigningKey) -> None:
    specs = [b'{"n":%d}' % n for n in range(2_500)]
    made = signing.make_submissions(key, PROJECT, specs, not_after=100.0, max_attempts=7)
    assert len(made) == 3
    for number in (0, 999, 1_000, 2_499):
        verified = signing.verify(made[number // 1_000])
        signing.check_grant(specs[number], verified, number % 1_000, now=99.0)
        assert verified.hash_at(number % 1_000) == sha256(specs[number]).digest()
    assert verified.key == key.public_b64
    assert (verified.project, verified.not_after, verified.max_attempts) == (PROJECT, 100.0, 7)
    assert len(verified) == 500
    assert verified.hash_at(500) is None
    assert verified.hash_at(-1) is None


@pytest.mark.parametrize("idx", [-1, 1, 2, 10**9])
def test_another_index_is_altered(key: keys.SigningKey, idx: int) -> None:
    made = signing.make_submissions(key, PROJECT, [b"a", b"b"], not_after=100.0)[0]
    with pytest.raises(signing.SignatureProblem) as caught:
        signing.check_grant(b"a", signing.verify(made), idx, now=1.0)
    assert caught.value.code == "altered"


def test_after_its_end_a_signature_is_expired(key: keys.SigningKey) -> None:
    verified = signing.verify(signing.make_submissions(key, PROJECT, [b"a"], not_after=100.0)[0])
    signing.check_grant(b"a", verified, 0, now=100.0)
    with pytest.raises(signing.SignatureProblem) as caught:
        signing.check_grant(b"a", verified, 0, now=100.1)
    assert caught.value.code == "expired"


def sign(key: keys.SigningKey, statement: bytes) -> Submission:
    sig = base64.b64encode(key.sign(SIGNATURE_PREFIX + statement)).decode()
    return Submission(id=PROJECT, statement=msgspec.Raw(statement), sig=sig)


def statement(signer: keys.SigningKey, /, **changes: object) -> bytes:
    fields: dict[str, object] = {
        "key": signer.public_b64,
        "project": PROJECT,
        "not_after": 100.0,
        "hashes": base64.b64encode(bytes(32)).decode(),
    }
    return msgspec.json.encode({**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"v": 2}, "version 2"),
        ({"hashes": ""}, "empty"),
        ({"hashes": base64.b64encode(bytes(33)).decode()}, "cut off"),
        ({"hashes": base64.b64encode(bytes(32 * 1_001)).decode()}, "more than 1000"),
        ({"hashes": "é"}, "not base64"),
        ({"hashes": "AAAA\n"}, "not base64"),
        ({"key": base64.b64encode(bytes(31)).decode()}, "32 bytes"),
        ({"key": base64.b64encode(bytes(32)).decode()}, "does not belong"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 10**9}, "max_attempts"),
        ({"not_after": "soon"}, "cannot be read"),
    ],
)
def test_a_wrong_statement_is_refused_though_it_is_signed(
    key: keys.SigningKey, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(signing.SignatureProblem, match=words) as caught:
        signing.verify(sign(key, statement(key, **changes)))
    assert caught.value.code == "bad_signature"


def test_the_statement_above_is_good_as_it_is(key: keys.SigningKey) -> None:
    assert len(signing.verify(sign(key, statement(key)))) == 1


def test_a_reader_of_the_next_version_may_add_fields(key: keys.SigningKey) -> None:
    assert len(signing.verify(sign(key, statement(key, new_field=1)))) == 1


@pytest.mark.parametrize("sig", ["", "AAAA", "é", base64.b64encode(bytes(64)).decode()])
def test_another_signature_is_refused(key: keys.SigningKey, sig: str) -> None:
    made = sign(key, statement(key))
    with pytest.raises(signing.SignatureProblem) as caught:
        signing.verify(msgspec.structs.replace(made, sig=sig))
    assert caught.value.code == "bad_signature"


def test_a_signature_for_another_purpose_is_refused(key: keys.SigningKey) -> None:
    made = msgspec.json.encode(
        Statement(key=key.public_b64, project=PROJECT, not_after=1.0, hashes="A" * 43 + "=")
    )
    bare = base64.b64encode(key.sign(made)).decode()
    with pytest.raises(signing.SignatureProblem):
        signing.verify(Submission(id=PROJECT, statement=msgspec.Raw(made), sig=bare))


# --- trust ---


def test_keys_are_added_and_read_again_when_the_file_changes(
    tmp_path: Path, key: keys.SigningKey
) -> None:
    path = tmp_path / "trusted_keys"
    other = keys.load_or_create(tmp_path / "other")
    trusted = trust.TrustedKeys(path)
    assert trusted.current() == frozenset()
    assert trust.add(path, key.public_b64, "ada at home")
    assert trusted.current() == {key.public_b64}
    assert trust.add(path, other.public_b64, "")
    assert trusted.current() == {key.public_b64, other.public_b64}
    assert not trust.add(path, key.public_b64, "again")
    path.write_text(f"# nobody but\n\n  ed25519 {other.public_b64} other\n")
    assert trusted.current() == {other.public_b64}
    path.unlink()
    assert trusted.current() == frozenset()


def test_a_settled_file_is_not_read_again(tmp_path: Path, key: keys.SigningKey) -> None:
    path = tmp_path / "trusted_keys"
    trust.add(path, key.public_b64, "")
    os.utime(path, (1_000_000, 1_000_000))
    trusted = trust.TrustedKeys(path)
    assert trusted.current() is trusted.current()


def test_a_change_within_one_tick_of_the_clock_is_seen(
    tmp_path: Path, key: keys.SigningKey
) -> None:
    """Same size, same inode, same mtime: only a second look at the contents can tell."""
    path = tmp_path / "trusted_keys"
    other = keys.load_or_create(tmp_path / "other")
    path.write_text(f"ed25519 {key.public_b64}\n")
    trusted = trust.TrustedKeys(path)
    assert trusted.current() == {key.public_b64}
    times = path.stat()
    path.write_text(f"ed25519 {other.public_b64}\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert trusted.current() == {other.public_b64}


@pytest.mark.parametrize(
    "line", ["ed25519", "ssh-ed25519 AAAA", "ed25519 AAAA x", "ed25519 not-base64 x", "garbage"]
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trusted_keys"
    path.write_text(f"# comment\n{line}\n")
    with pytest.raises(trust.TrustProblem, match=f"{path}:2: "):
        trust.TrustedKeys(path).current()


def test_a_file_that_others_may_write_is_refused(tmp_path: Path, key: keys.SigningKey) -> None:
    path = tmp_path / "trusted_keys"
    trust.add(path, key.public_b64, "")
    path.chmod(0o664)
    with pytest.raises(trust.TrustProblem, match=f"chmod 644 {path}"):
        trust.TrustedKeys(path).current()


def test_a_wrong_key_or_comment_is_not_added(tmp_path: Path, key: keys.SigningKey) -> None:
    path = tmp_path / "trusted_keys"
    for text, comment in (("AAAA", ""), (key.public_b64, "two\nlines")):
        with pytest.raises(trust.TrustProblem):
            trust.add(path, text, comment)
    assert not path.exists()
