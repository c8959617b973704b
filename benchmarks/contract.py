"""The rows of the table: what is promised, in which unit, and what peers were measured at.

The peers' constants are quotations. Balsam: 2-core VM, one uvicorn worker (as shipped) on PostgreSQL 15
with synchronous_commit off, no TLS, quiet machine. Prefect 3.8 and HyperQueue 0.27: same kind of VM.
"""

from __future__ import annotations

from benchmarks.figures import Row

MS = 1e3
MB = 1e6

ROWS: tuple[Row, ...] = (
    Row(
        "create",
        "create jobs over HTTP, 1 000 a request, client and signing included",
        "jobs/s",
        30_000,
        peer="Balsam 6 100/s raw HTTP, 3 700/s by its SDK; 1 000 a batch, unsigned, async commit",
    ),
    Row("create.hub_cpu", "· hub CPU per job", "ms"),
    Row("create.client_cpu", "· client CPU per job", "ms"),
    Row("create.sqlite", "· reference: the same rows by raw sqlite3, full sync", "jobs/s"),
    Row(
        "report",
        "report one start or end with its row and Events, 1 000 a call",
        "reports/s",
        40_000,
        peer="Balsam 4 000/s (bulk PATCH of 1 000)",
    ),
    Row("report.start", "· starts alone", "reports/s"),
    Row("report.end", "· ends alone (two Events each)", "reports/s"),
    Row(
        "acquire",
        "acquire, 1 000 a sync",
        "jobs/s",
        50_000,
        peer="Balsam 22 000/s (raw HTTP, 1 000 a call)",
    ),
    Row(
        "acquire_1m.idle",
        "acquire 32 of 1 M waiting in 200 shapes, 99 % misfits; hub idle, p95",
        "ms",
        10,
        at_least=False,
        peer="Balsam p50 118 ms with 100 k waiting, idle",
    ),
    Row(
        "acquire_1m.busy",
        "· the same beside a full-speed creator, p95",
        "ms",
        40,
        at_least=False,
    ),
    Row("acquire_1m.creator", "· what that creator reached meanwhile", "jobs/s"),
    Row(
        "hub_cpu",
        "hub CPU per job, whole life, end to end",
        "ms",
        0.10,
        at_least=False,
        peer="Balsam 1.18 ms (API and PostgreSQL)",
    ),
    Row("hub_cpu.protocol", "· the same with 1 000 a request (create, acquire, start, end)", "ms"),
    Row("true", "/bin/true, submit to durable end, 2 slots, lean profile", "jobs/s"),
    Row(
        "true.bare",
        "· reference: bare loop, 2 at a time (cwd, env, session, shared file)",
        "jobs/s",
    ),
    Row("true.hq", "· reference: HyperQueue wheel, worker in a process of its own", "jobs/s"),
    Row("true.of_bare", "· share of the bare loop", "ratio", 0.70),
    Row("true.of_hq", "· times HyperQueue", "ratio", 2.5),
    Row("true.cpu", "· CPU per job in all (hub, agent, pilot, launcher, client, jobs)", "ms"),
    Row("true.bare_cpu", "· reference: CPU per job of the bare loop and its jobs", "ms"),
    Row("true.hq_cpu", "· reference: CPU per job of HyperQueue and its jobs", "ms"),
    Row("true.cpu_over_bare", "· CPU above the bare loop's", "ms", 0.30, at_least=False),
    Row("true.full", "the same, full profile (own directory, two files, result)", "jobs/s", 1_000),
    Row(
        "latency.p50",
        "submit → process started, warm pilot, p50",
        "ms",
        20,
        at_least=False,
        peer="Balsam 1.8–2.6 s",
    ),
    Row("latency.p99", "· p99", "ms", 60, at_least=False),
    Row("latency.own_p50", "· submit → the job's own first write (sh), p50", "ms"),
    Row("functions", "warm functions, submit to durable value, 2 slots", "calls/s"),
    Row("functions.parsl", "· reference: Parsl HTEX, 2 workers", "calls/s"),
    Row("functions.of_parsl", "· times Parsl", "ratio", 1.5),
    Row("functions.values", "· until every value is in the client (chappe.Executor)", "calls/s"),
    Row(
        "functions.cpu", "· CPU per call but for the workers' (hub, pilot, launcher, client)", "ms"
    ),
    Row(
        "functions.p50",
        "one function: submit → durable end known, p50",
        "ms",
        15,
        at_least=False,
        peer="Dask 10 ms, Parsl 1.5 ms, neither durable",
    ),
    Row("functions.parsl_p50", "· reference: Parsl, p50", "ms"),
    Row(
        "crowd.slowest",
        "16 clients posting 1 000 jobs each at once: the slowest",
        "s",
        1.0,
        at_least=False,
        peer="Balsam drops all 16 connections",
    ),
    Row("crowd.succeeded", "· how many succeeded, without a retry", "clients", 16),
    Row(
        "disk.waiting",
        "per waiting job: hub disk, 100 k to 1 M",
        "bytes",
        1_000,
        at_least=False,
        peer="Prefect 40 KB per task run",
    ),
    Row(
        "rss.waiting",
        "· hub memory, 100 k to 1 M",
        "bytes",
        50,
        at_least=False,
        peer="HyperQueue server 1.8 KB",
    ),
    Row(
        "rss.grant", "pilot + launcher memory per prefetched grant", "bytes", 2_000, at_least=False
    ),
    Row("pss.hub", "idle PSS: hub", "MB", 100, at_least=False),
    Row("pss.agent", "· agent", "MB", 60, at_least=False),
    Row("pss.pilot", "· pilot + launcher", "MB", 60, at_least=False),
    Row(
        "ready.second",
        "hub ready at second start",
        "s",
        1.5,
        at_least=False,
        peer="Prefect 6–8 s",
    ),
    Row("ready.million", "· with 1 M jobs", "s", 1.5, at_least=False),
    Row("ready.first", "· first start (certificate, migrations)", "s"),
    Row(
        "filters.ls",
        "100 000 finished jobs: a page of 100 with any documented filter, over HTTP, worst p95",
        "ms",
        20,
        at_least=False,
        peer="Balsam 123 ms",
    ),
    Row("filters.count", "· counting what matches a filter, the slowest", "ms"),
    Row(
        "postgres.create",
        "on PostgreSQL: create over HTTP, 1 000 a request (bodies made before)",
        "jobs/s",
        15_000,
        peer="Balsam 6 100/s, commits not waited for",
    ),
    Row("postgres.acquire", "· acquire, 1 000 a sync", "jobs/s", 15_000, peer="Balsam 22 000/s"),
    Row(
        "postgres.report",
        "· report one start or end, 1 000 a call",
        "reports/s",
        12_000,
        peer="Balsam 4 000/s",
    ),
    Row("store.create", "store without HTTP: create, decoding and checks included", "jobs/s"),
    Row("store.start", "· starts", "reports/s"),
    Row("store.end", "· ends", "reports/s"),
    Row("store.acquire", "· acquire 1 000", "jobs/s"),
    Row("store.acquire_1m", "· acquire 32 of 1 M in 200 shapes, p95", "ms"),
    Row("launcher.bare", "launcher alone: bare loop", "jobs/s"),
    Row("launcher.lanes", "· through the launcher, lanes", "jobs/s"),
)
