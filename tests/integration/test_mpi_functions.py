"""Python functions that are MPI programs, from the SDK to the real Open MPI and back."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from typing import Any

import pytest

import chappe
from chappe import Client
from chappe.sdk.errors import JobFailed
from chappe.sdk.functions import FunctionApp
from tests.conftest import Require
from tests.integration import mpi_rig, sdk_rig
from tests.integration.sdk_rig import SITE, Place

WITHIN_S = 90.0


@pytest.fixture(scope="module")
def place(
    require: Require, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Place, None, None]:
    require(mpi_rig.there(), "Open MPI", mpi_rig.HOW_TO_GET)
    with sdk_rig.place(tmp_path_factory.mktemp("mpi-functions")) as made:
        yield made


@pytest.fixture
def client(place: Place) -> Generator[Client, None, None]:
    with place.client() as made:
        yield made


def app(function: Any, **more: Any) -> FunctionApp[..., Any]:
    given = {"ranks": 2, "threads_per_rank": 1, "retries": 0, **more}
    return chappe.app(function, site=SITE, **given)


def total(factor: int) -> dict[str, Any]:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    print("rank", world.Get_rank())
    return {
        "sum": world.allreduce(factor * (1 + world.Get_rank())),
        "ranks": world.Get_size(),
        "by": world.Get_rank(),
    }


def test_what_rank_0_returns_is_the_value(client: Client) -> None:
    job = client.submit(app(total), 10)
    assert job.result(WITHIN_S) == {"sum": 30, "ranks": 2, "by": 0}


def test_a_value_that_is_no_data_comes_back_too(client: Client) -> None:
    def numbers() -> Any:
        return {1, 2}, "x" * 50_000

    assert client.submit(app(numbers)).result(WITHIN_S) == ({1, 2}, "x" * 50_000)


def test_an_exception_in_any_rank_is_raised_and_ends_the_others(client: Client) -> None:
    def fails() -> None:
        from mpi4py import MPI

        if MPI.COMM_WORLD.Get_rank() == 1:
            raise ValueError("no such wave")
        MPI.COMM_WORLD.barrier()

    job = client.submit(app(fails))
    with pytest.raises(ValueError, match="no such wave") as caught:
        job.result(WITHIN_S)
    assert "in rank 1 of 2" in str(caught.value.__notes__) + str(caught.value.__cause__)
    assert job.refresh().state == "FAILED"


def test_a_rank_that_is_killed_fails_the_job_by_name(client: Client) -> None:
    def dies() -> None:
        from mpi4py import MPI

        if MPI.COMM_WORLD.Get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        MPI.COMM_WORLD.barrier()

    job = client.submit(app(dies))
    with pytest.raises(JobFailed, match=r"rank 1 .* was killed by signal 9"):
        job.result(WITHIN_S)
    outcome = job.refresh().outcome
    assert outcome is not None
    assert outcome.reason == "rank_killed"


def test_one_rank_is_an_ordinary_call(client: Client) -> None:
    assert client.submit(app(os.path.join, ranks=1), "a", "b").result(WITHIN_S) == "a/b"
