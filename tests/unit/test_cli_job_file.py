"""Jobs from a file and parameters from a command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chappe.cli import job_file
from chappe.core.parameters import Kind, Parameter
from chappe.link.clock import new_id
from chappe.sdk import texts
from chappe.sdk.drafts import Draft
from chappe.sdk.errors import Invalid

SCHEMA = {
    "n": Parameter(Kind.INT),
    "dt": Parameter(Kind.FLOAT),
    "quick": Parameter(Kind.BOOL),
    "label": Parameter(Kind.STRING),
    "sizes": Parameter(Kind.LIST, items=Kind.INT),
}


def read(
    data: str, app: str | None = None, sites: tuple[str, ...] = (), **options: Any
) -> list[Draft]:
    return job_file.read(data.encode(), app, sites, options)


def test_one_object_a_list_and_lines_are_the_same() -> None:
    one = {"app": "model", "site": "paris", "parameters": {"n": 1}}
    for text in (json.dumps(one, indent=2), json.dumps([one]), json.dumps(one) + "\n\n"):
        (draft,) = read(text)
        assert draft.template.app is not None
        assert (draft.template.app.name, draft.template.sites, draft.parameters) == (
            "model", ("paris",), {"n": 1},
        )  # fmt: skip
    assert len(read(f"{json.dumps(one)}\n{json.dumps(one)}\n")) == 2


def test_the_command_line_gives_defaults_and_the_file_wins() -> None:
    a, b = read('{"cores": 2}\n{"site": "toulouse"}', "model", ("paris",), cores=4, name="x")
    assert (a.template.resources.cores, a.template.sites, a.name) == (2, ("paris",), "x")
    assert (b.template.resources.cores, b.template.sites) == (4, ("toulouse",))


def test_parents_are_names_from_further_up_or_ids() -> None:
    other = new_id()
    a, b = read(
        '{"name": "a"}\n' + json.dumps({"name": "b", "parents": ["a", other]}), "model", ("paris",)
    )
    assert b.template.parents == (a.id, other)


def test_a_name_that_two_jobs_have_is_no_parent() -> None:
    with pytest.raises(Invalid, match=r"job 3 .*'a' is the name of several jobs"):
        read('{"name": "a"}\n{"name": "a"}\n{"parents": ["a"]}', "model", ("paris",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "neither JSON nor JSON lines|holds no job"),
        ("[]", "holds no job"),
        ("[1]", "neither JSON"),
        ("{", "neither JSON"),
        ('{"app": "m", "command": ["x"], "site": "s"}', "job 1 .*exactly one of app and command"),
        ('{"app": "m"}', "job 1 .*at least one site"),
        ('{"app": "m", "site": "s"}\n{"app": "m", "site": "s", "corse": 2}', "job 2 .*'cores'"),
        ('{"app": "m", "site": "s", "parameters": [1]}', "parameters are an object"),
        ('{"app": "m", "site": "s", "parents": ["later"]}', "'later' is no job's id"),
        ('{"command": "ls -l", "site": "s"}', "list of arguments"),
    ],
)
def test_mistakes_in_a_file_are_counted_and_named(text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        read(text)


def test_texts_become_what_the_app_declares() -> None:
    given = ["n=3", "dt=1e3", "quick=Yes", "label=a=b c", "sizes=1", "sizes=[2, 3]"]
    assert texts.parameters(SCHEMA, given) == {
        "n": 3, "dt": 1000.0, "quick": True, "label": "a=b c", "sizes": [1, 2, 3],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n=1.5", "no int"),
        ("dt=fast", "no float"),
        ("quick=maybe", "neither true nor false"),
        ("m=1", r"no parameter 'm' \(it has: n, dt, quick, label, sizes\)"),
        ("n", "name=value"),
        ("sizes=[1", "no JSON list"),
    ],
)
def test_mistakes_in_parameters_are_named(text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said) as error:
        texts.parameters(SCHEMA, [text])
    assert error.value.field is not None
    assert error.value.field.startswith("parameters")


def test_a_parameter_given_twice_is_a_mistake_unless_it_is_a_list() -> None:
    with pytest.raises(Invalid, match="given twice"):
        texts.parameters(SCHEMA, ["n=1", "n=2"])
