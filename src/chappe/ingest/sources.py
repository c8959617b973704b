"""Whose a mail is: a token that signed it says so, else the source that it came by.

What nobody vouches for is kept as well, but as a mail that no message was made of, with the source that it
came by. So nothing that is sent is dropped, and nobody can speak for another by sending mail.
"""

from __future__ import annotations

from collections.abc import Sequence

from chappe.ingest.mail import Letter, genuine, whole
from chappe.store.journal import Arrival, Carrier, Item
from chappe.store.mail import Signer
from chappe.store.owners import Owner

#: Messages of one arrival; a mail with more becomes several.
AT_ONCE = 2_500


def credited(
    raw: bytes, letter: Letter, owner: Owner, unsigned: bool, signer: Signer | None
) -> tuple[Owner, list[Item]]:
    """Whose messages a mail's are, and these. `owner` is that of its source, `unsigned` whether mail without
    a signature counts there, and `signer` who holds the token that the mail names."""
    if letter.signature is None:
        if unsigned:
            return owner, list(letter.items)
        words = "this source takes signed mail only, and no token signed this one"
        return owner, [whole(raw, "unsigned", words)]
    if signer is None or not genuine(letter, signer.digest):
        words = "its signature is not that of a token that may send, or the mail was changed"
        return owner, [whole(raw, "bad_signature", words)]
    if not letter.files:
        return signer.owner, list(letter.lines)
    words = "a signature covers no files: put what they hold into the message"
    return signer.owner, [*letter.lines, whole(raw, "unsigned_files", words)]


def arrivals(
    raw: bytes, items: Sequence[Item], owner: Owner, door: str, source: str
) -> list[Arrival]:
    """What the journal is given of a mail."""
    return [
        Arrival(
            owner.project,
            owner.producer,
            door,
            source,
            0.0,  # when it is taken
            items[at : at + AT_ONCE],
            Carrier(raw),
        )
        for at in range(0, len(items), AT_ONCE)
    ]
