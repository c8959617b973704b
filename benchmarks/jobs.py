"""Jobs to measure with: encoded, hashed and signed exactly as the SDK does."""

from __future__ import annotations

from pathlib import Path

import msgspec

from chappe.core.jobs import AppRef, JobSpec, Resources
from chappe.link.clock import new_id, now
from chappe.link.keys import load_or_create
from chappe.link.signing import make_submissions
from chappe.wire.jobs import CreateJobs, NewJob

A_DAY_S = 86_400.0
PLAIN = Resources()


class Maker:
    """Makes bodies of `POST /v1/jobs` for one Site and one App."""

    def __init__(self, key: Path, project: str, site: str, app: str = "true") -> None:
        self._key = load_or_create(key)
        self._project = project
        self._sites = (site,)
        self._app = AppRef(app)

    def body(self, n: int, resources: Resources = PLAIN) -> bytes:
        """A request that creates `n` new Jobs, signed."""
        specs = [
            msgspec.json.encode(
                JobSpec(new_id(), self._project, self._sites, self._app, resources=resources)
            )
            for _ in range(n)
        ]
        submissions = make_submissions(self._key, self._project, specs, now() + A_DAY_S)
        jobs = [
            NewJob(msgspec.Raw(s), submission=i // 1000, idx=i % 1000) for i, s in enumerate(specs)
        ]
        return msgspec.json.encode(CreateJobs(jobs, submissions))


def shapes(count: int, fitting: int) -> list[Resources]:
    """`count` different needs, of which `fitting` fit a node of 2 cores and 8 GB."""
    fit = [Resources(cores=1 + i % 2, mem_bytes=(i // 2) * 1_000_000) for i in range(fitting)]
    misfit = [Resources(cores=3 + i, mem_bytes=1_000_000_000) for i in range(count - fitting)]
    return fit + misfit
