"""What every test may use, and the rule about skips.

A test that needs something this machine may lack calls the `require` fixture, which skips it with words
on how to get that thing. The run ends with a list of what was skipped and why; with
CHAPPE_TEST_REQUIRE=all, as in continuous integration, a skip is a failure.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from hypothesis import HealthCheck, settings

from chappe.testing import gridengine as gridengine_servers
from chappe.testing import mail as mail_programs
from chappe.testing import postgres as postgresql
from chappe.testing import rabbitmq as rabbit_servers
from chappe.testing import slurm as slurm_servers
from chappe.testing.gridengine import GridEngineCell
from chappe.testing.mail import MailServers
from chappe.testing.place import Databases
from chappe.testing.postgres import PostgresServer
from chappe.testing.rabbitmq import RabbitCluster
from chappe.testing.slurm import SlurmCluster, TorqueCommands
from tests.order import Together, longest_first

#: Whether a skipped test is a failure.
REQUIRE_ALL = os.environ.get("CHAPPE_TEST_REQUIRE") == "all"

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

# No deadlines and no complaints about slowness: a busy machine is not a bug. The blob repeats a failure.
settings.register_profile(
    "chappe", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("chappe")


class Require(Protocol):
    """The type of the `require` fixture."""

    def __call__(self, condition: object, what: str, how_to_get: str) -> None:
        """Skip the test unless `condition` is true; say `what` is missing and `how_to_get` it."""


@pytest.fixture(scope="session")
def require() -> Require:
    """Skip unless something this machine may lack is there: `require(condition, what, how_to_get)`."""

    def check(condition: object, what: str, how_to_get: str) -> None:
        if not condition:
            pytest.skip(f"no {what}; to get it: {how_to_get}")

    return check


@pytest.fixture(scope="session")
def postgres(require: Require) -> Generator[PostgresServer, None, None]:
    """A PostgreSQL server of this run's own."""
    require(postgresql.binaries(), "PostgreSQL", postgresql.HOW_TO_GET)
    with PostgresServer.start() as server:
        yield server


@pytest.fixture(scope="session")
def databases(postgres: PostgresServer) -> Databases:
    """Its databases, to borrow."""
    return Databases(postgres)


@pytest.fixture(scope="session")
def slurm(require: Require) -> Generator[SlurmCluster, None, None]:
    """A Slurm cluster of this run's own, of four emulated nodes."""
    require(slurm_servers.available(), "Slurm", slurm_servers.HOW_TO_GET)
    with SlurmCluster.start() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def torque(
    require: Require, slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory
) -> TorqueCommands:
    """The commands of PBS in front of that cluster."""
    from tools.get_servers import UNPACKED  # here: this file is also tried outside of the checkout

    found = UNPACKED / "torque/usr/bin"
    require((found / "qsub").exists(), "PBS commands", "./run test as root on Debian unpacks them")
    return TorqueCommands(found, slurm, tmp_path_factory.mktemp("torque"))


@pytest.fixture(scope="session")
def gridengine(require: Require) -> Generator[GridEngineCell, None, None]:
    """A Grid Engine of this run's own, of one host."""
    require(gridengine_servers.available(), "Grid Engine", gridengine_servers.HOW_TO_GET)
    with GridEngineCell.start() as cell:
        yield cell


@pytest.fixture(scope="session")
def rabbitmq(require: Require) -> Generator[RabbitCluster, None, None]:
    """A RabbitMQ broker of this run's own, of one node."""
    require(rabbit_servers.available(), "RabbitMQ", rabbit_servers.HOW_TO_GET)
    with RabbitCluster.start() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def mail_servers(require: Require) -> Generator[MailServers, None, None]:
    """A Postfix and a Dovecot of this run's own."""
    require(mail_programs.available(), "Postfix and Dovecot", mail_programs.HOW_TO_GET)
    with MailServers.start() as servers:
        yield servers


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    longest_first(items, config.rootpath)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together | None:
    return Together(config, log) if config.getoption("dist") == "loadfile" else None


def _refuse_skip(report: Report) -> Report:
    """Turn a skip into a failure where all tests are required; an expected failure (xfail) stays."""
    if REQUIRE_ALL and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        report.longrepr = f"skipped, but CHAPPE_TEST_REQUIRE=all: {_reason(report)}"
        report.outcome = "failed"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _refuse_skip((yield))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test was skipped: pytest keeps (path, line, reason)."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Before pytest's closing line: what was skipped, how to get it, and how to insist."""
    skipped = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        skipped[_reason(report)].append(report.nodeid)
    if not skipped:
        return
    terminalreporter.section("skipped, and how to get them")
    for reason, tests in sorted(skipped.items()):
        terminalreporter.line(reason)
        for test in sorted(tests):
            terminalreporter.line(f"    {test}")
    terminalreporter.line("With CHAPPE_TEST_REQUIRE=all a skip is a failure.")
