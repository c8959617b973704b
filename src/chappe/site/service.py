"""An agent that is started again: after a reboot, and when a login node's reaper has ended it.

Two ways, chosen by what the machine offers: a unit of the user's own systemd, or two lines of the user's
crontab, one for the reboot and one that looks every five minutes. Either may be installed on several login
nodes of one home: one agent works, and the others are refused by the Hub, which says where it is; they try
again, and one takes over when that agent was not heard for a minute.

The texts are pure functions; `install`, `remove` and `find` run `systemctl` and `crontab`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from chappe.core.errors import ChappeError, Invalid
from chappe.link.files import write_atomic
from chappe.site.paths import SitePaths

Kind = Literal["systemd", "cron"]
_GUARD_MIN = 5
_COMMAND_S = 30.0


class NoService(ChappeError):
    """The machine offers no way to keep the agent running, or the way failed; the message says which."""

    default_code = "no_service"


class Facts(NamedTuple):
    """What a service is made of: the Site's directory, the Python that runs Chappe, and the PATH by which
    the agent finds the scheduler's commands."""

    directory: str
    python: str
    path: str

    @property
    def unit(self) -> str:
        """The unit's name: directories of one name have their own."""
        name = re.sub(r"[^A-Za-z0-9]+", "-", Path(self.directory).name).strip("-")[:40] or "site"
        return f"chappe-{name}-{hashlib.sha256(self.directory.encode()).hexdigest()[:8]}.service"

    @property
    def mark(self) -> str:
        """What ends a line of the crontab that is ours."""
        return f"# {self.unit.removesuffix('.service')}"


class Service(msgspec.Struct, frozen=True, omit_defaults=True):
    """What keeps the agent of a directory running on this machine; `kind` None: nothing does."""

    directory: str
    kind: Kind | None
    where: str = ""
    text: str = ""


def facts_of(directory: Path | str) -> Facts:
    """The facts of this process. Raises Invalid for a directory that no line of text can hold."""
    paths = SitePaths.of(Path(directory))
    made = Facts(str(paths.root), sys.executable, os.environ.get("PATH", os.defpath))
    for text in made:
        if not text.isprintable():
            raise Invalid(f"{text!r} cannot stand in a unit or a crontab", field="directory")
    return made


def unit_text(facts: Facts) -> str:
    """The unit. KillMode=process: pilots that the agent started on this machine outlive it."""
    command = [
        facts.python,
        "-P",
        "-m",
        "chappe.cli.main",
        "site",
        "start",
        "--foreground",
        facts.directory,
    ]
    return f"""\
[Unit]
Description=Chappe agent of {facts.directory.replace("%", "%%")}
StartLimitIntervalSec=0

[Service]
Environment={_unit_word("PATH=" + facts.path)}
ExecStart={" ".join(map(_unit_word, command))}
KillMode=process
Restart=always
RestartSec=60

[Install]
WantedBy=default.target
"""


def _unit_word(word: str) -> str:
    """One word of a unit's line: what systemd would expand is doubled."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def cron_lines(facts: Facts) -> list[str]:
    """The lines of the crontab. They say nothing when an agent runs, here or elsewhere."""
    words = [
        facts.python,
        "-P",
        "-m",
        "chappe.cli.main",
        "site",
        "start",
        "--if-needed",
        facts.directory,
    ]
    # cron reads an unescaped % as the end of the line.
    command = f"PATH={shlex.quote(facts.path)} {shlex.join(words)} >/dev/null".replace("%", "\\%")
    return [f"{when} {command} {facts.mark}" for when in ("@reboot", f"*/{_GUARD_MIN} * * * *")]


def without(crontab: str, facts: Facts) -> str:
    """A crontab without our lines; others stay as they are."""
    kept = [line for line in crontab.splitlines(keepends=True) if not _is_ours(line, facts)]
    return "".join(kept)


def with_ours(crontab: str, facts: Facts) -> str:
    """A crontab with our lines at its end, once."""
    others = without(crontab, facts)
    if others and not others.endswith("\n"):
        others += "\n"
    return others + "\n".join(cron_lines(facts)) + "\n"


def _is_ours(line: str, facts: Facts) -> bool:
    return line.rstrip().endswith(facts.mark) and not line.lstrip().startswith("#")


# --- what the machine has


def find(directory: Path | str) -> Service:
    """What keeps the agent running on this machine."""
    facts = facts_of(directory)
    unit = _unit_path(facts)
    if unit.is_file():
        return Service(facts.directory, "systemd", str(unit), unit.read_text(errors="replace"))
    ours = [line for line in (_crontab() or "").splitlines() if _is_ours(line, facts)]
    if ours:
        return Service(facts.directory, "cron", "crontab", "\n".join(ours) + "\n")
    return Service(facts.directory, None)


def install(directory: Path | str, kind: Kind | None = None) -> Service:
    """Keep the agent running, by `kind` or by what works here. Raises NoService, Invalid, OSError.

    Nothing is started anew while an agent runs.
    """
    facts = facts_of(directory)
    if not SitePaths.of(Path(directory)).config.is_file():
        raise Invalid(
            f"{facts.directory} is no site: chappe site init makes one", field="directory"
        )
    if kind is None:
        kind = "systemd" if _lingers() else "cron"
    if kind == "systemd":
        unit = _unit_path(facts)
        unit.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(unit, unit_text(facts).encode(), 0o644)
        try:
            _systemctl("daemon-reload")
            _systemctl("enable", facts.unit)
            _systemctl("start", "--no-block", facts.unit)
        except NoService:
            unit.unlink()
            raise
    else:
        _write_crontab(with_ours(_crontab(must=True) or "", facts))
    return find(directory)


def remove(directory: Path | str) -> Service:
    """Keep it running no more; an agent that runs goes on under cron, and ends under systemd. Idempotent."""
    facts = facts_of(directory)
    unit = _unit_path(facts)
    if unit.is_file():
        _systemctl("disable", "--now", facts.unit)
        unit.unlink()
        _systemctl("daemon-reload")
    crontab = _crontab()
    if crontab is not None and (left := without(crontab, facts)) != crontab:
        _write_crontab(left)
    return find(directory)


def _unit_path(facts: Facts) -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "systemd" / "user" / facts.unit


def _run(argv: list[str], stdin: str = "") -> subprocess.CompletedProcess[str] | None:
    """A command's end; None when there is no such command, or it does not answer."""
    try:
        return subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=_COMMAND_S, check=False
        )
    except (FileNotFoundError, PermissionError, subprocess.TimeoutExpired):
        return None


def _lingers() -> bool:
    """Whether the user's systemd runs here, and goes on when the user has logged out."""
    answered = _run(["systemctl", "--user", "show-environment"])
    if answered is None or answered.returncode != 0:
        return False
    allowed = _run(["loginctl", "enable-linger"])
    return allowed is not None and allowed.returncode == 0


def _systemctl(*words: str) -> None:
    done = _run(["systemctl", "--user", *words])
    if done is None or done.returncode != 0:
        why = "it is not there, or does not answer" if done is None else done.stderr.strip()[-300:]
        raise NoService(f"systemctl --user {words[0]}: {why}. Try --with cron", field="with")


def _crontab(*, must: bool = False) -> str | None:
    """The user's crontab, "" when there is none; None when there is no cron (NoService if it `must` be)."""
    done = _run(["crontab", "-l"])
    if done is None and must:
        raise NoService(
            "this machine has neither a systemd of your own that goes on after you log out, nor a "
            "crontab: ask its administrators which one they offer",
            field="with",
        )
    if done is None:
        return None
    if done.returncode != 0 and "no crontab" not in done.stderr.lower():
        if must:
            raise NoService(f"crontab -l: {done.stderr.strip()[-300:]}", field="with")
        return None
    return done.stdout if done.returncode == 0 else ""


def _write_crontab(text: str) -> None:
    done = _run(["crontab", "-"], text)
    if done is None or done.returncode != 0:
        why = "it does not answer" if done is None else done.stderr.strip()[-300:]
        raise NoService(f"crontab -: {why}", field="with")
