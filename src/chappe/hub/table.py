"""All routes: the one table that serves requests, documents and tests.

Who may call them stands in `core.access`.

The first lines are the busiest: routes are matched in order.
"""

from __future__ import annotations

from chappe.core import limits
from chappe.hub.metrics import CONTENT_TYPE as METRICS
from chappe.hub.route import Route
from chappe.hub.routes import (
    batch,
    bulk,
    bus,
    events,
    health,
    jobs,
    logins,
    logs,
    messages,
    metrics,
    people,
    results,
    simulations,
    sites,
    stats,
    sync,
    tokens,
)
from chappe.ingest.body import MEDIA as MESSAGES

TEXT = "text/plain"
SMALL = limits.MIB
TINY = 64 * limits.KIB

ROUTES: tuple[Route, ...] = (
    # pilots
    Route("POST", "/v1/sync", sync.sync, (409,)),
    Route("POST", "/v1/sync/wake", sync.wake),
    Route("POST", "/v1/results", results.put_many, limit_bytes=limits.RESULTS_BYTES),
    Route("POST", "/v1/logs", logs.bring, limit_bytes=SMALL),
    # jobs
    Route("POST", "/v1/jobs", jobs.create, (409, 410)),
    Route("GET", "/v1/jobs", jobs.index, (404,)),
    Route("POST", "/v1/jobs/query", jobs.query),
    Route("GET", "/v1/jobs/counts", jobs.counts),
    Route("POST", "/v1/jobs/count", jobs.count),
    Route("POST", "/v1/jobs/cancel", jobs.cancel),
    Route("POST", "/v1/jobs/retry", jobs.retry, (409,)),
    Route("POST", "/v1/jobs/delete", jobs.delete),
    Route("POST", "/v1/jobs/hold", jobs.hold),
    Route("POST", "/v1/jobs/release", jobs.release),
    Route("POST", "/v1/jobs/update", jobs.update),
    Route("POST", "/v1/jobs/results", results.show_many),
    Route("GET", "/v1/jobs/{id}", jobs.show),
    Route("GET", "/v1/jobs/{id}/events", jobs.events, (410,)),
    Route("GET", "/v1/jobs/{id}/why", jobs.explain),
    Route("GET", "/v1/jobs/{id}/logs", logs.read, (409,)),
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
    # many jobs at once
    Route("POST", "/v1/selections", bulk.select, (404, 409)),
    Route("GET", "/v1/selections/{id}", bulk.show_selection),
    Route("DELETE", "/v1/selections/{id}", bulk.drop_selection, (409,)),
    Route("POST", "/v1/acts", bulk.begin, (404, 409)),
    Route("GET", "/v1/acts", bulk.index),
    Route("GET", "/v1/acts/{id}", bulk.show),
    Route("POST", "/v1/acts/{id}/stop", bulk.stop),
    Route("GET", "/v1/stats", stats.show),
    # sites and their agents
    Route("GET", "/v1/sites", sites.index),
    Route("POST", "/v1/sites", sites.create, (409,), limit_bytes=SMALL),
    Route("GET", "/v1/sites/{id}", sites.show),
    Route("DELETE", "/v1/sites/{id}", sites.delete, (409,)),
    Route("POST", "/v1/sites/{id}/token", sites.renew_token),
    Route("PUT", "/v1/sites/{id}/apps", sites.publish_apps),
    Route("POST", "/v1/sites/{id}/agent", sites.hello, (409,), limit_bytes=SMALL),
    Route("POST", "/v1/sites/{id}/sync", sites.sync, (409,)),
    Route("GET", "/v1/sites/{id}/demand", sites.demand),
    Route("GET", "/v1/apps", sites.apps, (404,)),
    # allocations
    Route("GET", "/v1/batch-jobs", batch.index, (404,)),
    Route("POST", "/v1/batch-jobs", batch.create, (409,), limit_bytes=SMALL),
    Route("GET", "/v1/batch-jobs/{id}", batch.show),
    Route("POST", "/v1/batch-jobs/{id}/cancel", batch.cancel),
    Route("GET", "/v1/sessions", batch.sessions),
    Route("POST", "/v1/sessions", batch.create_session, (409,), limit_bytes=SMALL),
    Route("POST", "/v1/sessions/{id}/end", batch.end_session, limit_bytes=SMALL),
    # messages
    Route(
        "POST",
        "/v1/messages",
        messages.receive,
        limit_bytes=limits.MESSAGES_BODY_BYTES,
        takes=MESSAGES,
        status=202,
    ),
    Route("GET", "/v1/messages", messages.index, (404,)),
    Route("GET", "/v1/messages/stats", messages.stats),
    Route("GET", "/v1/messages/streams", messages.check_streams),
    Route("POST", "/v1/messages/requeue", messages.requeue, limit_bytes=SMALL),
    Route("POST", "/v1/messages/compare", messages.compare, limit_bytes=SMALL),
    Route("GET", "/v1/messages/{uid}", messages.show),
    Route("GET", "/v1/quarantine", messages.quarantine),
    Route("GET", "/v1/quarantine/{n}", messages.show_quarantined),
    Route("GET", "/v1/producers", messages.list_producers),
    Route("POST", "/v1/producers", messages.add_producer, limit_bytes=SMALL),
    Route("DELETE", "/v1/producers/{name}", messages.remove_producer),
    # the bus
    Route("GET", "/v1/bus/queues", bus.index),
    Route("GET", "/v1/bus/queues/{name}", bus.show),
    Route("POST", "/v1/bus/queues/{name}/replay", bus.replay, limit_bytes=TINY),
    Route("GET", "/v1/bus/dead", bus.dead, (404,)),
    Route("POST", "/v1/bus/dead/revive", bus.revive, (404,), limit_bytes=SMALL),
    Route("POST", "/v1/bus/check", bus.check, limit_bytes=TINY),
    # simulations
    Route("GET", "/v1/simulations", simulations.index, (404,)),
    Route("GET", "/v1/simulations/{id}", simulations.show, (409,)),
    Route("GET", "/v1/simulations/{id}/jobs", simulations.jobs, (409,)),
    Route("GET", "/v1/simulations/{id}/periods", simulations.periods, (409,)),
    Route("GET", "/v1/simulations/{id}/commands", simulations.commands, (409,)),
    Route("GET", "/v1/simulations/{id}/actions", simulations.actions, (409,)),
    Route("GET", "/v1/simulations/{id}/card", simulations.card, (409,)),
    Route("POST", "/v1/simulations/{id}/purge", simulations.purge, (409,)),
    Route("GET", "/v1/metrics", metrics.show, (404,)),
    # events
    Route("GET", "/v1/events", events.index, (410,)),
    Route("GET", "/v1/events/stream", events.stream, (410,), media="text/event-stream"),
    # tokens
    Route("GET", "/v1/tokens", tokens.index),
    Route("POST", "/v1/tokens", tokens.create, limit_bytes=SMALL),
    Route("DELETE", "/v1/tokens/{prefix}", tokens.revoke, (409,)),
    Route("POST", "/v1/tokens/service", tokens.create_service, limit_bytes=SMALL),
    Route("GET", "/v1/whoami", tokens.whoami),
    # logging in
    Route("POST", "/v1/login", logins.login, (401, 403, 409), limit_bytes=TINY),
    Route("POST", "/v1/join", logins.join, (401, 403, 409), limit_bytes=TINY),
    Route("POST", "/v1/logout", logins.logout, (404, 409)),
    Route("PUT", "/v1/password", logins.change_password, limit_bytes=TINY),
    # users and projects
    Route("GET", "/v1/users", people.users),
    Route("POST", "/v1/users", people.add_user, (409,), limit_bytes=SMALL),
    Route("POST", "/v1/users/{name}/invite", people.invite, (409,), limit_bytes=SMALL),
    Route("POST", "/v1/users/{name}/disable", people.disable, (409,)),
    Route("POST", "/v1/users/{name}/enable", people.enable),
    Route("GET", "/v1/projects", people.list_projects),
    Route("POST", "/v1/projects", people.create_project, (409,), limit_bytes=SMALL),
    Route("GET", "/v1/members", people.members, (404,)),
    Route("PUT", "/v1/members/{name}", people.set_member, (409,), limit_bytes=SMALL),
    Route("DELETE", "/v1/members/{name}", people.remove_member, (409,)),
    Route("GET", "/v1/audit", people.audit_page),
    # the process
    Route("GET", "/healthz", health.healthz, media=TEXT),
    Route("GET", "/readyz", health.readyz, media=TEXT),
    Route("GET", "/metrics", health.prometheus, media=METRICS.split(";")[0]),
)
