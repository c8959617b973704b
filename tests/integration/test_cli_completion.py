"""What a shell is offered for what is being typed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from chappe.cli.completion import SHELLS
from chappe.cli.main import root
from tests.integration.sdk_rig import CHAPPE, SITE, Place, place


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place, None, None]:
    with place(tmp_path_factory.mktemp("completion")) as made:
        yield made


def offered(words: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What follows after `chappe WORDS`, of which the last one is incomplete."""
    monkeypatch.setenv("CHAPPE_CONFIG", str(config))
    *before, last = words.split(" ")
    complete = ShellComplete(root, {}, "chappe", "_CHAPPE_COMPLETE")
    return [item.value for item in complete.get_completions(before, last)]


def test_sites_apps_jobs_and_states(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def after(words: str) -> list[str]:
        return offered(words, here.hub.client_config, monkeypatch)

    with here.client() as client:
        job = client.run(SITE, ["true"])
    assert after("job ls -s ") == [SITE]
    assert after("run pa") == [SITE]
    assert after("run x") == []
    assert after("job submit wa") == ["wave"]
    assert after("job ls --state run") == ["RUNNING", "RUN_DONE", "RUN_ERROR", "RUN_TIMEOUT"]
    for noun in ("job show", "job cancel", "why", "job ls --parent"):
        assert job.id in after(f"{noun} {job.id[:9]}")
        assert job.id in after(f"{noun} ")
        assert after(f"{noun} zzzz") == []
    assert "job" in after("j")


def test_without_a_hub_nothing_is_offered_and_nothing_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "client.json"
    for text in (None, '{"url": "https://127.0.0.1:9", "token": "x"}', "{"):
        if text is not None:
            config.write_text(text)
            config.chmod(0o600)
        assert offered("job ls -s ", config, monkeypatch) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_for_each_shell(shell: str) -> None:
    done = subprocess.run(
        [CHAPPE, "completion", shell], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "_CHAPPE_COMPLETE" in done.stdout
    program = shutil.which(shell)
    if program is not None:
        checked = subprocess.run(
            [program, "-n"],
            input=done.stdout,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert checked.returncode == 0, checked.stderr


def test_help_needs_nothing_of_what_completion_does() -> None:
    code = (
        "import sys; sys.argv = ['chappe', 'job', 'cancel', '--help']\n"
        "from chappe.cli.main import root\n"
        "try: root(prog_name='chappe')\n"
        "except SystemExit: pass\n"
        "print([m for m in sys.modules if m.startswith(('chappe.sdk', 'chappe.link', 'httpx', 'rich'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
