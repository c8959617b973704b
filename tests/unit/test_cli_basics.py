"""The command line's own rules: quick help, --json everywhere, exit statuses, what people type."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

from chappe.cli import main, output
from chappe.cli.options import duration_s, size_bytes
from chappe.cli.output import Out, exit_status, short_ids, span
from chappe.sdk import errors
from chappe.sdk.errors import ChappeError

CONTEXT = click.Context(main.root)


def leaves(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for part in command.list_commands(CONTEXT):
            child = command.get_command(CONTEXT, part)
            assert child is not None
            yield from leaves(f"{name} {part}", child)
    else:
        yield name, command


COMMANDS = dict(leaves("chappe", main.root))


def test_the_commands_are_those_that_are_promised() -> None:
    promised = {
        "app": "check ls show",
        "batch-job": "cancel ls new plan preview",
        "hub": "backup restore start",
        "job": "cancel count hold logs ls release result retry rm show stats submit update watch",
        "session": "end ls",
        "sim": "card jobs ls messages purge show watch",
        "site": "accept check init key keys ls policy rm start status stop token",
        "site service": "install remove show",
        "message": "import ls quarantine requeue show stats verify",
        "producer": "add ls rm",
        "admin": "rebuild verify",
        "token": "ls new revoke",
        "user": "add disable enable invite ls",
        "project": "create ls",
        "member": "add ls rm",
        "audit": "ls",
        "bus": "check dead ls permissions replay retry setup show",
    }
    names = {f"chappe {noun} {verb}" for noun, verbs in promised.items() for verb in verbs.split()}
    assert COMMANDS.keys() == names | {
        f"chappe {verb}"
        for verb in (
            "completion",
            "doctor",
            "events",
            "login",
            "logout",
            "password",
            "run",
            "up",
            "why",
        )
    }


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_json_and_helps(name: str) -> None:
    command = COMMANDS[name]
    # A service prints its ready line, and logs JSON in any case.
    assert any("--json" in p.opts for p in command.params) or name == "chappe hub start"
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} has no help"


@pytest.mark.parametrize("name", sorted(main.COMMANDS))
def test_the_table_of_commands_says_what_the_modules_say(name: str) -> None:
    command = main.root.get_command(CONTEXT, name)
    assert command is not None
    assert command.name == name
    assert main.COMMANDS[name][1].endswith(".")


def test_help_loads_neither_the_client_nor_the_screen() -> None:
    code = (
        "import sys; sys.argv = ['chappe', '--help']\n"
        "from chappe.cli.main import main\n"
        "try: main()\n"
        "finally: print([m for m in ('httpx2', 'rich', 'cryptography', 'chappe.sdk') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in main.COMMANDS)


def test_an_unknown_command_is_wrong_usage() -> None:
    assert CliRunner().invoke(main.root, ["jobs"]).exit_code == output.USAGE


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("30m", 1800), ("2h30m", 9000), ("1D12h", 129_600), ("5s", 5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize(
    ("text", "number"),
    [("1000", 1000), ("4G", 4 << 30), ("512MiB", 512 << 20), ("1.5k", 1536), ("2 TB", 2 << 40)],
)
def test_sizes(text: str, number: int) -> None:
    assert size_bytes(text) == number


@pytest.mark.parametrize("text", ["", "m", "2x", "-5", "1h2", "h3"])
def test_what_is_neither_size_nor_duration(text: str) -> None:
    with pytest.raises(click.BadParameter):
        duration_s(text)
    with pytest.raises(click.BadParameter):
        size_bytes(text.replace("m", "mm"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.9, "9.9 s"),
        (42, "42 s"),
        (180, "3 min"),
        (7_300, "2 h"),
        (864_000, "10 d"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_short_ids_are_each_ones_own_and_no_longer_than_needed() -> None:
    ids = [
        "0195c000-0000-7000-8000-000000000000",
        "0195c000-0000-7001-8000-000000000000",
        "0195c000-0001-7000-8000-000000000000",
        "0a95c000-0000-7000-8000-000000000000",
    ]
    short = short_ids([*ids, ids[0]])
    assert [short[one] for one in ids] == [
        "0195c000-0000-7000", "0195c000-0000-7001", "0195c000-0001", "0a95c000-0000",
    ]  # fmt: skip
    for one in ids:
        assert [other for other in ids if other.startswith(short[one])] == [one]


@pytest.mark.parametrize("kind", [getattr(errors, name) for name in errors.__all__])
def test_every_error_has_the_exit_status_that_is_documented(kind: type[ChappeError]) -> None:
    wanted = {
        "ChappeError": 1, "JobError": 1, "JobFailed": 1, "JobCancelled": 1, "WaitTimeout": 1,
        "Invalid": 2, "TooLarge": 2, "Ambiguous": 2, "ConfigMissing": 2, "NotFound": 3, "Gone": 3,
        "Busy": 4, "Unavailable": 4, "Unauthenticated": 5, "Forbidden": 5, "Conflict": 5,
    }  # fmt: skip
    error = kind.__new__(kind)
    assert exit_status(error) == wanted[kind.__name__]


def failing(error: ChappeError, *arguments: str) -> Any:
    @click.command()
    @output.with_output
    def command(out: Out) -> None:
        raise error

    return CliRunner().invoke(command, arguments)


def test_an_error_names_its_field_and_the_bad_items() -> None:
    details = [
        {"id": f"id{i}", "code": "invalid", "message": f"wrong {i}", "field": "f"} for i in range(7)
    ]
    done = failing(errors.Invalid("nothing was created", field="resources", details=details))
    assert done.exit_code == output.USAGE
    assert done.stdout == ""
    assert done.stderr.splitlines()[:3] == [
        "error: nothing was created", "  field: resources", "  id0 f: wrong 0",
    ]  # fmt: skip
    assert done.stderr.endswith("… and 2 more\n")


def test_an_error_as_json() -> None:
    done = failing(errors.Unavailable("no hub", code="refused"), "--json")
    assert done.exit_code == output.UNREACHABLE
    assert json.loads(done.stderr) == {
        "error": {"code": "refused", "message": "no hub", "field": None, "transient": True}
    }


def table(**environment: str) -> str:
    @click.command()
    @output.with_output
    def command(out: Out) -> None:
        out.table(("ID!", "N>"), [("0195c000-0000", "failed"), ("a", "[red]7[/]")], "none")

    return CliRunner().invoke(command, env=environment).stdout


def test_tables_are_plain_text_in_a_pipe_and_take_nothing_for_markup() -> None:
    assert [line.rstrip() for line in table().splitlines()] == [
        "ID                     N", "0195c000-0000     failed", "a              [red]7[/]",
    ]  # fmt: skip


def test_no_color_is_respected() -> None:
    assert "\x1b[" in table(FORCE_COLOR="1")
    assert "\x1b[3" not in table(FORCE_COLOR="1", NO_COLOR="1")
