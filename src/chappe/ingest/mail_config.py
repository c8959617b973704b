"""mail.toml: who may send mail to this hub, for which project, and where mail is read.

[[source]]
name = "tgcc"
project = "climate"
producer = "libigcm"
recipients = ["messages@hub.example.org"]
senders = ["*@hpc.example.org"]
unsigned = true

[[listen]]
kind = "lmtp"
port = 8024

[[imap]]
source = "tgcc"
host = "imap.example.org"
user = "messages"
password_file = "imap.password"
folders = ["INBOX"]
"""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import msgspec
from msgspec import Meta

from chappe.core import limits
from chappe.core.errors import Invalid

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
Name = Annotated[str, Meta(pattern=_NAME)]
Port = Annotated[int, Meta(ge=0, le=65_535)]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where mail comes from, and whose messages it carries."""

    name: Annotated[str, Meta(pattern=_NAME, description="Its name, in counters and messages.")]
    project: Annotated[str, Meta(description="Name of the project that its messages belong to.")]
    producer: Annotated[
        str,
        Meta(
            pattern=_NAME,
            description="Producer of its messages; another's simulations are out of reach.",
        ),
    ] = "main"
    recipients: Annotated[
        tuple[str, ...],
        Meta(description="Addresses that take its mail, over SMTP and LMTP; `*` stands for any."),
    ] = ()
    senders: Annotated[
        tuple[str, ...],
        Meta(description="Addresses that it may come from; `*` stands for any text."),
    ] = ("*",)
    unsigned: Annotated[
        bool,
        Meta(
            description="Whether mail counts that no token signed, as that of libIGCM. Anybody who "
            "can send mail to such an address can then speak for this producer."
        ),
    ] = False

    def takes(self, recipient: str, sender: str) -> bool:
        """Whether this is mail of this source."""
        return _matches(recipient, self.recipients) and self.sends(sender)

    def sends(self, sender: str) -> bool:
        """Whether mail of this sender is of this source."""
        return _matches(sender, self.senders)


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An address to take mail at."""

    kind: Annotated[
        Literal["lmtp", "smtp"],
        Meta(description="`lmtp` behind a mail server, `smtp` behind one or alone."),
    ] = "lmtp"
    host: Annotated[str, Meta(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Port; 0 for a free one, which is logged.")] = 8024
    size_bytes_max: Annotated[
        int,
        Meta(ge=1_000, le=limits.MAIL_BYTES, description="Larger mails are refused."),
    ] = limits.MAIL_BYTES
    tls_cert: Annotated[
        str, Meta(description="Certificate (PEM) for STARTTLS; empty: none is offered.")
    ] = ""
    tls_key: Annotated[str, Meta(description="Its key (PEM).")] = ""


class Imap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mailbox to read."""

    source: Annotated[Name, Meta(description="The source whose mail it holds.")]
    host: Annotated[str, Meta(min_length=1, description="The IMAP server.")]
    user: Annotated[str, Meta(min_length=1, description="Whom to log in as.")]
    password_file: Annotated[
        str, Meta(description="File with the password, that nobody else can read.")
    ]
    port: Annotated[Port, Meta(description="Port; 0: 993, or 143 without TLS.")] = 0
    tls: Annotated[
        Literal["tls", "starttls", "none"],
        Meta(description="How the connection is protected; `none` for loopback only."),
    ] = "tls"
    ca_file: Annotated[
        str,
        Meta(description="Authority (PEM) to trust instead of those that the machine trusts."),
    ] = ""
    folders: Annotated[
        tuple[str, ...], Meta(min_length=1, max_length=20, description="Folders to read.")
    ] = ("INBOX",)
    processed: Annotated[
        str,
        Meta(description="Folder to move mail to that was taken; empty: it stays where it is."),
    ] = ""
    rejected: Annotated[
        str,
        Meta(
            description="Folder to move mail to of which something could not be read; empty: as taken."
        ),
    ] = ""


class MailConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of mail.toml."""

    source: Annotated[tuple[Source, ...], Meta(min_length=1, max_length=1_000)]
    listen: Annotated[tuple[Listen, ...], Meta(max_length=20)] = ()
    imap: Annotated[tuple[Imap, ...], Meta(max_length=50)] = ()

    def find(self, recipient: str, sender: str) -> Source | None:
        """The first source that takes mail to `recipient` from `sender`."""
        return next((s for s in self.source if s.takes(recipient, sender)), None)

    def named(self, name: str) -> Source:
        """A source by its name."""
        return next(s for s in self.source if s.name == name)


def load(path: Path) -> MailConfig:
    """Read mail.toml; paths in it are relative to its directory. Raises Invalid naming the file."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise Invalid(f"cannot read {path}: {e}", field="mail") from None
    return parse(text, path)


def parse(text: str, path: Path) -> MailConfig:
    """The configuration in `text`; `path` names it in errors. Raises Invalid."""
    try:
        config = msgspec.convert(tomllib.loads(text), MailConfig, strict=True)
    except tomllib.TOMLDecodeError as e:
        line = re.search(r"at line (\d+)", str(e))
        number = line.group(1) if line else text.count("\n") + 1
        raise Invalid(f"{path}:{number}: {e}", field="mail") from None
    except msgspec.ValidationError as e:
        raise Invalid(f"{path}: {e}", field="mail") from None
    names = [source.name for source in config.source]
    for name in names:
        if names.count(name) > 1:
            raise Invalid(f"{path}: there are two sources called {name}", field="mail")
    for reader in config.imap:
        if reader.source not in names:
            raise Invalid(f"{path}: imap.source: no source is called {reader.source}", field="mail")
        if reader.tls == "none" and reader.host not in ("localhost", "127.0.0.1", "::1"):
            raise Invalid(
                f'{path}: imap.tls: "none" would send the password of {reader.user} in clear text '
                f"to {reader.host}",
                field="mail",
            )
    return config


def reference() -> str:
    """What mail.toml may say, in Markdown."""
    lines: list[str] = []
    tables: dict[str, type[msgspec.Struct]] = {"source": Source, "listen": Listen, "imap": Imap}
    for name, struct in tables.items():
        about = (struct.__doc__ or "").strip()
        lines += [f"### [[{name}]]", "", about, "", "| key | default | meaning |", "|---|---|---|"]
        hints = get_type_hints(struct, include_extras=True)
        for field in msgspec.structs.fields(struct):
            meta = next(m for m in hints[field.name].__metadata__ if m.description)
            shown = "required"
            if field.default is not msgspec.NODEFAULT:
                shown = f"`{msgspec.json.encode(field.default).decode()}`"
            lines.append(f"| `{field.name}` | {shown} | {meta.description} |")
        lines.append("")
    return "\n".join(lines)


def _matches(address: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns is this address; upper and lower case are the same. Only `*` is special."""
    plain = address.strip().strip("<>").lower()
    return any(
        fnmatchcase(plain, p.lower().replace("[", "[[]").replace("?", "[?]")) for p in patterns
    )
