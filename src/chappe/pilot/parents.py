"""What a Job finds in CHAPPE_PARENTS: its parents, where they worked, and the results they returned.

Which parents a Job has, the person who signed it said; what became of them, the Hub says. So the signed ids
decide: what the Hub says of others is passed over, and a parent that it does not speak of is an error. Files
are written below the Session's directory under ids that were checked, a result only if it is data of a kind
that holds no code, and a parent's directory is named only if it lies below data/.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from chappe.core import limits
from chappe.core.errors import ChappeError, Invalid
from chappe.core.jobs import decode_spec
from chappe.link.files import below, write_atomic
from chappe.link.functions import SHARED
from chappe.link.http import HubClient
from chappe.link.results import MEDIA, VALUE, ResultProblem, check_bytes
from chappe.link.values import REFERENCE, Seal, SiteFileRef, ValueProblem, unseal
from chappe.pilot.session import Session
from chappe.wire.jobs import ParentPage, ParentView

_DIRECTORY = "parents"
_AT_ONCE = 8
_SUFFIX = {media: suffix for suffix, media in MEDIA.items()}

T = TypeVar("T")
Disk = Callable[..., "asyncio.Future[Any]"]
"""Runs a function on the disk thread."""


class ParentsProblem(Invalid):
    """The parents of a Job cannot be what its signature says, or their results are not what they were."""

    default_code = "parents"


class ParentEntry(msgspec.Struct, frozen=True):
    """One parent in the file that CHAPPE_PARENTS names. Paths are absolute; None where there is nothing
    to point to: no result, or a directory at another Site. `media` says what the result is; of what a
    function returned that is data, `result` is the data itself, and None where it is a pickle."""

    id: str
    name: str
    state: str
    site: str | None
    workdir: str | None
    result: str | None
    media: str | None


class _Found(NamedTuple):
    """Where a result is, and what it is."""

    path: str | None
    media: str | None


class Parents:
    """Asks the Hub about parents, a bounded number of Jobs and results at a time."""

    def __init__(
        self, hub: HubClient, session: Session, directory: Path, disk: Disk, seal: Seal
    ) -> None:
        self._hub = hub
        self._session = session
        self._directory = directory / _DIRECTORY
        self._disk = disk
        self._seal = seal
        self._jobs = asyncio.Semaphore(_AT_ONCE)
        self._results = asyncio.Semaphore(_AT_ONCE)

    async def fetch(self, job: str, spec: bytes) -> str:
        """Fetch what the file for `job` needs, write it, and return its path.

        Raises ParentsProblem (and other errors that are not transient): the Job must be refused; a
        transient error: it cannot be known now; OSError.
        """
        checked = decode_spec(spec)
        if checked.id != job:
            raise ParentsProblem(f"granted as {job}, but the spec is of {checked.id}")
        signed = checked.parents
        async with self._jobs:
            views = await self._ask(job, frozenset(signed))
            missing = [parent for parent in signed if parent not in views]
            if missing:
                raise ParentsProblem(
                    f"the hub does not know {len(missing)} of the job's {len(signed)} parents: "
                    f"{', '.join(missing[:3])}"
                )
            directory = self._directory / job
            await self._disk(_make, directory)
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._entry(directory, views[p])) for p in signed]
            except ExceptionGroup as several:
                raise _worst(several.exceptions) from several
            entries = [task.result() for task in tasks]
            path = directory / "parents.json"
            await self._disk(_write, path, msgspec.json.encode(entries))
        return str(path)

    async def _ask(self, job: str, signed: frozenset[str]) -> dict[str, ParentView]:
        views: dict[str, ParentView] = {}
        cursor: str | None = None
        for _ in range(limits.PARENTS_PER_JOB // limits.PAGE_MAX + 1):
            page = await self._hub.request(
                "GET", f"/v1/jobs/{job}/parents", reply=ParentPage, params={"cursor": cursor}
            )
            views.update((view.id, view) for view in page.parents if view.id in signed)
            cursor = page.next
            if cursor is None:
                return views
        raise ParentsProblem("the hub has no end of pages of parents")

    async def _entry(self, directory: Path, view: ParentView) -> ParentEntry:
        workdir = None
        if view.site == self._session.site and view.workdir:
            try:
                where = self._where(view)
                workdir = str(await self._disk(below, self._session.data, where))
            except Invalid as e:
                raise ParentsProblem(f"the directory of parent {view.id}: {e.message}") from e
        found = _Found(None, view.media)
        if view.result_sha256 is not None:
            found = await self._fetch(directory, view, view.result_sha256)
        return ParentEntry(
            view.id, view.name, view.state, view.site_name, workdir, found.path, found.media
        )

    def _where(self, view: ParentView) -> str:
        """Where a parent worked at this Site. Where functions do, the Hub does not know."""
        environment = self._session.functions.environment(view.environment or "")
        if environment is None or environment.own_directory:
            return view.workdir
        shared = view.workdir.removesuffix(f"/attempt-{view.attempt}")
        return SHARED if shared == f"jobs/{view.id}" else shared

    async def _fetch(self, directory: Path, view: ParentView, sha256: str) -> _Found:
        async with self._results:
            answer = await self._hub.fetch("GET", f"/v1/jobs/{view.id}/result")
            if hashlib.sha256(answer.data).hexdigest() != sha256:
                raise ParentsProblem(
                    f"the result of parent {view.id} is not what it was: sha256 differs"
                )
            try:
                if view.media == VALUE:
                    found: _Found = await self._disk(self._unsealed, directory, view, answer.data)
                    return found
                path = directory / (view.id + _SUFFIX.get(view.media or "", ".result"))
                await self._disk(_keep, path, view.media or "", answer.data)
            except (ResultProblem, ValueProblem) as e:
                raise ParentsProblem(f"the result of parent {view.id}: {e.message}") from e
            return _Found(str(path), view.media)

    def _unsealed(self, directory: Path, view: ParentView, data: bytes) -> _Found:
        """What a function returned, out of its envelope, if it is data. What this Site sealed it knows by
        its own key; of others it knows none, and data do no harm."""
        own = self._session.site
        said, body = unseal(
            data, view.id, lambda site, key: self._seal.key().public_b64 if site == own else key
        )
        if said.media in _SUFFIX:
            path = directory / (view.id + _SUFFIX[said.media])
            _keep(path, said.media, body)
            return _Found(str(path), said.media)
        if said.media == REFERENCE and said.site == own:
            ref = msgspec.msgpack.decode(body, type=SiteFileRef)
            large = below(self._session.data, ref.path)
            return _Found(str(large) if ref.media in _SUFFIX else None, ref.media)
        return _Found(None, said.media)


def forget(directory: Path, job: str) -> None:
    """Remove what was fetched for `job` below the Session's directory."""
    shutil.rmtree(directory / _DIRECTORY / job, ignore_errors=True)


def _worst(errors: Sequence[Exception]) -> Exception:
    """Of several errors, one for which trying again is no use, if there is one."""
    for error in errors:
        if isinstance(error, ChappeError) and not error.transient:
            return error
    return errors[0]


def _make(directory: Path) -> None:
    os.makedirs(directory, mode=0o700, exist_ok=True)


def _write(path: Path, data: bytes) -> None:
    write_atomic(path, data, durable=False)


def _keep(path: Path, media: str, data: bytes) -> None:
    """Write a result, if it is data and no code: a Job may open it carelessly."""
    check_bytes(media, data)
    _write(path, data)
