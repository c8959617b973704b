"""Where the Hub is: arguments, the environment's file, or words on what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chappe.sdk import config
from chappe.sdk.errors import ConfigMissing, Invalid

FILE = {"url": "https://hub:8443/", "token": "chp_u_x_y", "ca_file": "/ca", "project": "p"}


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "client.json"
    path.write_text(json.dumps({**FILE, "later": "unknown fields of newer versions are ignored"}))
    monkeypatch.setenv("CHAPPE_CONFIG", str(path))
    return path


def test_the_file_that_the_environment_names_is_used() -> None:
    found = config.load()
    assert (found.url, found.token, found.ca_file, found.project, found.key) == (
        "https://hub:8443", "chp_u_x_y", "/ca", "p", None,
    )  # fmt: skip


def test_arguments_come_first(tmp_path: Path) -> None:
    found = config.load(project="q", key=tmp_path / "k")
    assert (found.url, found.project, found.key) == (FILE["url"][:-1], "q", str(tmp_path / "k"))


def test_one_hubs_token_is_never_sent_to_another() -> None:
    with pytest.raises(ConfigMissing, match="token") as error:
        config.load(url="https://elsewhere")
    assert error.value.field == "token"
    found = config.load(url="https://elsewhere", token="t")
    assert (found.ca_file, found.project) == (None, None)


def test_without_a_file_the_error_says_where_it_would_be(file: Path) -> None:
    file.unlink()
    with pytest.raises(ConfigMissing, match="CHAPPE_CONFIG") as error:
        config.load()
    assert str(file) in error.value.message
    assert error.value.field == "url"


def test_a_damaged_file_is_named(file: Path) -> None:
    file.write_text('{"url": 3}')
    with pytest.raises(Invalid, match=str(file)):
        config.load()


def test_the_default_is_in_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHAPPE_CONFIG")
    monkeypatch.setenv("HOME", "/nowhere/marie")
    assert config.config_path() == Path("/nowhere/marie/.config/chappe/client.json")
