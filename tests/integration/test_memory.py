"""Jobs that use more memory than they asked for, in the ways in which that can be hidden."""

from __future__ import annotations

import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chappe.core.jobs import Resources, Retries
from chappe.link.clock import new_id
from chappe.testing.hub import RunningHub
from tests.integration.pilot_rig import RealSite, until

MIB = 1 << 20
LIMIT = 150 * MIB

GREEDY = "held = bytearray(b'x') * (400 << 20); time.sleep(600)"
#: None of them is over the limit.
TOGETHER = """\
for _ in range(3): os.fork() or (globals().update(held=bytearray(b'x') * (80 << 20)), time.sleep(600))
time.sleep(600)"""
#: It leaves its parent, its session and its group.
ESCAPED = """\
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        held = bytearray(b'x') * (400 << 20)
        time.sleep(600)
    os._exit(0)
os.wait()
time.sleep(600)"""
#: 80 MiB, which five processes see: counted one by one it is 400.
SHARING = """\
held = bytearray(b'x') * (80 << 20)
gc.freeze()
for _ in range(4):
    if os.fork() == 0:
        time.sleep(4)
        os._exit(0)
for _ in range(4): os.wait()"""


@pytest.fixture
async def site(shared_hub: RunningHub, tmp_path: Path) -> AsyncIterator[RealSite]:
    hub = shared_hub
    made = RealSite(tmp_path / "site", hub.url, hub.token, hub.project, hub.ca_file or None)
    await made.register(f"paris-{new_id()}")
    yield made
    await made.close()


def python(site: RealSite, code: str, mem_bytes: int = LIMIT) -> bytes:
    script = site.dir.path / f"{new_id()}.py"
    script.write_text(f"import gc, os, time\n{code}\n")
    need = Resources(mem_bytes=mem_bytes)
    text = f"exec {shlex.quote(sys.executable)} {script}"
    return site.dir.spec("sh", text=text, resources=need, retries=Retries(max=0))


@pytest.mark.parametrize("code", [GREEDY, TOGETHER, ESCAPED], ids=["alone", "together", "escaped"])
async def test_what_goes_over_its_limit_is_ended_by_name(site: RealSite, code: str) -> None:
    pilot = await site.session({"hold_memory": True})
    await pilot.start()
    (job,) = await site.submit([python(site, code)])
    view = await site.reaches_final(job)
    assert view.outcome is not None
    assert view.outcome.reason == "memory", view.outcome
    assert f"of {LIMIT} bytes of memory" in view.outcome.message
    await until(lambda: not pilot.jobs(), "nothing of it is left")


async def test_what_many_processes_share_counts_once(site: RealSite) -> None:
    pilot = await site.session({"hold_memory": True})
    await pilot.start()
    (job,) = await site.submit([python(site, SHARING)])
    await site.reaches(job, "JOB_FINISHED")


async def test_without_the_option_or_a_limit_nobody_is_ended(site: RealSite) -> None:
    short = GREEDY.replace("600", "1")
    pilot = await site.session()
    await pilot.start()
    (job,) = await site.submit([python(site, short)])
    await site.reaches(job, "JOB_FINISHED")
    (free,) = await site.submit([python(site, short, mem_bytes=0)])
    await site.reaches(free, "JOB_FINISHED")
