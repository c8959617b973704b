"""The command line as a user types it, against a real Hub and a real Site."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.integration import sdk_rig
from tests.integration.sdk_rig import SITE, Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place, None, None]:
    with sdk_rig.place(tmp_path_factory.mktemp("cli")) as made:
        yield made


def lines(place: Place, *arguments: str) -> list[dict[str, Any]]:
    """The objects that a command prints with --json."""
    done = place.chappe(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def submit(place: Place, *arguments: str) -> str:
    (made,) = lines(place, "job", "submit", "wave", "-s", SITE, *arguments)
    return str(made["id"])


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("echo oops >&2; exit 3", 3), ("kill -9 $$", 137)]
)
def test_run_exits_as_the_command_did(place: Place, script: str, status: int) -> None:
    done = place.process("run", SITE, "--", "sh", "-c", script)
    assert done.returncode == status, done.stderr
    assert ("oops" in done.stderr) == ("oops" in script)


def test_run_wants_its_options_before_two_dashes(place: Place) -> None:
    done = place.chappe("run", SITE, "ls", "-l")
    assert done.returncode == 2
    assert "-l" in done.stderr


def test_submit_show_result(place: Place, tmp_path: Path) -> None:
    job = submit(place, "-p", "n=5", "--name", "five", "--tag", "exp=cli", "--wait")
    (view,) = lines(place, "job", "show", job[:23])
    assert (view["state"], view["name"], view["tags"]) == ("JOB_FINISHED", "five", {"exp": "cli"})
    shown = place.chappe("job", "show", job).stdout
    assert all(text in shown for text in ("five", "n=5", "exp=cli", SITE, "exit 0", "sha256"))
    saved = tmp_path / "wave.json"
    assert lines(place, "job", "result", job, "-o", str(saved))[0]["path"] == str(saved)
    assert json.loads(saved.read_text())["n"] == 5
    assert json.loads(place.chappe("job", "result", job).stdout)["n"] == 5


def test_a_graph_from_a_file(place: Place) -> None:
    objects = [{"name": "a", "parameters": {"n": 1}}, {"name": "b", "parameters": {"n": 2}}]
    objects.append({"name": "c", "parents": ["a", "b"], "parameters": {"n": 4}})
    text = "\n".join(map(json.dumps, objects))
    done = place.chappe(
        "job", "submit", "wave", "-s", SITE, "--file", "-", "--wait", "--json", stdin=text
    )
    assert done.returncode == 0, done.stderr
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert [job["state"] for job in made] == ["JOB_FINISHED"] * 3
    assert json.loads(place.chappe("job", "result", made[2]["id"]).stdout)["n"] == 7


def test_a_failed_job_is_an_exit_status_and_can_be_retried_and_removed(place: Place) -> None:
    done = place.chappe("job", "submit", "wave", "-s", SITE, "-p", "n=-1", "--wait", "--json")
    assert done.returncode == 1
    job = json.loads(done.stdout)["id"]
    assert "no such wave" in place.chappe("job", "show", job).stdout
    assert place.chappe("job", "result", job).returncode == 1
    assert lines(place, "job", "retry", job) == [{"id": job, "code": "retried"}]
    watched = place.chappe("job", "watch", job, "--json")
    assert watched.returncode == 1
    assert json.loads(watched.stdout.splitlines()[-1])["new"] == "FAILED"
    assert lines(place, "job", "rm", job) == [{"id": job, "code": "deleted"}]
    assert place.chappe("job", "show", job).returncode == 3


def test_logs_during_a_run_and_afterwards_with_nothing_for_the_terminal_to_obey(
    place: Place, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    script = f"printf 'one\\n\\033[31mred\\n'; while [ ! -e {gate} ]; do sleep 0.05; done; echo two"
    with place.client() as client:
        job = client.run(SITE, ["sh", "-c", script])
        heard = ""
        for text in job.follow():
            heard += text
            if "red" in heard:
                gate.touch()
        assert heard == "one\n\x1b[31mred\ntwo\n"
        job.wait()
        assert job.logs(tail=1) == "two\n"
    # Now the agent reads the file.
    assert place.chappe("job", "logs", job.id).stdout == "one\n\\x1b[31mred\ntwo\n"
    assert (
        place.process("job", "logs", job.id, "--from", "4", "--raw").stdout == "\x1b[31mred\ntwo\n"
    )
    (page,) = lines(place, "job", "logs", job.id, "-n", "1")
    assert (page["text"], page["next"], page["over"]) == ("two\n", page["size"], True)
    followed = place.chappe("job", "logs", job.id, "-f", "--tail", "1")
    assert (followed.returncode, followed.stdout) == (0, "two\n")
    refused = place.chappe("job", "logs", job.id, "--stderr")
    assert (refused.returncode, "same log" in refused.stderr) == (3, True)
    waiting = submit(place, "--cores", "60000")
    assert place.chappe("job", "logs", waiting).returncode == 5
    assert place.chappe("job", "cancel", waiting).returncode == 0


def test_why_and_cancel_by_filter(place: Place) -> None:
    submit(place, "--wait")  # after this the pilot has told what it has
    first = submit(place, "--tag", "exp=why", "--name", "first", "--cores", "60000")
    second = submit(place, "--tag", "exp=why", "--name", "second", "--parent", first)
    assert "60000 cores" in place.chappe("why", first).stdout
    assert "first" in place.chappe("why", second).stdout
    assert {v["name"] for v in lines(place, "job", "ls", "--tag", "exp=why")} == {"first", "second"}
    asked = place.chappe("job", "cancel", "--name", "first")
    assert asked.returncode == 2
    assert "1 job matches: add --yes" in asked.stderr
    assert lines(place, "job", "show", first)[0]["phase"] == "runnable"
    assert lines(place, "job", "cancel", "--name", "first", "--yes") == [{"cancelled": 1}]
    (view,) = lines(place, "job", "show", second)
    assert view["state"] == "FAILED"


def test_hold_update_and_release(place: Place) -> None:
    job = submit(place, "--tag", "exp=hold", "--cores", "60000")
    assert lines(place, "job", "hold", job) == [{"id": job, "code": "held"}]
    assert f"chappe job release {job}" in place.chappe("why", job).stdout
    assert " held " in place.chappe("job", "ls", "--held").stdout
    assert lines(place, "job", "count", "--tag", "exp=hold") == [{"count": 1, "exact": True}]
    runnable = [c for c in lines(place, "job", "count") if c["state"] == "PREPROCESSED"]
    assert [(c["site"], c["app"], c["count"] > 0) for c in runnable] == [(SITE, "wave", True)]
    change = ("--priority", "3", "--set-tag", "exp=later", "--set-data", "grid=[1, 2]")
    assert lines(place, "job", "update", "--tag", "exp=hold", "-y", *change) == [{"updated": 1}]
    (view,) = lines(place, "job", "show", job)
    assert (view["priority"], view["tags"]) == (3, {"exp": "later"})
    assert view["data"] == {"grid": [1, 2]}
    assert lines(place, "job", "update", job, "--untag", "exp") == [{"id": job, "code": "updated"}]
    assert lines(place, "job", "release", "--held", "-y") == [{"released": 1}]
    assert lines(place, "job", "cancel", job) == [{"id": job, "code": "cancelled"}]
    assert place.chappe("job", "update", job).returncode == 2
    later = lines(place, "job", "ls", "--created-since", "1h", "--name-prefix", "wav")
    assert job in {v["id"] for v in later}
    assert lines(place, "job", "ls", "--ended-until", "2020-01-01") == []


def test_events_of_one_job(place: Place) -> None:
    job = submit(place, "--wait")
    states = [event["new"] for event in lines(place, "events", "--job", job)]
    assert states == ["PREPROCESSED", "RUNNING", "RUN_DONE", "JOB_FINISHED"]
    assert [e["new"] for e in lines(place, "events", "--job", job, "--final")] == ["JOB_FINISHED"]
    assert "RUN_DONE → JOB_FINISHED" in place.chappe("events", "--job", job).stdout


def test_the_lists(place: Place) -> None:
    assert {app["name"] for app in lines(place, "app", "ls")} == {"hello", "wave"}
    assert lines(place, "site", "ls")[0]["online"] is True
    assert lines(place, "batch-job", "ls")[0]["state"] == "running"
    assert lines(place, "session", "ls")[0]["state"] == "live"
    for noun in ("app", "site", "batch-job", "session", "token", "job"):
        done = place.chappe(noun, "ls")
        assert done.returncode == 0
        assert done.stdout.splitlines()
        assert "\x1b" not in done.stdout


def test_tokens_come_and_go(place: Place) -> None:
    (made,) = lines(place, "token", "new", "--note", "laptop", "--expires", "1h")
    assert made["token"].startswith("chp_u_")
    assert any(t["note"] == "laptop" for t in lines(place, "token", "ls"))
    lines(place, "token", "revoke", made["prefix"])
    config = place.directory / "revoked.json"
    config.write_text(
        json.dumps({"url": place.hub.url, "token": made["token"], "ca_file": place.hub.ca_file})
    )
    config.chmod(0o600)
    done = place.chappe("job", "ls", CHAPPE_CONFIG=str(config))
    assert done.returncode == 5
    assert "token" in place.chappe("doctor", CHAPPE_CONFIG=str(config)).stdout


def test_doctor_finds_what_is_wrong(place: Place, tmp_path: Path) -> None:
    healthy = place.chappe("doctor")
    assert healthy.returncode == 0, healthy.stdout
    config = tmp_path / "client.json"
    config.write_text(json.dumps({"url": place.hub.url, "token": "x"}))
    config.chmod(0o644)
    done = place.chappe("doctor", CHAPPE_CONFIG=str(config))
    assert done.returncode == 1
    assert f"chmod 600 {config}" in done.stdout
    assert "ca_file" in done.stdout
    nowhere = place.chappe("doctor", CHAPPE_CONFIG=str(tmp_path / "none"))
    assert nowhere.returncode == 1
    assert str(tmp_path / "none") in nowhere.stdout


def test_errors_have_their_own_exit_status(place: Place, tmp_path: Path) -> None:
    config = tmp_path / "client.json"
    config.write_text('{"url": "https://127.0.0.1:9", "token": "x"}')
    config.chmod(0o600)
    unreachable = place.chappe("job", "ls", "--json", CHAPPE_CONFIG=str(config))
    assert unreachable.returncode == 4
    assert json.loads(unreachable.stderr)["error"]["transient"] is True
    assert place.chappe("job", "show", "ffff").returncode == 3
    assert place.chappe("job", "submit", "wave", "-s", SITE, "-p", "n=x").returncode == 2
    nowhere = place.chappe("job", "submit", "wave", "-s", "pari")
    assert nowhere.returncode == 3
    assert SITE in nowhere.stderr
    assert place.chappe("job", "cancel").returncode == 2
    assert place.chappe("site", "rm", SITE).returncode == 5


@pytest.mark.parametrize(
    "command", ["job ls", "job count", "job cancel", "batch-job ls", "app ls", "app show wave"]
)
def test_a_mistyped_site_is_answered_with_those_that_exist(place: Place, command: str) -> None:
    done = place.chappe(*command.split(), "-s", "nowhere")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: there is no site 'nowhere' (there are: ")
    assert SITE in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = place.chappe(*command.split(), "-s", "nowhere", "--json")
    assert (done.returncode, done.stdout) == (3, "")
    assert json.loads(done.stderr)["error"]["code"] == "not_found"


def test_a_mistyped_site_is_not_run_at(place: Place) -> None:
    done = place.chappe("run", "nowhere", "--", "true")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"error: there is no site 'nowhere' (there are: {SITE}")


def test_a_site_by_the_command_line(place: Place, tmp_path: Path) -> None:
    directory = str(tmp_path / "lyon")
    (made,) = lines(place, "site", "init", directory)
    assert made["name"] == "lyon"
    config = tmp_path / "lyon" / "site.toml"
    config.write_text(config.read_text().replace("# keep = 1", "keep = 0"))
    assert place.chappe("site", "check", directory).returncode == 0
    assert place.chappe("site", "status", directory).returncode == 1
    assert place.chappe("site", "start", directory).returncode == 0
    assert place.chappe("site", "status", directory).returncode == 0
    assert place.chappe("site", "stop", directory).returncode == 0
    assert lines(place, "site", "rm", "lyon") == [{"name": "lyon", "code": "removed"}]
    assert [site["name"] for site in lines(place, "site", "ls")] == [SITE]
    assert place.chappe("app", "check", f"{directory}/apps/hello.toml").returncode == 0
    (tmp_path / "bad.toml").write_text('name = "x"\nversoin = "1"\n')
    bad = place.chappe("app", "check", str(tmp_path / "bad.toml"))
    assert bad.returncode == 2
    assert "bad.toml:2" in bad.stderr
