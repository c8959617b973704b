"""The state of the checkout itself: what is tracked, what is documented, and what is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import chappe

#: The beginning of an absolute path that exists on some machine and on no other.
MACHINE_PATH = re.compile(r"(?<![\w.~$}/])/(?:home|root|Users|work|farm|scratch)/[\w.]")
#: Addresses on the network of whoever writes, or on the writer's own machine under a fixed name.
PRIVATE_HOST = re.compile(r"https?://(?:10\.\d|192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.)")
TEST_KINDS = ("unit", "property", "contract", "integration", "acceptance", "chaos", "security")
CHAPPE_VARIABLE = re.compile(r"\bCHAPPE_[A-Z_]+\b")


def tracked(repository: Path, *patterns: str) -> list[Path]:
    """The files that git tracks or would track, so that a new file is seen before it is committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    paths = [repository / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def texts(repository: Path, *patterns: str) -> list[tuple[Path, str]]:
    """The tracked text files (no images, no data) and what they say."""
    found = []
    for path in tracked(repository, *patterns):
        content = path.read_bytes()
        if b"\0" not in content:
            found.append((path.relative_to(repository), content.decode()))
    return found


@pytest.mark.parametrize(("pattern"), [MACHINE_PATH, PRIVATE_HOST], ids=["path", "host"])
def test_no_tracked_file_names_a_place_of_one_machine(
    repository: Path, pattern: re.Pattern[str]
) -> None:
    places = [
        f"{path}:{number}: {line.strip()[:100]}"
        for path, text in texts(repository)
        if path.name not in {"uv.lock", Path(__file__).name}
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]
    assert places == []


@pytest.mark.parametrize(
    "line", ["python = /home/ann/env", '"/root/x"', "see /work/data", "/Users/bob"]
)
def test_a_machine_path_is_recognised(line: str) -> None:
    assert MACHINE_PATH.search(line)


@pytest.mark.parametrize(
    "line", ["https://example.org/home/page", "~/work/x", "$HOME/work/x", "data/home/x", "/usr/bin"]
)
def test_other_paths_are_not(line: str) -> None:
    assert not MACHINE_PATH.search(line)


@pytest.mark.parametrize("kind", TEST_KINDS)
def test_each_test_directory_says_what_belongs_there(repository: Path, kind: str) -> None:
    lines = (repository / "tests" / kind / "README.md").read_text().splitlines()
    assert 5 <= len(lines) <= 12
    assert any("Not here" in line for line in lines)


def test_there_is_no_test_outside_these_directories(repository: Path) -> None:
    elsewhere = [
        path.relative_to(repository)
        for path in tracked(repository, "tests/*.py")
        if path.name.startswith("test_") and path.parent.parent.name != "tests"
    ]
    assert [path for path in elsewhere if path.parts[1] not in TEST_KINDS] == []


def documented_commands(repository: Path) -> set[str]:
    """Every sub-command of ./run that a document names."""
    pages = texts(repository, "*.md", ".ci/run")
    return {name for _, text in pages for name in re.findall(r"\./run ([a-z]+)", text)}


def run_commands(repository: Path) -> set[str]:
    """The sub-commands that ./run itself says it has."""
    help_text = subprocess.run(
        ["sh", "run", "help"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    return set(re.findall(r"^  ([a-z]+) ", help_text, re.MULTILINE))


def test_every_documented_command_of_run_exists_and_every_command_is_documented(
    repository: Path,
) -> None:
    assert documented_commands(repository) | {"help"} == run_commands(repository)


def test_run_refuses_what_it_does_not_know(repository: Path) -> None:
    done = subprocess.run(
        ["sh", "run", "nonsense"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "there is no command 'nonsense'" in done.stderr


def test_run_says_which_python_it_wants(repository: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["sh", "run", "docs"],
        cwd=repository,
        env={**os.environ, "CHAPPE_PYTHON": str(old)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Python >= 3.11 is needed" in done.stderr
    assert str(old) in done.stderr


def test_links_between_documents_lead_somewhere(repository: Path) -> None:
    broken = []
    for path, text in texts(repository, "*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            there = (repository / path).parent / target
            if "://" not in target and not target.startswith("mailto:") and not there.exists():
                broken.append(f"{path}: {target}")
    assert broken == []


def test_every_environment_variable_is_documented(repository: Path) -> None:
    sources = texts(repository, "src/*.py", "run", "tests/conftest.py")
    used = {name for _, text in sources for name in CHAPPE_VARIABLE.findall(text)}
    documented = set(CHAPPE_VARIABLE.findall((repository / "docs/environment.md").read_text()))
    assert used - documented == set()


def test_every_word_of_the_state_machine_is_in_the_glossary(repository: Path) -> None:
    from chappe.core.states import PHASE

    glossary = (repository / "docs/glossary.md").read_text()
    rows = dict(re.findall(r"^\| ([A-Z_]+) \| (\w+) \|", glossary, re.MULTILINE))
    assert rows == {state.value: phase.value for state, phase in PHASE.items()}


def test_the_installed_wheel_is_what_is_tested(repository: Path) -> None:
    installed = Path(chappe.__file__).resolve()
    if os.environ.get("CHAPPE_TEST_INSTALLED"):
        assert not installed.is_relative_to(repository / "src")
        assert installed.is_relative_to(Path(sys.prefix).resolve())
    packaged = {
        path.relative_to(installed.parent)
        for path in installed.parent.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    source = repository / "src/chappe"
    assert {path.relative_to(source) for path in tracked(repository, "src/chappe")} <= packaged
