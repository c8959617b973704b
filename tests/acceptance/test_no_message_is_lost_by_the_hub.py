"""What the server lost in the system that this one replaces, by the names that its study gave the holes."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from chappe.core.messages import decode
from chappe.testing.hub import RunningHub, start_hub
from chappe.testing.naive_fold import naive_tries, naive_views
from chappe.testing.simulations import Course, Dialect, campaign, disturbed, scenario
from tests.integration.hub_rig import raw

LINES = {"content-type": "application/x-ndjson"}
#: Before the commit, in its middle, after it but before anybody was told.
POINTS = ("hub.message_stored", "hub.before_commit", "hub.after_commit", "hub.after_answer")
FAR = 1 << 61


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    with start_hub(tmp_path_factory.mktemp("messages") / "hub") as hub:
        yield hub


def get(hub: RunningHub, path: str) -> Any:
    answer = raw(hub, "GET", path, hub.token)
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def send(hub: RunningHub, raws: Sequence[bytes]) -> list[str]:
    """Send until it is acknowledged, as a producer does; a hub that died meanwhile is started again."""
    body = b"\n".join(raws)
    while True:
        try:
            answer = raw(hub, "POST", "/v1/messages", hub.token, body, LINES)
        except (OSError, http.client.HTTPException):
            with contextlib.suppress(subprocess.TimeoutExpired):  # it is only slow
                hub.wait_dead(10.0)
                hub.start()
            continue
        assert answer.status == 202, answer.body
        return [verdict["verdict"] for verdict in json.loads(answer.body)["verdicts"]]


def simulations(hub: RunningHub) -> dict[str, Any]:
    found = get(hub, "/v1/simulations?all=1&limit=1000")["simulations"]
    return {view["id"]: view for view in found}


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """A hub that is killed again and again."""
    with start_hub(tmp_path_factory.mktemp("mortal") / "hub") as hub:
        yield hub


@pytest.mark.parametrize("point", POINTS)
def test_l1_killed_at_any_step_it_ends_as_if_nothing_had_happened(
    mortal: RunningHub, point: str
) -> None:
    """A crash between "seen" and "done" lost the effects: the redelivery was skipped as a duplicate."""
    hub, seed = mortal, 20 + POINTS.index(point)
    made = campaign(seed, 3)
    told = [decode(r) for r in made.arriving()]
    raws = disturbed(made.arriving() * 3, seed)
    before = get(hub, "/v1/messages/stats")["messages"]
    first = hub.process
    hub.restart({"CHAPPE_CRASH_AT": f"{point}:{random.Random(seed).randrange(1, 4)}"})
    armed = hub.process
    piece = len(raws) // 5
    for at in range(0, len(raws), piece):
        send(hub, raws[at : at + piece])
    assert hub.process not in (first, armed)
    assert armed.returncode == -signal.SIGKILL
    views = {id: view for id, view in simulations(hub).items() if id in made.states}
    assert {id: view["state"] for id, view in views.items()} == made.states
    assert {id for id, view in views.items() if view["active"]} == made.active
    for naive in naive_views(told, FAR, 0):
        view = views[naive.uid]
        assert (view["messages"], view["jobs"]) == (naive.messages, naive.counts)
        assert get(hub, f"/v1/simulations/{naive.uid}")["types"] == naive.types
    for uid, (number, active, purged) in naive_tries(told).items():
        view = views[uid]
        assert (view["try_number"], view["active"], view["purged"]) == (number, active, purged)
    stats = get(hub, "/v1/messages/stats")
    assert stats["messages"] == before + len(made.said)
    (source,) = stats["sources"]
    assert source["received"] == source["stored"] + source["duplicate"]
    assert "unexpected error" not in hub.log


def message(code: str, uid: str, simulation: str, at: str, **more: str) -> bytes:
    said = {
        "msgProducer": "libigcm",
        "msgProducerVersion": "2.8.1",
        "msgCode": code,
        "msgUID": uid,
        "msgTimestamp": at,
        "simuid": simulation,
        "jobuid": f"{simulation}-job",
    }
    return json.dumps(said | more).encode()


def test_l11_six_zeros_a_z_and_a_negative_offset_are_times(hub: RunningHub) -> None:
    """A timestamp whose kept digits were all zero was an error, and the message was gone."""
    times = (
        "2016-04-15T22:05:35.000000999+0200",
        "2016-04-15T22:05:36.000000Z",
        "2016-04-15T22:05:37-0330",
    )
    raws = [message("0000", f"l11-{n}", f"l11-{n}", at) for n, at in enumerate(times)]
    assert send(hub, raws) == ["stored"] * 3
    views = simulations(hub)
    started = [views[f"l11-{n}"]["started_at"] for n in range(3)]
    assert started == [1_460_750_735.000001, 1_460_757_936.0, 1_460_770_537.0]


def test_l12_a_purged_simulation_stays_away_whatever_comes_late(hub: RunningHub) -> None:
    """A purge deleted the messages, which were the memory of what was seen: late mail raised a ghost."""
    made = scenario(Course.PURGED, 31, Dialect.MODERN)
    (uid,) = made.states
    for _ in range(2):
        send(hub, disturbed(made.arriving(), 31))
        assert simulations(hub)[uid]["purged"]
        assert not [v for v in get(hub, "/v1/simulations")["simulations"] if v["id"] == uid]
    send(hub, [message("1000", "l12-late", uid, "2026-01-01T00:00:00Z")])
    view = simulations(hub)[uid]
    assert (view["purged"], view["active"], view["messages"]) == (True, False, len(made.said) + 1)


@pytest.mark.parametrize("dialect", Dialect)
def test_l13_the_end_that_counts_is_not_the_one_that_came_last(
    hub: RunningHub, dialect: Dialect
) -> None:
    """The last arrival won: an end that came late cleared an error, or an error an end."""
    for course in (Course.ERROR, Course.CONTINUATION, Course.NEW_TRY, Course.LEFTOVERS):
        made = scenario(course, 41, dialect)
        for raw_ in made.arriving()[::-1]:
            send(hub, [raw_])
        views = simulations(hub)
        assert {uid: views[uid]["state"] for uid in made.states} == made.states


def test_l15_late_is_no_verdict_for_ever(hub: RunningHub) -> None:
    """One shot of a timer, five minutes after the deadline, while ends sat in a buffer for an hour."""
    send(hub, [message("0000", "l15-a", "l15", "2016-04-15T10:00:00Z", jobWarningDelay="3600")])
    assert simulations(hub)["l15"]["state"] == "late"
    send(hub, [message("1100", "l15-b", "l15", "2016-04-15T10:59:00Z")])
    assert simulations(hub)["l15"]["state"] == "queued"
    assert get(hub, "/v1/simulations/l15")["slack_s"] >= 3_600


def test_l16_what_comes_again_counts_once(hub: RunningHub) -> None:
    """Records of input and output had no key: each redelivery doubled them."""
    made = scenario(Course.OK, 61, Dialect.MODERN)
    (uid,) = made.states
    for seed in range(3):
        send(hub, disturbed(made.arriving(), seed))
    written = sum(said.code == "7000" for said in made.said)
    facts = get(hub, f"/v1/simulations/{uid}/actions?limit=1000")["facts"]
    assert len(facts) == len({fact["uid"] for fact in facts}) == written
    jobs = get(hub, f"/v1/simulations/{uid}/jobs")["jobs"]
    assert sum(job["actions"] for job in jobs) == written
