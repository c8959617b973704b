"""What mail needs of the store: who signed one, and how far a folder was read."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection

from chappe.core.access import RULES, reach
from chappe.store.dialect import sql
from chappe.store.journal import MAIN
from chappe.store.owners import Owner
from chappe.store.principal import holder
from chappe.store.tx import Tx

READ = sql("""
    SELECT uid FROM mailbox WHERE source = :source AND mailbox = :mailbox AND folder = :folder
    AND uidvalidity = :uidvalidity""")

REMEMBER = sql("""
    INSERT INTO mailbox (source, mailbox, folder, uidvalidity, uid, read_at)
    VALUES (:source, :mailbox, :folder, :uidvalidity, :uid, :now)
    ON CONFLICT (source, mailbox, folder, uidvalidity) DO UPDATE
    SET uid = excluded.uid, read_at = excluded.read_at WHERE mailbox.uid < excluded.uid""")


class Signer(NamedTuple):
    """The holder of a token: what is kept of the token, and whose messages it may sign."""

    digest: str
    owner: Owner


class Place(NamedTuple):
    """What a position in a folder of a mailbox belongs to."""

    source: str
    mailbox: str
    folder: str
    uidvalidity: int


def signer(conn: Connection, prefix: str, now: float) -> Signer | None:
    """Whose messages the token with this prefix may send; None when there is none that may."""
    found = holder(conn, prefix)
    if found is None:
        return None
    digest, p = found
    if p.expires_at is not None and p.expires_at <= now:
        return None
    if reach(RULES["POST /v1/messages"], p.parties) is None:
        return None
    return Signer(digest, Owner(p.project_n, MAIN if p.producer_n is None else p.producer_n))


def read_up_to(conn: Connection, place: Place) -> int:
    """The uid of the last mail there that is kept; 0 when none is."""
    return conn.execute(READ, place._asdict()).scalar_one_or_none() or 0


def remember(tx: Tx, place: Place, uid: int) -> None:
    """All mails there up to this uid are kept. It never goes back."""
    tx.write(REMEMBER, **place._asdict(), uid=uid, now=tx.now)
