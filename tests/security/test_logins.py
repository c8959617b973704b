"""Guessing passwords and codes, and looking for secrets where they may have been left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from chappe.hub.passwords import BURST
from chappe.link.clock import new_id
from chappe.testing.hub import start_hub
from tests.integration.hub_rig import Answer
from tests.security.roles_rig import PASSWORD, Rig


@pytest.fixture
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A Hub of each test's own: attempts are counted by address, and all come from one."""
    with start_hub(tmp_path_factory.mktemp("logins") / "hub") as hub:
        yield Rig(hub)
        assert "unexpected error" not in hub.log


def login(rig: Rig, name: Any, password: Any, **more: Any) -> Answer:
    return rig.call("POST", "/v1/login", None, {"name": name, "password": password, **more})


def plain(answer: Answer) -> tuple[int, dict[str, str], bytes]:
    headers = {k: v for k, v in answer.headers.items() if k != "date"}
    return answer.status, headers, answer.body


def test_whoever_guesses_does_not_learn_which_names_there_are(rig: Rig) -> None:
    project = rig.hub.project
    known, _ = rig.person("viewer", project)
    without, _ = rig.invite("viewer", project)
    disabled, _ = rig.person("viewer", project)
    rig.ok("POST", f"/v1/users/{disabled}/disable", rig.hub.token)
    answers = [
        plain(login(rig, known, PASSWORD + "!")),
        plain(login(rig, known, "")),
        plain(login(rig, disabled, PASSWORD)),
        plain(login(rig, without, "")),
        plain(login(rig, "admin", "")),
        plain(login(rig, f"u{new_id()}", PASSWORD)),
        plain(login(rig, known.upper(), PASSWORD)),
        plain(login(rig, known + "\0", PASSWORD)),
        plain(login(rig, "' OR 1=1 --", PASSWORD)),
        plain(login(rig, "", "")),
    ]
    assert answers[0][0] == 401
    assert len({str(answer) for answer in answers}) == 1
    assert login(rig, known, PASSWORD).status == 200


def test_guessing_is_bounded_and_says_for_how_long(rig: Rig) -> None:
    known, _ = rig.person("viewer", rig.hub.project)
    other, _ = rig.person("viewer", rig.hub.project)
    for guess in range(BURST["both"]):
        assert login(rig, known, f"guess {guess}").status == 401
    for password in ("one more", PASSWORD):
        refused = login(rig, known, password)
        assert (refused.status, refused.error["code"]) == (429, "too_many_attempts")
        assert refused.error["transient"] is True
        assert 1 <= int(refused.headers["retry-after"]) <= 60
    # Nobody else is kept out, and who is logged in stays so.
    assert login(rig, other, PASSWORD).status == 200


def test_codes_are_not_guessed(rig: Rig) -> None:
    name, code = rig.invite("viewer", rig.hub.project)
    wish = {"password": PASSWORD}
    tried = [
        plain(rig.call("POST", "/v1/join", None, {**wish, "code": guess}))
        for guess in (
            "",
            code[:-1],
            code + "A",
            code.swapcase(),
            f"chp_i_{'A' * 43}",
            f"{name}",
            rig.hub.token,
            "' OR 1=1 --",
        )
    ]
    assert tried[0][0] == 401
    assert len({str(answer) for answer in tried}) == 1
    for _ in range(BURST["address"]):
        last = rig.call("POST", "/v1/join", None, {**wish, "code": "x"})
    assert (last.status, last.error["code"]) == (429, "too_many_attempts")


def test_a_code_is_used_once_also_by_two_at_once(rig: Rig) -> None:
    from concurrent.futures import ThreadPoolExecutor

    _, code = rig.invite("viewer", rig.hub.project)
    body = {"code": code, "password": PASSWORD}
    with ThreadPoolExecutor(6) as threads:
        found = list(
            threads.map(lambda _: rig.call("POST", "/v1/join", None, body).status, "x" * 6)
        )
    assert sorted(found) == [200] + [401] * 5


def test_odd_requests_are_refused_in_words(rig: Rig) -> None:
    for body in (
        b'{"name": "a", "password": "\\ud800\\ud800\\ud800\\ud800"}',
        b'{"name": 1, "password": []}',
        b'{"name": "a"}',
        b'{"name": "a", "password": "x", "scope": "site"}',
        json.dumps({"name": "a" * 60_000, "password": ""}).encode(),
        json.dumps({"name": "a", "password": "x" * 60_000}).encode(),
        json.dumps({"name": "a", "password": "x" * 100_000}).encode(),
    ):
        answer = rig.call("POST", "/v1/login", None, body)
        assert answer.status in (401, 413, 422)
        assert b"xxxx" not in answer.body


def test_no_secret_is_left_anywhere(rig: Rig) -> None:
    hub = rig.hub
    name, code = rig.invite("viewer", hub.project)
    rig.ok("POST", "/v1/join", None, {"code": code, "password": PASSWORD})
    login(rig, name, "a wrong password")
    login(rig, "a password typed as a name", PASSWORD)
    token = rig.ok("POST", "/v1/login", None, {"name": name, "password": PASSWORD})["token"]
    change = {"old_password": PASSWORD, "new_password": "another password"}
    rig.ok("PUT", "/v1/password", token, change)
    rig.ok("POST", "/v1/tokens/service", hub.token, {"role": "viewer"})
    audit = rig.call("GET", "/v1/audit?limit=1000", hub.token).body
    hub.stop()
    kept = hub.log.encode() + audit
    kept += b"".join(path.read_bytes() for path in hub.data.glob("hub.sqlite*"))
    secrets = [PASSWORD, "a wrong password", "another password", "a password typed as a name"]
    for secret in (*secrets, code, code[6:], token.split("_", 3)[3]):
        assert secret.encode() not in kept, secret
    assert b"refused" in hub.log.encode()
