"""A stolen Hub and what it may fill in: Apps, values, environments, directories, and news of parents."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chappe.link.clock import new_id
from chappe.wire.jobs import ParentPage, ParentView
from tests.security.evil_hub import Answer
from tests.security.victim import Victim, child, granted, job_of, refused, works

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
