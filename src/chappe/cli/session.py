"""`chappe session`: the pilots' registrations."""

from __future__ import annotations

import click

from chappe.cli.output import Out, ago, short_ids, size, with_output


@click.group("session")
def command() -> None:
    """List pilots' sessions; declare one dead."""


@command.command()
@with_output
def ls(out: Out) -> None:
    """List the sessions that are not dead."""
    with out.client() as client:
        found = client.admin.sessions()
        sites = {} if out.as_json else client.site_names()
    ids = short_ids([s.id for s in found])
    out.many(
        found,
        ("ID!", "SITE", "STATE!", "HEARD>", "HOLDS>", "CORES>", "FREE MEMORY>"),
        lambda s: (
            ids[s.id],
            sites.get(s.site, s.site),
            s.state,
            ago(s.heard_at),
            str(s.held),
            "" if s.capacity is None else f"{s.capacity.cores}/{s.capacity.node_cores}",
            "" if s.capacity is None else size(s.capacity.mem_bytes),
        ),
        "no sessions",
    )


@command.command()
@click.argument("id")
@click.option(
    "--may-run-twice",
    is_flag=True,
    required=True,
    help="Say that you know: a silent pilot may still be computing.",
)
@with_output
def end(out: Out, id: str, may_run_twice: bool) -> None:
    """Declare a session dead without proof.

    Silence is not death: jobs of a pilot that cannot reach the hub go on. What this session held is
    granted again, and may then run twice at once.
    """
    from chappe.sdk.engine import one_of  # here: `--help` does without the SDK

    with out.client() as client:
        full = one_of(id, [s.id for s in client.admin.sessions()], "session")
        client.admin.end_session(full)
    out.one({"id": full, "code": "ended"}, out.say, f"{full}  ended")
