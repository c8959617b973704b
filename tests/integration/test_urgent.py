"""Beam time: an urgent Job starts at once at a Site whose cores are all wanted by others."""

from __future__ import annotations

from pathlib import Path

from chappe.site import daemon
from chappe.site.init import HubAccess, init_site
from chappe.testing.cluster import until
from chappe.testing.hub import start_hub
from tests.integration.sdk_rig import SITE, WITHIN_S, Place


def test_an_urgent_job_passes_those_that_fill_the_site(tmp_path: Path) -> None:
    with start_hub(tmp_path / "hub") as hub:
        place = Place(hub, tmp_path)
        site = tmp_path / SITE
        with place.client() as client:
            init_site(site, SITE, HubAccess(hub.url, hub.token, hub.ca_file), client.public_key())
            config = (site / "site.toml").read_text()
            for name, value in (("slots", 3), ("urgent_cores", 1)):
                assert f"# {name} = 0" in config
                config = config.replace(f"# {name} = 0", f"{name} = {value}")
            config = config.replace("# keep = 1", "keep = 0")
            (site / "site.toml").write_text(config)
            daemon.start(site)
            until(lambda: client.admin.sites()[0].online, "an agent")
            pilot = client.admin.new_batch_job(SITE)
            try:
                gate = tmp_path / "gate"
                wait = f"until [ -e {gate} ]; do sleep 0.05; done"
                many = client.run(SITE, ["sh", "-c", wait], array="1-6")
                until(lambda: client.count(state="RUNNING").count == 2, "two that run")
                urgent = client.run(SITE, ["true"], priority=100)
                urgent.wait(timeout_s=WITHIN_S)
                assert urgent.ok
                assert client.count(state="RUNNING").count == 2
                gate.touch()
                # One that needs more than what is left to all is not shut out.
                whole = client.run(SITE, ["true"], cores=3)
                client.wait_all([*many, whole], timeout_s=WITHIN_S)
                assert all(job.ok for job in [*many, whole])
            finally:
                client.admin.cancel_batch_job(pilot.id)
                over = ("ended", "failed", "cancelled")
                try:
                    until(lambda: client.admin.batch_jobs()[0].state in over, "the pilot's end")
                finally:
                    daemon.stop(site)
