"""Mails as simulations send them, made by the library that `chappe.ingest` does not use."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterable, Mapping
from email.message import MIMEPart
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.policy import SMTP
from typing import Any

import msgspec

SUBJECT = "[TEMPORARY AMQP CHANNEL]"


def message(code: str, **fields: Any) -> bytes:
    """A message of libIGCM 2.8.1 with an id of its own, of a job of a simulation."""
    standard = {
        "msgApplication": "monitoring",
        "msgProducer": "libigcm",
        "msgProducerVersion": "2.8.1",
        "simuid": "7c1d5a52-90f4-4d0b-9a51-0c8e2f4be001",
        "jobuid": "5f0a9f5e-2c3d-4be8-8a4d-9d1f6a7cb002",
        "msgCode": code,
        "msgUID": str(uuid.uuid4()),
        "msgTimestamp": "2016-04-15T22:05:35.960533073+0200",
    }
    return msgspec.json.encode(standard | fields)


def lines(messages: Iterable[bytes]) -> list[bytes]:
    """The lines that carry these messages."""
    return [base64.b64encode(each) for each in messages]


def mail(
    messages: Iterable[bytes],
    files: Iterable[tuple[str, bytes]] = (),
    headers: Mapping[str, str] | None = None,
    encoding: str = "quoted-printable",
) -> bytes:
    """A mail with a line for each message, and files (name and bytes) attached."""
    text = b"\n".join(lines(messages)).decode() + "\n"
    body = MIMEText("", policy=SMTP)
    _set(body, text, encoding)
    whole: MIMEMultipart | MIMEText = body
    attached = list(files)
    if attached:
        whole = MIMEMultipart("mixed", policy=SMTP)
        whole.attach(body)
        for name, content in attached:
            part = MIMEPart(policy=SMTP)
            part.set_content(content, "text", "plain", cte="base64", filename=name)
            whole.attach(part)
    shown = {
        "From": "p86xxxx@hpc.site.test",
        "To": "messages@hub.site.test",
        "Subject": SUBJECT,
        "Message-ID": f"<{uuid.uuid4()}@hpc.site.test>",
    }
    for name, value in (shown | dict(headers or {})).items():
        whole[name] = value
    return whole.as_bytes(policy=SMTP.clone(max_line_length=0))


def _set(body: MIMEText, text: str, encoding: str) -> None:
    import quopri

    del body["Content-Transfer-Encoding"]
    body["Content-Transfer-Encoding"] = encoding
    if encoding == "quoted-printable":
        text = quopri.encodestring(text.encode()).decode()
    elif encoding == "base64":
        text = base64.encodebytes(text.encode()).decode()
    body.set_payload(text)
