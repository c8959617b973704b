"""Typed parameters of Apps: what each type takes, and what it says of what it does not take."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from chappe.core import limits
from chappe.core.errors import Invalid
from chappe.core.parameters import RESERVED, Kind, Parameter, compile_validator


def check(parameter: Parameter, value: Any) -> Any:
    return compile_validator({"p": parameter})({"p": value})["p"]


def refused(parameter: Parameter, value: Any) -> str:
    with pytest.raises(Invalid) as caught:
        check(parameter, value)
    assert caught.value.field == "parameters.p"
    assert len(caught.value.message) < 400
    return caught.value.message


INT = Parameter(Kind.INT)
FLOAT = Parameter(Kind.FLOAT)
BOOL = Parameter(Kind.BOOL)
TEXT = Parameter(Kind.STRING)
PATH = Parameter(Kind.PATH)
CHOICE = Parameter(Kind.CHOICE, choices=("euler", "rk4"))
LIST = Parameter(Kind.LIST)
PATTERN = Parameter(Kind.STRING, pattern="[a-z]+", required=True)


@pytest.mark.parametrize(
    ("parameter", "given", "got"),
    [
        (INT, 7, 7),
        (INT, 7.0, 7),
        (INT, -(10**15), -(10**15)),
        (FLOAT, 1, 1.0),
        (FLOAT, 1.5e300, 1.5e300),
        (FLOAT, -0.0, 0.0),
        (BOOL, True, True),
        (BOOL, False, False),
        (TEXT, "", ""),
        (TEXT, "é $(rm -rf /) `x`\n", "é $(rm -rf /) `x`\n"),
        (TEXT, "x" * limits.STRING_CHARS, "x" * limits.STRING_CHARS),
        (PATH, "/data/in.nc", "/data/in.nc"),
        (CHOICE, "rk4", "rk4"),
        (LIST, [], []),
        (LIST, ["a", "b"], ["a", "b"]),
        (Parameter(Kind.LIST, items=Kind.FLOAT), [1, 2.5], [1.0, 2.5]),
        (Parameter(Kind.LIST, items=Kind.INT, min=0), [0, 3], [0, 3]),
        (Parameter(Kind.LIST, items=Kind.CHOICE, choices=("a", "b")), ["b", "b"], ["b", "b"]),
        (Parameter(Kind.LIST, items=Kind.BOOL), [True], [True]),
        (Parameter(Kind.INT, min=1, max=3), 1, 1),
        (Parameter(Kind.INT, min=1, max=3), 3, 3),
        (PATTERN, "abc", "abc"),
    ],
)
def test_values_that_are_taken(parameter: Parameter, given: Any, got: Any) -> None:
    found = check(parameter, given)
    assert found == got
    assert type(found) is type(got)


@pytest.mark.parametrize(
    ("parameter", "given", "words"),
    [
        (INT, True, "a number is wanted, not True"),  # a bool is an int to Python, not to users
        (FLOAT, False, "a number is wanted"),
        (INT, "7", "a number is wanted, not '7'"),
        (INT, 7.5, "a whole number is wanted, not 7.5"),
        (INT, None, "a number is wanted"),
        (INT, math.inf, "a finite number"),
        (INT, math.nan, "a finite number"),
        (FLOAT, math.nan, "a finite number is wanted, not nan"),
        (FLOAT, -math.inf, "a finite number"),
        (FLOAT, [], "a number"),
        (Parameter(Kind.FLOAT, min=0, max=1), 1.5, "a number from 0 to 1 is wanted, not 1.5"),
        (Parameter(Kind.INT, min=0), -1, "a number from 0 to inf"),
        (Parameter(Kind.INT, max=9), 10, "a number from -inf to 9"),
        (BOOL, 1, "true or false is wanted, not 1"),
        (BOOL, "true", "true or false"),
        (TEXT, 1, "text is wanted, not 1"),
        (TEXT, "a\0b", "without NUL"),
        (TEXT, "x" * (limits.STRING_CHARS + 1), f"at most {limits.STRING_CHARS} characters"),
        (PATH, None, "text is wanted"),
        (CHOICE, "leapfrog", "one of euler, rk4 is wanted, not 'leapfrog'"),
        (CHOICE, ["rk4"], "one of euler, rk4"),
        (CHOICE, "", "one of euler, rk4"),
        (LIST, "ab", "a list of at most"),
        (LIST, {"a": 1}, "a list of at most"),
        (LIST, ["x"] * (limits.COMMAND_ARGS + 1), "a list of at most"),
        (LIST, ["a", 1], "text is wanted, not 1"),
        (LIST, [["a"]], "text is wanted"),
        (Parameter(Kind.LIST, items=Kind.INT), [1, True], "a number is wanted, not True"),
        (PATTERN, "abc1", "text that matches [a-z]+"),
        # The whole text must match, a final line break too.
        (PATTERN, "abc\n", "text that matches"),
    ],
)
def test_values_that_are_refused(parameter: Parameter, given: Any, words: str) -> None:
    assert words in refused(parameter, given)


@pytest.mark.parametrize("parameter", [INT, FLOAT, TEXT, CHOICE, BOOL])
def test_a_number_that_python_refuses_to_print_is_refused_in_words(parameter: Parameter) -> None:
    assert "a number of thousands of digits" in refused(parameter, 10**5_000)


def test_a_value_nested_beyond_printing_is_refused_in_words() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert "nested too deeply" in refused(TEXT, deep)


@pytest.mark.parametrize(
    ("parameter", "default"),
    [
        (INT, 0),
        (FLOAT, 0.0),
        (BOOL, False),
        (TEXT, ""),
        (PATH, ""),
        (LIST, []),
        (CHOICE, "euler"),
        (Parameter(Kind.INT, min=3), 3),
        (Parameter(Kind.FLOAT, min=0.5), 0.5),
        (Parameter(Kind.FLOAT, default=2), 2.0),
        (Parameter(Kind.BOOL, default=False), False),
        (Parameter(Kind.CHOICE, default="rk4", choices=("euler", "rk4")), "rk4"),
        (Parameter(Kind.LIST, default=["a"]), ["a"]),
    ],
)
def test_what_is_not_given_takes_its_default(parameter: Parameter, default: Any) -> None:
    found = compile_validator({"p": parameter})({})["p"]
    assert found == default
    assert type(found) is type(default)


def test_what_is_required_must_be_given() -> None:
    validate = compile_validator({"dt": Parameter(Kind.FLOAT, required=True), "n": INT})
    assert validate({"dt": 1}) == {"dt": 1.0, "n": 0}
    with pytest.raises(Invalid, match="must be given") as caught:
        validate({"n": 1})
    assert caught.value.field == "parameters.dt"


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    validate = compile_validator({"steps": INT, "dt": FLOAT})
    with pytest.raises(Invalid) as caught:
        validate({"stepz": 1})
    assert caught.value.message == "the app has no parameter 'stepz' (it has: dt, steps)"
    assert caught.value.field == "parameters.stepz"
    with pytest.raises(Invalid, match=r"it has: none"):
        compile_validator({})({"x": 1})


def test_a_very_long_unknown_name_is_cut() -> None:
    with pytest.raises(Invalid) as caught:
        compile_validator({})({"x" * 10_000: 1})
    assert len(caught.value.message) < 200
    assert len(caught.value.field or "") < 100


def test_a_validator_keeps_nothing_of_a_call() -> None:
    validate = compile_validator({"files": LIST})
    given = ["a"]
    first = validate({"files": given})
    given.append("b")
    assert first == {"files": ["a"]}
    assert validate({}) == {"files": []}


def test_the_default_list_is_not_shared_between_jobs() -> None:
    validate = compile_validator({"files": Parameter(Kind.LIST, default=["a"])})
    found = validate({})["files"]
    assert isinstance(found, list)
    found.append("b")
    assert validate({}) == {"files": ["a"]}


@pytest.mark.parametrize(
    ("name", "parameter", "words"),
    [
        ("1st", INT, "cannot be a parameter's name"),
        ("a-b", INT, "cannot be a parameter's name"),
        ("a\n", INT, "cannot be a parameter's name"),
        ("", INT, "cannot be a parameter's name"),
        ("x" * 65, INT, "cannot be a parameter's name"),
        *[(name, INT, "cannot be a parameter's name") for name in sorted(RESERVED)],
        ("p", Parameter(Kind.CHOICE), "a choice needs `choices`"),
        ("p", Parameter(Kind.LIST, items=Kind.LIST), "a list of lists"),
        ("p", Parameter(Kind.STRING, pattern="["), "no regular expression"),
        ("p", Parameter(Kind.INT, default="many"), "a number is wanted, not 'many'"),
        ("p", Parameter(Kind.INT, default=0, min=1), "a number from 1"),
        ("p", Parameter(Kind.CHOICE, default="c", choices=("a", "b")), "one of a, b"),
        ("p", Parameter(Kind.STRING, pattern="[a-z]+"), "text that matches"),
    ],
)
def test_schemas_that_are_wrong(name: str, parameter: Parameter, words: str) -> None:
    with pytest.raises(Invalid, match=re.escape(words)) as caught:
        compile_validator({name: parameter})
    assert (caught.value.field or "").startswith("parameters.")
