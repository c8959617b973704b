"""Topics and the patterns that queues are bound by, as AMQP has them.

A topic is words with points between them. In a pattern, `*` stands for one word, `#` for any number of them,
none included: `supervision.*` takes `supervision.detect`, `#.ended` takes `ended` and `job.ended`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from chappe.core.errors import Invalid

TOPIC_CHARS = 255

_TOPIC = re.compile(r"[A-Za-z0-9_:-]+(\.[A-Za-z0-9_:-]+)*")
_PATTERN = re.compile(r"(?:[A-Za-z0-9_:-]+|[*#])(\.(?:[A-Za-z0-9_:-]+|[*#]))*")


def check_topic(topic: str) -> str:
    """The topic. Raises Invalid unless it is one."""
    if len(topic) > TOPIC_CHARS or not _TOPIC.fullmatch(topic):
        raise Invalid(
            f"{topic[:60]!r} is not a topic: words of letters, digits, _ : - with points between them, "
            f"{TOPIC_CHARS} characters at most",
            field="topic",
        )
    return topic


def check_pattern(pattern: str) -> str:
    """The pattern. Raises Invalid unless it is one."""
    if len(pattern) > TOPIC_CHARS or not _PATTERN.fullmatch(pattern):
        raise Invalid(
            f"{pattern[:60]!r} is not a pattern: words, * (one word) and # (any number of words) with points "
            "between them",
            field="pattern",
        )
    return pattern


def matches(pattern: str, topic: str) -> bool:
    """Whether the pattern takes the topic. Costs words × words, whatever the pattern."""
    # ends[j]: whether what was looked at of the pattern can end after j words of the topic.
    words = topic.split(".")
    ends = [True] + [False] * len(words)
    for part in pattern.split("."):
        if part == "#":
            first = ends.index(True) if True in ends else len(ends)
            ends = [j >= first for j in range(len(ends))]
        else:
            ends = [False] + [
                before and part in ("*", word) for before, word in zip(ends, words, strict=False)
            ]
    return ends[-1]


def bound(topic: str, bindings: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """The queues that a topic goes to, each once. `bindings` are the patterns of each queue."""
    return tuple(q for q, patterns in bindings.items() if any(matches(p, topic) for p in patterns))


def unbound(topics: Collection[str], bindings: Mapping[str, Iterable[str]]) -> list[str]:
    """The topics that no queue takes: what is published there would be lost."""
    return [topic for topic in topics if not bound(topic, bindings)]
