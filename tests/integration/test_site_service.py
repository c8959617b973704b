"""An agent that is started again, on one login node or on several."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from chappe.core.errors import ChappeError, Invalid
from chappe.link.clock import new_id
from chappe.site import daemon, service
from chappe.site.service import Facts, NoService
from chappe.site.status import Presence
from tests.integration.site_rig import Site, StubHub, wait_until
from tests.integration.test_site_agent import hub, site

__all__ = ["hub", "site"]  # fixtures

EVIL = Facts("/data/a b/50% \"x\" $HOME 'y' \\z", "/opt/python 3/bin/python", "/bin:/s p/%d:$X")
#: A crontab that is a file.
CRONTAB = """#!/bin/sh
if [ "$1" = -l ]; then cat "$0.file" 2>/dev/null || { echo "no crontab for you" >&2; exit 1; }
else cat > "$0.file"; fi
"""
SYSTEMCTL = """#!/bin/sh
echo "$*" >> "$0.said"
[ ! -e "$0.broken" ]
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is all of PATH, and a home."""
    directory = tmp_path / "commands"
    directory.mkdir()
    (directory / "cat").symlink_to("/bin/cat")
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "site.toml").touch()
    return directory


def put(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_crontab_keeps_its_other_lines_and_gets_ours_once() -> None:
    other = "MAILTO=x\n# chappe-b-50\n0 1 * * * true"
    once = service.with_ours(other, EVIL)
    assert service.with_ours(once, EVIL) == once
    assert service.without(once, EVIL) == other + "\n"
    assert service.without("", EVIL) == ""
    assert len(once.splitlines()) == 5


def test_cron_runs_what_was_meant_whatever_the_directory_is_called(tmp_path: Path) -> None:
    python = put(tmp_path, "py thon%", '#!/bin/sh\nprintf "%s|" "$PATH" "$@" > "$OUT"\n')
    facts = EVIL._replace(python=str(python))
    for line in service.cron_lines(facts):
        when = 1 if line.startswith("@") else 5
        command = line.split(None, when)[when]
        assert "%" not in command.replace("\\%", "")
        out = tmp_path / "out"
        script = command.replace("\\%", "%")  # as cron does
        subprocess.run(["/bin/sh", "-c", script], env={"OUT": str(out)}, check=True)
        words = out.read_text().split("|")
        assert words[0] == facts.path
        assert words[-3:] == ["--if-needed", facts.directory, ""]


def test_a_unit_says_the_same_to_systemd() -> None:
    lines = dict(line.split("=", 1) for line in service.unit_text(EVIL).splitlines() if "=" in line)
    undone = [
        word.replace("%%", "%").replace("$$", "$") for word in shlex.split(lines["ExecStart"])
    ]
    assert undone[0] == EVIL.python
    assert undone[-1] == EVIL.directory
    assert (lines["KillMode"], lines["Restart"]) == ("process", "always")
    assert EVIL.unit != EVIL._replace(directory="/other/50% x").unit


def test_a_directory_with_a_line_in_its_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot stand"):
        service.facts_of(tmp_path / "a\n* * * * * evil")


def test_by_cron_where_there_is_no_systemd(commands: Path, tmp_path: Path) -> None:
    put(commands, "crontab", CRONTAB)
    made = service.install(tmp_path)
    assert made.kind == "cron"
    assert made.text.count(f"--if-needed {tmp_path} ") == 2
    assert service.install(tmp_path) == made
    assert service.find(tmp_path) == made
    assert service.remove(tmp_path).kind is None
    assert (commands / "crontab.file").read_text() == ""
    assert service.remove(tmp_path).kind is None


def test_by_systemd_where_it_goes_on_after_the_user_has_gone(
    commands: Path, tmp_path: Path
) -> None:
    systemctl = put(commands, "systemctl", SYSTEMCTL)
    put(commands, "loginctl", "#!/bin/sh\n[ $1 = enable-linger ]\n")
    made = service.install(tmp_path)
    assert made.kind == "systemd"
    assert Path(made.where).read_text() == made.text
    said = Path(f"{systemctl}.said").read_text()
    assert f"--user enable {Path(made.where).name}" in said
    assert service.remove(tmp_path).kind is None
    assert f"--user disable --now {Path(made.where).name}" in Path(f"{systemctl}.said").read_text()
    Path(f"{systemctl}.broken").touch()
    with pytest.raises(NoService, match="--with cron"):
        service.install(tmp_path, "systemd")
    assert service.find(tmp_path).kind is None


def test_where_there_is_neither_that_is_said(commands: Path, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no site"):
        service.install(commands)
    with pytest.raises(NoService, match="administrators"):
        service.install(tmp_path)


def test_several_login_nodes_have_one_agent_and_another_takes_over(site: Site) -> None:
    """The other host is emulated by what it leaves: its pid file, and what the Hub heard of it."""
    first = daemon.start_if_needed(site.paths.root)
    assert first.presence is Presence.RUNNING
    again = daemon.start_if_needed(site.paths.root)
    assert (again.presence, again.pid) == (Presence.RUNNING, first.pid)
    os.kill(first.pid, signal.SIGKILL)
    wait_until(
        lambda: daemon.status(site.paths.root).presence is Presence.CRASHED, "the agent's death"
    )
    elsewhere = new_id()
    told = {"agent": elsewhere, "pid": 1, "start": 1, "host": "faraway", "boot": "x", "since": 1.0}
    site.paths.pid_file.write_text(json.dumps(told))
    site.hub.change(lambda: setattr(site.hub, "agent", elsewhere))
    refused = daemon.start_if_needed(site.paths.root)
    assert refused.presence is Presence.ELSEWHERE
    assert "faraway" in refused.message
    # The Hub has not heard it for a minute.
    site.hub.change(lambda: setattr(site.hub, "agent", None))
    taken = daemon.start_if_needed(site.paths.root)
    assert taken.presence is Presence.RUNNING
    assert taken.agent not in (first.agent, elsewhere)


def test_what_is_wrong_is_still_said(site: Site, hub: StubHub) -> None:
    (site.paths.root / "site.toml").write_text("nonsense")
    with pytest.raises(ChappeError, match=r"site\.toml"):
        daemon.start_if_needed(site.paths.root)
