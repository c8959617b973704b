"""The demonstration: an ensemble of a real model at two sites, through a hub, with a plot.

`./run demo` starts a Hub and two Sites, runs twelve members of a barotropic vorticity model (one breaks the
CFL limit, and must fail), checks those that succeeded against theory where they ran, and draws all in one
picture. They report while they run, by HTTPS, spool and mail, and nothing of that may be lost. Exit status
0: every Job ended as it should, and every check holds. With `--site slurm` both Sites
get allocations from a private Slurm, from none and back to none, and one of them is killed on the way.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from demo_reports import Outside, all_over, check_energies, follow, verify
from demo_slurm import SlurmWorld
from demo_view import Row, View, final_table
from demo_world import CHAPPE, CODE, World, WorldError
from rich.console import Console

from chappe import AsyncClient, AsyncJob, ChappeError, Draft, JobView, ResultFile

sys.path.insert(0, str(CODE))
import results
from members import MEMBERS, SITES
from results import MemberSummary

LIMIT_S = 600.0
PICTURE = Path(__file__).resolve().parents[1] / ".state" / "ensemble.png"
SHOWN = ("phase speed", "energy kept", "enstrophy kept")
FINISHED = "JOB_FINISHED"


class Plan:
    """The Jobs: the members, an analysis at each Site, and one picture of both."""

    def __init__(self, client: AsyncClient) -> None:
        model = {site: client.app("barotropic", site=site) for site in SITES}
        self.members = [
            model[member.site].options(name=member.name, tags={"demo": "member"})(member.parameters)
            for member in MEMBERS
        ]
        self.analyses = [
            client.app("analyse", site=site).options(
                name=f"analyse-{site}",
                parents=[d for d, m in zip(self.members, MEMBERS, strict=True) if m.site == site],
                on_parent_failure="succeeded",
            )()
            for site in SITES
        ]
        # Either Site may draw: both results come to it through the Hub.
        compare = client.app("compare", sites=SITES)
        self.picture = compare.options(name="compare", parents=self.analyses)()
        self.drafts: list[Draft] = [*self.members, *self.analyses, self.picture]
        self.expected = {draft.id: FINISHED for draft in self.drafts} | {
            draft.id: member.expected_state
            for draft, member in zip(self.members, MEMBERS, strict=True)
        }

    def rows(self, outside: Outside) -> dict[str, Row]:
        """For the live view. Members are simulations, and have the ids of their Jobs."""
        members = {d.id for d in self.members}
        rows = {
            d.id: Row(d.name, "|".join(d.template.sites), reports=d.id in members)
            for d in self.drafts
        }
        return rows | {outside.uid: Row("outside", "by mail", job=False, reports=True)}


async def run(world: World, outside: Outside, console: Console, output: Path) -> bool:
    """Submit, watch, collect, check. Returns whether all is as it should be."""
    async with AsyncClient(config_file=world.config, key=world.key) as client:
        await sites_ready(client, pilots=not isinstance(world, SlurmWorld))
        plan = Plan(client)
        cursor = await client.cursor()
        await asyncio.to_thread(outside.start)
        jobs = await client.submit(plan.drafts)
        console.print(f"submitted {len(jobs)} jobs in one signed request\n")
        view = View(console, plan.rows(outside))
        with view.live():
            await watch(world, client, view, jobs, cursor)
        views = [await job.refresh() for job in jobs]
        console.print(f"\nall jobs have ended after {time.monotonic() - view.began:.1f} s\n")
        console.print(final_table(views, await client.site_names(), plan.expected))
        right = all(v.state == plan.expected[v.id] for v in views)
        *analyses, picture = jobs[len(plan.members) :]
        found: list[MemberSummary] = []
        for job in analyses:
            right = report_checks(console, await result_of(job), job.name, found) and right
        ids = {draft.name: draft.id for draft in plan.members}
        console.print()
        right = await check_energies(client, console, ids, found) and right
        right = await verify(client, world, console, len(MEMBERS) + 1) and right
        right = right_ends(console, view) and right
        png = await result_of(picture)
        if png is not None:
            console.print(f"\npicture: {png.save(output)}", style="bold", soft_wrap=True)
        explain_failure(console, views)
        if isinstance(world, SlurmWorld):
            await asyncio.to_thread(world.await_none)
            calls = ", ".join(f"{kind} {count}" for kind, count in sorted(world.calls().items()))
            console.print(f"no allocation is left; calls to the scheduler: {calls}")
        return right and png is not None


async def watch(
    world: World, client: AsyncClient, view: View, jobs: list[AsyncJob], cursor: str
) -> None:
    """Show what happens until all Jobs have ended, and all simulations have said so."""
    following = asyncio.create_task(follow(client, view, cursor))
    killed = ""
    try:
        async for event in client.changes(jobs):
            view.told(event)
            if isinstance(world, SlurmWorld) and event.new == FINISHED and not killed:
                killed = await asyncio.to_thread(world.kill_one)
                view.console.print(
                    f"killed Slurm's job {killed}, an allocation with what runs in it"
                )
        await all_over(view)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def right_ends(console: Console, view: View) -> bool:
    """Whether each simulation has told the end that its Job had."""
    wrong = [
        f"{row.name} is {row.simulation}"
        for row in view.rows.values()
        if row.reports and (row.simulation == "error") != (row.phase == "failed")
    ]
    for words in wrong:
        console.print(f"simulation {words}", style="bold red")
    return not wrong


async def sites_ready(client: AsyncClient, *, pilots: bool) -> None:
    """Return once every Site offers its Apps, and has a pilot where `pilots` are kept; the feed says when to
    look again."""
    # The position first, then the state: what changes in between is told.
    changes = client.events(follow=True, cursor=await client.cursor(), kinds=["site", "session"])
    while True:
        offered = {app.site for app in await client.apps() if app.name == "compare"}
        if all(
            site.id in offered
            and (not pilots or any(pilot.state == "live" for pilot in site.sessions))
            for site in await client.sites()
        ):
            return
        await anext(changes)


async def result_of(job: AsyncJob) -> ResultFile | None:
    """A Job's result, None when it failed: the table has shown that already."""
    return await job.result_file() if job.ok else None


def report_checks(
    console: Console, result: ResultFile | None, name: str, members: list[MemberSummary]
) -> bool:
    """Print a Site's checks against theory, and add its members; whether all hold and none is missing."""
    if result is None:
        console.print(f"{name}: no result", style="bold red")
        return False
    with tempfile.TemporaryDirectory() as directory:
        found = results.load(result.save(Path(directory) / "analysis.npz"))
    members += found.members
    held = sum(check.ok for check in found.checks)
    console.print(
        f"\n{found.site}: {held} of {len(found.checks)} checks against theory hold", style="bold"
    )
    for check in found.checks:
        if not check.ok or check.quantity in SHOWN:
            style = "green" if check.ok else "bold red"
            console.print(f"  {check}", style=style, highlight=False, soft_wrap=True)
    failed = {m.name for m in MEMBERS if m.site == found.site and m.expected_state != FINISHED}
    return bool(found.checks) and all(c.ok for c in found.checks) and set(found.absent) == failed


def explain_failure(console: Console, views: list[JobView]) -> None:
    """Say why the members failed that did: the kept end of their stderr tells."""
    for view in views:
        if view.state == "FAILED" and view.outcome is not None:
            words = view.outcome.tail.strip().splitlines() or [view.outcome.message]
            console.print(f"{view.name} failed: {words[-1]}", style="dim", soft_wrap=True)


@contextmanager
def a_world(console: Console, directory: Path, kind: str) -> Iterator[tuple[World, Outside]]:
    """The Hub, the Sites, and a run outside of them, stopped in order whatever happens."""
    world = SlurmWorld(directory) if kind == "slurm" else World(directory)
    outside = Outside(directory)
    world.mail = outside.config
    console.print(world.explanation, style="dim")
    try:
        began = time.monotonic()
        world.start_hub()
        console.print(
            f"hub ready at {world.url} after {time.monotonic() - began:.1f} s (first start)"
        )
        for site in SITES:
            began = time.monotonic()
            world.add_site(site)
            console.print(f"site {site} started after {time.monotonic() - began:.1f} s")
        yield world, outside
    finally:
        outside.stop()
        world.stop()


def keep(world: World, console: Console) -> None:
    """Leave all up until Ctrl-C, and say how to look around."""
    settings = " ".join(f"{name}={value}" for name, value in world.environment.items())
    lines = [
        "The hub and the sites stay up until Ctrl-C. In another terminal:",
        f"export {settings}",
    ]
    lines += [
        f"{CHAPPE} {words}"
        for words in ("job ls", "run paris -- hostname", "session ls", "events -f", "doctor")
    ]
    lines.append(f"The sites' directories, with the model's output, are in {world.directory}")
    console.print("\n  ".join(["", *lines]), soft_wrap=True, highlight=False)
    with suppress(KeyboardInterrupt):
        threading.Event().wait()


async def limited(world: World, outside: Outside, console: Console, output: Path) -> bool:
    """`run`, which must end some day."""
    async with asyncio.timeout(LIMIT_S):
        return await run(world, outside, console, output)


def main() -> int:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description="An ensemble at two sites, through a hub.")
    parser.add_argument("--keep", action="store_true", help="leave hub and sites up at the end")
    parser.add_argument("--output", type=Path, default=PICTURE, help="the picture (%(default)s)")
    parser.add_argument(
        "--site",
        choices=("local", "slurm"),
        default="local",
        help="slurm: get allocations from a private Slurm, elastic, one of them killed on the way",
    )
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # what we started must not outlive us
    console = Console()
    directory = Path(tempfile.mkdtemp(prefix="chappe-demo-"))
    good = False
    try:
        with a_world(console, directory, options.site) as (world, outside):
            good = asyncio.run(limited(world, outside, console, options.output.absolute()))
            if options.keep:
                keep(world, console)
    except (ChappeError, WorldError, TimeoutError, RuntimeError) as error:
        console.print(f"{type(error).__name__}: {error}", style="bold red")
    except KeyboardInterrupt:
        console.print("stopped")
    if good:
        shutil.rmtree(directory)
        return 0
    console.print(
        f"not all is as it should be; logs and output are in {directory}", style="bold red"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
