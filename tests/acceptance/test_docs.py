"""What the documentation says is true: its examples run, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Generator
from pathlib import Path

import click
import pytest

from chappe.cli.main import root
from chappe.testing.hub import start_hub
from tests.acceptance.docs_rig import Reader, examples, pattern_of

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
RUN = [page for page in PAGES if examples(page.read_text())[0]]


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path, None, None]:
    """A user's HOME with a Hub's configuration, and beside it the Site `paris` with the pages' Apps."""
    top = tmp_path_factory.mktemp("docs")
    (top / "home").mkdir()
    (top / "work").mkdir()
    config = top / "home/.config/chappe/client.json"
    with start_hub(top / "hub", environ={"CHAPPE_CONFIG": str(config)}):
        reader = Reader(top / "work", top / "home")
        try:
            reader.type("chappe site init paris")
            # Before the agent starts: it looks for changed Apps only twice a minute.
            for page in RUN:
                for example in examples(page.read_text())[1]:
                    if example.options.get("file", "").startswith("paris/"):
                        reader.follow(example)
            reader.type("sed -i 's/^# allowed = false/allowed = true/' paris/site.toml")
            reader.type("chappe site start paris")
            reader.type("chappe run paris -- true")
            yield top
        finally:
            reader.leave()


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_examples_of_a_page_do_what_it_says(
    page: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    needs, steps = examples(page.read_text())
    home = tmp_path / "home"
    if needs == "site":
        top: Path = request.getfixturevalue("world")
        home = top / "home"
        (tmp_path / "paris").symlink_to(top / "work/paris")
    home.mkdir(exist_ok=True)
    reader = Reader(tmp_path, home)
    try:
        for step in steps:
            try:
                reader.follow(step)
            except AssertionError as error:
                raise AssertionError(f"{name_of(page)}:{step.line}: {error}") from None
    finally:
        reader.leave()


@pytest.mark.parametrize(
    ("page", "prints", "same"),
    [
        ("done 3 s\n", "done 14.5 s\n", True),
        ("a  b\n", "a b  \n", True),
        ("a …\n", "a b c\n", True),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("01a1f8ae-4bcb x\n", "01b2a9bf x\n", True),
        ("a\n", "b\n", False),
        ("a\n", "a\nb\n", False),
        ("a\n…\nd\n", "a\nb\n", False),
        ("done 3 s\n", "done 3 h x\n", False),
    ],
)
def test_output_is_compared(page: str, prints: str, same: bool) -> None:
    assert (re.fullmatch(pattern_of(page)[0], prints) is not None) is same


def only_shown() -> list[object]:
    """Every command that begins with `chappe` in blocks that are not run, as pytest parameters."""
    return [
        pytest.param(command, id=f"{name_of(page)}: {command[:50]}")
        for page in PAGES
        for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        for command in re.findall(r"^chappe \w.*", block, re.MULTILINE)
        if "reference" not in page.parts
    ]


@pytest.mark.parametrize("command", only_shown())
def test_a_command_in_a_page_has_the_options_that_it_is_shown_with(command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    context = click.Context(root, info_name="chappe")
    while isinstance(context.command, click.Group):
        found = context.command.get_command(context, words[0])
        assert found is not None, f"there is no command {words[0]}"
        if isinstance(found, click.Group):
            context, words = click.Context(found, info_name=words[0], parent=context), words[1:]
        else:
            context = found.make_context(words[0], words[1:], parent=context)


def test_console_blocks_stand_in_pages_that_are_run() -> None:
    assert [name_of(p) for p in PAGES if p not in RUN and "```console" in p.read_text()] == []


def anchors(page: Path) -> set[str]:
    """What a link may name in a page: its headings, as GitHub writes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", head).strip().lower().replace(" ", "-") for head in heads}


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            if "://" in target or target.startswith("mailto:"):
                continue
            if not there.exists() or (anchor and anchor not in anchors(there)):
                broken.append(f"{name_of(page)}: {target}")
    assert broken == []


def test_every_page_can_be_reached_from_the_index() -> None:
    docs = REPOSITORY / "docs"
    linked = {
        (docs / target.partition("#")[0]).resolve()
        for target in re.findall(r"\]\(([^)\s]+)\)", (docs / "index.md").read_text())
    }
    assert [
        name_of(p) for p in docs.rglob("*.md") if p not in linked and p.name != "index.md"
    ] == []


def test_the_python_example_of_the_readme_is_the_tested_one() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert (REPOSITORY / "examples/quickstart.py").read_text().endswith(blocks[0])
