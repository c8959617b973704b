"""Arrays: indices as batch systems write them, ids that count, and what a task is told."""

from __future__ import annotations

import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chappe.core import arrays, limits
from chappe.core.errors import Invalid, TooLarge
from chappe.core.ids import beginning_of, is_uuid7, number_of, uuid7
from chappe.core.jobs import JobSpec, decode_spec
from chappe.link.clock import new_id


@pytest.mark.parametrize(
    ("text", "of", "at_once"),
    [
        ("0", (0,), 0),
        ("1-4", (1, 2, 3, 4), 0),
        ("1-10:3", (1, 4, 7, 10), 0),
        ("0-15:4%2", (0, 4, 8, 12), 2),
        ("7,1-3,2, 9 ", (1, 2, 3, 7, 9), 0),
        ("1-3%10000", (1, 2, 3), 10_000),
    ],
)
def test_indices_are_read_as_batch_systems_write_them(
    text: str, of: tuple[int, ...], at_once: int
) -> None:
    assert arrays.parse(text) == (of, at_once)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "-1",
        "1-",
        "3-1",
        "1-9:0",
        "1,,2",
        "1-3%0",
        "1-3%",
        "1-3%x",
        "%5",
        "1\n2",
        "²",
        "\u0661",
    ],
)
def test_what_is_no_array_is_named(text: str) -> None:
    with pytest.raises(Invalid) as error:
        arrays.parse(text)
    assert error.value.field == "array"


@pytest.mark.parametrize("text", ["0-10000", "1-999999999", "1-10000,20000", "0-9999,1-9999"])
def test_a_long_array_is_refused_before_it_is_written_out(text: str) -> None:
    with pytest.raises(TooLarge, match="submit several"):
        arrays.parse(text)


def test_an_index_has_an_upper_bound() -> None:
    assert arrays.parse(str(limits.ARRAY_INDEX_MAX)).of == (limits.ARRAY_INDEX_MAX,)
    with pytest.raises(Invalid, match="an index is"):
        arrays.parse(str(limits.ARRAY_INDEX_MAX + 1))


@given(st.text(alphabet=string.digits + "-:,% \n\0a", max_size=30))
def test_no_text_crashes_the_parser(text: str) -> None:
    try:
        found = arrays.parse(text)
    except Invalid:
        return
    assert list(found.of) == sorted(set(found.of))
    assert 1 <= len(found.of) <= limits.JOBS_PER_REQUEST


def test_the_ids_of_an_array_count_up_from_its_own() -> None:
    first = arrays.first_id(new_id())
    ids = arrays.task_ids(first, limits.JOBS_PER_REQUEST)
    assert ids[0] == first
    assert ids == sorted(set(ids))
    assert all(map(is_uuid7, ids))
    assert {number_of(one) for one in ids} == {number_of(first)}


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_a_number_is_small_and_leads_back_to_its_id(ms: int, entropy: bytes) -> None:
    """For 69 years from 2025 on; other clocks wrap around, and crash nothing."""
    id = uuid7(ms, entropy)
    number = number_of(id)
    assert 0 <= number < 2**53
    if 1_735_689_600_000 <= ms < 1_735_689_600_000 + 2**41:
        assert id.startswith(beginning_of(number))


@pytest.mark.parametrize("number", [-1, 2**53, 10**30])
def test_a_number_of_no_id_is_refused(number: int) -> None:
    with pytest.raises(Invalid):
        beginning_of(number)


def test_a_task_knows_its_place_in_the_words_of_its_dialect() -> None:
    first = arrays.first_id(new_id())
    second = {d: arrays.tasks(first, arrays.parse("2-8:3"), d)[1] for d in ("", *arrays.DIALECTS)}
    plain = arrays.environment(second[""])
    assert plain == {
        "CHAPPE_ARRAY_ID": first,
        "CHAPPE_TASK_INDEX": "5",
        "CHAPPE_TASK_FIRST": "2",
        "CHAPPE_TASK_LAST": "8",
        "CHAPPE_TASK_COUNT": "3",
        "CHAPPE_TASK_STEP": "3",
    }
    slurm = arrays.environment(second["slurm"])
    assert slurm.items() > plain.items()
    assert slurm["SLURM_ARRAY_TASK_ID"] == "5"
    assert slurm["SLURM_ARRAY_JOB_ID"] == str(number_of(first))
    assert (slurm["SLURM_ARRAY_TASK_MIN"], slurm["SLURM_ARRAY_TASK_MAX"]) == ("2", "8")
    assert arrays.environment(second["pbs"])["PBS_ARRAY_INDEX"] == "5"
    assert arrays.environment(second["sge"])["SGE_TASK_ID"] == "5"
    with pytest.raises(Invalid, match="dialect 'lsf'"):
        arrays.tasks(first, arrays.parse("1"), "lsf")
    (_, uneven, _) = arrays.tasks(first, arrays.parse("1,2,9"))
    assert (uneven.step, uneven.last) == (1, 9)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"index": 9}, "task.index"),
        ({"index": -1}, "task.index"),
        ({"count": 0}, "task.count"),
        ({"step": 0}, "task.count"),
        ({"dialect": "x\ny"}, "task.dialect"),
        ({"array": "1"}, "task.array"),
    ],
)
def test_a_hub_and_a_site_check_what_a_client_says_of_a_task(
    changes: dict[str, object], field: str
) -> None:
    task = {"array": new_id(), "index": 2, "first": 1, "last": 3, "count": 3, **changes}
    spec = {"id": new_id(), "project": "p", "sites": [new_id()], "command": ["true"], "task": task}
    with pytest.raises(Invalid) as error:
        decode_spec(msgspec.json.encode(spec))
    assert error.value.field == field


def test_a_script_is_a_hash_and_needs_a_command() -> None:
    spec = JobSpec(new_id(), "p", (new_id(),), command=("sh",), script="0" * 64)
    assert decode_spec(msgspec.json.encode(spec)).code == "0" * 64
    for wrong in (
        msgspec.structs.replace(spec, script="rm -rf /"),
        msgspec.structs.replace(spec, command=None),
    ):
        with pytest.raises(Invalid):
            decode_spec(msgspec.json.encode(wrong))
