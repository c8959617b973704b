"""A real Site with a real agent and real pilots, whose Hub is stolen before they ever meet it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec

from chappe.core.leases import Reason
from chappe.link.clock import new_id
from chappe.link.keys import SigningKey
from chappe.link.signing import make_submissions
from chappe.pilot.procs import find_marked
from chappe.site import daemon
from chappe.site.init import HubAccess, init_site
from chappe.site.paths import SitePaths
from chappe.testing.hub import RunningHub
from chappe.wire.jobs import ParentPage, ParentView
from chappe.wire.submission import Submission
from chappe.wire.sync import Grant
from tests.security.evil_hub import EvilHub

# Every start of an App leaves a line with the Job's id: the witness. No line, no process.
WITNESS = 'echo "$CHAPPE_JOB_ID" >>"$CHAPPE_DATA/witness"'
APPS = {
    "model": f"""
name = "model"
version = "2"
shell = '{WITNESS}; echo {{{{ dt }}}} {{{{ name }}}} >"$CHAPPE_DATA/said.$CHAPPE_JOB_ID"'
allow_env = ["DEBUG"]
[parameters.dt]
type = "int"
min = 0
max = 9
[parameters.name]
pattern = "[a-z]*"
""",
    "form": f"""
name = "form"
version = "1"
unsigned = true
shell = '{WITNESS}; echo {{{{ text }}}} >"$CHAPPE_DATA/said.$CHAPPE_JOB_ID"'
allow_env = ["DEBUG"]
[parameters.text]
default = ""
[parameters.n]
type = "int"
default = 1
max = 9
""",
    "slow": f"""
name = "slow"
version = "1"
shell = '{WITNESS}; while [ ! -e "$CHAPPE_DATA/go.$CHAPPE_JOB_ID" ]; do sleep 0.05; done'
""",
}


class Victim:
    """The Site, its trusted user `ada`, an unknown user `eve`, and the Hub that was stolen.

    `settings` go into site.toml's `[pilot]`, `tail` to its end.
    """

    def __init__(self, root: Path, honest: RunningHub, settings: str = "", tail: str = "") -> None:
        self.ada = SigningKey(bytes(range(32)))
        self.eve = SigningKey(bytes(32))
        access = HubAccess(honest.url, honest.token, honest.ca_file)
        made = init_site(root, f"site-{new_id()}", access, self.ada.public_b64, "ada")
        self.site, self.project = made.id, made.project
        # From here on the attacker answers, with the Hub's own certificate.
        files = (honest.data / "hub-cert.pem", honest.data / "hub-key.pem")
        self.hub = EvilHub(*files, (made.id, made.project))
        self.paths = SitePaths.of(root)
        for name, text in APPS.items():
            (self.paths.apps / f"{name}.toml").write_text(text)
        config = self.paths.config.read_text()
        config = config.replace(honest.url, self.hub.url)
        config = config.replace("\n[pilot]\n", f"\n[pilot]\nslots = 4\n{settings}\n")
        config = config.replace("# allowed = false", "allowed = true")
        self.paths.config.write_text(config + tail)

    def start(self) -> None:
        """Start the agent, and return when its pilot asks for work."""
        daemon.start(self.paths.root)
        self.hub.wait(lambda: self.hub.syncs, "a pilot")

    def close(self) -> None:
        """Leave nothing running."""
        daemon.stop(self.paths.root)
        self.hub.stop()
        for session in self.sessions():
            deadline = time.monotonic() + 30.0
            while found := find_marked(session):
                for process in found:
                    try:
                        os.kill(process.pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                assert time.monotonic() < deadline
                time.sleep(0.02)

    # --- what the user signs, and what the attacker makes of it

    def spec(self, app: str | None = "model", /, **changes: Any) -> bytes:
        """A Job's bytes; a change to None leaves a field out."""
        fields = {
            "id": new_id(),
            "project": self.project,
            "sites": [self.site],
            "app": None if app is None else {"name": app},
            "parameters": {"dt": 3} if app == "model" else None,
            **changes,
        }
        return msgspec.json.encode({k: v for k, v in fields.items() if v is not None})

    def command(self, **changes: Any) -> bytes:
        """A Job with a command of its own, which leaves its witness as well."""
        return self.spec(None, command=["/bin/sh", "-c", WITNESS], **changes)

    def sign(self, *specs: bytes, key: SigningKey | None = None, **changes: Any) -> Submission:
        """One submission, signed by Ada unless told otherwise."""
        (made,) = make_submissions(
            key or self.ada,
            changes.pop("project", self.project),
            specs,
            changes.pop("not_after", time.time() + 3600),
            changes.pop("max_attempts", None),
        )
        return made

    def run(self, spec: bytes, submission: Submission | None = None, **changes: Any) -> str:
        """Grant a spec, and return its Job's id."""
        grant = granted(spec, submission, **changes)
        self.hub.grant(grant, [] if submission is None else [submission])
        return grant.job

    # --- what happened

    def runs(self, job: str) -> int:
        """How often a process of this Job was started."""
        return self.witness().count(job)

    def witness(self) -> list[str]:
        """The ids of all Jobs that ever started, in order."""
        try:
            return (self.paths.data / "witness").read_text().split()
        except FileNotFoundError:
            return []

    def said(self, job: str) -> str:
        """What a Job was given, as it said itself."""
        return (self.paths.data / f"said.{job}").read_text()

    def sessions(self) -> list[str]:
        """All Sessions that ever were."""
        return [d.name for d in self.paths.sessions.iterdir()]

    def pilot(self, session: str) -> int:
        """The pid of a Session's head; 0 when there is none."""
        for process in find_marked(session):
            try:
                argv = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"chappe.pilot" in argv:
                return process.pid
        return 0

    def log(self, session: str) -> str:
        """What a Session's pilots logged."""
        return (self.paths.session(session) / "pilot.log").read_text()


def granted(spec: bytes, submission: Submission | None = None, **changes: Any) -> Grant:
    """A grant of a spec as an honest Hub would make it, but for the changes."""
    fields: dict[str, Any] = {
        "job": job_of(spec),
        "epoch": 1,
        "attempt": 1,
        "spec": msgspec.Raw(spec),
        "submission": None if submission is None else submission.id,
        **changes,
    }
    return Grant(**fields)


def job_of(spec: bytes) -> str:
    """The id in a spec."""
    return str(msgspec.json.decode(spec)["id"])


def refused(
    victim: Victim,
    code: str,
    spec: bytes,
    submission: Submission | None = None,
    **changes: Any,
) -> str:
    """Grant it, and see it refused for this reason, and nothing started by it; the words it was told."""
    before = victim.witness()
    job = victim.run(spec, submission, **changes)
    report = victim.hub.report(job, changes.get("epoch", 1))
    assert (report.kind, report.reason) == ("refused", code), report
    assert victim.witness() == before
    assert report.outcome is not None
    return report.outcome.message


def not_again(victim: Victim, spec: bytes, submission: Submission, **changes: Any) -> None:
    """Grant what ran before at this Session: it finds its own claim, and takes it for a lost start."""
    before = victim.witness()
    job = victim.run(spec, submission, **changes)
    report = victim.hub.report(job, changes.get("epoch", 1))
    assert report.outcome is not None
    assert report.outcome.reason == Reason.LAUNCHER_LOST
    assert "claimed its start before" in report.outcome.message
    assert victim.witness() == before


def works(victim: Victim, session: str | None = None) -> None:
    """The Site is still there, and runs what Ada signed: the refusals were no accident."""
    spec = victim.spec()
    submission = victim.sign(spec)
    victim.hub.grant(granted(spec, submission), [submission], session)
    report = victim.hub.report(job_of(spec))
    assert (report.kind, report.outcome and report.outcome.exit) == ("end", 0), report
    assert victim.runs(job_of(spec)) == 1


def child(victim: Victim, view: ParentView, result: bytes | None = None) -> bytes:
    """A signed child of one parent, of which the Hub says `view`."""
    spec = victim.spec(parents=[view.id], on_parent_failure="anyway")
    victim.hub.parents[job_of(spec)] = ParentPage([view])
    if result is not None:
        victim.hub.results[view.id] = result
    return spec
