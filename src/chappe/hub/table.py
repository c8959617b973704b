"""All routes: the one table that serves requests, documents and tests.

Who may call them stands in `core.access`.

The first lines are the busiest: routes are matched in order.
"""

from __future__ import annotations

from chappe.core import limits
from chappe.hub.metrics import CONTENT_TYPE as METRICS
from chappe.hub.route import Route
from chappe.hub.routes import batch, events, health, jobs, results, sites, sync, tokens

TEXT = "text/plain"
SMALL = limits.MIB

ROUTES: tuple[Route, ...] = (
    # pilots
    Route("POST", "/v1/sync", sync.sync, (409,)),
    Route("POST", "/v1/sync/wake", sync.wake),
    Route("POST", "/v1/results", results.put_many, limit_bytes=limits.RESULTS_BYTES),
    # jobs
    Route("POST", "/v1/jobs", jobs.create, (409, 410)),
    Route("GET", "/v1/jobs", jobs.index, (404,)),
    Route("POST", "/v1/jobs/query", jobs.query),
    Route("GET", "/v1/jobs/counts", jobs.counts),
    Route("POST", "/v1/jobs/cancel", jobs.cancel),
    Route("POST", "/v1/jobs/retry", jobs.retry, (409,)),
    Route("POST", "/v1/jobs/delete", jobs.delete),
    Route("GET", "/v1/jobs/{id}", jobs.show),
    Route("GET", "/v1/jobs/{id}/events", jobs.events, (410,)),
    Route("GET", "/v1/jobs/{id}/why", jobs.explain),
    Route("GET", "/v1/jobs/{id}/signed", jobs.signed),
    Route("GET", "/v1/jobs/{id}/parents", jobs.parents),
    Route("GET", "/v1/jobs/{id}/result", results.show, media="*/*"),
    Route(
        "PUT",
        "/v1/jobs/{id}/result",
        results.put,
        (409,),
        limit_bytes=limits.RESULT_BYTES,
    ),
    # sites and their agents
    Route("GET", "/v1/sites", sites.index),
    Route("POST", "/v1/sites", sites.create, (409,), limit_bytes=SMALL),
    Route("GET", "/v1/sites/{id}", sites.show),
    Route("DELETE", "/v1/sites/{id}", sites.delete, (409,)),
    Route("PUT", "/v1/sites/{id}/apps", sites.publish_apps),
    Route("POST", "/v1/sites/{id}/agent", sites.hello, (409,), limit_bytes=SMALL),
    Route("POST", "/v1/sites/{id}/sync", sites.sync, (409,)),
    Route("GET", "/v1/apps", sites.apps, (404,)),
    # allocations
    Route("GET", "/v1/batch-jobs", batch.index),
    Route("POST", "/v1/batch-jobs", batch.create, (409,), limit_bytes=SMALL),
    Route("GET", "/v1/batch-jobs/{id}", batch.show),
    Route("POST", "/v1/batch-jobs/{id}/cancel", batch.cancel),
    Route("GET", "/v1/sessions", batch.sessions),
    Route("POST", "/v1/sessions", batch.create_session, (409,), limit_bytes=SMALL),
    Route("POST", "/v1/sessions/{id}/end", batch.end_session, limit_bytes=SMALL),
    # events
    Route("GET", "/v1/events", events.index, (410,)),
    Route("GET", "/v1/events/stream", events.stream, (410,), media="text/event-stream"),
    # tokens
    Route("GET", "/v1/tokens", tokens.index),
    Route("POST", "/v1/tokens", tokens.create, limit_bytes=SMALL),
    Route("DELETE", "/v1/tokens/{prefix}", tokens.revoke),
    Route("GET", "/v1/projects", tokens.projects),
    Route("GET", "/v1/whoami", tokens.whoami),
    # the process
    Route("GET", "/healthz", health.healthz, media=TEXT),
    Route("GET", "/readyz", health.readyz, media=TEXT),
    Route("GET", "/metrics", health.prometheus, media=METRICS.split(";")[0]),
)
