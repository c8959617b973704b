r"""Command templates: an App's words and a Job's values become one argv, and a value stays a value.

A value must never be read as anything but itself, whatever it holds: spaces, quotes, `$(…)`, newlines,
template syntax. Two forms keep that by construction rather than by escaping:

`command` is a list. Each element is rendered on its own and becomes one argument; no shell reads it. With a
preamble, `/bin/sh` runs the preamble and then `exec "$@"`: the arguments are the shell's own, not its text.
The preamble is a function's body, because scripts that it sources (`. setvars.sh`) would otherwise find the
Job's values as arguments of their own.

`shell` is shell text. The values are handed to the shell as arguments, kept in shell variables, and where
the template says `{{ dt }}` the text has `"${chappe_1}"`. The text that the shell parses thus holds only the
owner's words, and every value is quoted: one word, or one word per item of a list. (Pasting `shlex.quote(v)`
into the text would be right only outside quotes, comments and here-documents: inside double quotes it would
run `$(…)`.) Since a variable that is quoted already must not stand in quotes, a small scanner refuses a value
inside quotes or comments, with the remedy; if it ever errs, a word is split, but nothing is run.

Templates are the Site owner's, but are bounded all the same: Jinja2's immutable sandbox, strict about
undefined names, with no loader, a few filters, and limits on ranges, repetition and output.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from jinja2 import (
    StrictUndefined,
    Template,
    TemplateError,
    TemplateSyntaxError,
    Undefined,
    meta,
    nodes,
    pass_context,
)
from jinja2.environment import TemplateExpression
from jinja2.runtime import Context as RuntimeContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chappe.core import limits
from chappe.core.errors import Invalid
from chappe.core.parameters import RESERVED, Value
from chappe.link.appdef import App
from chappe.link.shelltext import Scanner

SHELL = "/bin/sh"
OUTPUT_CHARS = 128 * limits.KIB - 1
"""Longest argument: what execve(2) takes in one string on Linux."""
TOTAL_CHARS = limits.MIB
"""Longest argv in all."""
_PREAMBLE = 'chappe() { :\n%s\n}\nchappe\nexec "$@"'


class TemplateProblem(Invalid):
    """A template is wrong, or cannot be rendered with these values; `field` is command or shell."""

    default_code = "template"


class Context(msgspec.Struct, frozen=True):
    """What a template may use besides the App's parameters. `workdir` is relative to the data
    directory, `site` is the Site's name, as in CHAPPE_SITE."""

    job_id: str
    attempt: int
    workdir: str
    cores: int
    site: str


class Command:
    """A compiled command; see `render`."""

    def __init__(self, render: Callable[[dict[str, Any]], list[str]]) -> None:
        self._render = render

    def render(self, parameters: Mapping[str, Value], context: Context) -> list[str]:
        """The argv for complete, validated parameters. Raises TemplateProblem."""
        values = {
            **parameters,
            "job_id": context.job_id,
            "attempt": context.attempt,
            "workdir": context.workdir,
            "cores": context.cores,
            "site": context.site,
        }
        try:
            argv = self._render(values)
        except TemplateProblem:
            raise
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as e:
            raise TemplateProblem(f"the command cannot be made of these values: {e}") from None
        _check_size(argv)
        return argv


def compile_command(app: App) -> Command:
    """Compile an App's `command` or `shell`, and its preamble. Raises TemplateProblem."""
    known = frozenset(app.parameters) | RESERVED
    if app.shell is not None:
        return Command(_compile_shell(app.shell, app.preamble, known))
    elements = [_compile_element(element, known) for element in app.command or ()]
    prefix = [SHELL, "-c", _PREAMBLE % app.preamble, "chappe"] if app.preamble else []

    def render(values: dict[str, Any]) -> list[str]:
        argv = list(prefix)
        for element in elements:
            argv += element(values)
        if len(argv) == len(prefix) or not argv[len(prefix)]:
            raise TemplateProblem("the command has no program with these values", field="command")
        return argv

    return Command(render)


def _compile_element(text: str, known: frozenset[str]) -> Callable[[dict[str, Any]], list[str]]:
    """One element of `command`: a function from values to its arguments (one; a list: any number)."""
    tree = _parse(_ARGV, text, "command", known)
    output = [node for node in tree.body if isinstance(node, nodes.Output)]
    if not tree.body:
        return lambda values: [""]
    if len(tree.body) == 1 and len(output) == 1 and len(output[0].nodes) == 1:
        node = output[0].nodes[0]
        if isinstance(node, nodes.TemplateData):
            constant = node.data
            return lambda values: [constant]
        if isinstance(node, nodes.Name):
            name = node.name
            return lambda values: _arguments(values[name])
        result = nodes.Assign(nodes.Name("result", "store"), node, lineno=1)
        template = _ARGV.from_string(nodes.Template([result], lineno=1))
        expression = TemplateExpression(template, undefined_to_none=False)
        return lambda values: _arguments(expression(values))
    template = _ARGV.from_string(tree)
    return lambda values: [_bounded(template, values)]


def _compile_shell(
    text: str, preamble: str, known: frozenset[str]
) -> Callable[[dict[str, Any]], list[str]]:
    tree = _parse(_SHELL, text, "shell", known)
    scanner = Scanner()
    try:
        for output in tree.find_all(nodes.Output):
            for node in output.nodes:
                if isinstance(node, nodes.TemplateData):
                    scanner.text(node.data)
                else:
                    scanner.value()
    except Invalid as e:
        raise TemplateProblem(e.message, field="shell") from None
    template = _SHELL.from_string(tree)
    before = f"{preamble}\n" if preamble else ""

    def render(values: dict[str, Any]) -> list[str]:
        used: list[str] = []
        body = _bounded(template, {**values, _USED: used})
        if used:
            kept = " ".join([f"chappe_{n}=${{{n}}}" for n in range(1, len(used) + 1)])
            body = f"{kept}; shift {len(used)}\n{before}{body}"
        else:
            body = before + body
        return [SHELL, "-c", body, "chappe", *used]

    return render


def _parse(environment: _Sandbox, text: str, field: str, known: frozenset[str]) -> nodes.Template:
    """The template's syntax tree, if it only does what a command may. Raises TemplateProblem."""
    if "\0" in text or len(text) > OUTPUT_CHARS:
        raise TemplateProblem("a template is too long or contains a NUL byte", field=field)
    try:
        tree = environment.parse(text)
        undeclared = meta.find_undeclared_variables(tree) - known - set(environment.globals)
    except TemplateSyntaxError as e:
        raise TemplateProblem(
            f"template error in {text[:80]!r}: {e.message}", field=field
        ) from None
    if undeclared:
        raise TemplateProblem(
            f"{{{{ {min(undeclared)} }}}} is no parameter of this app (there are: "
            f"{', '.join(sorted(known))})",
            field=field,
        )
    _check_nodes(tree, field)
    return tree


_ALLOWED = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Const,
    nodes.List,
    nodes.Tuple,
    nodes.Add,
    nodes.Sub,
    nodes.Mul,
    nodes.Div,
    nodes.FloorDiv,
    nodes.Mod,
    nodes.Neg,
    nodes.Pos,
    nodes.Not,
    nodes.And,
    nodes.Or,
    nodes.Compare,
    nodes.Operand,
    nodes.CondExpr,
    nodes.Concat,
    nodes.Getitem,
    nodes.Slice,
    nodes.If,
    nodes.For,
    nodes.Filter,
    nodes.Test,
)
_LOOP = frozenset({"index", "index0", "first", "last", "length"})
_SPECIAL = ("range", "loop", "self", "super", "caller")  # not values, though Jinja2 knows them
_DEPTH = 2


def _check_nodes(tree: nodes.Node, field: str, depth: int = 0) -> None:
    for node in tree.iter_child_nodes():
        inner: nodes.Node | None = node
        if isinstance(node, nodes.Getattr):
            allowed = _is_name(node.node, "loop") and node.attr in _LOOP
            inner = None
        elif isinstance(node, nodes.Call):
            plain = not (node.kwargs or node.dyn_args or node.dyn_kwargs)
            allowed = _is_name(node.node, "range") and plain
            inner = nodes.List(node.args)
        elif isinstance(node, nodes.For):
            allowed = depth < _DEPTH and not node.recursive
        else:
            allowed = isinstance(node, _ALLOWED) and not _is_name(node, *_SPECIAL)
        if not allowed:
            raise TemplateProblem(
                f"line {node.lineno}: a command template has values, operators, a few filters, "
                f"`if` and two nested `for`, but not this ({type(node).__name__.lower()})",
                field=field,
            )
        if inner is not None:
            _check_nodes(inner, field, depth + isinstance(node, nodes.For))


def _is_name(node: nodes.Node, *names: str) -> bool:
    return isinstance(node, nodes.Name) and node.name in names


def _text(value: Any) -> str:
    """A value as the program gets it: text as it is, numbers in Python's spelling, true, false."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        raise TemplateProblem(
            "a list stands inside a larger argument: give it an element of its own, "
            "or say how: {{ files | join(',') }}"
        )
    if isinstance(value, Undefined):
        raise TemplateProblem("a value does not exist (an index beyond the end of a list?)")
    raise TemplateProblem(f"a {type(value).__name__} is no value")


def _arguments(value: Any) -> list[str]:
    return [_text(v) for v in value] if isinstance(value, list | tuple) else [_text(value)]


@pass_context
def _shell_word(context: RuntimeContext, value: Any) -> str:
    """Keep a value aside, and say in the text where it stands."""
    used: list[str] = context[_USED]
    words = []
    for argument in _arguments(value):
        used.append(argument)
        words.append(f'"${{chappe_{len(used)}}}"')
    return " ".join(words)


def _bounded(template: Template, values: dict[str, Any]) -> str:
    parts, size = [], 0
    for part in template.generate(values):
        size += len(part)
        if size > OUTPUT_CHARS:
            raise TemplateProblem(f"an argument is longer than {OUTPUT_CHARS} bytes")
        parts.append(part)
    return "".join(parts)


def _check_size(argv: list[str]) -> None:
    total = 0
    for argument in argv:
        size = len(argument) if argument.isascii() else len(os.fsencode(argument))
        if size > OUTPUT_CHARS:
            raise TemplateProblem(f"an argument is longer than {OUTPUT_CHARS} bytes")
        total += size + 1
    if total > TOTAL_CHARS:
        raise TemplateProblem(f"the command is longer than {TOTAL_CHARS} bytes: pass a file")


def _range(*bounds: int) -> range:
    found = range(*bounds)
    if len(found) > limits.COMMAND_ARGS:
        raise TemplateProblem(f"a range has at most {limits.COMMAND_ARGS} numbers")
    return found


def _join(items: Iterable[Any], separator: str = "") -> str:
    words = [_text(item) for item in items]
    if sum(map(len, words)) + len(separator) * len(words) > OUTPUT_CHARS:
        raise TemplateProblem(f"an argument is longer than {OUTPUT_CHARS} bytes")
    return separator.join(words)


def _replace(text: str, old: str, new: str) -> str:
    if len(text) + text.count(old) * len(new) > OUTPUT_CHARS:
        raise TemplateProblem(f"an argument is longer than {OUTPUT_CHARS} bytes")
    return text.replace(old, new)


_FILTERS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "first": lambda items: items[0],
    "float": float,
    "int": int,
    "join": _join,
    "last": lambda items: items[-1],
    "length": len,
    "lower": str.lower,
    "max": max,
    "min": min,
    "replace": _replace,
    "round": round,
    "sort": sorted,
    "sum": sum,
    "trim": str.strip,
    "upper": str.upper,
}


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, with a few filters, one global function, and no way to multiply text."""

    intercepted_binops = frozenset({"+", "*", "%"})

    def call_binop(self, context: RuntimeContext, operator: str, left: Any, right: Any) -> Any:
        """`*` and `%` are for numbers; `+` also joins two texts or two lists."""
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if numbers or (operator == "+" and len(left) + len(right) <= OUTPUT_CHARS):
            return super().call_binop(context, operator, left, right)
        raise TemplateProblem(f"`{operator}` is for numbers")


def _sandbox(finalize: Callable[..., str]) -> _Sandbox:
    environment = _Sandbox(
        undefined=StrictUndefined,
        finalize=finalize,
        keep_trailing_newline=True,
        autoescape=False,
        # `${#name}` is shell; so comments look different here.
        comment_start_string="{{#",
        comment_end_string="#}}",
    )
    environment.globals = {"range": _range}
    environment.filters = dict(_FILTERS)
    environment.tests = {name: environment.tests[name] for name in ("even", "odd")}
    return environment


_USED = "values used"  # no identifier, so no template can name it
_ARGV = _sandbox(_text)
_SHELL = _sandbox(_shell_word)
