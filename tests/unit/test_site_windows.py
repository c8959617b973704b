"""Free nodes: what Slurm 22.05.8 printed on a cluster of four nodes (2026-11-20), and what PBS is said to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chappe.core.elastic import Window
from chappe.core.errors import Invalid
from chappe.core.policy import Policy
from chappe.site.calls import Calls
from chappe.site.schedulers.windows import PbsWindows, SlurmWindows
from chappe.site.wakeup import Wakeups
from chappe.site.windows import follow_windows

NODES = """\
node1|debug*|allocated|1:00:00
node1|long|allocated|infinite
node2|debug*|allocated|1:00:00
node3|debug*|planned|1:00:00
node4|debug*|planned|1:00:00
"""
IDLE = NODES.replace("allocated", "idle").replace("planned", "idle")
STARTS = """\
1795198363|4|debug
1795198620|3|debug
N/A|1|debug
"""
NOW = 1_795_197_766.0


def read(nodes: str, starts: str, *queues: str) -> list[Window]:
    return SlurmWindows().parse([nodes, starts], queues or ("debug",), NOW)


def test_idle_nodes_are_free_until_they_are_planned_for() -> None:
    assert read(NODES, STARTS) == [Window(2, 597.0, "debug")]
    assert read(NODES, "1795198363|1|debug\n") == [
        Window(1, 597.0, "debug"),
        Window(1, 3_600.0, "debug"),
    ]
    assert read(NODES, "") == [Window(2, 3_600.0, "debug")]


def test_the_queue_without_a_name_is_the_default_one() -> None:
    assert read(NODES, STARTS, "") == [Window(2, 597.0, "")]


def test_a_node_of_two_partitions_is_counted_once_where_it_lasts_longest() -> None:
    assert read(IDLE, "", "debug", "long") == [Window(1, None, "long"), Window(3, 3_600.0, "debug")]
    assert read(IDLE, "", "long") == [Window(1, None, "long")]
    # A plan for nodes of a partition that shares some may be for those.
    assert read(IDLE, STARTS, "long") == [Window(1, 597.0, "long")]


def test_days_and_minutes_are_understood() -> None:
    for limit, seconds in (("2-01:00:00", 176_400.0), ("30:00", 1_800.0), ("n/a", None)):
        assert read(f"a|debug|idle|{limit}\n", "") == [Window(1, seconds, "debug")]


def test_garbage_is_refused_and_nothing_free_is_nothing() -> None:
    assert read("", "") == []
    assert read("a|debug|idle*|1:00:00\n", "") == [], "it does not answer"
    for wrong in ("sinfo: error: x\n", "a|b|c\n"):
        with pytest.raises(Invalid):
            read(wrong, "")
        with pytest.raises(Invalid):
            read(NODES, wrong.replace("|c", "|c|d"))


#: Synthetic, after the manuals of OpenPBS 23 and Torque 6.
PBS = """\
n1
     Mom = n1.example
     state = free
     pcpus = 8
     resources_available.ncpus = 8
     resources_assigned.ncpus = 0

n2
     Mom = n2.example
     state = free
     jobs = 17.pbs/0
     resources_assigned.ncpus = 4

n3
     Mom = n3.example
     state = down,offline

n4
     state = free
     queue = debug
     np = 8
     status = rectime=1,ncpus=8,state=free
"""


def test_free_nodes_of_pbs_are_those_without_jobs() -> None:
    def read(*queues: str) -> list[Window]:
        return PbsWindows().parse([PBS], queues, NOW)

    assert read("") == [Window(1, None, "")]
    assert read("", "debug") == [Window(1, None, ""), Window(1, None, "debug")]
    assert PbsWindows().parse([""], ("",), NOW) == []
    with pytest.raises(Invalid):
        PbsWindows().parse(["pbsnodes: cannot connect\n  to server\n"], ("",), NOW)


class Listener:
    """The part of `Elastic` that follows windows."""

    queues = ("debug",)
    wants_windows = False

    def __init__(self) -> None:
        self.seen: list[list[Window]] = []
        self.news = asyncio.Event()

    def see_windows(self, windows: list[Window]) -> None:
        self.seen.append(windows)
        self.news.set()


class Printed(SlurmWindows):
    """Slurm's answers, without a Slurm."""

    def commands(self) -> list[list[str]]:
        return [["printf", "%s", NODES], ["printf", "%s", STARTS.replace("1795", "9795")]]


class Down(SlurmWindows):
    def commands(self) -> list[list[str]]:
        return [["false"], ["false"]]


@pytest.mark.parametrize(
    ("reader", "windows"), [(Printed, [Window(2, 3_600.0, "debug")]), (Down, [])]
)
async def test_the_scheduler_is_asked_only_while_it_matters(
    tmp_path: Path, reader: Callable[[], Any], windows: list[Window]
) -> None:
    listener: Any = Listener()
    wakeups = Wakeups()
    calls = Calls(tmp_path / "calls", Policy(), shared=True)
    task = asyncio.create_task(follow_windows(listener, reader(), calls, wakeups, 3_600.0))
    try:
        wakeups.windows.set()
        await asyncio.sleep(0)
        assert not listener.seen
        listener.wants_windows = True
        wakeups.windows.set()
        async with asyncio.timeout(60):
            await listener.news.wait()
        assert listener.seen == [windows]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
