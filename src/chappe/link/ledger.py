"""The Site's ledger: one entry per start, so that no start happens twice, whoever asks for it.

A claim is one file-system operation that creates `ledger/<xx>/<job>.<attempt>` or fails because it exists,
and that already holds who claimed it: a symbolic link to `session:epoch:not_after:request`. (A file
made with O_CREAT|O_EXCL is as exclusive, but is empty until it is written: a process killed in between
would leave a claim that nobody owns, and the Job could never start again. A link also takes no data block,
and one system call instead of three.) It needs no lock, and works on NFS, Lustre and GPFS.

Claims for grants that came together say the same, so from the second on they are hard links to one such
link (a *ticket*): as exclusive, 8 µs instead of 27 (and of 600 on ext4 where many files were deleted a
moment ago: it then searches long for an inode), and not an inode each. Where that is not possible, each is
made anew.

Nothing is synced to disk. What a power cut may cost: the claims of the last seconds. Then the same attempt
could be claimed once more, if a grant of it came again. An honest Hub does not send one: a grant that may
have started counts as started, and the next one has a higher attempt. A stolen Hub would gain, after a
power cut, one more start of a few Jobs, never beside the first, which died with the power. An fsync per
start (0.1 to 20 ms) would be paid by everybody, always.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections import OrderedDict
from enum import StrEnum
from pathlib import Path

import msgspec

from chappe.core import limits
from chappe.core.errors import Unavailable
from chappe.core.ids import check_id
from chappe.link.clock import now as wall_clock

#: Entries outlive the signature by this much: clocks of nodes differ.
_MARGIN_S = 86_400.0
#: So many of the last things that claims said are remembered.
_SAID = 16
_TICKETS = "tickets"


class LedgerUnavailable(Unavailable):
    """The ledger cannot be read or written (disk full, quota, file system away): start nothing; repeat."""

    default_code = "ledger_unavailable"


class Claim(StrEnum):
    """What came of a claim: it is new, it was this Session's already, or it is somebody else's."""

    CLAIMED = "claimed"
    OURS = "ours"
    TAKEN = "taken"


class Claimant(msgspec.Struct, frozen=True):
    """Who claimed a start, until when the entry matters (seconds since 1970), and the number of the
    Session's request whose answer brought the grant: the same grant never comes twice under one number."""

    session: str
    epoch: int
    not_after: float
    request: int = 0


class Ledger:
    """The ledger in one directory, which several pilots of a Site share."""

    def __init__(self, directory: Path) -> None:
        self._root = os.fspath(directory)
        self._said: OrderedDict[str, str] = (
            OrderedDict()
        )  # what claims said: the ticket that says it

    def claim(
        self,
        job: str,
        attempt: int,
        session: str,
        epoch: int,
        not_after: float | None = None,
        request: int = 0,
    ) -> Claim:
        """Claim one start. Start the Job on CLAIMED only; OURS means that this Session claimed it before
        (a pilot that was restarted), and that it may have started it.

        `not_after` is the signature's (None: 30 days from now); entries live that long. Raises
        LedgerUnavailable, Invalid for a job or session that is no id.
        """
        path = self._path(job, attempt)
        check_id(session, "session")
        if not_after is None:
            not_after = wall_clock() + limits.NOT_AFTER_DEFAULT_S
        target = f"{session}:{epoch}:{int(min(not_after, 1e11))}:{request}"
        try:
            self._link(target, path)
        except FileExistsError:
            owner = self._owner(path)
            return Claim.OURS if owner is not None and owner.session == session else Claim.TAKEN
        except OSError as e:
            raise _unavailable("write", path, e) from e
        return Claim.CLAIMED

    def claimed(self, job: str, attempt: int) -> Claimant | None:
        """Who claimed this start; None when nobody did. Raises LedgerUnavailable."""
        return self._owner(self._path(job, attempt))

    def prune(self, now: float, most: int = 10_000) -> int:
        """Remove up to `most` entries that expired more than a day before `now`; how many they were.

        It reads the whole ledger: for a thread, once a day. Raises LedgerUnavailable.
        """
        removed = 0
        try:
            with os.scandir(self._root) as parts:
                directories = [part.path for part in parts if part.is_dir(follow_symlinks=False)]
            for directory in directories:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        owner = self._owner(entry.path)
                        if owner is None or owner.not_after + _MARGIN_S >= now:
                            continue
                        os.unlink(entry.path)
                        removed += not directory.endswith(_TICKETS)
                        if removed >= most:
                            return removed
        except FileNotFoundError:
            return removed
        except OSError as e:
            raise _unavailable("prune", self._root, e) from e
        return removed

    def _path(self, job: str, attempt: int) -> str:
        # The id's last digits are random (its first are the time), so the parts fill evenly.
        return f"{self._root}/{check_id(job, 'job')[-2:]}/{job}.{int(attempt)}"

    def _link(self, target: str, path: str) -> None:
        try:
            self._make(target, path)
        except FileNotFoundError:
            # Whatever the umask: who could write here would decide what is started.
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            self._make(target, path)

    def _make(self, target: str, path: str) -> None:
        """Create the entry. FileExistsError when there is one, FileNotFoundError without its directory."""
        if target in self._said:
            try:
                os.link(self._ticket(target), path, follow_symlinks=False)
            except OSError as e:
                missing = e.errno == errno.ENOENT and not os.path.isdir(os.path.dirname(path))
                if e.errno == errno.EEXIST or missing:
                    raise
                # Pruned, linked too often, or a file system without hard links: whatever it is, this one
                # is made as the first one was, or fails with the reason.
                self._said.pop(target, None)
            else:
                return
        os.symlink(target, path)
        self._said.setdefault(target, "")
        while len(self._said) > _SAID:
            self._said.popitem(last=False)

    def _ticket(self, target: str) -> str:
        """An entry that is nobody's claim, to link to. Its name is never used again, unlike a claim's."""
        ticket = self._said.get(target)
        if not ticket:
            ticket = f"{self._root}/{_TICKETS}/{secrets.token_hex(12)}"
            try:
                os.symlink(target, ticket)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(ticket), mode=0o700, exist_ok=True)
                os.symlink(target, ticket)
            self._said[target] = ticket
        return ticket

    def _owner(self, path: str) -> Claimant | None:
        try:
            session, epoch, not_after, request = os.readlink(path).split(":")
            return Claimant(session, int(epoch), float(not_after), int(request))
        except FileNotFoundError:
            return None
        except OSError as e:
            if e.errno != errno.EINVAL:
                raise _unavailable("read", path, e) from e
        except ValueError:
            pass
        # Not an entry of ours: a claim all the same, and nobody's to take.
        return Claimant("", 0, float("inf"))


def _unavailable(verb: str, path: str, error: OSError) -> LedgerUnavailable:
    return LedgerUnavailable(f"cannot {verb} the ledger ({path}): {error.strerror}")
