"""The pilot's journal: what a restarted pilot must know to go on where its predecessor was killed.

Written before the deed it protects: grants before anything starts, ends before the launcher may forget
them, and numbers (of requests and reports) in blocks before any of them is used, because a number used
twice would be taken for a repetition. Forgotten with the next compaction: whatever the Hub has given its
verdict on. Nothing is synced to the disk: the journal outlives the process, and a node that dies takes the
Session along, whose Jobs the Hub then counts as lost.

The journal may stop working (a full disk) while all else goes on: see `pilot.desk`. The records are those
of link.journal, because the Site's agent reads them as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chappe.core.limits import MIB
from chappe.link import spool
from chappe.link.journal import Numbers, Record, Recovered, encode, replay

NUMBERS_AHEAD = 50_000
_COMPACT_BYTES = 16 * MIB
_LIMIT_BYTES = 512 * MIB


class Journal:
    """The open journal of one Session; used by one thread at a time."""

    def __init__(self, path: Path, least_no: int = 0) -> None:
        """Open it and read what is there; numbers go on above `least_no` at least.

        Raises SpoolCorrupt, SpoolFull, OSError.
        """
        self._writer = spool.SpoolWriter(path, limit_bytes=_LIMIT_BYTES)
        recovered = replay(self._writer.recovered)
        self._writer.recovered.clear()
        self._recovered: Recovered | None = recovered
        self._compact_at = max(_COMPACT_BYTES, 2 * self._writer.size)
        self._numbers = Numbers(
            max(recovered.request_no, least_no), max(recovered.report_no, least_no)
        )

    @property
    def numbers(self) -> Numbers:
        """The highest numbers that may be used."""
        return self._numbers

    def recover(self) -> Recovered:
        """What was found at opening; given once, so that it does not stay in memory."""
        recovered, self._recovered = self._recovered or Recovered(), None
        return recovered

    def reserve(self, request_no: int, report_no: int) -> None:
        """See to it that numbers well beyond these may be used. Raises SpoolFull, OSError."""
        have = self._numbers
        if (
            have.request_no - request_no > NUMBERS_AHEAD
            and have.report_no - report_no > NUMBERS_AHEAD
        ):
            return
        ahead = Numbers(request_no + 2 * NUMBERS_AHEAD, report_no + 2 * NUMBERS_AHEAD)
        self.append([ahead])
        self._numbers = ahead

    def append(self, records: Sequence[Record]) -> None:
        """Write all of these or none. Raises SpoolFull, OSError."""
        self._writer.append(encode(records))
        if self._writer.size >= self._compact_at:
            self._compact()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _compact(self) -> None:
        """Leave out what is settled. What is live is read back from the file: keeping the signed bytes
        of submissions in memory for this rare moment would cost more."""
        live = replay(spool.read(self._writer.path))
        try:
            self._writer.rewrite(encode(live.records()))
        except spool.SpoolFull:
            # No room for a second file now; the first one is whole, and has room or says so itself.
            self._compact_at = self._writer.size + _COMPACT_BYTES
            return
        self._compact_at = max(_COMPACT_BYTES, 2 * self._writer.size)


def open_journal(path: Path, now: float) -> tuple[Journal, str]:
    """Open the journal; a damaged one is set aside, and what of it is good goes on in a new one.

    Nobody knows then which numbers were used: they go on at the microseconds of `now` (seconds since
    1970), which no count of ours ever reached. The second value says what was damaged, "" if nothing.
    Raises SpoolFull, OSError.
    """
    try:
        return Journal(path), ""
    except spool.SpoolCorrupt as damage:
        spool.set_aside(path)
        with spool.SpoolWriter(path, limit_bytes=_LIMIT_BYTES) as fresh:
            fresh.append(damage.records)
        return Journal(path, int(now * 1e6)), damage.message
