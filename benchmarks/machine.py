"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import sqlite3
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import percentile

_WRITES = 200


def describe(directory: Path) -> dict[str, Any]:
    """Cores, kernel, versions, load, and how long an fsync takes where the databases will be."""
    fsyncs = fsync_ms(directory)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu_model(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "directory": str(directory),
        "fsync_p50_ms": percentile(fsyncs, 50),
        "fsync_p99_ms": percentile(fsyncs, 99),
        "load_1m": os.getloadavg()[0],
    }


def in_words(machine: dict[str, Any]) -> str:
    """The description in two lines."""
    return (
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gb']} GB, "
        f"Linux {machine['kernel']}, Python {machine['python']}, SQLite {machine['sqlite']}\n"
        f"fsync p50 {machine['fsync_p50_ms']:.2f} ms, p99 {machine['fsync_p99_ms']:.2f} ms "
        f"in {machine['directory']}; load at the start {machine['load_1m']:.2f}"
    )


def cpu_model() -> str:
    """The processor's name, as the kernel tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def fsync_ms(directory: Path) -> list[float]:
    """Durations of fsyncs after appends of 4 KiB."""
    path = directory / "fsync-probe"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    taken = []
    try:
        for _ in range(_WRITES):
            os.write(fd, b"x" * 4096)
            began = time.perf_counter()
            os.fsync(fd)
            taken.append((time.perf_counter() - began) * 1e3)
    finally:
        os.close(fd)
        path.unlink()
    return taken
