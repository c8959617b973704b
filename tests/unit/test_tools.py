"""The scripts of this checkout: sizes, set-up, and the generated reference."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from docs import generate
from tools import failed, get_servers, get_uv, sizes


def function(lines: int) -> str:
    return "def f():\n" + "    pass\n" * (lines - 1)


def test_a_function_of_seventy_lines_passes_and_one_more_does_not(tmp_path: Path) -> None:
    source = tmp_path / "a.py"
    source.write_text(function(70))
    assert sizes.main([str(tmp_path)]) == 0
    source.write_text(function(71))
    assert sizes.main([str(tmp_path)]) == 1
    migrations = tmp_path / "migrations"
    migrations.mkdir()
    source.rename(migrations / "a.py")
    assert sizes.main([str(tmp_path)]) == 0


@pytest.mark.parametrize(("lines", "errors"), [(400, []), (401, [False]), (601, [True])])
def test_a_long_module_is_pointed_out_and_a_very_long_one_refused(
    tmp_path: Path, lines: int, errors: list[bool]
) -> None:
    source = tmp_path / "a.py"
    source.write_text("x = 1\n" * lines)
    assert [is_error for is_error, _ in sizes.findings(source)] == errors


def offer(*names: str) -> list[get_uv.Link]:
    return [get_uv.Link(name, f"../../{name}#sha256=00") for name in names]


def test_the_newest_fitting_uv_is_chosen() -> None:
    linux = "py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
    offered = offer(
        f"uv-0.13.2-{linux}",
        f"uv-0.13.10-{linux}",
        f"uv-0.14.0rc1-{linux}",
        f"uv-1.0.0-{linux}",
        "uv-0.13.12-py3-none-musllinux_1_1_x86_64.whl",
        "uv-0.13.12-py3-none-manylinux_2_28_aarch64.whl",
        "uv-0.13.12.tar.gz",
    )
    assert get_uv.newest(offered, "manylinux*x86_64").name == f"uv-0.13.10-{linux}"


def test_a_machine_without_a_fitting_uv_is_told_so() -> None:
    with pytest.raises(OSError, match=r"no uv.* for manylinux\*riscv64"):
        get_uv.newest(offer("uv-0.13.2-py3-none-win_amd64.whl"), "manylinux*riscv64")


def test_the_files_of_an_index_page_are_read_without_the_withdrawn() -> None:
    page = (
        '<a href="../files/uv-0.13.1.tar.gz#sha256=aa" data-requires-python="&gt;=3.8">uv</a>'
        '<a href="../files/uv-0.13.2.tar.gz#sha256=bb" data-yanked="bad">uv</a> <b href="x">no</b>'
    )
    assert get_uv.links(page) == [("uv-0.13.1.tar.gz", "../files/uv-0.13.1.tar.gz#sha256=aa")]


def test_programs_are_fetched_by_https_only() -> None:
    with pytest.raises(OSError, match="https"):
        get_uv.fetch("http://127.0.0.1/simple/uv/")


@click.group()
def tower() -> None:
    """Signal.

    From hill to hill.
    """


@tower.command()
@click.argument("arms")
@click.option("--speed", type=click.Choice(["slow", "fast"]), default="slow", show_default=True)
def wave(arms: str, speed: str) -> None:
    """Move the arms.

    \b
    slow  by hand
    fast  by wind
    """


def test_commands_are_documented_depth_first() -> None:
    contexts = list(generate.commands(click.Context(tower, info_name="tower")))
    assert [context.command_path for context in contexts] == ["tower", "tower wave"]
    section = "\n".join(generate.command_section(contexts[1]))
    assert "tower wave [OPTIONS] ARMS" in section
    assert r"| `--speed [slow\|fast]` | [default: slow] |" in section
    assert "```\nslow  by hand\nfast  by wind\n```" in section
    assert "--help" not in section
    assert "| `wave` | Move the arms. |" in "\n".join(generate.command_section(contexts[0]))


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"$ref": "#/components/schemas/JobSpec"}, "[JobSpec](#jobspec)"),
        ({"type": "array", "items": {"type": "string"}}, "list of string"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "integer or null"),
        ({"enum": ["a", "b"]}, "`a` | `b`"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "map to number"),
        (
            {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]},
            "[string, integer]",
        ),
        ({}, "any"),
    ],
)
def test_types_read_as_a_person_would_say_them(schema: dict[str, object], text: str) -> None:
    assert generate.type_text(schema) == text


def test_check_writes_nothing_and_says_where_the_file_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("old\n")
    assert not generate.same(page, "new\n", write=False)
    assert page.read_text() == "old\n"
    assert "+new" in capsys.readouterr().out
    assert not generate.same(page, "new\n", write=True)
    assert generate.same(page, "new\n", write=False)


def server(name: str, *programs: str) -> get_servers.Server:
    return get_servers.Server(name, (f"{name}-package",), programs)


@pytest.fixture
def apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """What would be asked of apt, by root on Debian; nothing can be installed that is called `gone`."""
    calls: list[tuple[str, ...]] = []

    def record(*arguments: str) -> None:
        calls.append(arguments)
        if "gone-package" in arguments:
            raise OSError("no such package")

    monkeypatch.setattr(get_servers, "_apt", record)
    monkeypatch.setattr(get_servers, "POLICY", tmp_path / "policy-rc.d")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name, path=None: name == "apt-get")
    return calls


def test_servers_that_are_there_are_not_installed_and_one_that_fails_keeps_none_away(
    apt: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here").touch()
    table = (server("has", f"{tmp_path}/he*|nowhere"), server("gone", "x"), server("other", "y"))
    monkeypatch.setattr(get_servers, "SERVERS", table)
    assert get_servers.main(["has"]) == 0
    assert apt == []
    assert get_servers.main([]) == 1
    assert [call[-1] for call in apt] == ["update", "gone-package", "other-package"]
    assert not get_servers.POLICY.exists()


def test_without_root_nothing_is_asked_for(
    apt: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_servers, "SERVERS", (server("gone", "x"),))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert get_servers.main([]) == 0
    assert apt == []


def test_a_server_that_nobody_knows_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert get_servers.main(["slurm", "abacus"]) == 2
    assert "abacus (there are: " in capsys.readouterr().err


def test_a_few_failures_are_named_and_many_are_not_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "lastfailed"
    monkeypatch.setattr(failed, "CACHE", cache)
    assert failed.main() == 1
    cache.write_text('{"tests/b.py::two": true, "tests/a.py::one": true}')
    assert failed.main() == 0
    assert capsys.readouterr().out == "\ntests/a.py::one\ntests/b.py::two\n"
    cache.write_text(json.dumps({f"tests/a.py::{n}": True for n in range(11)}))
    assert failed.main() == 1
