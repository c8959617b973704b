"""Apps: reading their files, saying what is wrong and where, publishing and describing them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from chappe.core.parameters import Parameter
from chappe.link import apps
from chappe.link.apps import AppProblem
from chappe.link.templates import Context
from chappe.wire.sites import AppView

CONTEXT = Context("01a1f89f-8056-7773-affa-8b196ab7c2a5", 2, "runs/a", 4, "a-site")
GOOD = """\
name = "barotropic"
version = "1"
description = "A model"
command = ["{{ python }}", "model.py", "--dt", "{{ dt }}"]
env = { OMP_PLACES = "cores" }
allow_env = ["DT_DEBUG"]

[parameters.dt]
type = "float"
default = 1200
min = 1

[parameters.python]
default = "python3"

[files]
result = "out/result.npz"
log = "shared"
"""


def load(tmp_path: Path, text: str, name: str = "app.toml") -> apps.LoadedApp:
    path = tmp_path / name
    path.write_text(text)
    return apps.load_app(path)


def test_a_good_file_is_loaded_and_compiled(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not an app")
    load(tmp_path, GOOD)
    (loaded,) = apps.load_apps(tmp_path).values()
    assert loaded.app.name == "barotropic"
    assert loaded.app.files.own_directory
    assert loaded.validate({"dt": 600}) == {"dt": 600.0, "python": "python3"}
    assert loaded.command.render(loaded.validate({}), CONTEXT) == [
        "python3",
        "model.py",
        "--dt",
        "1200.0",
    ]


def test_the_digest_is_of_the_meaning(tmp_path: Path) -> None:
    one = load(tmp_path, GOOD)
    other_layout = load(tmp_path, "# comment\n" + GOOD.replace(" = ", "  =  "), "b.toml")
    assert one.digest == other_layout.digest
    assert len(one.digest) == 64
    assert load(tmp_path, GOOD.replace("1200", "1201"), "c.toml").digest != one.digest
    assert load(tmp_path, GOOD.replace("model.py", "evil.py"), "d.toml").digest != one.digest


def test_what_is_published_shows_no_command_and_no_environment(tmp_path: Path) -> None:
    view = apps.to_view(load(tmp_path, GOOD + "separate_stderr = true\n"))
    assert isinstance(view, AppView)
    assert view.result == "out/result.npz"
    assert view.allow_env == ["DT_DEBUG"]
    sent = msgspec.json.encode(view)
    assert b"model.py" not in sent
    assert b"OMP_PLACES" not in sent


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('version = "1"', "version = 1", 2, "version: .*quotes"),
        ('version = "1"', 'version = ""', 2, "version: "),
        ('version = "1"\n', "", 1, "version: this field must be given"),
        ('name = "barotropic"', 'name = "a/b"', 1, "name: .*letters"),
        ('description = "A model"', 'descripton = "A model"', 3, "descripton: .*spelling"),
        ("command = ", "commands = ", 4, "commands: .*spelling"),
        ('"--dt", ', '"--dt", 5, ', 4, "command: .*quotes"),
        ("{{ dt }}", "{{ dd }}", 4, "command: {{ dd }} is no parameter"),
        ("{{ dt }}", "{{ dt", 4, "command: template error"),
        ("{{ dt }}", "{{ dt|safe }}", 4, "command: template error.*safe"),
        ("OMP_PLACES", "'OMP PLACES'", 5, "env: "),
        ("OMP_PLACES", "CHAPPE_SESSION", 5, "env: .*ours"),
        ('"DT_DEBUG"', '"CHAPPE_JOB_ID"', 6, "allow_env: .*ours"),
        ('type = "float"', 'type = "flot"', 9, "parameters.dt.type: .*flot"),
        ('type = "float"', 'type = "choice"', 8, "parameters.dt: a choice needs"),
        ("default = 1200", "default = 0", 8, "parameters.dt: a number from 1"),
        ("default = 1200", 'default = "x"', 8, "parameters.dt: a number"),
        ("min = 1", "minimum = 1", 11, "parameters.dt.minimum: .*spelling"),
        ("[parameters.dt]", "[parameters.attempt]", 8, "parameters.attempt: .*cannot be"),
        ('OMP_PLACES = "cores"', "OMP_PLACES = 3", 5, "env.OMP_PLACES: .*quotes"),
        ("[parameters.python]", "[parameters.job_id]", 13, "parameters.job_id: "),
        ('"out/result.npz"', '"../result.npz"', 17, "files.result: .*relative"),
        ('"out/result.npz"', '"result.pkl"', 17, "files.result: .*\\.npz"),
        ('"shared"', '"both"', 18, "files.log: "),
        ('log = "shared"', "log = ", 18, "not valid TOML"),
        ("[files]", "[fles]", 16, "fles: .*spelling"),
    ],
)
def test_an_error_names_file_line_field_and_remedy(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new)
    if new == "[parameters.job_id]":
        text = text.replace("{{ python }}", "python3")
    with pytest.raises(AppProblem, match=words) as caught:
        load(tmp_path, text)
    assert caught.value.message.startswith(f"{tmp_path / 'app.toml'}:{line}: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name = "a"\nversion = "1"\n', "exactly one of `command` and `shell`"),
        ('name = "a"\nversion = "1"\ncommand = ["x"]\nshell = "x"\n', "exactly one"),
        ('name = "a"\nversion = "1"\ncommand = []\n', "needs a program"),
        ('name = "a"\nversion = "1"\nshell = "echo \\"{{ job_id }}\\""\n', "double quotes"),
    ],
)
def test_a_command_must_make_sense(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(AppProblem, match=words):
        load(tmp_path, text)


def test_two_apps_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).write_text(GOOD)
    with pytest.raises(AppProblem, match=f"already in {tmp_path / 'a.toml'}|rename one") as caught:
        apps.load_apps(tmp_path)
    assert str(tmp_path / "b.toml") in caught.value.message


def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(AppProblem, match="not UTF-8"):
        apps.load_apps(tmp_path)
    with pytest.raises(AppProblem, match="cannot be read"):
        apps.load_app(tmp_path / "missing.toml")


def test_no_directory_means_no_apps(tmp_path: Path) -> None:
    assert apps.load_apps(tmp_path / "apps") == {}


def test_the_reference_names_every_field() -> None:
    text = apps.reference()
    for struct in (apps.App, apps.Files, Parameter):
        for field in msgspec.structs.fields(struct):
            (row,) = [r for r in text.splitlines() if r.startswith(f"| `{field.name}` ")]
            assert len(row.split("|")[4].strip()) > 10, f"{field.name} is not explained"
