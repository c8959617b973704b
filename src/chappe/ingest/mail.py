"""Messages in a mail: one base64 line each, with files attached to some of them.

A mail becomes a list of items, in its order, and each byte that may be a message is in one of them: what
cannot be decoded stays as it came, with a reason, and can be decoded again later. The mail itself is kept
beside them by whoever took it.

An attached file becomes a message of its own, of type `attachment`: its id follows from that of the message
it belongs to and its place, so that the same mail gives the same messages however often it comes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import uuid
from collections.abc import Iterator, Sequence

import msgspec

from chappe.core import limits
from chappe.core.messages import Message
from chappe.ingest.mime import BadMail, Mail, Part, read
from chappe.store.journal import Item, item

#: Types of messages that files belong to; the card of a simulation belongs to its start.
_WITH_FILES = frozenset({"accounting", "accounting.jobs", "metric.sets"})
_STARTS = frozenset({"simulation.started"})
#: A relay that breaks long lines does so after at least as many bytes, and begins the rest with a space.
_BROKEN_FROM = 900
_SIGNATURE = re.compile(r"v1 prefix=(\w{1,64}) hmac=([0-9a-f]{64})")


class Signature(msgspec.Struct, frozen=True):
    """What a signed mail says of itself: the prefix of a token, and what only its holder can compute."""

    prefix: str
    mac: str


class Letter(msgspec.Struct, frozen=True):
    """A mail taken apart: its lines, and the files that belong to them. `signed` is what a signature covers:
    the lines as they came, and no files."""

    message_id: str
    sender: str
    signature: Signature | None
    signed: bytes
    lines: tuple[Item, ...]
    files: tuple[Item, ...] = ()

    @property
    def items(self) -> tuple[Item, ...]:
        """All of it."""
        return self.lines + self.files


def parse(raw: bytes) -> Letter:
    """A mail's messages. One that exceeds a limit, or holds none, is one item with the reason."""
    try:
        mail = read(raw)
        lines = list(_lines(mail))
    except BadMail as error:
        return Letter("", "", None, b"", (whole(raw, error.reason, error.message),))
    found = tuple(_item(line) for line in lines)
    files = tuple(_attachments(found, [part for part in mail.parts if part.attached]))
    if not found and not files:
        found = (whole(raw, "no_message", "the mail is empty"),)
    signature = _signature(mail.signature)
    return Letter(mail.message_id, mail.sender, signature, b"\n".join(lines), found, files)


def whole(raw: bytes, reason: str, words: str) -> Item:
    """A mail as one item, that no message could be made of."""
    return Item(raw, undecodable=reason, words=words)


def sign(lines: Sequence[bytes], token: str) -> str:
    """The header `Chappe-Signature` of a mail with these base64 lines, by the holder of a token."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    signed = b"\n".join(lines)
    return f"v1 prefix={token.split('_')[2]} hmac={_mac(signed, digest)}"


def genuine(letter: Letter, digest: str) -> bool:
    """Whether a letter was signed with the token whose sha256 (hex) is `digest`."""
    signature = letter.signature
    return signature is not None and hmac.compare_digest(signature.mac, _mac(letter.signed, digest))


def _mac(signed: bytes, digest: str) -> str:
    return hmac.new(digest.encode(), signed, hashlib.sha256).hexdigest()


def _signature(header: str) -> Signature | None:
    found = _SIGNATURE.fullmatch(header)
    return None if found is None else Signature(found[1], found[2])


def _lines(mail: Mail) -> Iterator[bytes]:
    """The lines of the parts that are no files, blank ones left out. Raises BadMail for too many."""
    room = limits.MAIL_LINES
    for part in mail.parts:
        if part.attached:
            continue
        if part.content.count(b"\n") > room:
            raise BadMail("too_many_lines", f"a mail has at most {limits.MAIL_LINES} lines")
        room -= part.content.count(b"\n")
        yield from _joined(part.content)


def _joined(content: bytes) -> Iterator[bytes]:
    """Lines, with those put together again that a relay broke."""
    whole: list[bytes] = []
    broken = False
    for line in content.splitlines():
        text = line.strip()
        if not (broken and line[:1] == b" "):
            if whole:
                yield b"".join(whole)
            whole = []
        if text:
            whole.append(text)
        broken = len(line) >= _BROKEN_FROM
    if whole:
        yield b"".join(whole)


def _item(line: bytes) -> Item:
    """One line: base64 of a message; a message as it is, is taken too."""
    try:
        return item(binascii.a2b_base64(line, strict_mode=True))
    except binascii.Error:
        found = item(line)
    if found.message is None:
        return Item(line, undecodable="not_base64", words="this line is neither base64 nor JSON")
    return found


def _attachments(items: Sequence[Item], files: Sequence[Part]) -> Iterator[Item]:
    """The files as messages that belong to those of the mail."""
    messages = [item.message for item in items if item.message is not None]
    counts: dict[str, int] = {}
    for file in files:
        parent = _parent(messages, file.name)
        if parent is None:
            words = f"the mail holds no message that the file {file.name} could belong to"
            yield Item(file.content, undecodable="no_parent", words=words)
            continue
        index = counts.get(parent.uid, 0)
        counts[parent.uid] = index + 1
        raw = msgspec.json.encode(_attachment(parent, index, file))
        yield item(raw, derived_uid(parent.uid, index))


def _parent(messages: Sequence[Message], name: str) -> Message | None:
    """The message that a file of this name belongs to. Of several that could be it, the last: what stands
    in front may be left over from an earlier try."""
    for message in messages:
        if message.uid in name:
            return message
    types = _STARTS if name.lower().startswith("config") else _WITH_FILES
    for choice in (types, _STARTS | _WITH_FILES):
        for message in reversed(messages):
            if message.type in choice:
                return message
    return messages[-1] if messages else None


def derived_uid(parent: str, index: int) -> str:
    """The id of the message made of a message's file number `index` (from 0)."""
    try:
        namespace = uuid.UUID(parent)
    except ValueError:
        namespace = uuid.uuid5(uuid.NAMESPACE_OID, parent)
    return str(uuid.uuid5(namespace, str(index)))


def _attachment(parent: Message, index: int, file: Part) -> dict[str, str]:
    """A file as a message: the card of a simulation, or any other. A `.base64` file is decoded first, and its
    text is readable where it is one."""
    content, name = file.content, file.name
    if name.endswith(".base64"):
        try:
            content = base64.b64decode(b"".join(content.split()), validate=True)
            name = name.removesuffix(".base64")
        except binascii.Error:
            pass  # it stays as it came, under the name that it came with
    is_card = parent.type in _STARTS
    standard = {
        "msgProducer": parent.producer,
        "msgProducerVersion": parent.version,
        "msgType": "simulation.card" if is_card else "attachment",
        "msgUID": derived_uid(parent.uid, index),
        "msgTimestamp": parent.at_raw,
        "msgParent": parent.uid,
        "simuid": parent.simulation,
        "jobuid": parent.job,
    }
    shown = {"name": name, "media": file.media, "index": str(index)}
    try:
        text = {"card" if is_card else "text": content.decode()}
    except UnicodeDecodeError:
        text = {"base64": base64.b64encode(content).decode()}
    return {k: v for k, v in (standard | shown).items() if v} | text
