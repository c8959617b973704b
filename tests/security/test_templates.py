"""Attacks on templates: through values, which an attacker chooses, and against the sandbox itself.

The owner of a Site writes the templates, so the sandbox is the second fence; the first is that a value is
never parsed by anybody.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from chappe.core.parameters import Kind, Parameter
from chappe.link.appdef import App
from chappe.link.templates import Context, TemplateProblem, compile_command

CONTEXT = Context("01a1f89f-8056-7773-affa-8b196ab7c2a5", 1, "w", 1, "s")
SHELLS = [shell for shell in ("/bin/sh", "/bin/bash") if Path(shell).exists()]


def compiled(command: str | None, shell: str | None = None, kind: Kind = Kind.STRING) -> Any:
    return compile_command(
        App(
            name="a",
            version="1",
            command=None if command is None else ("run", command),
            shell=shell,
            parameters={"v": Parameter(type=kind)},
        )
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ v.__class__ }}",
        "{{ v.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__ }}",
        "{{ v.format(1) }}",
        "{{ '{0.__class__}'.format(v) }}",
        "{{ v | attr('__class__') }}",
        "{{ v | format(1) }}",
        "{{ '%s' | format(v) }}",
        "{{ v | map(attribute='__class__') }}",
        "{{ v | safe }}",
        "{{ v | e }}",
        "{{ v | tojson }}",
        "{{ v | center(1000000000) }}",
        "{{ lipsum() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self.__dict__ }}",
        "{{ self }}",
        "x{{ self }}",
        "{{ range }}",
        "{{ [range] | join }}",
        "{{ range(*v) }}",
        "{% for x in [v] %}{{ loop }}{% endfor %}",
        "{{ range.__init__ }}",
        "{{ dict(a=v) }}",
        "{{ {'a': v} }}",
        "{{ namespace(x=1) }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% set x = v %}{{ x }}",
        "{% set x %}{{ v }}{% endset %}{{ x }}",
        "{% filter upper %}{{ v }}{% endfilter %}",
        "{% macro m() %}{{ v }}{% endmacro %}{{ m() }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{% block b %}{{ v }}{% endblock %}",
        "{% with x=v %}{{ x }}{% endwith %}",
        "{% autoescape true %}{{ v }}{% endautoescape %}",
        "{% for a in range(9) %}{% for b in range(9) %}{% for c in range(9) %}x"
        "{% endfor %}{% endfor %}{% endfor %}",
        "{% for x in [v] recursive %}{{ loop([]) }}{% endfor %}",
        "{% for x in [v] %}{{ loop.__class__ }}{% endfor %}",
        "{{ unknown }}",
        "{{ v",
        "a\0b",
    ],
)
@pytest.mark.parametrize("form", ["command", "shell"])
def test_what_a_command_does_not_need_cannot_be_compiled(template: str, form: str) -> None:
    with pytest.raises(TemplateProblem) as caught:
        compiled(template) if form == "command" else compiled(None, template)
    assert caught.value.field == form


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ range(1000000000) | join }}", "4096"),
        ("{{ range(0, 1000000000, 2) }}", "4096"),
        ("{{ v * 1000000000 }}", "numbers"),
        ("{{ [v] * 1000000000 }}", "numbers"),
        ("{{ '%1000000000d' % 1 }}", "numbers"),
        ("{{ v['__class__'] }}", "does not exist"),
        ("x{{ v['__class__'] }}", "does not exist"),
        ("{{ [[v]] }}", "join"),
        ("{{ v | replace('', v) }}", "longer"),
        ("{{ [v, v, v, v, v, v, v, v, v, v] | join(v) }}", "longer"),
        ("{% for i in range(4000) %}{{ v }}{% endfor %}", "longer"),
        ("{{ v ~ v ~ v ~ v ~ v ~ v ~ v ~ v ~ v }}", "longer"),
        ("{{ 1 / 0 }}", "zero"),
        ("{{ v | int }}", "digits|literal"),
    ],
)
def test_bombs_and_tricks_end_in_an_error_when_rendered(template: str, words: str) -> None:
    command = compiled(template)
    with pytest.raises(TemplateProblem, match=words):
        command.render({"v": "x" * 16_000}, CONTEXT)


def test_an_argv_that_no_system_would_take_is_refused() -> None:
    command = compiled("{{ v }}", kind=Kind.LIST)
    with pytest.raises(TemplateProblem, match="longer"):
        command.render({"v": ["é" * 16_000] * 100}, CONTEXT)
    with pytest.raises(TemplateProblem, match="longer"):
        command.render({"v": ["é" * 70_000]}, CONTEXT)


ATTACKS = [
    "$(touch {f})",
    "`touch {f}`",
    "; touch {f} #",
    "' ; touch {f} ; '",
    '" ; touch {f} ; "',
    "\n touch {f} \n",
    "& touch {f} &",
    "| touch {f}",
    "> {f}",
    "a[$(touch {f})]",
    "${{IFS}}$(touch {f})",
    "\\$(touch {f})",
    "\\\ntouch {f}",
    "EOF\ntouch {f}\n",
    "{{{{ v }}}}$(touch {f})",
    '"${{chappe_2}}"$(touch {f})',
    "-x -c 'touch {f}'",
]
PLACES = [
    "printf '%s\\0' {{ v }}",
    "printf '%s\\0' x{{ v }}y{{ v }}",
    'printf "%s\\0" "$(printf %s {{ v }})"',
    "x={{ v }}; printf '%s\\0' \"$x\"",
    "f() { printf '%s\\0' {{ v }} \"$1\"; }; f a",
    "set -- a b; printf '%s\\0' {{ v }}",
    "case {{ v }} in *) printf '%s\\0' {{ v }};; esac",
    "for x in {{ v }}; do printf '%s\\0' \"$x\"; done",
    "[ {{ v }} = x ] || printf '%s\\0' {{ v }}",
    "(printf '%s\\0' {{ v }}) | cat",
]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("place", PLACES)
def test_no_value_is_run_wherever_it_stands(tmp_path: Path, shell: str, place: str) -> None:
    proof = tmp_path / "ran"
    command = compiled(None, shell=place)
    for attack in ATTACKS:
        value = attack.format(f=proof)
        argv = command.render({"v": value}, CONTEXT)
        done = subprocess.run([shell, *argv[1:]], capture_output=True, cwd=tmp_path, check=False)
        assert not proof.exists(), f"{value!r} was run"
        # A command substitution drops newlines at the end, as it should.
        assert value.rstrip("\n").encode() in done.stdout, done.stderr


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "place",
    [
        'echo "$(case x in x) echo "{{ v }}";; esac)"',
        "echo $'a\\'{{ v }}'",
        "echo {{ v }} | sh -c 'cat' ",
    ],
)
def test_text_that_the_scanner_misreads_still_runs_no_value(
    tmp_path: Path, shell: str, place: str
) -> None:
    """Refused or split into words, perhaps; but never run."""
    proof = tmp_path / "ran"
    try:
        command = compiled(None, shell=place)
    except TemplateProblem:
        return
    for attack in ATTACKS:
        argv = command.render({"v": attack.format(f=proof)}, CONTEXT)
        subprocess.run([shell, *argv[1:]], capture_output=True, cwd=tmp_path, check=False)
        assert not proof.exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_preamble_does_not_run_values(tmp_path: Path, shell: str) -> None:
    proof = tmp_path / "ran"
    app = App(
        name="a",
        version="1",
        command=("printf", "%s", "{{ v }}"),
        preamble="x='unfinished business'; cd .",
        parameters={"v": Parameter()},
    )
    command = compile_command(app)
    for attack in ATTACKS:
        value = attack.format(f=proof)
        argv = command.render({"v": value}, CONTEXT)
        done = subprocess.run([shell, *argv[1:]], capture_output=True, cwd=tmp_path, check=True)
        assert done.stdout == value.encode()
        assert not proof.exists()
