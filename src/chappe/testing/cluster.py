"""A Hub with Sites, all real, and each part of them mortal: the bench of the chaos tests.

The cluster plays the part of the machines' own supervisors (systemd, an operator): while it is *tended*, a
Hub or an agent that died is started again. Pilots and launchers are started again by Chappe, or not at all.
In the end `judge` asks the history checker what really happened.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, Unpack

from chappe.core.errors import ChappeError
from chappe.sdk.drafts import Options
from chappe.sdk.errors import WaitTimeout
from chappe.sdk.sync import Client, Job
from chappe.site.init import HubAccess
from chappe.testing.history import check, read_traces
from chappe.testing.hub import HubFailed, RunningHub, start_hub
from chappe.testing.postgres import PostgresServer
from chappe.testing.relay import Relay
from chappe.testing.site import RunningSite
from chappe.wire.jobs import JobView

T = TypeVar("T")

WITHIN_S = 90.0
_LOOK_S = 0.02


def until(condition: Callable[[], T], what: str, within_s: float = WITHIN_S) -> T:
    """What `condition` returns once it is true. Raises AssertionError with `what` after `within_s`."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(_LOOK_S)
    return value


def patiently(call: Callable[[], T], within_s: float = WITHIN_S) -> T:
    """What `call` returns, repeated while the Hub is away: a client gives up after seconds."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return call()
        except ChappeError as error:
            if not error.transient or time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_S)


class Cluster:
    """One Hub, its user's client, and Sites, with all files below `directory`. A context manager.

    `database` is the server of the Hub's database where that is to be tended too; it is not closed here.
    """

    def __init__(
        self, directory: Path, *, database: PostgresServer | None = None, **hub: Any
    ) -> None:
        self.directory = directory
        self.database = database
        self.traces = directory / "traces"
        self.traces.mkdir(parents=True)
        self.hub: RunningHub = start_hub(hub.pop("data", directory / "hub"), **hub)
        self._attacked = False
        self.sites: list[RunningSite] = []
        self.relays: list[Relay] = []
        self.client = Client(config_file=self.hub.client_config, key=directory / "key")

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything."""
        self.client.close()
        for site in self.sites:
            site.close()
        for relay in self.relays:
            relay.close()
        self.hub.stop()

    # --- parts

    def site(
        self,
        name: str,
        *,
        root: Path | None = None,
        url: str | None = None,
        traces: Path | None = None,
        **more: Any,
    ) -> RunningSite:
        """A new Site, whose agent is not started yet. `url` is its way to the Hub (see `relay`); its Jobs
        trace into `traces`, by default into one directory for all Sites. For `more` see RunningSite."""
        settings = self.client.settings
        access = HubAccess(url or settings.url, settings.token, settings.ca_file)
        made = RunningSite(
            root or self.directory / name,
            access,
            self.client.public_key(),
            traces or self.traces,
            **more,
        )
        self.sites.append(made)
        return made

    def relay(self) -> tuple[Relay, str]:
        """A way to the Hub that can be cut, and its URL."""
        listener = socket.create_server(("127.0.0.1", 0))
        relay = Relay(listener, int(self.hub.url.rpartition(":")[2]))
        self.relays.append(relay)
        return relay, f"https://127.0.0.1:{relay.address[1]}"

    def kill_hub(self) -> bool:
        """Kill the Hub; whether it lived. Where the cluster is tended, only the tender reaps it."""
        lived = self.hub.process.poll() is None
        self._attacked |= lived
        self.hub.process.kill()
        return lived

    def kill_database(self, *, backend: bool = False) -> bool:
        """End the database's server as a crash does, or kill one of its processes that serve the Hub; whether
        it lived."""
        if self.database is None:
            return False
        self._attacked = True
        return self.database.kill_backend() if backend else self.database.crash()

    def tend(self) -> None:
        """Start again what died and should be there."""
        if self.database is not None and not self.database.alive:
            self.database.launch()
        if self.hub.process.poll() is not None:
            self.hub.wait_dead()
            self._attacked = False
            try:
                self.hub.start()
            except HubFailed:
                # It, or its database, was killed while it started: it is started again the next time.
                if not self._attacked:
                    raise
        for site in self.sites:
            if site.wanted and not site.agent_up:
                site.start()

    @contextmanager
    def tended(self) -> Generator[None]:
        """Tend the cluster for as long as the body runs. Raises what starting something again raised."""
        over = threading.Event()
        failures: list[BaseException] = []

        def tend() -> None:
            try:
                while not over.wait(_LOOK_S):
                    self.tend()
            except BaseException as error:  # noqa: BLE001 - raised below, where it is seen
                failures.append(error)

        tender = threading.Thread(target=tend, name="tender")
        tender.start()
        try:
            yield
        finally:
            over.set()
            tender.join()
            if failures:
                raise failures[0]

    # --- Jobs

    def offers(self, *sites: RunningSite) -> None:
        """Wait until the Hub knows the Apps of these Sites."""
        for site in sites:
            until(partial(patiently, partial(self.client.apps, site.id)), f"apps of {site.name}")

    def heard_at(self, site: RunningSite) -> float:
        """When a pilot of this Site last asked for work (seconds since 1970); 0 before the first time."""
        sessions = self.client.admin.sessions()
        return max((s.heard_at for s in sessions if s.site == site.id and s.capacity), default=0.0)

    def submit(
        self,
        count: int,
        *sites: RunningSite,
        app: str = "trace",
        beats: int | None = None,
        beat_s: float = 0.01,
        gate: Path | None = None,
        **options: Unpack[Options],
    ) -> list[Job]:
        """Submit so many Jobs, each of which may run at any of these Sites and traces what it does.

        A Job lives for `beats` beats of `beat_s` seconds, or until the file `gate` exists; without either,
        for as long as the App of its Site says.
        """
        if gate is not None:
            options["env"] = {"BEATS": "100000", "BEAT_S": "0.05", "GATE": str(gate)}
        elif beats is not None:
            options["env"] = {"BEATS": str(beats), "BEAT_S": str(beat_s)}
        draft = self.client.app(app, sites=[site.name for site in sites]).options(**options)
        drafts = [draft() for _ in range(count)]
        return patiently(lambda: self.client.submit(drafts))

    def wait(self, jobs: Sequence[Job], within_s: float = WITHIN_S) -> None:
        """Wait until all have ended. Raises AssertionError with all that helps to see why not."""
        deadline = time.monotonic() + within_s

        def wait() -> None:
            try:
                self.client.wait_all(jobs, deadline - time.monotonic())
            except WaitTimeout as late:
                raise AssertionError(f"{late}\n{self.describe(jobs)}") from None

        patiently(wait, within_s)

    def views(self, jobs: Iterable[Job]) -> list[JobView]:
        """These Jobs as the Hub shows them."""
        ids = [job.id for job in jobs]
        return patiently(lambda: list(self.client.views(ids=ids)))

    def ended(self, jobs: Iterable[Job]) -> int:
        """How many of these have ended."""
        return sum(v.phase in ("finished", "failed", "cancelled") for v in self.views(jobs))

    def judge(
        self,
        jobs: Sequence[Job],
        since: str | None = None,
        traces: Path | None = None,
        forgotten: Iterable[Job] = (),
    ) -> list[JobView]:
        """These Jobs as the Hub shows them, if nothing is wrong with their history and with all Events from
        the cursor `since` on. The traces of `forgotten` Jobs are left out. Raises AssertionError with what
        is wrong."""
        views = self.views(jobs)
        events = patiently(lambda: list(self.client.events(cursor=since)))
        traced = read_traces(traces or self.traces)
        for job in forgotten:
            traced.pop(job.id, None)
        wrong = check({view.id: view.state for view in views}, traced, events)
        if wrong:
            lines = wrong[:20]
            for id in dict.fromkeys(w.partition(":")[0] for w in lines[:3]):
                lines += [str(e) for e in events if e.subject == id]
                lines += [f"{id} {line}" for line in traced.get(id, [])]
            raise AssertionError("\n".join([*lines, self.describe(jobs)]))
        return views

    def describe(self, jobs: Sequence[Job]) -> str:
        """The state of things, for the message of a failed test."""
        views = self.views(jobs)
        open_ = [v for v in views if v.phase in ("waiting", "runnable", "running")]
        text = [f"states: {Counter(v.state for v in views)}"]
        text += [f"{v.id} {v.state} epoch {v.epoch} {v.session}" for v in open_[:5]]
        text += [reason for v in open_[:1] for reason in self.client.job(v.id).why().reasons]
        told = [line for line in self.hub.log.splitlines() if '"event":"request"' not in line]
        text += ["--- the hub's log", *told[-25:]]
        text += [site.tail() for site in self.sites]
        return "\n".join(text)
