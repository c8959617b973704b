"""The demonstration's world on a private Slurm: the Sites get their allocations from its scheduler, from none
to as many as the work needs, and back to none."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from demo_world import CHAPPE, STOP_S, World, WorldError

from chappe.site.calls import read_record
from chappe.site.paths import SitePaths
from chappe.testing.daemons import until
from chappe.testing.site import configure
from chappe.testing.slurm import SlurmCluster

NODES = 4
IDLE_S = 5.0
START_S = 120.0
ENDED_WITHIN_S = 180.0


class SlurmWorld(World):
    """A Hub, and Sites that are two users' directories at one cluster of four emulated nodes."""

    @property
    def explanation(self) -> str:
        """Where the Sites are."""
        return (
            f"a private Slurm of {NODES} emulated nodes on this machine; its jobs are not isolated"
        )

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.slurm = SlurmCluster.start(nodes=NODES, cpus=2)
        self.environment |= self.slurm.environ
        self._made: list[Path] = []

    def add_site(self, name: str) -> None:
        """Make a Site that gets allocations of one node as its Jobs need them, and start its agent."""
        directory = self.make_site(name)
        toml = directory / "site.toml"
        configure(toml, "scheduler", kind="slurm", status_interval_s=5.0, status_fast_s=2.0)
        configure(toml, "policy", submissions_per_s=1.0, queued_max=NODES)
        configure(toml, "pilot", keep=0, cores=2, wall_s=900.0, idle_s=IDLE_S, drain_s=5.0)
        configure(
            toml,
            "elastic",
            policy="fit",
            maximum=NODES // 2,
            within_s=30.0,
            idle_s=IDLE_S,
            assumed_s=20.0,
            node_cores=2,
            wall_s=900.0,
        )
        self._made.append(directory)
        self._chappe("site", "start", str(directory), within_s=START_S)

    def allocations(self, *states: str) -> list[str]:
        """Slurm's ids of our allocations in one of these states."""
        return [job for job, _, state in self.slurm.jobs() if state in states]

    def kill_one(self) -> str:
        """Kill an allocation that runs, without a warning; Slurm's id of it."""
        until(lambda: self.allocations("RUNNING"), "an allocation runs")
        victim = self.allocations("RUNNING")[0]
        self.slurm.run("scancel", "--full", "--signal=KILL", victim)
        return victim

    def await_none(self) -> None:
        """Wait until no allocation is left."""
        active = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")
        until(lambda: not self.allocations(*active), "no allocation is left", ENDED_WITHIN_S)

    def calls(self) -> dict[str, int]:
        """How often all Sites called the scheduler, by kind."""
        counts: dict[str, int] = {}
        for directory in self._made:
            record = read_record(SitePaths.of(directory).calls)
            for kind, count in (record.counts if record else {}).items():
                counts[kind] = counts.get(kind, 0) + count.calls
        return counts

    def stop(self) -> None:
        """End the agents, the allocations with the cluster, and the Hub."""
        for directory in self._made:
            try:
                self._chappe("site", "stop", str(directory), within_s=STOP_S)
            except (WorldError, subprocess.TimeoutExpired) as error:
                print(error)
        self.slurm.close()
        super().stop()

    def _chappe(self, *words: str, within_s: float) -> None:
        done = subprocess.run(
            [CHAPPE, *words],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        if done.returncode != 0:
            raise WorldError(f"chappe {' '.join(words)}:\n{done.stdout}{done.stderr}")
