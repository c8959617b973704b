"""Topics, patterns and topologies: nothing that is declared can go nowhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import chappe
from chappe.bus.amqp_topology import QUEUES as AMQP_QUEUES
from chappe.core.errors import Invalid, NotFound
from chappe.core.queues import DECLARED, Outside, Queue, Topology
from chappe.core.topics import bound, check_pattern, check_topic, matches, unbound


@pytest.mark.parametrize(
    ("pattern", "topic", "taken"),
    [
        ("*.*.*.*.0000", "prod.hermes-mq-user.libigcm.monitoring.0000", True),
        ("*.*.*.*.0000", "prod.hermes-mq-user.libigcm.monitoring.0100", False),
        ("*.*.*.*.0000", "prod.libigcm.monitoring.0000", False),
        ("supervision.*", "supervision.detect", True),
        ("supervision.*", "supervision", False),
        ("supervision.*", "supervision.detect.late", False),
        ("#", "a", True),
        ("#", "a.b.c", True),
        ("#.ended", "ended", True),
        ("#.ended", "job.ended", True),
        ("#.ended", "job.ended.late", False),
        ("a.#.b", "a.b", True),
        ("a.#.b", "a.b.a.b", True),
        ("a.#.b", "a.b.c", False),
        ("#.*", "a", True),
        ("*.#.*", "a", False),
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a", "b", False),
    ],
)
def test_what_a_pattern_takes(pattern: str, topic: str, taken: bool) -> None:
    assert matches(pattern, topic) is taken


WORDS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=6)
PARTS = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=6)


@given(PARTS, WORDS)
def test_it_takes_what_a_regular_expression_says(parts: list[str], words: list[str]) -> None:
    # Each word is followed by a point, so that "#" is any number of words with theirs.
    regex = "".join({"*": r"\w+\.", "#": r"(?:\w+\.)*"}.get(p, rf"{p}\.") for p in parts)
    expected = re.fullmatch(regex, "".join(f"{w}." for w in words)) is not None
    assert matches(".".join(parts), ".".join(words)) is expected


def test_a_pattern_made_to_be_slow_is_not() -> None:
    # A matcher that goes back would try some 10^17 ways.
    assert not matches(".".join(["#", "a"] * 50 + ["b"]), ".".join(["a"] * 120))


@pytest.mark.parametrize(
    "topic", ["", "a.", ".a", "a..b", "a b", "*", "a.#", "é", "a" * 256, "a\n"]
)
def test_what_is_no_topic(topic: str) -> None:
    with pytest.raises(Invalid, match="is not a topic"):
        check_topic(topic)


@pytest.mark.parametrize("pattern", ["", "a.", "**", "a*", "a.#b", "a..b"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(Invalid, match="is not a pattern"):
        check_pattern(pattern)


def test_a_topic_goes_to_each_queue_once() -> None:
    bindings = {"one": ["a.*", "#"], "two": ["a.b"], "three": ["c"]}
    assert bound("a.b", bindings) == ("one", "two")
    assert unbound(["a.b", "c", "d"], bindings | {"one": ["a.*"]}) == ["d"]


@pytest.mark.parametrize(
    ("queues", "topics", "words"),
    [
        ([Queue("q", ("a",)), Queue("q", ("b",))], ["a", "b"], "two queues q"),
        ([Queue("q", ("a", "b.*"))], ["a"], r"q: b\.\* takes no topic"),
        ([Queue("q", ("a",))], ["a", "b"], "no queue takes b"),
        ([Queue("q", ("a",), attempts=0)], ["a"], "attempts"),
        ([Queue("q", ("a b",))], ["a"], "is not a pattern"),
        ([Queue("q", ("#",))], ["a b"], "is not a topic"),
    ],
)
def test_a_topology_that_would_lose_something_cannot_be_made(
    queues: list[Queue], topics: list[str], words: str
) -> None:
    with pytest.raises(Invalid, match=words):
        Topology(queues, topics)


def test_a_queue_has_one_identity_under_two_names() -> None:
    ours = {q.outside: q.name for q in DECLARED.queues.values() if q.outside}
    assert ours == {
        Outside("live-superviseur", "8000"): "internal-supervision-detect",
        Outside("live-superviseur", "8100"): "internal-supervision-format",
        Outside("live-superviseur", "8200"): "out-supervision-dispatch",
    }
    assert DECLARED.find("live-superviseur:8200") is DECLARED.find("out-supervision-dispatch")
    with pytest.raises(NotFound, match="there are: hub-check, internal-supervision-detect"):
        DECLARED.find("live-superviseur")


def test_the_broker_has_a_queue_of_the_other_name_that_takes_the_type() -> None:
    theirs = {queue.name: queue.types for queue in AMQP_QUEUES}
    for queue in DECLARED.queues.values():
        if queue.outside:
            types = theirs[queue.outside.queue]
            assert any(matches(pattern, queue.outside.type) for pattern in types)
            assert all(any(matches(p, topic) for p in types) for topic in DECLARED.into(queue.name))


def test_a_queue_waits_longer_after_each_try_but_not_for_ever() -> None:
    queue = Queue("q", ("a",), backoff_s=2.0)
    assert [queue.backoff(n) for n in (1, 2, 3)] == [2.0, 4.0, 8.0]
    assert queue.backoff(10_000) == 3_600.0


def published() -> Iterator[tuple[str, str]]:
    """Where Chappe publishes what: (file, topic), of every call `….publish(tx, "topic", …)`."""
    for path in sorted(Path(chappe.__file__).parent.rglob("*.py")):
        text = path.read_text()
        if "publish(" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call) or len(node.args) < 2:
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first, second = node.args[:2]
            if name == "publish" and isinstance(first, ast.Name) and first.id == "tx":
                assert isinstance(second, ast.Constant), f"{path.name}: a topic that is computed"
                yield path.name, str(second.value)


def test_l7_whatever_is_published_has_a_queue() -> None:
    assert unbound(DECLARED.topics, {q.name: q.patterns for q in DECLARED.queues.values()}) == []
    calls = list(published())
    assert calls  # the search finds them
    assert [(name, topic) for name, topic in calls if topic not in DECLARED.topics] == []
    with pytest.raises(NotFound, match="no topic 'supervision\\.other' is declared"):
        DECLARED.route("supervision.other")
