"""Whatever a parameter holds, the program gets exactly that, as one argument."""

from __future__ import annotations

import subprocess

from hypothesis import example, given, settings
from hypothesis import strategies as st

from chappe.core.parameters import Kind, Parameter, Value
from chappe.link.appdef import App
from chappe.link.templates import Context, compile_command

CONTEXT = Context("01a1f89f-8056-7773-affa-8b196ab7c2a5", 1, "w", 1, "s")
PRINT = "printf '%s\\0'"

nasty = st.text(alphabet="$`'\"\\;&|<>(){}[]*?~#!=-+ \n\t\r%^aé\u2028\U0001f300", max_size=40)
values = st.one_of(
    nasty, st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
)


def app(**fields: object) -> App:
    parameters = {"v": Parameter(), "w": Parameter(), "f": Parameter(type=Kind.LIST)}
    return App(name="a", version="1", parameters=parameters, **fields)  # type: ignore[arg-type]


ARGV = compile_command(app(command=("printf", "%s\\0", "{{ v }}", "<{{ w }}>", "{{ f }}", "end")))
PREAMBLE = compile_command(
    app(
        command=("printf", "%s\\0", "{{ v }}", "<{{ w }}>", "{{ f }}", "end"),
        preamble="unset X; cd /",
    )
)
SHELL = compile_command(
    app(shell=PRINT + """ {{ v }} '<'{{ w }}">" {{ f }} end""", preamble="cd /")
)
LOOP = compile_command(
    app(shell="{% for x in f %}" + PRINT + " {{ x }}{{ v }};{% endfor %} " + PRINT + " {{ w }}")
)


def received(argv: list[str]) -> list[str]:
    done = subprocess.run(argv, capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout.decode().split("\0")[:-1]


@given(values, values, st.lists(values, max_size=4))
@settings(max_examples=60)
@example("-n", "$(id)", ["", "--", "*"])
@example("'", '"', ["`id`", "\n", "\\"])
@example("a\r\nb\n\n", "$'\\''", ["~", "é", "!!"])
def test_every_form_hands_values_over_exactly(v: str, w: str, f: list[str]) -> None:
    given_values: dict[str, Value] = {"v": v, "w": w, "f": list(f)}
    wanted = [v, f"<{w}>", *f, "end"]
    for command in (ARGV, PREAMBLE, SHELL):
        assert received(command.render(given_values, CONTEXT)) == wanted
    assert received(LOOP.render(given_values, CONTEXT)) == [*(x + v for x in f), w]


@given(values, values, st.lists(values, max_size=4))
def test_the_text_that_a_shell_parses_depends_on_no_value(v: str, w: str, f: list[str]) -> None:
    argv = SHELL.render({"v": v, "w": w, "f": list(f)}, CONTEXT)
    plain = SHELL.render({"v": "", "w": "", "f": [""] * len(f)}, CONTEXT)
    assert argv[:4] == plain[:4]
    assert argv[4:] == [v, w, *f]
