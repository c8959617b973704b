"""Programs that are MPI programs, and pilots on emulated nodes that start them by the real Open MPI."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.integration.pilot_rig import Pilot, RealSite, until

HOW_TO_GET = "apt-get install openmpi-bin libopenmpi-dev gcc"

#: Each rank says where it is, once all have spoken to each other; then, with arguments, all wait.
RING = """\
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
    int rank, size, sum;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    printf("%d %d %d %s %d %s %s\\n", rank, size, sum, getenv("CHAPPE_NODE"), getpid(),
           getenv("CHAPPE_JOB_ID"), getenv("OMP_NUM_THREADS"));
    fflush(stdout);
    while (argc > 1) sleep(1);
    MPI_Finalize();
    return 0;
}
"""


def there() -> bool:
    """Whether this machine has Open MPI and a compiler for it."""
    return all(shutil.which(name) for name in ("mpiexec.openmpi", "mpicc", "gcc"))


def compile_ring(directory: Path) -> Path:
    """The program, compiled."""
    source, program = directory / "ring.c", directory / "ring"
    source.write_text(RING)
    subprocess.run(["mpicc", "-o", program, source], check=True, timeout=60)
    return program


async def mpi_pilot(site: RealSite, nodes: int = 2, slots: int = 2, **options: object) -> Pilot:
    """A pilot on emulated nodes with all its hands, whose launcher of ranks is Open MPI."""
    hosts = {"kind": "emulated", "nodes": nodes}
    given = {"slots": slots, "launch": {"ranks": "openmpi"}, **options}
    pilot = await site.session(given, hosts=hosts)
    await pilot.start()
    await until(lambda: len(pilot.logged("hand.joined")) == nodes - 1, "all hands join")
    return pilot


def said(site: RealSite, job: str, attempt: int = 1) -> list[list[str]]:
    """What the ranks of a Job said, by rank; complete lines only."""
    path = site.dir.path / f"data/jobs/{job}/attempt-{attempt}/stdout.log"
    text = path.read_text() if path.exists() else ""
    lines = [line.split() for line in text.splitlines()]
    return sorted((line for line in lines if len(line) == 7), key=lambda line: int(line[0]))
