"""A disk that is full, at the site and at the hub: work is delayed or refused in words, and goes on by itself
when there is space again. Nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chappe.core.errors import Unavailable
from chappe.link.http import NO_RETRY, HubClient
from chappe.sdk.config import Settings
from chappe.testing.cluster import Cluster, until
from chappe.testing.hub import HubFailed
from tests.conftest import Require
from tests.integration.hub_rig import raw

SIZE_MIB = 32
_PIECE = 4096

Mount = Callable[[str], "SmallDisk"]


class SmallDisk:
    """A file system of a few MiB that can be filled to the last byte."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Leave no space. What others free meanwhile is taken too."""
        with self._ballast.open("ab", buffering=0) as file:
            piece = bytes(1024 * 1024)
            while piece:
                try:
                    file.write(piece)
                except OSError:
                    piece = piece[: len(piece) // 2]

    def free(self) -> None:
        """Give the space back."""
        self._ballast.unlink()


@pytest.fixture
def small_disk(tmp_path: Path, require: Require) -> Iterator[SmallDisk]:
    path = tmp_path / "small"
    path.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=700", "chappe-test", path],
            check=False,
            capture_output=True,
        ).returncode
    )
    require(mounted, "small file system", "run the tests as root, where tmpfs may be mounted")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def test_at_the_site(tmp_path: Path, small_disk: SmallDisk) -> None:
    """What runs goes on and its end is told; nothing begins that a restarted pilot would not know of."""
    with Cluster(tmp_path / "cluster") as cluster:
        site = cluster.site("paris", root=small_disk.path / "paris")
        site.start()
        cluster.offers(site)
        full = tmp_path / "full"
        running = cluster.submit(4, site, gate=full)
        until(lambda: all(v.state == "RUNNING" for v in cluster.views(running)), "they run")
        small_disk.fill()
        full.touch()
        waiting = cluster.submit(40, site)
        cluster.wait(running)
        until(lambda: _paused(cluster), "the pilot says why it starts nothing")
        small_disk.fill()
        assert all(v.phase in ("runnable", "running") for v in cluster.views(waiting))
        # A pilot that is restarted meanwhile can write nothing down, and must not make things worse.
        site.signal(site.pilots())
        until(site.pilots, "another pilot")
        small_disk.free()
        more = cluster.submit(10, site, app="trace-result")
        jobs = running + waiting + more
        cluster.wait(jobs)
        views = cluster.judge(jobs)
        assert {(v.state, v.attempt) for v in views} == {("JOB_FINISHED", 1)}, cluster.describe(
            jobs
        )


def _paused(cluster: Cluster) -> bool:
    (site,) = cluster.sites
    return any("space" in str(line) for line in site.log()) or bool(site.logged("paused"))


async def ask_for_a_token(settings: Settings) -> None:
    """A small request that writes; said once."""
    async with HubClient(settings.url, settings.token, ca_file=settings.ca_file) as hub:
        await hub.request("POST", "/v1/tokens", b"{}", retry=NO_RETRY)


def test_at_the_hub(tmp_path: Path, small_disk: SmallDisk) -> None:
    """Requests that write are refused in words; readers are served; ends wait with their pilots. A hub that
    begins on a full disk says so, and leaves its database as it is."""
    with Cluster(tmp_path / "cluster", data=small_disk.path / "hub") as cluster:
        site = cluster.site("paris")
        site.start()
        cluster.offers(site)
        full = tmp_path / "full"
        jobs = cluster.submit(4, site, gate=full)
        until(lambda: all(v.state == "RUNNING" for v in cluster.views(jobs)), "they run")
        small_disk.fill()
        full.touch()
        until(lambda: not site.jobs(), "they have ended")
        with pytest.raises(Unavailable, match="disk is full") as refused:
            asyncio.run(ask_for_a_token(cluster.client.settings))
        assert refused.value.code == "disk_full"
        assert refused.value.transient
        ready = raw(cluster.hub, "GET", "/readyz")
        assert (ready.status, b"disk is full" in ready.body) == (503, True)
        assert cluster.ended(jobs) == 0
        assert cluster.hub.process.poll() is None
        until(lambda: site.logged("sync.failed"), "the pilot is refused too")
        small_disk.free()
        until(lambda: raw(cluster.hub, "GET", "/readyz").status == 200, "it is ready again")
        jobs += cluster.submit(20, site)
        cluster.wait(jobs)
        views = cluster.judge(jobs)
        assert {(v.state, v.attempt) for v in views} == {("JOB_FINISHED", 1)}, cluster.describe(
            jobs
        )
        cluster.hub.stop()
        small_disk.fill()
        with pytest.raises(HubFailed, match="is there space on its disk"):
            cluster.hub.start()
        small_disk.free()
        cluster.hub.start()
        more = cluster.submit(20, site)
        cluster.wait(more)
        cluster.judge(jobs + more)
