"""Packing of one node: domains, GPUs and their shares, and what will be free when."""

from __future__ import annotations

from math import inf

from chappe.pilot.nodes import WHOLE, Need, Node, Share
from chappe.testing.nodes import GIB, big, plain


def take(
    node: Node, need: Need, lane: int = 1, ends_at: float = inf, limit_at: float = inf
) -> Share:
    assert node.fits(need)
    return node.take(need, lane, ends_at, limit_at)


def test_cpus_come_from_one_domain_and_the_fullest_that_has_enough() -> None:
    node = big(domains=2, cpus=4)
    assert take(node, Need(3), 1).cpus == [0, 1, 2]
    assert take(node, Need(2), 2).cpus == [4, 5]
    assert take(node, Need(1), 3).cpus == [3]
    assert take(node, Need(2), 4).cpus == [6, 7]


def test_what_no_domain_can_hold_is_spread() -> None:
    node = big(domains=2, cpus=4)
    assert take(node, Need(6)).cpus == [0, 1, 2, 3, 4, 5]


def test_cpus_lie_near_the_gpu() -> None:
    node = big(domains=2, cpus=4, gpus=1)
    assert take(node, Need(1, gpus=WHOLE), 1).cpus == [0]
    second = take(node, Need(2, gpus=WHOLE), 2)
    assert (second.gpus, second.cpus) == ({"gpu1": WHOLE}, [4, 5])


def test_shares_fill_the_gpu_that_they_fill_best() -> None:
    node = big(domains=1, cpus=8, gpus=2)
    assert take(node, Need(1, gpus=50), 1).gpus == {"gpu0": 50}
    assert take(node, Need(1, gpus=25), 2).gpus == {"gpu0": 25}
    assert take(node, Need(1, gpus=WHOLE), 3).gpus == {"gpu1": WHOLE}
    assert not node.fits(Need(1, gpus=50))
    assert take(node, Need(1, gpus=25), 4).gpus == {"gpu0": 25}
    assert node.free_gpus == {"gpu0": 0, "gpu1": 0}


def test_whole_gpus_come_from_one_domain() -> None:
    node = big(domains=2, cpus=4, gpus=2)
    first = take(node, Need(1, gpus=WHOLE), 1)
    assert take(node, Need(1, gpus=2 * WHOLE), 2).gpus == {"gpu2": WHOLE, "gpu3": WHOLE}
    node.leave(first, Need(1, gpus=WHOLE), 1)
    assert take(node, Need(1, gpus=2 * WHOLE), 3).gpus == {"gpu0": WHOLE, "gpu1": WHOLE}


def test_all_comes_back() -> None:
    node = big()
    need = Need(5, GIB, 3 * WHOLE)
    share = take(node, need)
    node.leave(share, need, 1)
    assert take(node, Need(8, 8 * GIB, 4 * WHOLE), 2).cpus == list(range(8))


def test_when_a_job_will_fit() -> None:
    node = plain(range(4))
    take(node, Need(2), 1, ends_at=50.0)
    second = take(node, Need(1), 2, ends_at=20.0)
    assert [node.free_at(Need(c), 10.0) for c in (1, 2, 3, 4, 5)] == [10.0, 20.0, 50.0, 50.0, inf]
    # What runs longer than was said counts as endless, unless its limit is known.
    assert node.free_at(Need(4), 30.0) == inf
    node.leave(second, Need(1), 2)
    take(node, Need(1), 2, ends_at=10.0, limit_at=40.0)
    node.expect(2, 10.0, 20.0)
    assert node.free_at(Need(2), 30.0) == 50.0
    assert node.free_at(Need(4), 30.0) == 60.0
    node.up = False
    assert node.free_at(Need(1), 30.0) == inf


def test_what_is_to_spare_beside_a_large_job() -> None:
    node = plain(range(8))
    take(node, Need(4), 1, ends_at=50.0)
    # At 50 all eight are there; the large one takes six of them.
    assert node.spare(Need(6), 50.0, 0.0).cores == 2
    assert node.spare(Need(8), 50.0, 0.0).cores == 0
    assert node.spare(Need(1), 50.0, 0.0).cores == 4
