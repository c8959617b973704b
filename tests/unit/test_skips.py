"""The rule about skips in tests/conftest.py, seen from outside: a small suite run by a pytest of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
import pytest

def test_needs(require):
    require(False, "rabbit server", "install a rabbit")

def test_has(require):
    require(True, "air", "breathe")

@pytest.mark.xfail
def test_known_to_fail():
    assert False
"""
MODULE = 'import pytest\npytest.skip("no moon", allow_module_level=True)\n'


@pytest.fixture
def suite(repository: Path, tmp_path: Path) -> Path:
    shutil.copy(repository / "tests/conftest.py", tmp_path)
    (tmp_path / "tests").mkdir()
    shutil.copy(repository / "tests/order.py", tmp_path / "tests")
    (tmp_path / "test_suite.py").write_text(SUITE)
    return tmp_path


def run_suite(suite: Path, require: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=suite,
        env={**os.environ, "CHAPPE_TEST_REQUIRE": require},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_skip_is_listed_with_its_remedy(suite: Path) -> None:
    done = run_suite(suite, "")
    assert done.returncode == 0, done.stdout
    tail = done.stdout[done.stdout.index("skipped, and how to get them") :].splitlines()
    assert tail[1:3] == [
        "no rabbit server; to get it: install a rabbit",
        "    test_suite.py::test_needs",
    ]
    assert "1 passed, 1 skipped, 1 xfailed" in tail[-1]


def test_where_all_is_required_a_skip_fails(suite: Path) -> None:
    done = run_suite(suite, "all")
    assert done.returncode == 1
    assert "CHAPPE_TEST_REQUIRE=all: no rabbit server" in done.stdout
    assert "1 failed, 1 passed, 1 xfailed" in done.stdout.splitlines()[-1]


def test_where_all_is_required_a_skipped_module_fails(suite: Path) -> None:
    (suite / "test_module.py").write_text(MODULE)
    assert "1 skipped" in run_suite(suite, "").stdout
    done = run_suite(suite, "all")
    assert done.returncode != 0
    assert "CHAPPE_TEST_REQUIRE=all: no moon" in done.stdout
