"""`chappe.Executor` behaves as the executors of concurrent.futures do, and a little better."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from pathlib import Path
from typing import Any

import pytest

import chappe
from chappe import Client, Executor
from chappe.testing.cluster import until
from tests.integration import sdk_rig
from tests.integration.sdk_rig import SITE, Place
from tests.integration.test_functions import _posts as posts

WITHIN_S = 60.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place, None, None]:
    with sdk_rig.place(tmp_path_factory.mktemp("executor")) as made:
        yield made


@pytest.fixture
def client(place: Place) -> Generator[Client, None, None]:
    with place.client() as made:
        yield made


@pytest.fixture
def executor(client: Client) -> Generator[Executor, None, None]:
    with Executor(SITE, client=client, environment="quick") as made:
        yield made


def wait_for(path: str) -> str:
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.01)
    return path


def test_it_is_an_executor(executor: Executor) -> None:
    assert isinstance(executor, concurrent.futures.Executor)
    assert executor.submit(pow, 2, 8).result(WITHIN_S) == 256
    assert executor.submit(dict, self=1, fn=2).result(WITHIN_S) == {"self": 1, "fn": 2}
    assert executor.submit(capital, 1, keyword=2).result(WITHIN_S) == (1, 2)
    with pytest.raises(TypeError):
        executor.submit()  # type: ignore[call-arg]


def capital(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return (*args, *kwargs.values())


def test_map_gives_results_in_order_and_stops_with_the_shortest(executor: Executor) -> None:
    assert list(executor.map(pow, range(10), range(10))) == [n**n for n in range(10)]
    assert list(executor.map(pow, range(10), [1, 1, 1])) == [0, 1, 2]
    assert list(executor.map(abs, [])) == []
    assert list(executor.map(abs, range(-7, 0), chunksize=3)) == list(range(7, 0, -1))
    with pytest.raises(TypeError, match="buffers"):
        executor.map(abs, [1], buffers=1)


def test_map_raises_where_an_item_raised(executor: Executor) -> None:
    results = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert next(results) == (0, 1)
    assert next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_times_out_and_cancels_what_nobody_takes(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with Executor(SITE, client=client, tags={"case": "late"}) as executor:
        results = executor.map(wait_for, [str(gate)] * 3, timeout=0.5)
        with pytest.raises(concurrent.futures.TimeoutError):
            next(results)
        gate.touch()
    client.wait_all(list(client.jobs(tags={"case": "late"})), WITHIN_S)
    states = {job.state for job in client.jobs(tags={"case": "late"})}
    assert states <= {"CANCELLED", "JOB_FINISHED"}


def test_ten_thousand_items_are_one_request(executor: Executor, place: Place) -> None:
    before = posts(place)
    results = executor.map(abs, range(10_000))
    # The request is answered as a whole: its first result is there when it was.
    assert next(results) == 0
    assert posts(place) == before + 1
    results.close()  # type: ignore[attr-defined]


def test_wait_and_as_completed_know_its_futures(executor: Executor, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    slow: Any = executor.submit(wait_for, str(gate))
    quick: Any = executor.submit(abs, -1)
    done, left = concurrent.futures.wait([slow, quick], WITHIN_S, return_when=FIRST_COMPLETED)
    assert (done, left) == ({quick}, {slow})
    bad: Any = executor.submit(int, "x")
    done, _ = concurrent.futures.wait([slow, bad], WITHIN_S, return_when=FIRST_EXCEPTION)
    assert done == {bad}
    gate.touch()
    done, left = concurrent.futures.wait([slow, quick, bad], WITHIN_S, return_when=ALL_COMPLETED)
    assert (len(done), left) == (3, set())
    several = [executor.submit(abs, -n) for n in range(5)]
    assert {f.result() for f in concurrent.futures.as_completed(several, WITHIN_S)} == set(range(5))


def test_an_exception_is_the_futures_with_its_traceback(executor: Executor) -> None:
    future = executor.submit(int, "no number")
    error = future.exception(WITHIN_S)
    assert isinstance(error, ValueError)
    assert "no number" in str(error.__cause__)
    assert future.done()
    with pytest.raises(ValueError, match="no number"):
        future.result()
    ended = executor.submit(sys.exit, 3)
    assert isinstance(ended.exception(WITHIN_S), SystemExit)
    died = executor.submit(os._exit, 3)
    assert isinstance(died.exception(WITHIN_S), chappe.JobFailed)
    lost = executor.submit(abs, threading.Lock())
    assert isinstance(lost.exception(WITHIN_S), chappe.ChappeError)


def test_callbacks_are_called_and_may_submit(executor: Executor) -> None:
    found: list[Any] = []
    over = threading.Event()

    def again(future: concurrent.futures.Future[int]) -> None:
        executor.submit(abs, -future.result()).add_done_callback(end)

    def end(future: concurrent.futures.Future[int]) -> None:
        found.append(future.result())
        over.set()

    def broken(_: concurrent.futures.Future[int]) -> None:
        raise ValueError("a callback's own business")

    first = executor.submit(abs, -7)
    first.add_done_callback(broken)
    first.add_done_callback(again)
    assert over.wait(WITHIN_S)
    assert found == [7]


def test_a_cancelled_future_cancels_its_job(
    executor: Executor, client: Client, tmp_path: Path
) -> None:
    began = tmp_path / "began"

    def hang(path: str) -> None:
        import time

        open(path, "w").close()
        time.sleep(600)

    future: Any = executor.submit(hang, str(began))
    until(began.exists, "the call began")
    assert future.cancel()
    assert future.cancel()
    assert future.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(WITHIN_S)
    done, _ = concurrent.futures.wait([future], WITHIN_S)
    assert done == {future}
    assert client.job(future.job_id).wait(WITHIN_S).state == "CANCELLED"
    ended = executor.submit(abs, -1)
    assert ended.result(WITHIN_S) == 1
    assert not ended.cancel()


def test_a_job_that_somebody_else_cancels_is_a_cancelled_future(
    executor: Executor, client: Client, tmp_path: Path
) -> None:
    future: Any = executor.submit(wait_for, str(tmp_path / "never"))
    until(lambda: list(client.jobs(ids=[future.job_id])), "it is sent")
    client.job(future.job_id).cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(WITHIN_S)


def test_shutdown_waits_and_takes_no_more(client: Client, tmp_path: Path) -> None:
    executor = Executor(SITE, client=client)
    gate = tmp_path / "gate"
    futures = [executor.submit(wait_for, str(gate)) for _ in range(2)]
    executor.shutdown(wait=False)
    assert not any(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(abs, [1])
    gate.touch()
    executor.shutdown()
    executor.shutdown()
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == [str(gate)] * 2


def test_shutdown_can_cancel_what_is_left(client: Client, tmp_path: Path) -> None:
    executor = Executor(SITE, client=client, tags={"case": "left"})
    futures = [executor.submit(wait_for, str(tmp_path / "never")) for _ in range(6)]
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    jobs = client.wait_all(list(client.jobs(tags={"case": "left"})), WITHIN_S)
    assert {job.state for job in jobs} <= {"CANCELLED"}


def test_an_idle_executor_ends_at_once_and_its_threads_with_it(client: Client) -> None:
    before = threading.active_count()
    for _ in range(3):
        Executor(SITE, client=client).shutdown()
    until(lambda: threading.active_count() <= before, "the threads ended")


def test_a_closed_client_fails_what_is_left(place: Place, tmp_path: Path) -> None:
    client = place.client()
    executor = Executor(SITE, client=client)
    future = executor.submit(wait_for, str(tmp_path / "gate"))
    time.sleep(0)
    client.close()
    with pytest.raises((chappe.Conflict, concurrent.futures.CancelledError)):
        future.result(WITHIN_S)
    executor.shutdown()
    (tmp_path / "gate").touch()


def test_many_threads_may_submit(executor: Executor) -> None:
    found: list[int] = []

    def some(start: int) -> None:
        futures = [executor.submit(abs, -n) for n in range(start, start + 20)]
        found.extend(future.result(WITHIN_S) for future in futures)

    threads = [threading.Thread(target=some, args=(n,)) for n in range(0, 100, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(100))


def test_a_script_that_just_ends_waits_for_its_calls(place: Place, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    script = (
        "import chappe, pathlib\n"
        f"executor = chappe.Executor({SITE!r})\n"
        f"def late(path):\n    import time; time.sleep(0.3); pathlib.Path(path).touch()\n"
        f"executor.submit(late, {str(mark)!r}).add_done_callback(lambda f: print('told', f.done()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | place.environment,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=True,
    )
    assert done.stdout == "told True\n"
    assert mark.exists()
    assert done.stderr == ""
