"""All routes and who may call them: the one table that serves requests, documents and tests.

The first lines are the busiest: routes are matched in order.
"""

from __future__ import annotations

from chappe.core import limits
from chappe.hub.metrics import CONTENT_TYPE as METRICS
from chappe.hub.route import ANYBODY, OPEN, PILOT, SITE, USER, Route
from chappe.hub.routes import batch, events, health, jobs, results, sites, sync, tokens

TEXT = "text/plain"
SMALL = limits.MIB

ROUTES: tuple[Route, ...] = (
    # pilots
    Route("POST", "/v1/sync", PILOT, sync.sync, (409,)),
    Route("POST", "/v1/sync/wake", PILOT, sync.wake),
    Route("POST", "/v1/results", PILOT, results.put_many, limit_bytes=limits.RESULTS_BYTES),
    # jobs
    Route("POST", "/v1/jobs", USER, jobs.create, (409, 410)),
    Route("GET", "/v1/jobs", USER, jobs.index, (404,)),
    Route("POST", "/v1/jobs/query", USER, jobs.query),
    Route("GET", "/v1/jobs/counts", USER, jobs.counts),
    Route("POST", "/v1/jobs/cancel", USER, jobs.cancel),
    Route("POST", "/v1/jobs/retry", USER, jobs.retry, (409,)),
    Route("POST", "/v1/jobs/delete", USER, jobs.delete),
    Route("GET", "/v1/jobs/{id}", USER | PILOT, jobs.show),
    Route("GET", "/v1/jobs/{id}/events", USER, jobs.events, (410,)),
    Route("GET", "/v1/jobs/{id}/why", USER, jobs.explain),
    Route("GET", "/v1/jobs/{id}/signed", USER, jobs.signed),
    Route("GET", "/v1/jobs/{id}/parents", USER | PILOT, jobs.parents),
    Route("GET", "/v1/jobs/{id}/result", USER | PILOT, results.show, media="*/*"),
    Route(
        "PUT",
        "/v1/jobs/{id}/result",
        PILOT,
        results.put,
        (409,),
        limit_bytes=limits.RESULT_BYTES,
    ),
    # sites and their agents
    Route("GET", "/v1/sites", ANYBODY, sites.index),
    Route("POST", "/v1/sites", USER, sites.create, (409,), limit_bytes=SMALL),
    Route("GET", "/v1/sites/{id}", ANYBODY, sites.show),
    Route("DELETE", "/v1/sites/{id}", USER, sites.delete, (409,)),
    Route("PUT", "/v1/sites/{id}/apps", SITE, sites.publish_apps),
    Route("POST", "/v1/sites/{id}/agent", SITE, sites.hello, (409,), limit_bytes=SMALL),
    Route("POST", "/v1/sites/{id}/sync", SITE, sites.sync, (409,)),
    Route("GET", "/v1/apps", ANYBODY, sites.apps, (404,)),
    # allocations
    Route("GET", "/v1/batch-jobs", USER | SITE, batch.index),
    Route("POST", "/v1/batch-jobs", USER | SITE, batch.create, (409,), limit_bytes=SMALL),
    Route("GET", "/v1/batch-jobs/{id}", USER | SITE, batch.show),
    Route("POST", "/v1/batch-jobs/{id}/cancel", USER | SITE, batch.cancel),
    Route("GET", "/v1/sessions", USER | SITE, batch.sessions),
    Route("POST", "/v1/sessions", SITE, batch.create_session, (409,), limit_bytes=SMALL),
    Route("POST", "/v1/sessions/{id}/end", ANYBODY, batch.end_session, limit_bytes=SMALL),
    # events
    Route("GET", "/v1/events", USER, events.index, (410,)),
    Route("GET", "/v1/events/stream", USER, events.stream, (410,), media="text/event-stream"),
    # tokens
    Route("GET", "/v1/tokens", USER, tokens.index),
    Route("POST", "/v1/tokens", USER, tokens.create, limit_bytes=SMALL),
    Route("DELETE", "/v1/tokens/{prefix}", USER, tokens.revoke),
    Route("GET", "/v1/projects", USER, tokens.projects),
    Route("GET", "/v1/whoami", ANYBODY, tokens.whoami),
    # the process
    Route("GET", "/healthz", OPEN, health.healthz, media=TEXT),
    Route("GET", "/readyz", OPEN, health.readyz, media=TEXT),
    Route("GET", "/metrics", OPEN, health.prometheus, media=METRICS.split(";")[0]),
)
