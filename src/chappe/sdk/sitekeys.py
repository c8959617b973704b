"""The keys of Sites as the Hub tells them, beside those that this user knows the Sites by.

What the Hub tells is believed once, at the first use of a Site; from then on it is only compared. A new key
is accepted by its fingerprint, which the Site's owner reads at the Site: never by the Hub's word alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from chappe.core.publickeys import fingerprint, is_public_key
from chappe.sdk.errors import Invalid, NotFound
from chappe.sdk.keyring import Keyring
from chappe.wire.sites import SiteView


class SiteKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """A Site's key. `state`: known | new (not yet used) | changed | none (the Site told the Hub none).

    `fingerprint` is of what the Hub tells, `known` of what this user knows the Site by.
    """

    id: str
    name: str
    state: Literal["known", "new", "changed", "none"]
    fingerprint: str = ""
    known: str = ""


def listed(sites: Iterable[SiteView], keyring: Keyring) -> list[SiteKey]:
    """The keys of these Sites."""
    return [_one(site, keyring) for site in sites]


def check(sites: Iterable[SiteView], keyring: Keyring) -> None:
    """Know each Site by the key that the Hub tells, if it was not known. Raises SiteKeyChanged when it is
    known by another."""
    for site in sites:
        if is_public_key(site.key):
            keyring.key_of(site.id, site.key)


def accept(sites: Iterable[SiteView], name: str, said: str, keyring: Keyring) -> SiteKey:
    """Know a Site (name or id) by the key that the Hub tells now, which must have the fingerprint `said`."""
    site = next((site for site in sites if name in (site.id, site.name)), None)
    if site is None:
        raise NotFound(f"there is no site {name!r}", field="site")
    told = fingerprint(site.key) if is_public_key(site.key) else ""
    if told != said:
        raise Invalid(
            f"the hub tells {told or 'no key'} for site {site.name}, not {said}: nothing was accepted. "
            "The site's owner sees the right one with `chappe site key DIRECTORY`",
            field="fingerprint",
        )
    keyring.replace(site.id, site.key)
    return _one(site, keyring)


def _one(site: SiteView, keyring: Keyring) -> SiteKey:
    known = keyring.known(site.id) or ""
    shown = fingerprint(known) if is_public_key(known) else known
    if not is_public_key(site.key):
        return SiteKey(site.id, site.name, "none", "", shown)
    if not known:
        return SiteKey(site.id, site.name, "new", fingerprint(site.key))
    state: Literal["known", "changed"] = "known" if known == site.key else "changed"
    return SiteKey(site.id, site.name, state, fingerprint(site.key), shown)
