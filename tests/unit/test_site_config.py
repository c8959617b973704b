"""site.toml: what is wrong is said with file, line and field; template and reference are the table."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from chappe.link.functions import FunctionEnvironment, FunctionRules
from chappe.site import config
from chappe.site.config import SiteProblem


def uncommented(text: str) -> str:
    """The template with every default made a setting."""
    return re.sub(r"^# (\w+ = |\[)", r"\1", text, flags=re.MULTILINE)


def test_the_template_is_a_valid_file_and_says_the_defaults() -> None:
    parsed = config.parse(config.TEMPLATE, "site.toml")
    assert parsed.pilot == config.PilotConfig()
    assert parsed.scheduler == config.SchedulerConfig()


def test_the_defaults_shown_as_comments_are_the_defaults() -> None:
    text = uncommented(config.TEMPLATE).replace('env = { NAME = "value" }', "env = {}")
    text = text.replace("named = { licence = 4 }", "named = {}")
    text = text.replace("node_tags = { mpi = 2 }", "node_tags = {}")
    text = re.sub(r"queues = \{ debug.*", "queues = {}", text)
    text = re.sub(r"accounts = \{ phys.*", "accounts = {}", text)
    parsed = config.parse(text, "site.toml")
    assert parsed.functions.environments == {"default": FunctionEnvironment()}
    template = config.parse(config.TEMPLATE, "site.toml")
    assert msgspec.structs.replace(parsed, functions=FunctionRules()) == template


def test_every_setting_is_in_the_reference_with_its_meaning() -> None:
    page = config.reference()
    tables = ("functions", "functions.environments.NAME")
    for section in ("hub", "site", "scheduler", "policy", "pilot", "resources", *tables):
        assert f"## [{section}]" in page
    for key in ("url", "keep", "status_interval_s", "node_local", "kill_s"):
        assert re.search(rf"\| `{key}` \| [^|]+ \| \S", page)


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("# keep = 1", "keep = -1"), "keep = ", "pilot.keep"),
        (("# keep = 1", "kepp = 1"), "kepp = ", "pilot.kepp"),
        (("# drain_s = 30.0", 'drain_s = "soon"'), "drain_s = ", "pilot.drain_s"),
        (('# kind = "local"', "kind = 3"), "kind = ", "scheduler.kind"),
        (('# queue = ""', 'queue = "a b"'), "queue = ", "scheduler.queue"),
        (("# prologue = []", r'prologue = ["a\nb"]'), "prologue = ", "scheduler.prologue"),
        (("# accounts = []", 'accounts = ["-x"]'), "accounts = ", "policy.accounts"),
        (("# nodes_max = 0", "nodes_max = -1"), "nodes_max = ", "policy.nodes_max"),
        (('name = "my-site"', 'name = "my site"'), "name = ", "site.name"),
        (('name = "my-site"\n', ""), "[site]", "site.name"),
        (("[pilot]", "[pilots]"), "[pilots]", "pilots"),
        (('# env = { NAME = "value" }', 'env = { "A-B" = "x" }'), "env = ", "pilot.env.A-B"),
        (('# policy = "keep"', 'policy = "backfill"'), "policy = ", "elastic.policy"),
        (('# policy = "keep"', 'policy = "deadline"'), "[elastic]", "elastic.deadline"),
        (('# deadline = ""', 'deadline = "2026-12-01T08:00"'), "deadline = ", "time zone"),
        (("# minimum = 0", "minimum = 11"), "minimum = ", "elastic.minimum"),
        (("# allowed = false", "allowed = 1"), "allowed = ", "functions.allowed"),
        (
            ("# [functions.environments.default]", '[functions.environments.x]\npython = "bin/p"'),
            "python = ",
            "absolute path",
        ),
        (
            ("# [functions.environments.default]", '[functions.environments.x]\npreload = ["a b"]'),
            "preload = ",
            "'a b' is no module",
        ),
        (("# cores = 0", "cores = = 0"), "cores = ", "Invalid value"),
    ],
)
def test_an_error_names_file_line_and_field(change: tuple[str, str], line: str, says: str) -> None:
    text = config.TEMPLATE.replace(*change, 1)
    assert text != config.TEMPLATE
    with pytest.raises(SiteProblem) as caught:
        config.parse(text, "somewhere/site.toml")
    found = re.match(r"somewhere/site\.toml:(\d+): ", caught.value.message)
    assert found, caught.value.message
    assert says in caught.value.message
    named = text.splitlines()[int(found.group(1)) - 1]
    assert named.startswith(line)


def test_the_umask_of_jobs_is_that_of_the_owner_unless_the_file_says_another() -> None:
    given = config.parse(config.TEMPLATE, "site.toml")
    assert config.with_umask(given, 0o077).pilot.umask == "077"
    assert config.with_umask(given, 0o002).pilot.umask == "022"
    text = uncommented(config.TEMPLATE).replace('umask = ""', 'umask = "0007"')
    assert config.with_umask(config.parse(text, "site.toml"), 0o002).pilot.umask == "0007"
    with pytest.raises(SiteProblem, match=r"pilot\.umask"):
        config.parse(text.replace('"0007"', '"u=rwx"'), "site.toml")


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SiteProblem, match="chappe site init"):
        config.load(tmp_path)


def test_text_is_written_so_that_it_is_read_back() -> None:
    odd = 'quote " backslash \\ tab \t é'
    text = config.render(
        {
            "hub": {"url": "https://a.example", "ca_file": odd},
            "site": {"id": "0" * 36, "name": "s", "project": "p"},
        }
    )
    assert config.parse(text, "x").hub.ca_file == odd
