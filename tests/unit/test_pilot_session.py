"""session.json: what an agent tells a pilot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from chappe.link.clock import new_id
from chappe.pilot import session as sessions
from chappe.pilot.session import Session, SessionProblem


def write(directory: Path, mode: int = 0o600, **more: Any) -> Path:
    path = directory / "session.json"
    told = {
        "session": new_id(),
        "project": new_id(),
        "site": new_id(),
        "site_name": "paris",
        "url": "https://hub.example.org",
        "site_dir": str(directory),
        "token": "secret",
        **more,
    }
    path.write_bytes(msgspec.json.encode(told))
    path.chmod(mode)
    return path


def test_defaults_and_unknown_fields(tmp_path: Path) -> None:
    write(tmp_path, of_a_newer_agent=1, options={"slots": 3, "of_a_newer_agent": 2})
    session = sessions.load(tmp_path)
    assert session.data == tmp_path / "data"
    assert (session.options.slots, session.options.drain_s) == (3, 30.0)
    assert sessions.read_token(session) == "secret"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"session": "x"}, "UUID"),
        ({"site_dir": "relative"}, "site_dir"),
        ({"options": {"cores": -1}}, "cores"),
        ({"url": 7}, "url"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, fields: dict[str, Any], word: str) -> None:
    write(tmp_path, **fields)
    with pytest.raises(SessionProblem, match=word):
        sessions.load(tmp_path)


def test_a_token_that_others_may_read_is_refused(tmp_path: Path) -> None:
    write(tmp_path, mode=0o640)
    with pytest.raises(SessionProblem, match="chmod 600"):
        sessions.load(tmp_path)


def test_no_file_no_pilot(tmp_path: Path) -> None:
    with pytest.raises(SessionProblem, match="--dir"):
        sessions.load(tmp_path)


def test_a_token_in_a_file_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, token="", token_file=str(tmp_path / "token"))
    session = sessions.load(tmp_path)
    with pytest.raises(SessionProblem, match="cannot be read"):
        sessions.read_token(session)
    (tmp_path / "token").write_text("")
    with pytest.raises(SessionProblem, match="empty"):
        sessions.read_token(session)
    (tmp_path / "token").write_text("secret\n")
    assert sessions.read_token(session) == "secret"


def test_a_limit_counts_from_the_first_pilot(tmp_path: Path) -> None:
    write(tmp_path, wall_s=100.0)
    session = sessions.load(tmp_path)
    assert sessions.ends_at(session, tmp_path, 1000.0) == 1100.0
    assert sessions.ends_at(session, tmp_path, 1050.0) == 1100.0


def test_an_end_that_is_given_counts(tmp_path: Path) -> None:
    told = Session("s", "p", "i", "n", "u", "/d", ends_at=7.0, wall_s=100.0)
    assert sessions.ends_at(told, tmp_path, 1000.0) == 7.0
    assert sessions.ends_at(Session("s", "p", "i", "n", "u", "/d"), tmp_path, 1000.0) is None
