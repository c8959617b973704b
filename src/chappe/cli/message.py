"""`chappe message`: what simulations said, as it came, and whether all of it is here."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

import click

from chappe.cli.output import FAILED, Out, ago, span, when, with_output

if TYPE_CHECKING:
    from chappe.sdk.messages import MessageView, QuarantineView, StreamCheck


@click.group("message")
def command() -> None:
    """List, show, check and import messages of simulations."""


@command.command()
@click.option("--sim", "simulation", metavar="SIM", help="Of this simulation (its simuid).")
@click.option("--job", help="Of this job (its jobuid).")
@click.option("--type", "kind", metavar="TYPE", help="Of this type, such as job.started.")
@click.option("--code", help="Of this libIGCM code, such as 1000.")
@click.option("--producer", help="Of this producer; main: the project's own.")
@click.option("--limit", type=click.IntRange(1), default=50, help="How many (50).")
@click.option("--oldest", is_flag=True, help="From the beginning on; else the newest first.")
@with_output
def ls(
    out: Out,
    simulation: str | None,
    job: str | None,
    kind: str | None,
    code: str | None,
    producer: str | None,
    limit: int,
    oldest: bool,
) -> None:
    """List messages, newest first."""
    where = {"simulation": simulation, "job": job, "type": kind, "code": code, "producer": producer}
    with out.client() as client:
        found = client.messages.ls(limit, newest=not oldest, **where)
    out.many(
        found,
        ("N>", "RECEIVED!", "TYPE!", "CODE!", "SIMULATION", "JOB", "DOOR!", "TOOK>", "UID"),
        lambda m: (
            str(m.n),
            when(m.received_at),
            m.type,
            m.code,
            m.simulation,
            m.job,
            m.door,
            span(max(0.0, m.received_at - m.at)) if m.at else "",
            m.uid,
        ),
        "no messages",
    )


@command.command()
@click.argument("uid", required=False)
@click.option("--producer", help="Of this producer; main: the project's own.")
@click.option("--quarantined", type=int, metavar="N", help="Number N in quarantine instead.")
@with_output
def show(out: Out, uid: str | None, producer: str | None, quarantined: int | None) -> None:
    """Show a message by its UID: where it came from, and its bytes as they came."""
    if (uid is None) is (quarantined is None):
        raise click.UsageError("name a message by its UID, or by --quarantined N")
    with out.client() as client:
        if quarantined is not None:
            bad = client.messages.quarantined(quarantined)
            out.one(bad, _show_quarantined, out, bad)
        else:
            found = client.messages.show(uid or "", producer)
            out.one(found, _show, out, found)


def _show(out: Out, m: MessageView) -> None:
    out.facts(
        (
            ("message", m.uid),
            ("number", str(m.n)),
            ("type", f"{m.type} {m.code}".strip()),
            ("simulation", m.simulation),
            ("job", m.job),
            ("at", when(m.at) if m.at else "(it does not say)"),
            ("received", f"{when(m.received_at)} by {m.door} from {m.source}"),
            ("producer", m.producer),
            ("stream", f"{m.stream} {m.seq}" if m.stream else None),
            ("marks", " ".join(m.marks)),
            ("sha256", m.sha256),
        )
    )
    out.say(m.raw)


def _show_quarantined(out: Out, q: QuarantineView) -> None:
    out.facts(
        (
            ("in quarantine", str(q.n)),
            ("reason", f"{q.reason}: {q.message}"),
            ("uid", q.uid),
            ("received", f"{when(q.received_at)} by {q.door} from {q.source}"),
            ("producer", q.producer),
            ("sha256", q.sha256),
        )
    )
    out.say(q.raw)


@command.command()
@click.argument("simulation", required=False)
@with_output
def verify(out: Out, simulation: str | None) -> None:
    """Check that all messages that were sent are here, of all streams or of SIMULATION's.

    Messages of chappe-emit are numbered in streams, and each names the sha256 of the one before. Exits with 1
    if any is missing, in quarantine, was changed, or was put in between.
    """
    with out.client() as client:
        streams, unnumbered = client.messages.streams(simulation)
    out.many(
        streams,
        (
            "STREAM",
            "PRODUCER!",
            "SENT>",
            "RECEIVED>",
            "APPLIED>",
            "QUARANTINED>",
            "GAPS!",
            "CHAIN!",
        ),
        lambda s: (
            s.stream,
            s.producer,
            str(s.sent),
            str(s.received),
            str(s.applied),
            str(s.quarantined),
            _gaps(s),
            _chain(s),
        ),
        "no stream of numbered messages",
    )
    if unnumbered:
        out.say(f"{unnumbered} messages are of no stream: whether one is missing, nobody can say")
    if not all(s.whole for s in streams):
        sys.exit(FAILED)


def _gaps(s: StreamCheck) -> str:
    shown = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in s.gaps[:5])
    return f"{s.missing} ({shown}{'…' if len(s.gaps) > 5 else ''})" if s.missing else "none"


def _chain(s: StreamCheck) -> str:
    if s.broken:
        return f"broken at {','.join(str(n) for n in s.broken[:5])}"
    return f"{s.repeated} repeated" if s.repeated else s.head[:12]


@command.command()
@with_output
def stats(out: Out) -> None:
    """Show what each source sent: received = stored + duplicate + quarantined, and how long it took."""
    with out.client() as client:
        found = client.messages.stats()
    if out.as_json:
        out.line(found)
        return
    rows = [
        (
            s.door,
            s.source,
            str(s.received),
            str(s.stored),
            str(s.duplicate),
            str(s.quarantined),
            " ".join(span(ms / 1000) for ms in s.latency_ms) if s.latency_ms else "",
            ago(s.last_at),
        )
        for s in found.sources
    ]
    columns = ("DOOR!", "SOURCE", "RECEIVED>", "STORED>", "DUPLICATE>", "QUARANTINED>")
    out.table((*columns, "TOOK 50/90/99 %!", "LAST>"), rows, "no messages yet")
    for reason, count in sorted(found.quarantine.items()):
        out.say(f"in quarantine: {count} {reason}")


@command.command()
@click.option("--reason", help="What is there for this reason, such as not_json.")
@with_output
def quarantine(out: Out, reason: str | None) -> None:
    """List what no message could be made of, and why."""
    with out.client() as client:
        found = client.messages.quarantine(reason)
    out.many(
        found,
        ("N>", "RECEIVED!", "REASON!", "BY!", "FROM", "BYTES>", "MESSAGE~"),
        lambda q: (
            str(q.n),
            when(q.received_at),
            q.reason,
            q.door,
            q.source,
            str(q.size_bytes),
            q.message,
        ),
        "nothing is in quarantine",
    )


@command.command()
@click.argument("numbers", nargs=-1, type=int)
@click.option("--reason", help="What is there for this reason, such as not_json.")
@with_output
def requeue(out: Out, numbers: tuple[int, ...], reason: str | None) -> None:
    """Decode again what is in quarantine: these NUMBERS, what is there for a reason, or all.

    What this version of the hub can read is applied as if it had just come. A conflict stays where it is.
    """
    with out.client() as client:
        done = client.messages.requeue(numbers or None, reason)
    words = f"{done.tried} tried: {done.stored} stored, {done.duplicate} duplicates"
    out.one(done, out.say, f"{words}, {done.quarantined} still in quarantine")


@command.command("import")
@click.argument("file", type=click.Path(exists=True, allow_dash=True))
@with_output
def import_(out: Out, file: str) -> None:
    """Send messages from FILE (- for stdin). Repeating it is harmless.

    FILE holds one JSON object a line, or is a mail, an mbox, a Maildir, or a directory of such files. The
    messages of a mail are yours, whoever signed it. Exits with 1 if any went to quarantine.
    """
    counts: Counter[str] = Counter()
    with out.client() as client:
        for verdicts in client.messages.import_(file):
            counts.update(v.verdict for v in verdicts)
    words = ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items()))
    out.one(dict(counts), out.say, words or "no messages")
    if counts["quarantined"] or counts["conflict"]:
        sys.exit(FAILED)
