"""Templates: what an App's author may write, and what becomes of it."""

from __future__ import annotations

from typing import Any

import pytest

from chappe.core.parameters import Kind, Parameter
from chappe.link.appdef import App
from chappe.link.templates import Context, TemplateProblem, compile_command

CONTEXT = Context("01a1f89f-8056-7773-affa-8b196ab7c2a5", 2, "runs/a", 4, "a-site")


def app(*command: str, shell: str | None = None, preamble: str = "", **values: Any) -> App:
    kinds = {bool: Kind.BOOL, int: Kind.INT, float: Kind.FLOAT, str: Kind.STRING, list: Kind.LIST}
    return App(
        name="a",
        version="1",
        command=command or None,
        shell=shell,
        preamble=preamble,
        parameters={name: Parameter(type=kinds[type(value)]) for name, value in values.items()},
    )


def render(*command: str, **values: Any) -> list[str]:
    return compile_command(app(*command, **values)).render(values, CONTEXT)


def shell(text: str, preamble: str = "", **values: Any) -> list[str]:
    made = app(shell=text, preamble=preamble, **values)
    return compile_command(made).render(values, CONTEXT)


def test_each_element_is_one_argument() -> None:
    assert render("run", "{{ a }}", "--x={{ a }}/{{ n }}", "", a="one two; $(id)", n=3) == [
        "run",
        "one two; $(id)",
        "--x=one two; $(id)/3",
        "",
    ]


def test_the_context_is_there() -> None:
    assert render(
        "r", "{{ job_id }}", "{{ attempt }}", "{{ workdir }}", "{{ cores }}-{{ site }}"
    ) == [
        "r",
        CONTEXT.job_id,
        "2",
        "runs/a",
        "4-a-site",
    ]


def test_a_value_is_never_a_template() -> None:
    assert render("r", "{{ a }}", "x{{ a }}", a="{{ job_id }}{% if %}") == [
        "r",
        "{{ job_id }}{% if %}",
        "x{{ job_id }}{% if %}",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (False, "false"), (3, "3"), (1200.0, "1200.0"), (1e-30, "1e-30"), ("", "")],
)
def test_values_have_one_spelling_in_both_forms(value: Any, text: str) -> None:
    assert render("r", "{{ v }}", "<{{ v }}>", v=value) == ["r", text, f"<{text}>"]
    assert shell("{{ v }}", v=value)[4:] == [text]


def test_a_list_alone_becomes_several_arguments() -> None:
    files = ["a b", "-c", ""]
    assert render("r", "{{ f }}", "end", f=files) == ["r", "a b", "-c", "", "end"]
    assert render("r", "{{ f }}", "end", f=[]) == ["r", "end"]
    assert render("r", "{{ f | sort }}", f=files) == ["r", "", "-c", "a b"]
    assert render("r", "{{ ['--debug'] if d else [] }}", d=True) == ["r", "--debug"]
    assert render("r", "{{ ['--debug'] if d else [] }}", d=False) == ["r"]


def test_a_list_within_an_argument_must_be_joined() -> None:
    assert render("r", "--f={{ f | join(',') }}", f=["a", "b"]) == ["r", "--f=a,b"]
    with pytest.raises(TemplateProblem, match="join"):
        render("r", "--f={{ f }}", f=["a", "b"])


def test_conditions_loops_and_arithmetic() -> None:
    assert render("r", "{% if n > 2 %}big{% else %}small{% endif %}", n=3) == ["r", "big"]
    text = "{% for i in range(n) %}{{ i * 10 }}{% if not loop.last %},{% endif %}{% endfor %}"
    assert render("r", text, n=3) == ["r", "0,10,20"]
    assert render("r", "{{ (n + 1) // 2 }}", "{{ f[0] }}", n=4, f=["x"]) == ["r", "2", "x"]


def test_an_index_beyond_the_list_is_an_error_of_the_values() -> None:
    for text in ("{{ f[3] }}", "x{{ f[3] }}", "{{ f | last }}"):
        with pytest.raises(TemplateProblem):
            render("r", text, f=[])
    with pytest.raises(TemplateProblem):
        shell("echo {{ f[3] }}", f=[])


def test_a_program_that_vanishes_is_an_error() -> None:
    with pytest.raises(TemplateProblem, match="no program"):
        render("{{ f }}", f=[])
    with pytest.raises(TemplateProblem, match="no program"):
        render("{{ a }}", "x", a="")


def test_a_preamble_gets_the_arguments_as_they_are() -> None:
    made = app("run", "{{ a }}", preamble="module load x", a="")
    assert compile_command(made).render({"a": "$(id)"}, CONTEXT) == [
        "/bin/sh",
        "-c",
        'chappe() { :\nmodule load x\n}\nchappe\nexec "$@"',
        "chappe",
        "run",
        "$(id)",
    ]


def test_shell_text_never_holds_a_value() -> None:
    assert shell("cd x && run {{ a }} > {{ job_id }}.log", "set -e", a="$(id)") == [
        "/bin/sh",
        "-c",
        "chappe_1=${1} chappe_2=${2}; shift 2\n"
        'set -e\ncd x && run "${chappe_1}" > "${chappe_2}".log',
        "chappe",
        "$(id)",
        CONTEXT.job_id,
    ]
    assert shell("make", "set -e") == ["/bin/sh", "-c", "set -e\nmake", "chappe"]


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ('echo "{{ a }}"', "double quotes"),
        ('echo "x $(cat "y" {{ a }}) {{ a }}"', "double quotes"),
        ("echo '{{ a }}'", "single quotes"),
        ("echo `cat {{ a }}`", "backticks"),
        ("echo ${HOME:-{{ a }}}", r"\$\{…\}"),
        ("echo $(({{ a }} + 1))", r"\(\(…\)\)"),
        ("(( x = {{ a }} ))", r"\(\(…\)\)"),
        ("[[ {{ a }} -eq 1 ]]", r"\[\[…\]\]"),
        ("true # {{ a }}", "a comment"),
        ("# {{ a }}", "a comment"),
        (r"echo \{{ a }}", "backslash"),
        ("cat <<EOF\n{{ a }}\nEOF", "here-document"),
        ("cat <<EOF\nEOF", "here-document"),
        ("{% if a %}echo '{% endif %}{{ a }}'", "single quotes"),
    ],
)
def test_a_value_in_a_wrong_place_is_refused_at_once(text: str, near: str) -> None:
    with pytest.raises(TemplateProblem, match=near) as caught:
        compile_command(app(shell=text, a=""))
    assert caught.value.field == "shell"


@pytest.mark.parametrize(
    "text",
    [
        "echo $(cat {{ a }})",
        'echo "$(cat {{ a }})"',
        "(cd x; run {{ a }})",
        "case {{ a }} in x) echo {{ a }};; esac",
        "echo 'it'\\''s' {{ a }} \"q\" # done\nrun {{ a }}",
        "x=${#y}; echo ${x%.nc} $# a#b {{ a }}",
        "{{# a comment of ours #}}echo {{ a }}",
        "[ {{ a }} = 1 ] && echo $((1 + 1)) {{ a }}",
    ],
)
def test_a_value_in_a_right_place_is_accepted(text: str) -> None:
    assert compile_command(app(shell=text, a="")).render({"a": "v"}, CONTEXT)[4] == "v"


def test_a_list_in_shell_text_is_several_words() -> None:
    made = shell("run {{ f }} end", f=["a b", "c"])
    assert made[2].endswith('run "${chappe_1}" "${chappe_2}" end')
    assert made[4:] == ["a b", "c"]
