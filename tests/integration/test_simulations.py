"""Simulations over a real Hub: what is told is seen, by REST, SDK and command line."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from chappe import NotFound
from chappe.core.messages import decode
from chappe.sdk.errors import Ambiguous
from chappe.testing.hub import start_hub
from chappe.testing.simulations import Course, Dialect, Scenario, disturbed, scenario
from tests.integration.hub_rig import raw
from tests.integration.sdk_rig import Place

LINES = {"content-type": "application/x-ndjson"}
numbers = itertools.count()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("simulations")
    with start_hub(directory / "hub") as hub:
        yield Place(hub, directory)


def send(place: Place, raws: Sequence[bytes], token: str | None = None) -> list[dict[str, Any]]:
    token = token or place.hub.token
    for at in range(0, len(raws), 200):
        body = b"\n".join(raws[at : at + 200])
        answer = raw(place.hub, "POST", "/v1/messages", token, body, LINES)
        assert answer.status == 202, answer.body
    verdicts: list[dict[str, Any]] = json.loads(answer.body)["verdicts"]
    return verdicts


def tell(place: Place, type: str, simulation: str, token: str | None = None, **fields: Any) -> None:
    said = {
        "msgProducer": "chappe",
        "msgType": type,
        "msgUID": f"u{next(numbers)}",
        "msgTimestamp": "2026-01-01T00:00:00Z",
        "simuid": simulation,
    }
    send(place, [json.dumps(said | fields).encode()], token)


def played(place: Place, course: Course, seed: int) -> tuple[Scenario, str]:
    """A scenario that was sent in any order; the simulation that a list shows of it."""
    made = scenario(course, seed, Dialect.MODERN, storm=20)
    send(place, disturbed(made.arriving(), seed))
    (active,) = made.active
    return made, active


def test_what_is_told_is_seen(place: Place) -> None:
    made, uid = played(place, Course.OK, 100)
    with place.client() as client:
        (view,) = client.simulations(name="ok.100")
        assert (view.id, view.state, view.active, view.try_number) == (uid, "complete", True, 1)
        assert (view.machine, view.producer, view.messages) == ("curie", "main", len(made.said))
        assert view.progress == pytest.approx(241 / 363)
        assert view.jobs == {"compute.complete": 4, "post.complete": 1}
        simulation = client.simulation(uid[:12])
        detail = simulation.show()
        assert detail.types["job.period"] == len(simulation.periods()) == 8
        assert detail.reached == "1850-08-30"
        assert detail.fields["startDate"] == "1850-01-01"
        assert len(simulation.actions()) == 8
        assert simulation.commands() == []
        jobs = simulation.jobs()
        assert [job.kind for job in jobs] == ["compute"] * 4 + ["post"]
        assert jobs[0].deadline_at == (jobs[0].started_at or 0) + 86_400
        with pytest.raises(NotFound):
            simulation.card()
        tell(place, "simulation.card", uid, card="CalendarType=360d\n")
        detail = simulation.show()
        assert (detail.calendar, detail.has_card) == ("360_day", True)
        assert detail.progress == pytest.approx(239 / 359)


def test_filters_and_pages(place: Place) -> None:
    shown = {played(place, Course.ERROR, seed)[1] for seed in range(200, 205)}
    with place.client() as client:
        assert {v.id for v in client.simulations(name_prefix="error.20")} == shown
        assert {v.id for v in client.simulations(state="error", machine="curie")} >= shown
        assert list(client.simulations(state="error", machine="nowhere")) == []
        assert len(list(client.simulations(3, name_prefix="error.20"))) == 3
        started = sorted(v.started_at or 0.0 for v in client.simulations(name_prefix="error.20"))
        later = client.simulations(name_prefix="error.20", started_since=started[2])
        assert len(list(later)) == 3
        with pytest.raises(NotFound, match="no producer"):
            list(client.simulations(producer="nobody"))
    answer = raw(place.hub, "GET", "/v1/simulations?limit=2&name_prefix=error.20", place.hub.token)
    page = json.loads(answer.body)
    seen = [v["id"] for v in page["simulations"]]
    while page["cursor"] is not None:
        path = f"/v1/simulations?limit=2&name_prefix=error.20&cursor={page['cursor']}"
        page = json.loads(raw(place.hub, "GET", path, place.hub.token).body)
        seen += [v["id"] for v in page["simulations"]]
    assert len(seen) == len(set(seen)) == 5
    for bad in ("cursor=x", "state=happy", "name_prefix=", "limit=0", "unknown=1"):
        assert raw(place.hub, "GET", f"/v1/simulations?{bad}", place.hub.token).status == 422


def test_tries_and_their_cards(place: Place) -> None:
    made, active = played(place, Course.NEW_TRY, 300)
    (first,) = set(made.states) - {active}
    tell(place, "simulation.card", first, card="a=1\nb=2\n")
    tell(place, "simulation.card", active, card="a=1\nb=3\n")
    with place.client() as client:
        assert [v.id for v in client.simulations(name="new_try.300")] == [active]
        assert len(list(client.simulations(name="new_try.300", all=True))) == 2
        tries = client.simulation(active).show().tries
    assert [(t.number, t.id, t.active) for t in tries] == [(1, first, False), (2, active, True)]
    assert place.chappe("sim", "card", active).stdout == "a=1\nb=3\n"
    diff = place.chappe("sim", "card", active, "--diff", "1").stdout.splitlines()
    assert diff[3:] == [" a=1", "-b=2", "+b=3"]
    assert place.chappe("sim", "card", active, "--diff", first).stdout.splitlines() == diff


def test_the_command_line(place: Place) -> None:
    _, uid = played(place, Course.STORM, 400)
    listed = place.chappe("sim", "ls", "--name", "storm.4*", "--state", "error")
    assert listed.returncode == 0
    assert uid[:13] in listed.stdout
    assert "1e" in listed.stdout
    shown = place.chappe("sim", "show", uid[:13])
    assert "command.failed" in shown.stdout
    (job,) = map(json.loads, place.chappe("sim", "jobs", uid, "--json").stdout.splitlines())
    assert (job["state"], job["commands"]) == ("error", 20)
    assert place.chappe("sim", "show", "no-such-simulation").returncode == 3
    empty = place.chappe("sim", "ls", "--name", "nobody")
    assert empty.stdout.strip() == "no simulations"


def test_l12_a_purge_hides_it_for_ever(place: Place) -> None:
    made, uid = played(place, Course.OK, 500)
    refused = place.chappe("sim", "purge", uid, stdin="n\n")
    assert refused.returncode == 1
    assert place.chappe("sim", "purge", uid, "--yes").returncode == 0
    assert place.chappe("sim", "purge", uid, "--yes").returncode == 0
    send(place, made.arriving())
    tell(place, "job.started", uid, jobuid="later")
    with place.client() as client:
        assert list(client.simulations(name="ok.500")) == []
        (view,) = client.simulations(name="ok.500", all=True)
        assert (view.purged, view.active) == (True, False)
        # One message says so, however often it was asked for; those that were there stay.
        assert client.simulation(uid).show().types["simulation.purged"] == 1
        assert view.messages == len(made.said) + 2


def test_changes_are_watched_as_they_come(place: Place) -> None:
    _, uid = played(place, Course.CANCELLED, 600)
    seen = threading.Event()

    def tells() -> None:
        for step in range(1_000):
            if not seen.is_set():
                tell(place, "metric", uid, name="energy", value=step)

    telling = threading.Thread(target=tells)
    with place.client() as client:
        telling.start()
        with closing(client.simulation(uid).watch()) as events:
            event = next(events)
        seen.set()
        telling.join()
    assert (event.subject, event.data["types"]) == (uid, {"metric": 1})
    assert "energy" in event.data["metrics"]


def test_two_producers_may_tell_of_the_same_id(place: Place) -> None:
    made = raw(
        place.hub,
        "POST",
        "/v1/producers",
        place.hub.token,
        b'{"name":"mail"}',
        {"content-type": "application/json"},
    )
    token = json.loads(made.body)["token"]
    tell(place, "simulation.started", "shared-id", name="ours", jobWarningDelay="NONE")
    tell(place, "simulation.started", "shared-id", token, name="theirs")
    tell(place, "simulation.purged", "shared-id", token)
    with place.client() as client:
        with pytest.raises(Ambiguous):
            client.simulation("shared-id")
        assert client.simulation("shared-id", "mail").show().purged
        ours = client.simulation("shared-id", "main").show()
        assert (ours.name, ours.purged, ours.state) == ("ours", False, "running")
    answer = raw(place.hub, "GET", "/v1/simulations/shared-id", place.hub.token)
    assert (answer.status, answer.error["field"]) == (409, "producer")


def test_a_scenario_decodes(place: Place) -> None:
    """The generator's messages are such as the door takes: none is in quarantine."""
    made, _ = played(place, Course.CONTINUATION, 700)
    verdicts = send(place, made.arriving())
    assert {v["verdict"] for v in verdicts} == {"duplicate"}
    assert all(decode(raw_).simulation for raw_ in made.arriving())


def test_what_it_said_and_measured(place: Place) -> None:
    tell(place, "simulation.started", "measured", jobWarningDelay="NONE")
    for step in range(3):
        tell(place, "metric", "measured", name="energy", value=step + 0.5, step=step)
    tell(place, "metric", "measured", name="mass", value=7)
    with place.client() as client:
        simulation = client.simulation("measured")
        said = simulation.messages()
        assert [m.type for m in said] == ["metric"] * 4 + ["simulation.started"]
        metrics = simulation.metrics()
        assert metrics.names == ["energy", "mass"]
        assert [one.count for one in simulation.metrics(["energy"])] == [3]
    frame = metrics.to_pandas()
    assert sorted(frame[frame.name == "energy"]["mean"]) == [0.5, 1.5, 2.5]
    data = metrics.to_xarray()
    assert sorted(data["energy"].values) == [0.5, 1.5, 2.5]
    assert float(data["mass"].sum()) == 7
    assert str(data["mass_at"].values[0]).startswith("2026-01-01T00:00:00")
    listed = place.chappe("sim", "messages", "measured", "--limit", "2").stdout
    assert listed.count("metric") == 2
