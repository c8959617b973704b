"""Lets the tests whose subject is time wait side by side with all others.

The scenarios of `silences` take a minute and a half, in which they hardly compute. Those that were selected
begin with the first test of this directory, each on a thread and in a cluster of its own; the tests that ask
how they went come last.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import pytest

from chappe.testing import postgres as postgresql
from chappe.testing.far_node import FarNode
from chappe.testing.postgres import PostgresServer
from tests.chaos.silences import SCENARIOS
from tests.conftest import Require

Outcomes = dict[str, Future[None]]


def _scenario(item: pytest.Item) -> str:
    """The scenario whose outcome a test asks for; "" for other tests."""
    callspec = getattr(item, "callspec", None)
    return "" if callspec is None else str(callspec.params.get("scenario", ""))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that wait for a scenario behind all others, whatever the order of these."""
    items.sort(key=lambda item: _scenario(item) != "")


@pytest.fixture
def node(require: Require) -> Iterator[FarNode]:
    """A node of its own network, at the end of a wire."""
    how = "run the tests as root, with CAP_SYS_ADMIN and CAP_NET_ADMIN"
    try:
        made = FarNode()
    except OSError as refused:
        require(False, f"network of its own ({refused})", how)
        raise
    with made:
        yield made


@pytest.fixture(scope="session", autouse=True)
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Outcomes]:
    """The scenarios that were selected, under way."""
    selected = {_scenario(item) for item in request.session.items} - {""}
    over = Event()
    with ThreadPoolExecutor(len(SCENARIOS), "scenario") as pool:
        try:
            yield {
                name: pool.submit(SCENARIOS[name], tmp_path_factory.mktemp(name), over)
                for name in sorted(selected)
            }
        finally:
            over.set()


@pytest.fixture
def mortal_postgres(require: Require) -> Iterator[PostgresServer]:
    """A PostgreSQL server of a test's own, which may die."""
    require(postgresql.binaries(), "PostgreSQL", postgresql.HOW_TO_GET)
    with PostgresServer.start() as server:
        yield server
