"""The synchronous face of `admin`: the same lists and acts, blocking."""

from __future__ import annotations

from collections.abc import Sequence

from chappe.sdk.admin import Admin
from chappe.sdk.loop import Loop
from chappe.wire.demand import Demand
from chappe.wire.sites import (
    AppView,
    BatchJobView,
    NewSiteReply,
    SessionView,
    SiteView,
    TokenView,
)


class SyncAdmin:
    """Sites, Apps, allocations, Sessions and tokens; see Admin for what each does and raises."""

    def __init__(self, loop: Loop, admin: Admin) -> None:
        self._run = loop.run
        self._admin = admin

    def counts(self) -> list[tuple[str, str, str, int]]:
        """How many Jobs are in each (site, app, state); site "" while none is chosen."""
        return self._run(self._admin.counts())

    def sites(self) -> list[SiteView]:
        """All Sites of the project."""
        return self._run(self._admin.sites())

    def new_site(self, name: str) -> NewSiteReply:
        """Make a Site; the reply holds its token, this once."""
        return self._run(self._admin.new_site(name))

    def new_site_token(self, site: str) -> NewSiteReply:
        """Make a Site's token anew; the one before is revoked, the reply holds the new one, this once."""
        return self._run(self._admin.new_site_token(site))

    def delete_site(self, site: str) -> None:
        """Remove a Site. Raises Conflict while it has Jobs or Sessions."""
        self._run(self._admin.delete_site(site))

    def apps(self, site: str | None = None) -> list[AppView]:
        """The Apps of all Sites, or of one."""
        return self._run(self._admin.apps(site))

    def batch_jobs(self, site: str | None = None, state: str | None = None) -> list[BatchJobView]:
        """BatchJobs, of one Site or in one state."""
        return self._run(self._admin.batch_jobs(site, state))

    def new_batch_job(
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
        return self._run(
            self._admin.new_batch_job(
                site,
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
                job_extra_directives=job_extra_directives,
            )
        )

    def demand(self, site: str) -> Demand:
        """What waits for a Site, counted by Shape, and which of its pilots ask for work."""
        return self._run(self._admin.demand(site))

    def cancel_batch_job(self, batch_job: str) -> BatchJobView:
        """Take a BatchJob back; what runs in it is ended."""
        return self._run(self._admin.cancel_batch_job(batch_job))

    def sessions(self) -> list[SessionView]:
        """All Sessions that are not dead."""
        return self._run(self._admin.sessions())

    def end_session(self, session: str) -> None:
        """Declare a Session dead without proof: what it held is granted again, and may run twice."""
        self._run(self._admin.end_session(session))

    def tokens(self) -> list[TokenView]:
        """All tokens of the project, without their secrets."""
        return self._run(self._admin.tokens())

    def new_token(self, note: str = "", expires_in_s: float | None = None) -> TokenView:
        """Make a further token of yours; the reply holds its secret, this once."""
        return self._run(self._admin.new_token(note, expires_in_s))

    def revoke_token(self, prefix: str) -> None:
        """End a token at once."""
        self._run(self._admin.revoke_token(prefix))
