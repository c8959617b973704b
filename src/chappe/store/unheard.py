"""After a restore: whom the Hub must hear before it grants anything.

The copy does not know which of its Jobs were granted after it was made, so some of those that it takes for
free run at this moment. Their pilots say so at their first sync (store.reconcile), and the agents say which
pilots there are (store.sites). Until they did, a grant could start a Job beside itself: so nothing is granted
that may run at a Site from which somebody is still to be heard.

Silence must not stop the others for ever: after `limits.SETTLE_S` whoever has not been heard is not waited
for any more. What such a pilot then still runs, unknown to the Hub, may be run once more.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from chappe.store.dialect import sql

#: Stands for the Site's agent, beside the row numbers of its Sessions.
AGENT = 0
#: `site.agent` in a new incarnation, until the agent has named its Sessions.
NOBODY = ""

AGENTS = sql("SELECT n FROM site WHERE agent = ''")
SESSIONS = sql("SELECT site, n FROM session WHERE state <> 'dead' AND incarnation <> :incarnation")


class Unheard:
    """Per Site, who is still to be heard in this incarnation. Empty but for a while after a restore."""

    __slots__ = ("_by_site", "until")

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._by_site: dict[int, set[int]] = {}
        #: When waiting ends (CLOCK_BOOTTIME); None while it has not begun.
        self.until: float | None = None
        for site, who in pairs:
            self.add(site, who)

    def add(self, site: int, who: int) -> None:
        """Wait for an agent or a Session."""
        self._by_site.setdefault(site, set()).add(who)

    def heard(self, site: int, who: int) -> bool:
        """It was heard, or is known to be over; whether that was all that was waited for at its Site."""
        waiting = self._by_site.get(site)
        if waiting is None:
            return False
        waiting.discard(who)
        if waiting:
            return False
        del self._by_site[site]
        return True

    def awaits_agent(self, site: int) -> bool:
        """Whether the Site's agent has not yet named its Sessions."""
        return AGENT in self._by_site.get(site, ())

    def sites(self, boot: float, settle_s: float) -> Iterable[int]:
        """The Sites from which somebody is still to be heard, at this time (CLOCK_BOOTTIME)."""
        if self._by_site:
            if self.until is None:
                self.until = boot + settle_s
            if boot >= self.until:
                self._by_site.clear()
        return self._by_site


def load(conn: Connection, incarnation: int) -> Unheard:
    """Whom a starting Hub must hear."""
    agents = [(row.n, AGENT) for row in conn.execute(AGENTS)]
    sessions = [(row.site, row.n) for row in conn.execute(SESSIONS, {"incarnation": incarnation})]
    return Unheard([*agents, *sessions])
