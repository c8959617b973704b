"""Take one safeguard out of a copy of Chappe, and see whether a named test turns red: for each below.

Run by `./run check --mutations`. A test that stays green without what it is about proves nothing; which
these tests are is written here, beside the lines that they guard.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src"
WITHIN_S = 300


class Mutation(NamedTuple):
    """A safeguard: what it is, the one place that is changed and into what, and the test that must fail."""

    safeguard: str
    module: str
    before: str
    after: str
    test: str


_STORE_SYNC = "tests/unit/test_store_sync.py::"
_LINK_SPOOL = "tests/unit/test_link_spool.py::"
_STORE_CREATE = "tests/unit/test_store_create.py::"

MUTATIONS = (
    Mutation(
        "a report under another epoch is stale",
        "store/sync.py",
        "if row is None or ended or row.epoch != report.epoch:",
        "if row is None or ended:",
        _STORE_SYNC + "test_a_report_under_another_epoch_changes_nothing",
    ),
    Mutation(
        "a result is kept for the epoch that is leased",
        "store/sync.py",
        "leased = row is not None and row.epoch == u.epoch",
        "leased = row is not None",
        "tests/unit/test_store_sync_results.py",
    ),
    Mutation(
        "a return under another epoch frees nothing",
        "store/sync.py",
        "if row is not None and row.epoch == item.epoch and row.state in RUNNABLE:",
        "if row is not None and row.state in RUNNABLE:",
        _STORE_SYNC + "test_what_cannot_be_returned",
    ),
    Mutation(
        "a grant raises the epoch",
        "store/acquire.py",
        "epoch = epoch + 1",
        "epoch = epoch",
        _STORE_SYNC + "test_a_grant_raises_the_epoch_and_is_no_event",
    ),
    Mutation(
        "a repeated request is answered from the rows",
        "store/sync.py",
        "if req.request_no <= session.last_request:",
        "if req.request_no < 0:",
        _STORE_SYNC + "test_a_repeated_request_gives_the_same_grants_and_changes_nothing",
    ),
    Mutation(
        "a commit is on the disk before it is answered (SQLite)",
        "store/db.py",
        "PRAGMA synchronous = FULL",
        "PRAGMA synchronous = NORMAL",
        "tests/unit/test_store_db.py::test_every_commit_is_on_the_disk",
    ),
    Mutation(
        "a commit is on the disk before it is answered (PostgreSQL)",
        "store/postgres.py",
        '"synchronous_commit": "on"',
        '"synchronous_commit": "off"',
        "tests/integration/test_postgres_store.py::test_every_commit_is_on_the_servers_disk",
    ),
    Mutation(
        "what a pilot journals is on the disk",
        "link/spool.py",
        "os.fsync(self._fd)",
        "self.path.name",
        _LINK_SPOOL + "test_what_is_to_last_is_on_the_disk_when_append_returns",
    ),
    Mutation(
        "a Job that is sent again is the same one",
        "store/create.py",
        'bad.add(job.spec.id, Conflict("a different job has this id", field="id"))',
        "pass",
        _STORE_CREATE + "test_another_body_under_the_same_id_is_a_conflict",
    ),
    Mutation(
        "two Jobs with one id are refused by the database itself",
        "store/migrations/versions/0001_first.py",
        'sa.UniqueConstraint("project", "id", name=op.f("uq_job_project_id")),',
        "",
        "tests/unit/test_store_sql.py::test_an_id_is_given_once",
    ),
    Mutation(
        "a statement's signature is checked at the Site",
        "link/signing.py",
        "Ed25519PublicKey.from_public_bytes(public).verify(signature, SIGNATURE_PREFIX + statement)",
        "Ed25519PublicKey.from_public_bytes(public)",
        "tests/security/test_admission.py::test_a_forged_statement_is_refused",
    ),
    Mutation(
        "who signed must be trusted",
        "link/admission.py",
        "if verified.key not in trusted:",
        "if not verified.key:",
        "tests/security/test_admission.py::test_somebody_elses_signature_is_untrusted",
    ),
    Mutation(
        "a sealed value's signature is checked by the client",
        "link/values.py",
        "Ed25519PublicKey.from_public_bytes(public).verify(envelope.sig, PREFIX + envelope.statement)",
        "Ed25519PublicKey.from_public_bytes(public)",
        "tests/unit/test_link_values.py::test_no_altered_envelope_is_opened",
    ),
    Mutation(
        "a start is claimed once",
        "link/ledger.py",
        "os.symlink(target, path)",
        "os.path.lexists(path) or os.symlink(target, path)",
        "tests/unit/test_link_ledger.py::test_a_start_is_claimed_once",
    ),
)


def main() -> int:
    """Try all; 1 when a safeguard could be taken out unseen, or the tests are not green to begin with."""
    with tempfile.TemporaryDirectory(prefix="chappe-mutations-") as made:
        copy = Path(made) / "src"
        shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__"))
        begun = run(copy, *dict.fromkeys(mutation.test for mutation in MUTATIONS))
        if begun.returncode != 0:
            print(
                begun.stdout
                + "\nThese tests must pass, and none be skipped, before they are put to the test."
            )
            return 1
        unseen = [mutation for mutation in MUTATIONS if not seen(copy, mutation)]
    print(f"{len(MUTATIONS) - len(unseen)} of {len(MUTATIONS)} were noticed")
    return 1 if unseen else 0


def seen(copy: Path, mutation: Mutation) -> bool:
    """Whether the test fails without the safeguard; the copy is as before afterwards."""
    path = copy / "chappe" / mutation.module
    text = path.read_text()
    if text.count(mutation.before) != 1:
        print(
            f"GONE   {mutation.safeguard}: {mutation.module} does not say, once: {mutation.before}"
        )
        return False
    path.write_text(text.replace(mutation.before, mutation.after))
    try:
        done = run(copy, "-x", mutation.test)
    finally:
        path.write_text(text)
    # Any other status than 1 says that the tests could not be run.
    red = done.returncode == 1
    print(f"{'red   ' if red else 'UNSEEN'} {mutation.safeguard}: {mutation.test}", flush=True)
    if not red:
        print(done.stdout[-2000:])
    return red


def run(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """These tests against the copy, a skip being a failure."""
    here = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "CHAPPE_TEST_REQUIRE": "all"}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:randomly",
            "-p",
            "no:cacheprovider",
            *arguments,
        ],
        cwd=ROOT,
        env=os.environ | here,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )


if __name__ == "__main__":
    sys.exit(main())
