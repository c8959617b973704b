"""Sites, Apps, allocations, Sessions and tokens: the small lists of a project, and acts on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chappe.link.clock import new_id
from chappe.link.http import HubClient
from chappe.sdk.errors import NotFound
from chappe.wire.bulk import JobCount
from chappe.wire.demand import Demand
from chappe.wire.jobs import Counts, JobFilter
from chappe.wire.sites import (
    AppView,
    BatchJobView,
    EndSession,
    Listing,
    NewBatchJob,
    NewSite,
    NewSiteReply,
    NewToken,
    SessionView,
    SiteView,
    StrictIntent,
    TokenList,
    TokenView,
)


class Admin:
    """Requests about everything but Jobs. Async; `site` is a name or an id."""

    def __init__(self, hub: HubClient) -> None:
        self._hub = hub

    async def counts(self) -> list[tuple[str, str, str, int]]:
        """How many Jobs are in each (site, app, state); site "" while none is chosen."""
        return (await self._hub.request("GET", "/v1/jobs/counts", reply=Counts)).counts

    async def count(self, where: JobFilter) -> JobCount:
        """How many Jobs match."""
        return await self._hub.request("POST", "/v1/jobs/count", where, JobCount)

    async def sites(self) -> list[SiteView]:
        """All Sites of the project."""
        return (await self._list("/v1/sites")).sites or []

    async def new_site(self, name: str) -> NewSiteReply:
        """Make a Site; the reply holds its token, this once."""
        new = NewSite(id=new_id(), name=name)
        return await self._hub.request("POST", "/v1/sites", new, NewSiteReply)

    async def new_site_token(self, site: str) -> NewSiteReply:
        """Make a Site's token anew; the one before is revoked, the reply holds the new one, this once."""
        path = f"/v1/sites/{await self._site_id(site)}/token"
        return await self._hub.request("POST", path, reply=NewSiteReply)

    async def delete_site(self, site: str) -> None:
        """Remove a Site. Raises Conflict while it has Jobs or Sessions."""
        await self._hub.request("DELETE", f"/v1/sites/{await self._site_id(site)}")

    async def apps(self, site: str | None = None) -> list[AppView]:
        """The Apps of all Sites, or of one."""
        return (await self._list("/v1/apps", site=site)).apps or []

    async def batch_jobs(
        self, site: str | None = None, state: str | None = None
    ) -> list[BatchJobView]:
        """BatchJobs, of one Site or in one state."""
        return (await self._list("/v1/batch-jobs", site=site, state=state)).batch_jobs or []

    async def new_batch_job(
        self,
        site: str,
        *,
        nodes: int = 1,
        cores: int = 0,
        wall_s: float | None = None,
        gpus: int = 0,
        mem_bytes: int = 0,
        queue: str = "",
        account: str = "",
        qos: str = "",
        reservation: str = "",
        constraint: str = "",
        job_extra_directives: Sequence[str] = (),
    ) -> BatchJobView:
        """Ask for an allocation at a Site: nodes; of each cores (0: all), gpus and memory; limit (None: the
        Site's own); the rest as the machine's scheduler calls it, where the Site's policy allows it."""
        intent = StrictIntent(
            nodes=nodes,
            cores=cores,
            wall_s=wall_s,
            gpus=gpus,
            mem_bytes=mem_bytes,
            queue=queue,
            account=account,
            qos=qos,
            reservation=reservation,
            constraint=constraint,
            job_extra_directives=tuple(job_extra_directives),
        )
        new = NewBatchJob(id=new_id(), site=await self._site_id(site), intent=intent)
        return await self._hub.request("POST", "/v1/batch-jobs", new, BatchJobView)

    async def demand(self, site: str) -> Demand:
        """What waits for a Site, counted by Shape, and which of its pilots ask for work."""
        path = f"/v1/sites/{await self._site_id(site)}/demand"
        return await self._hub.request("GET", path, reply=Demand)

    async def cancel_batch_job(self, batch_job: str) -> BatchJobView:
        """Take a BatchJob back; what runs in it is ended."""
        path = f"/v1/batch-jobs/{batch_job}/cancel"
        return await self._hub.request("POST", path, reply=BatchJobView)

    async def sessions(self) -> list[SessionView]:
        """All Sessions that are not dead."""
        return (await self._list("/v1/sessions")).sessions or []

    async def end_session(self, session: str) -> None:
        """Declare a Session dead without proof: what it held is granted again, and may run twice."""
        body = EndSession(may_run_twice=True)
        await self._hub.request("POST", f"/v1/sessions/{session}/end", body)

    async def tokens(self) -> list[TokenView]:
        """All tokens of the project, without their secrets."""
        return (await self._hub.request("GET", "/v1/tokens", reply=TokenList)).tokens

    async def new_token(self, note: str, expires_in_s: float | None) -> TokenView:
        """Make a further token of yours; the reply holds its secret, this once."""
        body = NewToken(note=note, expires_in_s=expires_in_s)
        return await self._hub.request("POST", "/v1/tokens", body, TokenView)

    async def revoke_token(self, prefix: str) -> None:
        """End a token at once."""
        await self._hub.request("DELETE", f"/v1/tokens/{prefix}")

    async def _site_id(self, site: str) -> str:
        """A Site's id by its name or id. Raises NotFound naming those that exist."""
        views = await self.sites()
        for view in views:
            if site in (view.name, view.id):
                return view.id
        known = ", ".join(view.name for view in views) or "none yet"
        raise NotFound(f"there is no site {site!r} (there are: {known})", field="site")

    async def _list(self, path: str, **params: str | None) -> Listing:
        given: dict[str, Any] = {name: value for name, value in params.items() if value is not None}
        return await self._hub.request("GET", path, reply=Listing, params=given)
