"""The tables of the journal: messages as they came, who sent them, and what could not be read.

`message.n` is a position: 1, 2, 3 … within its project, without gaps. Rows are appended and never changed.
What is made from them (simulations, series) can be thrown away and made again.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, Column, Float, Index, LargeBinary, Table

from chappe.store.dialect import Integer, Text
from chappe.store.schema import metadata, partial

#: Who sends messages of a project under a name and a token of its own. The project itself is number 0,
#: called `main`, and has no row.
producer = Table(
    "producer",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("project", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("removed_at", Float),
    sa.UniqueConstraint("project", "name"),
    sqlite_autoincrement=True,
)

#: Where messages come in, and what came of them: received = stored + duplicate + quarantined.
source = Table(
    "source",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("project", Integer, nullable=False),
    Column("door", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("received", Integer, nullable=False),
    Column("stored", Integer, nullable=False),
    Column("duplicate", Integer, nullable=False),
    Column("quarantined", Integer, nullable=False),
    Column("last_at", Float, nullable=False),
    sa.UniqueConstraint("project", "door", "name"),
    CheckConstraint("received = stored + duplicate + quarantined", name="balance"),
    sqlite_autoincrement=True,
)

#: How long messages took from their own time to the door: of `count` it was below 2^bucket milliseconds,
#: and not below half of that.
source_latency = Table(
    "source_latency",
    metadata,
    Column("source", Integer, primary_key=True),
    Column("bucket", Integer, primary_key=True),
    Column("count", Integer, nullable=False),
    sqlite_with_rowid=False,
)

#: What held several messages, as it came: a mail.
carrier = Table(
    "carrier",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("project", Integer, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("body", LargeBinary, nullable=False),
    sa.UniqueConstraint("project", "sha256"),
    sqlite_autoincrement=True,
)

message = Table(
    "message",
    metadata,
    Column("project", Integer, primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("producer", Integer, nullable=False),
    Column("uid", Text, nullable=False),
    Column("simulation", Text),
    Column("job", Text),
    Column("code", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("at_ns", Integer, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("source", Integer, nullable=False),
    Column("carrier", Integer),
    Column("stream", Text),
    Column("seq", Integer, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    sa.UniqueConstraint("project", "producer", "uid"),
    partial("ix_message_simulation", "project", "simulation", "n", where="simulation IS NOT NULL"),
    partial("ix_message_stream", "project", "stream", "seq", where="stream IS NOT NULL"),
)

#: What no message could be made of, or whose uid another message has. Its number rises, and is not reused.
quarantine = Table(
    "quarantine",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("project", Integer, nullable=False),
    Column("producer", Integer, nullable=False),
    Column("uid", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("words", Text, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("source", Integer, nullable=False),
    Column("carrier", Integer),
    Column("stream", Text),
    Column("seq", Integer, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    sa.UniqueConstraint("project", "producer", "sha256"),
    Index("ix_quarantine_project_n", "project", "n"),
    partial("ix_quarantine_stream", "project", "stream", "seq", where="stream IS NOT NULL"),
    sqlite_autoincrement=True,
)

#: How far folders were read over IMAP: everything up to `uid`, as the server numbers mails while it gives
#: this UIDVALIDITY.
mailbox = Table(
    "mailbox",
    metadata,
    Column("source", Text, primary_key=True),
    Column("mailbox", Text, primary_key=True),
    Column("folder", Text, primary_key=True),
    Column("uidvalidity", Integer, primary_key=True),
    Column("uid", Integer, nullable=False),
    Column("read_at", Float, nullable=False),
    sqlite_with_rowid=False,
)

#: Up to where the Events of a project were published at a broker, and confirmed.
outlet = Table(
    "outlet",
    metadata,
    Column("project", Integer, primary_key=True, autoincrement=False),
    Column("seq", Integer, nullable=False),
    Column("moved_at", Float, nullable=False),
    sqlite_with_rowid=False,
)
