"""Python functions from the SDK to a real Site and back."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import chappe
from chappe import AsyncClient, Client
from chappe.core.publickeys import fingerprint
from chappe.link.keys import SigningKey
from chappe.sdk.errors import Invalid, JobCancelled, JobFailed, TooLarge
from chappe.sdk.functions import FunctionApp
from chappe.testing.cluster import until
from tests.integration import sdk_rig
from tests.integration.sdk_rig import SITE, Place

WITHIN_S = 60.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place, None, None]:
    with sdk_rig.place(tmp_path_factory.mktemp("functions")) as made:
        yield made


@pytest.fixture
def client(place: Place) -> Generator[Client, None, None]:
    with place.client() as made:
        yield made


def app(function: Any, **more: Any) -> FunctionApp[..., Any]:
    return chappe.app(function, site=SITE, **more)


def test_a_decorated_function_runs_there_and_its_value_comes_back(client: Client) -> None:
    @chappe.app(site=SITE, tags={"kind": "sum"})
    def add(a: int, b: int = 1) -> dict[str, Any]:
        print("adding")
        return {"sum": a + b, "site": os.environ["CHAPPE_SITE"]}

    job = client.submit(add, 2, b=3)
    assert job.result(WITHIN_S) == {"sum": 5, "site": SITE}
    assert add.local(1)["sum"] == 2 if "CHAPPE_SITE" in os.environ else True
    draft = add.options(name="four")(3)
    assert client.submit(draft).result(WITHIN_S)["sum"] == 4
    found = client.job(job.id)
    file = found.result_file()
    assert file is not None
    assert (file.media, file.decode()) == ("application/msgpack", {"sum": 5, "site": SITE})
    assert found.result() == {"sum": 5, "site": SITE}
    assert "add" in found.name
    assert client.job(draft.id).name == "four"


def test_a_map_is_one_request_for_thousands_and_its_code_travels_once(
    client: Client, place: Place
) -> None:
    def square(n: int) -> int:
        return n * n

    before = _posts(place)
    jobs = client.map(app(square, environment="quick"), range(2_500))
    until(lambda: _posts(place) > before, "the request is logged")
    assert _posts(place) == before + 1
    client.wait_all(jobs, WITHIN_S)
    assert all(job.ok for job in jobs)
    assert [job.result() for job in jobs[::500]] == [n * n for n in range(0, 2_500, 500)]
    names = [f"n{i}" for i in range(3)]
    named = client.map(app(square), [1, 2, 3], names=names)
    assert [job.name for job in named] == names


def test_what_a_function_raises_is_raised_here_with_its_traceback(client: Client) -> None:
    class Local(Exception):
        pass

    def fail(how: str) -> None:
        if how == "key":
            raise KeyError("depth")
        raise Local(how)

    jobs = client.map(app(fail), ["key", "other"])
    with pytest.raises(KeyError, match="depth") as error:
        jobs[0].result(WITHIN_S)
    words = "".join(traceback.format_exception(error.value))
    assert "in fail" in words
    assert 'raise KeyError("depth")' in words
    with pytest.raises(Exception, match="other") as other:
        jobs[1].result(WITHIN_S)
    assert type(other.value).__name__ == "Local"
    assert jobs[0].outcome is not None
    assert jobs[0].outcome.exit == 1
    again = client.job(jobs[0].id)
    (listed,) = client.jobs(ids=[jobs[0].id])
    for job in (again, listed):
        with pytest.raises(KeyError):
            job.result()
        with pytest.raises(JobFailed, match="KeyError: 'depth'"):
            job.result_file()


def test_arrays_tuples_and_files_come_back_as_they_were(client: Client) -> None:
    import numpy as np

    def give(what: str) -> Any:
        import numpy as np

        if what == "array":
            return np.arange(12.0).reshape(3, 4)
        return (1, {"a"}) if what == "tuple" else np.ones((1024, 256))

    jobs = client.map(app(give, environment="quick"), ["array", "tuple", "large"])
    array, pair, large = jobs
    assert np.array_equal(array.result(WITHIN_S), np.arange(12.0).reshape(3, 4))
    assert pair.result(WITHIN_S) == (1, {"a"})
    (listed,) = client.jobs(ids=[pair.id])
    assert listed.result() == (1, {"a"})
    file = large.result(WITHIN_S)
    assert isinstance(file, chappe.SiteFile)
    assert file.size_bytes > 2_000_000
    with pytest.raises(Invalid, match="load it in a function that runs there"):
        file.load()

    def total(file: chappe.SiteFile) -> float:
        return float(file.load().sum())

    assert client.submit(app(total), file).result(WITHIN_S) == 1024 * 256


def test_a_worker_that_dies_and_a_success_without_a_value_are_failures(client: Client) -> None:
    def die(how: str) -> None:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)

    killed, silent = client.map(app(die), ["kill", "zero"])
    with pytest.raises(JobFailed, match="signal 9"):
        killed.result(WITHIN_S)
    with pytest.raises(JobFailed, match="its worker ended without a value"):
        silent.result(WITHIN_S)


def test_own_processes_limits_and_cancels(client: Client, place: Place) -> None:
    def pid() -> tuple[int, int]:
        return os.getpid(), os.cpu_count() or 0

    def hang(path: str) -> None:
        import time

        Path(path).write_text(str(os.getpid()))
        time.sleep(600)

    one, two = (client.submit(app(pid, process="own")).result(WITHIN_S)[0] for _ in range(2))
    assert one != two
    with pytest.raises(JobFailed, match="timeout"):
        client.submit(app(hang, wall_s=1.0), str(place.directory / "limit")).result(WITHIN_S)
    gate = place.directory / "cancel"
    job = client.submit(app(hang), str(gate))
    until(gate.exists, "the function began")
    job.cancel()
    with pytest.raises(JobCancelled):
        job.result(WITHIN_S)


def test_options_reach_the_worker(client: Client) -> None:
    def look() -> list[Any]:
        threads = os.environ["OMP_NUM_THREADS"]
        return [threads, len(os.sched_getaffinity(0)), os.environ["MODE"], os.getcwd()]

    found = client.submit(app(look, cores=2, env={"MODE": "x"}, workdir="run/a")).result(WITHIN_S)
    assert found[0] == "2"
    assert found[2] == "x"
    assert found[3].endswith("data/run/a/attempt-1")


def test_functions_may_call_each_other_and_themselves(client: Client) -> None:
    source = (
        "import chappe\n"
        f"@chappe.app(site={SITE!r})\n"
        "def twice(n): return 2 * n\n"
        f"@chappe.app(site={SITE!r})\n"
        "def fall(n): return twice.local(n) if n < 1 else fall.local(n - 1)\n"
    )
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(source, names)  # noqa: S102
    assert client.submit(names["twice"], 4).result(WITHIN_S) == 8


def test_what_cannot_be_sent_is_said_before_it_is(client: Client) -> None:
    with pytest.raises(TooLarge, match="put large data in files at the site"):
        client.submit(app(len), b"x" * 100_000)
    with pytest.raises(Invalid, match="the arguments cannot be pickled"):
        client.submit(app(id), (n for n in range(3)))
    data = os.urandom(300_000)
    with pytest.raises(TooLarge, match="it holds data"):
        client.submit(app(lambda: data))
    with pytest.raises(Invalid, match="say where 'print' is to run"):
        client.submit(print, 1)
    with pytest.raises(Invalid, match='"warm" or "own"'):
        app(print, process="cold")


def test_an_environment_that_is_unknown_or_broken_says_so(client: Client) -> None:
    with pytest.raises(JobFailed, match=r"no environment 'other'.*broken, default, quick"):
        client.submit(app(len, environment="other"), "x").result(WITHIN_S)
    with pytest.raises(JobFailed, match="cannot import no_such_module"):
        client.submit(app(len, environment="broken"), "x").result(WITHIN_S)


async def test_the_asynchronous_face(place: Place) -> None:
    config, key = place.hub.client_config, place.directory / "key"
    async with AsyncClient(config_file=config, key=key) as client:
        jobs = await client.map(app(pow), [2, 3], [5, 2])
        assert [await job.result(WITHIN_S) for job in jobs] == [32, 9]
        job = await client.submit(app(int), "no number")
        with pytest.raises(ValueError, match="no number"):
            await job.result(WITHIN_S)


def test_the_site_is_known_by_the_key_that_it_made(client: Client, place: Place) -> None:
    assert client.submit(app(len), "four").result(WITHIN_S) == 4
    site = next(view.id for view in client.sites())
    pinned = place.directory / "known_sites" / site
    secret = place.directory / SITE / "secrets" / "signing_key"
    assert pinned.read_text().strip()
    assert secret.stat().st_mode & 0o777 == 0o600
    assert hashlib.sha256(secret.read_bytes()).hexdigest() not in pinned.read_text()
    pinned.write_text("A" * 43 + "=\n")
    try:
        with place.client() as other, pytest.raises(chappe.SiteKeyChanged, match="known by A"):
            other.submit(app(len), "four").result(WITHIN_S)
    finally:
        pinned.unlink()


CHILD = """
import json, os, sys
import msgspec
found = []
for parent in json.load(open(os.environ["CHAPPE_PARENTS"])):
    path, value = parent["result"], None
    if path is not None and parent["media"] == "application/msgpack":
        value = msgspec.msgpack.decode(open(path, "rb").read())
        value = len(value) if isinstance(value, list) else value
    size = None if path is None else os.path.getsize(path)
    where = os.path.relpath(parent["workdir"], os.environ["CHAPPE_DATA"])
    found.append([parent["name"], parent["media"], size, value, where])
json.dump(found, open(os.environ["CHAPPE_RESULT"], "w"))
"""
READS = f"""
name = "reads"
version = "1"
command = ["{sys.executable}", "-c", '''{CHILD}''']
[files]
result = "found.json"
"""


def test_a_child_finds_what_a_function_returned_and_where_it_worked(
    client: Client, place: Place
) -> None:
    """As data, out of the envelope that only the SDK opens; what is a pickle is not handed to it."""
    (place.directory / SITE / "apps" / "reads.toml").write_text(READS)
    until(lambda: "reads" in {a.name for a in client.apps(SITE)}, "the app is published")
    calls = {
        "data": (app(dict), {"n": 7}),
        "array": (app(lambda n: __import__("numpy").arange(n)), 3),
        "large": (app(lambda n: list(range(n))), 1_000_000),
        "pickle": (app(complex), 1),
        "shared": (app(len, environment="quick"), "four"),
    }
    parents = []
    for name, (function, argument) in calls.items():
        (draft,) = function.drafts([((argument,), {})], [name])
        parents.append(client.submit(draft))
    child = client.app("reads", site=SITE).options(parents=parents).submit()
    found = {name: rest for name, *rest in child.result(WITHIN_S)}
    at = {name: f"jobs/{job.id}/attempt-1" for name, job in zip(calls, parents, strict=True)}
    assert found["data"][0::2] == ["application/msgpack", {"n": 7}]
    assert found["array"][0] == "application/x-npy"
    assert found["array"][1] > 3 * 8
    assert found["large"][0] == "application/msgpack"
    assert found["large"][1] > 1 << 20, "it stayed in a file at the site"
    assert found["large"][2] == 1_000_000
    assert found["pickle"] == ["application/x-python-pickle", None, None, at["pickle"]]
    assert found["shared"][0::2] == ["application/msgpack", 4]
    where = {name: rest[3] for name, rest in found.items()}
    assert where == at | {"shared": "functions"}


def test_the_hub_tells_a_sites_key_and_a_new_one_must_be_accepted(
    client: Client, place: Place, tmp_path: Path
) -> None:
    """Known before the first value came; changed, nothing is sent there; accepted only by its fingerprint."""
    owner = place.chappe("site", "key", str(place.directory / SITE)).stdout.split()
    assert owner[1] == fingerprint(owner[0])
    (view,) = client.sites()
    assert view.key == owner[0], "its agent told the hub"
    with Client(config_file=place.hub.client_config, key=tmp_path / "key") as newcomer:
        assert [k.state for k in newcomer.site_keys()] == ["new"]
        newcomer.submit(app(len), "four")  # not trusted there: it will be refused
        assert [(k.state, k.known) for k in newcomer.site_keys()] == [("known", owner[1])]
    old = SigningKey(bytes(32)).public_b64
    (tmp_path / "known_sites" / view.id).write_text(old + "\n")
    user = {"CHAPPE_KEY": str(tmp_path / "key")}
    with Client(config_file=place.hub.client_config, key=tmp_path / "key") as user_again:
        with pytest.raises(chappe.SiteKeyChanged, match="chappe site accept"):
            user_again.submit(app(len), "four")
        with pytest.raises(chappe.SiteKeyChanged):
            user_again.know_site(view.id, owner[0])
    shown = place.chappe("site", "keys", **user)
    assert shown.returncode == 1
    assert "changed" in shown.stdout
    assert fingerprint(old) in shown.stderr
    wrong = place.chappe("site", "accept", SITE, fingerprint(old), **user)
    assert wrong.returncode != 0
    assert "nothing was accepted" in wrong.stderr
    assert place.chappe("site", "keys", **user).returncode == 1
    assert place.chappe("site", "accept", SITE, owner[1], **user).returncode == 0
    shown = place.chappe("site", "keys", "--json", **user)
    assert (shown.returncode, json.loads(shown.stdout)["state"]) == (0, "known")


def _posts(place: Place) -> int:
    """How many requests to create Jobs the Hub has answered."""
    lines = place.hub.log.splitlines()
    return sum('"method":"POST"' in line and '"route":"/v1/jobs"' in line for line in lines)
