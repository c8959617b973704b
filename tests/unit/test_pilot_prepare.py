"""From a grant to a task: directories, environment, claims, and what refuses or fails."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chappe.core.arrays import Task
from chappe.core.jobs import AppRef, JobSpec
from chappe.link.clock import new_id
from chappe.link.keys import SigningKey, load_or_create
from chappe.link.ledger import Ledger
from chappe.link.signing import make_submissions, verify
from chappe.link.trust import add
from chappe.pilot import outcomes
from chappe.pilot.desk import KNOWN_MOST, Arrival, Desk, Work
from chappe.pilot.holding import Holding
from chappe.pilot.job_env import base_env
from chappe.pilot.journal import open_journal
from chappe.pilot.nodes import Need, Share
from chappe.pilot.outcomes import Failed, Order, Postponed, Prepared, Refused
from chappe.pilot.placement import Slot
from chappe.pilot.prepare import Preparer
from chappe.pilot.session import Session
from chappe.testing.nodes import plain
from chappe.wire.submission import Submission
from chappe.wire.sync import Grant

APP = """
name = "model"
version = "1"
command = ["model", "--dt", "{{ dt }}", "--job", "{{ job_id }}"]
env = { MODE = "fast" }
allow_env = ["DEBUG"]
[parameters.dt]
type = "float"
"""


class Place:
    """A Site with one App, and a Session there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("apps", "data", "ledger", "session"):
            (path / name).mkdir()
        self.app()
        self.key: SigningKey = load_or_create(path / "key")
        add(path / "trusted_keys", self.key.public_b64, "test")
        self.session = Session(new_id(), new_id(), new_id(), "paris", "https://hub", str(path))
        self.preparer = Preparer(self.session, path / "session")
        self.desk = Desk(path / "session", open_journal(path / "journal", 0.0)[0], self.preparer)

    def app(self, files: str = "") -> None:
        (self.path / "apps" / "model.toml").write_text(f"{APP}\n[files]\n{files}")

    def spec(self, **fields: Any) -> bytes:
        told = {"app": AppRef("model"), "parameters": {"dt": 2.5}, **fields}
        return msgspec.json.encode(
            JobSpec(new_id(), self.session.project, (self.session.site,), **told)
        )

    def signed(self, *specs: bytes) -> tuple[list[Grant], Submission]:
        (submission,) = make_submissions(self.key, self.session.project, specs, time.time() + 600)
        grants = [
            Grant(msgspec.json.decode(spec)["id"], 3, 1, msgspec.Raw(spec), submission.id, k)
            for k, spec in enumerate(specs)
        ]
        return grants, submission

    def holding(self, **fields: Any) -> Holding:
        (grant,), submission = self.signed(self.spec(**fields))
        h = Holding(grant, 0.0, 1)
        h.verified = verify(submission)
        node = plain([0, 1])
        h.slot = Slot(4, h.need, [Share(node, [1], {})])
        return h

    def prepare(self, *held: Holding) -> Sequence[outcomes.Outcome]:
        return self.preparer.prepare([Order(h, 60.0, None) for h in held], time.time())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_task_has_its_directory_command_and_environment(place: Place) -> None:
    h = place.holding(env={"DEBUG": "1"}, workdir="runs/a")
    (made,) = place.prepare(h)
    assert isinstance(made, Prepared)
    task = made.task
    cwd = str(place.path / "data" / "runs" / "a" / "attempt-1")
    assert (task.argv, task.cwd) == (["model", "--dt", "2.5", "--job", h.job], cwd)
    assert Path(cwd).is_dir()
    assert task.env == {
        "MODE": "fast",
        "DEBUG": "1",
        "CHAPPE_WORKDIR": cwd,
        "CHAPPE_CORES": "1",
        "OMP_NUM_THREADS": "1",
        "CHAPPE_MEM_BYTES": "0",
    }
    assert (task.stdout, task.stderr, task.log) == (f"{cwd}/stdout.log", "", "file")
    assert (task.start_by, task.lane, task.cores) == (60.0, 4, [1])
    assert Ledger(place.path / "ledger").claimed(h.job, 1) is not None


def test_jobs_that_share_a_directory_do_not_share_files(place: Place) -> None:
    place.app("own_directory = false\nseparate_stderr = true\n")
    (made,) = place.prepare(h := place.holding(workdir="all"))
    assert isinstance(made, Prepared)
    cwd = str(place.path / "data" / "all")
    assert made.task.cwd == cwd
    assert made.task.stdout == f"{cwd}/{h.job}.1.stdout.log"
    assert made.task.stderr == f"{cwd}/{h.job}.1.stderr.log"


def test_the_result_file_is_named(place: Place) -> None:
    place.app('result = "out.npz"\n')
    (made,) = place.prepare(h := place.holding())
    assert isinstance(made, Prepared)
    expected = str(place.path / "data" / "jobs" / h.job / "attempt-1" / "out.npz")
    assert made.task.env["CHAPPE_RESULT"] == h.result == expected
    h.result = ""
    place.preparer.recall(h)
    assert h.result == expected


def test_a_signed_command_runs_as_it_is(place: Place) -> None:
    argv = ("echo", "{{ not a template }}", "$(id)")
    (made,) = place.prepare(place.holding(app=None, parameters={}, command=argv))
    assert isinstance(made, Prepared)
    assert made.task.argv == list(argv)


def test_the_base_environment_is_minimal(place: Place) -> None:
    env = base_env(place.session, {"PATH": "/bin", "HOME": "/h", "SECRET": "x"})
    assert env == {
        "PATH": "/bin",
        "HOME": "/h",
        "CHAPPE_SITE": "paris",
        "CHAPPE_DATA": str(place.path / "data"),
    }


def test_a_second_start_of_an_attempt_of_which_the_trace_is_lost_is_over(place: Place) -> None:
    h = place.holding()
    first, second = place.prepare(h, h)
    assert isinstance(first, Prepared)
    assert isinstance(second, Failed)
    assert second.reason == "launcher_lost"


def test_a_restarted_head_goes_on_with_its_own_claim(place: Place) -> None:
    h = place.holding()
    place.prepare(h)
    assert place.preparer.claimed(h.job, 1, h.request_no)
    h.claim()
    (again,) = place.prepare(h)
    assert isinstance(again, Prepared)


def test_another_sessions_claim_is_not_ours(place: Place) -> None:
    h = place.holding()
    Ledger(place.path / "ledger").claim(h.job, 1, new_id(), 1)
    assert not place.preparer.claimed(h.job, 1, h.request_no)
    (made,) = place.prepare(h)
    assert isinstance(made, Refused)
    assert made.code == "started_before"


def test_what_is_not_admitted_leaves_no_trace(place: Place) -> None:
    h = place.holding()
    h.spec = h.spec.replace(b"2.5", b"9.5")
    (made,) = place.prepare(h)
    assert isinstance(made, Refused)
    assert made.code == "altered"
    assert list((place.path / "data").iterdir()) == []
    assert list((place.path / "ledger").iterdir()) == []
    assert place.preparer.examine(h, time.time()) == made


def test_a_link_out_of_data_is_not_followed(place: Place, tmp_path: Path) -> None:
    (place.path / "data" / "out").symlink_to(tmp_path.parent)
    (made,) = place.prepare(place.holding(workdir="out/x"))
    assert isinstance(made, Refused)
    assert made.code == "bad_path"
    (place.path / "data" / "w").mkdir()
    (place.path / "data" / "w" / "attempt-1").symlink_to(tmp_path.parent)
    (made,) = place.prepare(place.holding(workdir="w"))
    assert isinstance(made, Refused)
    assert made.code == "bad_path"


@pytest.mark.parametrize("where", ["jobs", "jobs/{job}"])
def test_a_link_in_place_of_a_directory_that_is_to_be_made_is_not_followed(
    place: Place, tmp_path: Path, where: str
) -> None:
    first, second = place.holding(workdir="good"), place.holding()
    link = place.path / "data" / where.format(job=second.job)
    link.parent.mkdir(exist_ok=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    link.symlink_to(outside)
    fine, refused = place.prepare(first, second)
    assert isinstance(fine, Prepared)
    assert isinstance(refused, Refused)
    assert refused.code == "bad_path"
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("workdir", ["w", "./w", "a/b//w/", "a/./w", ".", "a"])
def test_directories_of_a_batch_are_made_or_found(place: Place, workdir: str) -> None:
    held = [place.holding(workdir=workdir) for _ in range(2)]
    (place.path / "data" / "a").mkdir()
    for made in (*place.prepare(*held), *place.prepare(place.holding(workdir=workdir))):
        assert isinstance(made, Prepared)
        assert Path(made.task.cwd).samefile(place.path / "data" / workdir / "attempt-1")


def test_a_full_disk_fails_one_job_with_words(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    h = place.holding()
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", full)
        (made,) = place.prepare(h)
    assert isinstance(made, Failed)
    assert made.disk_full
    assert "No space left" in made.message
    assert not place.preparer.claimed(h.job, 1, h.request_no)


def test_without_ledger_or_trust_nothing_starts_and_nothing_is_refused(place: Place) -> None:
    (place.path / "ledger").rmdir()
    (place.path / "ledger").touch()
    (made,) = place.prepare(place.holding())
    assert isinstance(made, Postponed)
    (place.path / "trusted_keys").write_text("nonsense\n")
    (made,) = place.prepare(place.holding())
    assert isinstance(made, Postponed)
    assert "trusted_keys:1" in made.message


def test_apps_are_read_again_and_bad_ones_do_not_replace_good_ones(place: Place) -> None:
    place.prepare(place.holding())
    path = place.path / "apps" / "model.toml"
    path.write_text("name = ")
    (made,) = place.prepare(place.holding())
    assert isinstance(made, Prepared)
    path.write_text(APP.replace('"model", ', '"newer", '))
    (made,) = place.prepare(place.holding())
    assert isinstance(made, Prepared)
    assert made.task.argv[0] == "newer"


# --- the desk


def arrival(*grants: Grant, submissions: Sequence[Submission] = ()) -> Arrival:
    new = [Holding(grant, 0.0, k) for k, grant in enumerate(grants)]
    return Arrival(1, (1, 1), list(grants), new, list(submissions))


def test_a_submission_is_checked_once_and_remembered(place: Place) -> None:
    (a, b), submission = place.signed(place.spec(), place.spec())
    work = Work()
    work.arrivals = [arrival(a, submissions=[submission])]
    first = place.desk.work(work)
    assert [h.job for h in first.new] == [a.job]
    assert place.desk.known == [submission.id]
    work = Work()
    work.arrivals = [arrival(b)]
    second = place.desk.work(work)
    assert second.new[0].verified is first.new[0].verified


def test_submissions_that_are_not_used_are_forgotten(place: Place) -> None:
    for _ in range(KNOWN_MOST + 5):
        (a, _b), submission = place.signed(place.spec(), place.spec())
        work = Work()
        work.arrivals = [arrival(a, submissions=[submission])]
        place.desk.work(work)
    assert len(place.desk.known) == KNOWN_MOST
    assert submission.id in place.desk.known


def test_a_grant_without_its_submission_is_not_started(place: Place) -> None:
    (a,), _ = place.signed(place.spec())
    work = Work()
    work.arrivals = [arrival(a)]
    done = place.desk.work(work)
    assert [h.job for h in done.unproven] == [a.job]
    assert done.new == []


def test_a_bad_signature_is_refused_with_its_reason(place: Place) -> None:
    (a,), submission = place.signed(place.spec())
    bad = msgspec.structs.replace(submission, sig="A" * 86 + "==")
    work = Work()
    work.arrivals = [arrival(a, submissions=[bad])]
    (h,) = place.desk.work(work).new
    h.slot = Slot(1, Need(), [Share(plain([0]), [], {})])
    (made,) = place.prepare(h)
    assert isinstance(made, Refused)
    assert made.code == "bad_signature"


def test_nothing_is_fetched_for_a_job_that_will_be_refused(place: Place) -> None:
    (a,), submission = place.signed(place.spec(parents=(new_id(),), app=AppRef("unknown")))
    work = Work()
    work.arrivals = [arrival(a, submissions=[submission])]
    done = place.desk.work(work)
    assert done.new == []
    (refused,) = done.outcomes
    assert isinstance(refused, Refused)
    assert refused.code == "app_unknown"


def test_without_a_journal_nothing_starts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (a,), submission = place.signed(place.spec())
    work = Work()
    work.arrivals = [arrival(a, submissions=[submission])]
    h = place.holding()
    work.orders = [Order(h, 60.0, None)]
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        done = place.desk.work(work)
    assert "No space left" in done.failure
    assert done.new == []
    assert [type(o) for o in done.outcomes] == [Postponed]
    assert not place.preparer.claimed(h.job, 1, h.request_no)


def test_a_script_travels_in_the_statement_and_stands_in_a_file_that_can_be_run(
    place: Place,
) -> None:
    code = b"#!/bin/sh\necho hello\n"
    spec = place.spec(app=None, parameters={}, command=("sh",), script=sha256(code).hexdigest())
    for carried in ((code,), ()):
        (submission,) = make_submissions(
            place.key, place.session.project, [spec], time.time() + 600, code=carried
        )
        grant = Grant(msgspec.json.decode(spec)["id"], 3, 1, msgspec.Raw(spec), submission.id, 0)
        h = Holding(grant, 0.0, 1)
        h.verified = verify(submission)
        (outcome,) = place.prepare(h)
        if carried:
            assert isinstance(outcome, Prepared)
            path = Path(outcome.task.env["CHAPPE_SCRIPT"])
            assert path.read_bytes() == code
            assert os.access(path, os.X_OK)
        else:
            assert isinstance(outcome, Refused)
            assert outcome.code == "code_missing"


def test_a_task_of_an_array_is_told_its_index(place: Place) -> None:
    task = Task(new_id(), 7, 1, 9, 9, dialect="pbs")
    (outcome,) = place.prepare(place.holding(task=task))
    assert isinstance(outcome, Prepared)
    assert outcome.task.env["PBS_ARRAY_INDEX"] == outcome.task.env["CHAPPE_TASK_INDEX"] == "7"
