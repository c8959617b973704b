"""By which key this user knows each Site: pinned at first use, like the hosts of ssh.

One file a Site: `known_sites/<id>` beside the user's own key. A Site that signs, or is said to sign, with
another key than at first is not believed until the user accepts the new one by its fingerprint.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from chappe.core.ids import check_id
from chappe.link.files import write_atomic, write_new
from chappe.sdk.errors import Conflict

DIRECTORY = "known_sites"


class SiteKeyChanged(Conflict):
    """A Site signs with another key than the one it is known by; nothing it sent was loaded."""

    default_code = "site_key_changed"


class Keyring:
    """The pinned keys in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[str, str] = {}

    def pin(self, site: str, key: str) -> str:
        """The key (base64) that `site` is known by, which is `key` from now on if it was not known.

        Raises OSError, or Invalid for what is no Site's id.
        """
        known = self._known.get(site)
        if known is None:
            check_id(site, "site")
            path = self._directory / site
            with contextlib.suppress(FileExistsError):
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_new(path, key.encode() + b"\n", 0o600)
            known = self._known[site] = path.read_text(encoding="ascii").strip()
        return known

    def key_of(self, site: str, named: str) -> str:
        """As `pin`, but raises SiteKeyChanged when `named` is not the key that `site` is known by."""
        known = self.pin(site, named)
        if known != named:
            raise SiteKeyChanged(
                f"site {site} signs with the key {named[:60]}, and is known by {known}: somebody may be "
                "in between. If its owner made a new key (`chappe site key` shows it there), say so: "
                "`chappe site accept SITE FINGERPRINT`",
                field="site",
            )
        return known

    def known(self, site: str) -> str | None:
        """The key that `site` is known by, None before its first use. Raises OSError, Invalid as `pin`."""
        check_id(site, "site")
        try:
            return (self._directory / site).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None

    def replace(self, site: str, key: str) -> None:
        """Know `site` by `key` from now on, whatever it was known by. Raises OSError, Invalid as `pin`."""
        check_id(site, "site")
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(self._directory / site, key.encode() + b"\n", 0o600)
        self._known[site] = key
