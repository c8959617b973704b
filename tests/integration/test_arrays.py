"""Arrays against a real Hub and a real Site."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.integration import sdk_rig
from tests.integration.sdk_rig import SITE, Place

TOLD = """\
import json, os, sys, pathlib
told = {k: v for k, v in os.environ.items() if "TASK" in k or "ARRAY" in k}
pathlib.Path(sys.argv[1], os.environ["CHAPPE_TASK_INDEX"]).write_text(json.dumps(told))
"""
#: Fails unless at most two hold a place in the directory at once.
CROWD = """\
mine="$1/$CHAPPE_TASK_INDEX"
mkdir "$mine" && test "$(ls "$1" | wc -l)" -le 2 && sleep 0.05 && rmdir "$mine"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place, None, None]:
    with sdk_rig.place(tmp_path_factory.mktemp("arrays")) as made:
        yield made


def test_each_task_is_told_its_index(place: Place, tmp_path: Path) -> None:
    with place.client() as client:
        argv = ["python3", "-c", TOLD, str(tmp_path)]
        jobs = client.run(SITE, argv, array="5-9:2", dialect="slurm", name="told")
        client.wait_all(jobs)
        assert [(job.name, job.phase) for job in jobs] == [
            (f"told[{i}]", "finished") for i in (5, 7, 9)
        ]
        view = next(v for v in client.views(ids=[jobs[1].id]))
        assert view.task is not None
        assert (view.task.index, view.task.array) == (7, jobs[0].id)
    for index in ("5", "7", "9"):
        told = json.loads((tmp_path / index).read_text())
        assert told["SLURM_ARRAY_TASK_ID"] == told["CHAPPE_TASK_INDEX"] == index
        assert told["CHAPPE_ARRAY_ID"] == jobs[0].id


def test_no_more_run_at_once_than_was_asked_for(place: Place, tmp_path: Path) -> None:
    done = place.chappe(
        "run", SITE, "--array", "1-12%2", "--", "sh", "-c", CROWD, "-", str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 of 12 tasks succeeded" in done.stdout


def test_an_app_gets_an_array_too_and_its_failures_are_named(place: Place) -> None:
    done = place.chappe(
        *("job", "submit", "wave", "-s", SITE, "-p", "n=2", "--name", "w"),
        *("--array", "1,3", "--wait", "--json"),
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == ["w[1]", "w[3]"]
    script = 'test "$CHAPPE_TASK_INDEX" != 2'
    bad = place.chappe("run", SITE, "--array", "1-3", "--name", "t", "--", "sh", "-c", script)
    assert (bad.returncode, "t[2]  FAILED" in bad.stdout) == (1, True)
    wrong = place.chappe("run", SITE, "--array", "3-1", "--", "true")
    assert (wrong.returncode, "a range rises" in wrong.stderr) == (2, True)
