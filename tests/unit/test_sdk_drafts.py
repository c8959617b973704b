"""Drafts and options: what a user writes becomes the right template, and mistakes are named."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from chappe.core.ids import is_uuid7
from chappe.core.jobs import ParentPolicy, RetryOn
from chappe.link.clock import new_id
from chappe.sdk import drafts
from chappe.sdk.drafts import Draft, Options
from chappe.sdk.errors import Invalid
from chappe.sdk.handles import AppHandle, JobHandle


def app(**options: Any) -> AppHandle:
    return AppHandle(drafts.template("paris", app="model")).options(**options)


def test_keywords_are_always_parameters_even_those_that_are_named_like_options() -> None:
    draft = app(name="control")(name="p1", cores=3, self=1, parameters=2)
    assert draft.parameters == {"name": "p1", "cores": 3, "self": 1, "parameters": 2}
    assert draft.name == "control"
    assert draft.template.resources.cores == 1


def test_a_mapping_and_keywords_add_up_but_not_twice() -> None:
    assert app()({"dt": 1}, n=2).parameters == {"dt": 1, "n": 2}
    with pytest.raises(Invalid, match="'dt' is given twice") as error:
        app()({"dt": 1}, dt=2)
    assert error.value.field == "parameters.dt"


AT = datetime(2030, 1, 2, tzinfo=UTC)
PARENT = new_id()
EVERY_OPTION: Options = {
    "cores": 4,
    "mem_bytes": 5,
    "gpus": 0.5,
    "nodes": 2,
    "ranks": 8,
    "ranks_per_node": 4,
    "threads_per_rank": 3,
    "named": {"licence": 2},
    "node_tag": "mpi",
    "warn_s": 20.0,
    "warn_signal": "USR2",
    "wall_s": 60.0,
    "estimate_s": 30.0,
    "retries": 5,
    "retry_on": ("error", "lost"),
    "backoff_s": 2.0,
    "parents": [PARENT],
    "on_parent_failure": "anyway",
    "tags": {"k": "v"},
    "data": {"a": [1]},
    "priority": 7,
    "workdir": "w",
    "env": {"E": "1"},
    "takeover_s": 90.0,
    "not_before": AT,
    "name": "n",
}


def test_every_option_reaches_its_place() -> None:
    t = app(**EVERY_OPTION)().template
    assert (t.resources.cores, t.resources.mem_bytes, t.resources.gpus) == (4, 5, 0.5)
    assert (t.resources.nodes, t.resources.ranks) == (2, 8)
    assert (t.resources.ranks_per_node, t.resources.threads_per_rank) == (4, 3)
    assert (t.resources.named, t.resources.node_tag) == ({"licence": 2}, "mpi")
    assert (t.resources.warn_s, t.resources.warn_signal) == (20.0, "USR2")
    assert (t.resources.wall_s, t.resources.estimate_s) == (60.0, 30.0)
    assert (t.retries.max, t.retries.on, t.retries.backoff_s) == (
        5,
        (RetryOn.ERROR, RetryOn.LOST),
        2.0,
    )
    assert t.parents == (PARENT,)
    assert t.on_parent_failure is ParentPolicy.ANYWAY
    assert (t.envelope.tags, t.envelope.data, t.envelope.priority) == ({"k": "v"}, {"a": [1]}, 7)
    assert (t.workdir, t.env, t.takeover_s, t.name) == ("w", {"E": "1"}, 90.0, "n")
    assert t.not_before == AT.timestamp()


def test_every_option_is_checked_above_and_documented() -> None:
    assert EVERY_OPTION.keys() == Options.__annotations__.keys()
    documented = Options.__doc__ or ""
    assert all(name in documented for name in Options.__annotations__)


def test_options_do_not_change_the_app_they_come_from() -> None:
    plain = app()
    plain.options(cores=8)
    assert plain().template.resources.cores == 1


def test_options_add_up() -> None:
    t = app(cores=8).options(wall_s=5.0).options(tags={"a": "b"}).options(priority=1)().template
    assert (t.resources.cores, t.resources.wall_s) == (8, 5.0)
    assert (t.envelope.tags, t.envelope.priority) == ({"a": "b"}, 1)


def test_a_misspelt_option_is_named_with_the_right_one() -> None:
    with pytest.raises(Invalid, match="no option 'core', did you mean 'cores'"):
        app(core=4)


def test_parents_may_be_drafts_jobs_or_ids_and_count_once() -> None:
    draft, other = app()(), new_id()
    t = app(parents=[draft, JobHandle(other), other, draft])().template
    assert t.parents == (draft.id, other)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"parents": ["0195"]}, "parents"),
        ({"on_parent_failure": "ignore"}, "on_parent_failure"),
        ({"retry_on": ["crash"]}, "retry_on"),
        ({"not_before": datetime(2030, 1, 2)}, "not_before"),  # noqa: DTZ001 - that is the mistake
    ],
)
def test_wrong_values_name_their_option(options: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as error:
        app(**options)
    assert error.value.field == field


def test_a_draft_has_its_id_before_it_is_sent_and_ids_rise() -> None:
    ids = [app()().id for _ in range(100)]
    assert all(map(is_uuid7, ids))
    assert ids == sorted(set(ids))


def test_map_names_its_jobs_in_turn() -> None:
    t = drafts.template("paris", app="model")
    made = drafts.many(t, [{"n": 1}, {"n": 2}], ["a", "b"])
    assert [(d.name, d.parameters) for d in made] == [("a", {"n": 1}), ("b", {"n": 2})]
    with pytest.raises(Invalid, match="as many names"):
        drafts.many(t, [{}, {}], ["a"])


def test_a_command_is_a_list_not_a_text() -> None:
    with pytest.raises(Invalid, match="list of arguments"):
        drafts.template("paris", command="echo hi")
    draft = Draft(drafts.template("paris", command=["echo", 3]), {})  # type: ignore[list-item]
    assert draft.template.command == ("echo", "3")


@pytest.mark.parametrize(("site", "sites"), [(None, []), ("a", ["b"])])
def test_exactly_one_of_site_and_sites(site: str | None, sites: list[str]) -> None:
    with pytest.raises(Invalid, match="one site, or several"):
        drafts.one_or_more(site, sites)
