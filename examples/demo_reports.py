"""What the simulations of the demonstration tell: watched while they run, and checked at the end.

The model reports by HTTPS from one Site, through the agent from the other, where simulations only append to a
file, and by mail from a run that is no Job at all.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from demo_view import View
from demo_world import CHAPPE, CODE, World, WorldError
from rich.console import Console

from chappe import AsyncClient

sys.path.insert(0, str(CODE))
from report import ENERGY
from results import MemberSummary

ADDRESS = "messages@demo.example"
PROJECT = "default"
OVER_S = 60.0
OVER = ("complete", "error")
TOLERANCE = float(np.finfo(np.float32).eps)
"""Relative: the velocities in the files are float32."""

MAIL = f"""
[[source]]
name = "outside"
project = "{PROJECT}"
recipients = ["{ADDRESS}"]
unsigned = true

[[listen]]
kind = "smtp"
port = @PORT@
"""


class Outside:
    """A run of the model that Chappe did not start, and that reports by mail; the Hub takes it at `port`."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.directory = directory / "outside"
        self.config = directory / "mail.toml"
        self.config.write_text(MAIL.replace("@PORT@", str(self.port)))
        self.uid = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin the run."""
        self.directory.mkdir()
        new = [str(Path(CHAPPE).with_name("chappe-emit")), "new"]
        self.uid = subprocess.run(new, capture_output=True, text=True, check=True).stdout.strip()
        told = {
            "TRANSPORTS": "mail,spool",
            "MAIL_SMTP": f"127.0.0.1:{self.port}",
            "MAIL_TO": ADDRESS,
            "MAIL_MESSAGES": "10",
            "SPOOL": str(self.directory / "spool"),
            "SIMULATION": self.uid,
        }
        options = ["--experiment=turbulence", "--seed=99", "--days=20", "--n=64"]
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(CODE / "model.py"), *options, f"--out={self.directory}"],
                env=os.environ | {f"CHAPPE_EMIT_{name}": value for name, value in told.items()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End it, if it has not ended."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


async def follow(client: AsyncClient, view: View, cursor: str) -> None:
    """Show what simulations tell from `cursor` on, for ever."""
    async for event in client.events(follow=True, cursor=cursor, kinds=["simulation"]):
        view.reported(event)


async def all_over(view: View) -> None:
    """Wait until each simulation has told its end. Raises WorldError."""
    try:
        async with asyncio.timeout(OVER_S):
            while not all(row.simulation in OVER for row in view.rows.values() if row.reports):
                await view.heard()
    except TimeoutError:
        missing = [r.name for r in view.rows.values() if r.reports and r.simulation not in OVER]
        raise WorldError(f"no end was heard of: {', '.join(missing)}") from None


async def check_energies(
    client: AsyncClient, console: Console, ids: Mapping[str, str], found: Iterable[MemberSummary]
) -> bool:
    """Compare what was told with the velocities in the files, by record; `ids`: simulations by name."""
    compared, worst = 0, 0.0
    for member in found:
        told = await energies(client, ids[member.name])
        if len(told) != len(member.kinetic_energy):
            console.print(f"{member.name}: {len(told)} energies were told", style="bold red")
            return False
        off = np.abs(np.array(told) / member.kinetic_energy - 1)
        compared, worst = compared + len(told), max(worst, float(off.max()))
    right = compared > 0 and worst <= TOLERANCE
    console.print(
        f"{compared} kinetic energies that were told, and those recomputed from the velocities in the "
        f"netCDF files, differ by at most {worst:.1e} (float32: {TOLERANCE:.1e})",
        style="green" if right else "bold red",
    )
    return right


async def energies(client: AsyncClient, uid: str) -> list[float]:
    """The energies that a simulation told, by step; a step that was repeated counts once."""
    listed = await client.messages.ls(10_000, simulation=uid, type="metric")
    steps: dict[int, float] = {}
    for at in range(0, len(listed), 20):
        shown = [client.messages.show(message.uid) for message in listed[at : at + 20]]
        for message in await asyncio.gather(*shown):
            fields = message.fields or {}
            if fields["name"] == ENERGY:
                steps[int(fields["step"])] = float(fields["value"])
    return [steps[step] for step in sorted(steps)]


async def verify(client: AsyncClient, world: World, console: Console, simulations: int) -> bool:
    """Let `chappe message verify` look for gaps, and say by which door how much came."""
    done = await asyncio.to_thread(
        subprocess.run,
        [CHAPPE, "message", "verify"],
        env=os.environ | world.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    streams, _ = await client.messages.streams()
    doors: dict[str, int] = {}
    for source in (await client.messages.stats()).sources:
        doors[source.door] = doors.get(source.door, 0) + source.stored
    count = sum(doors.values())
    by_door = ", ".join(f"{number} by {door}" for door, number in sorted(doors.items()))
    right = done.returncode == 0 and len(streams) >= simulations and len(doors) == 3
    console.print(
        f"{count} messages came ({by_door}), in {len(streams)} streams; chappe message verify: "
        f"{'no gap' if done.returncode == 0 else done.stdout + done.stderr}",
        style="green" if right else "bold red",
        soft_wrap=True,
    )
    return right
