"""From a grant to a task: everything that must be true, and exist, before a process may start.

In this order: the grant is admitted (signature, trust, App, parameters), its directory exists, its command
and environment are made, and last its start is claimed in the ledger. What fails before the claim has used
up nothing. Runs on the disk thread, a batch at a time; what several Jobs share is looked up once a batch.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from chappe.core import limits
from chappe.core.errors import ChappeError, Invalid
from chappe.core.faults import reach
from chappe.core.hooks import HookName
from chappe.core.jobs import FunctionRef, JobSpec, Resources
from chappe.core.leases import STARTED_BEFORE, Reason
from chappe.link import admission
from chappe.link.appdef import Files
from chappe.link.apps import LoadedApp, load_apps
from chappe.link.changed import ChangedParameters
from chappe.link.files import NO_SPACE, PathEscape, make_below, write_atomic
from chappe.link.functions import DEFAULT, SHARED, FunctionEnvironment
from chappe.link.joblogs import directory, names
from chappe.link.ledger import Claim, Ledger
from chappe.link.templates import Context
from chappe.link.trust import TrustedKeys
from chappe.link.values import MISSING
from chappe.pilot import places, ranks
from chappe.pilot.aftermath import After, Judged, judge
from chappe.pilot.holding import Holding
from chappe.pilot.launch_wire import Call, Care, Ended, Environment, Hook, Task
from chappe.pilot.placement import Slot
from chappe.pilot.scratch import scratch_of
from chappe.pilot.session import Session
from chappe.pilot.topology import VARIABLES
from chappe.wire.sync import Grant

_BASE_NAMES = ("PATH", "HOME", "USER", "LANG", "TMPDIR")
_RAW_FILES = Files()
_PRIVATE = 0o700


class Order(NamedTuple):
    """What to prepare: a holding with its slot, the fences of its start, and when the allocation ends what
    runs (CLOCK_BOOTTIME seconds)."""

    holding: Holding
    start_by: float
    takeover_deadline: float | None
    ends_at: float | None = None


class Prepared(NamedTuple):
    """Claimed, and ready for the launcher."""

    holding: Holding
    task: Task


class Refused(NamedTuple):
    """It must not be started: `code` is the reason of the refusal."""

    holding: Holding
    code: str
    message: str


class Failed(NamedTuple):
    """It should be started and cannot be; `disk_full` if the reason will meet others too."""

    holding: Holding
    message: str
    disk_full: bool = False
    reason: Reason = Reason.START_FAILED


class Postponed(NamedTuple):
    """Nothing can be started now, and nothing is wrong with this one."""

    holding: Holding
    message: str


Outcome = Prepared | Refused | Failed | Postponed


def base_env(session: Session, environ: Mapping[str, str]) -> dict[str, str]:
    """What all Jobs of the Session find in their environment."""
    env = {name: environ[name] for name in _BASE_NAMES if name in environ}
    env["CHAPPE_SITE"] = session.site_name
    env["CHAPPE_DATA"] = str(session.data)
    return env


def resource_env(resources: Resources) -> dict[str, str]:
    """What a Job is told of its own size."""
    env = {
        "CHAPPE_CORES": str(resources.node_cores),
        "CHAPPE_MEM_BYTES": str(resources.mem_bytes),
        "OMP_NUM_THREADS": str(resources.threads),
    }
    if resources.ranks > 1 or resources.nodes > 1:
        env["CHAPPE_NODES"] = str(resources.nodes)
        env["CHAPPE_RANKS"] = str(resources.ranks)
        env["CHAPPE_RANKS_PER_NODE"] = str(resources.node_ranks)
    return env


def gpu_env(slot: Slot) -> dict[str, str]:
    """Which GPUs of its node a Job may see: those that it asked for, and no other."""
    mine = slot.shares[0].gpus
    env: dict[str, list[str]] = {}
    for gpu in slot.node.topology.gpus:
        seen = env.setdefault(VARIABLES[gpu.vendor], [])
        if gpu.uuid in mine:
            seen.append(gpu.uuid)
    return {name: ",".join(uuids) for name, uuids in env.items()}


class Shelf:
    """The Site's Apps, read again when a file in their directory changes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._apps: dict[str, LoadedApp] = {}
        self._read_as: object = None

    def current(self) -> dict[str, LoadedApp]:
        """The Apps by name. While the files are wrong, the last good ones stay; raises AppProblem, OSError
        when there were none yet."""
        try:
            with os.scandir(self._directory) as entries:
                seen = sorted(
                    (entry.name, stat.st_mtime_ns, stat.st_size, stat.st_ino)
                    for entry in entries
                    if entry.name.endswith(".toml") and (stat := entry.stat())
                )
        except FileNotFoundError:
            return self._apps
        if seen == self._read_as:
            return self._apps
        try:
            self._apps = load_apps(self._directory)
        except ChappeError:
            if self._read_as is None:
                raise
        self._read_as = seen
        return self._apps


def environments(session: Session) -> dict[str, Environment]:
    """The interpreters in which the Session's functions run, as the launcher wants them."""
    rules = session.functions
    found = {name: rules.environment(name) for name in (DEFAULT, *rules.environments)}
    return {
        name: Environment(
            e.python or sys.executable, list(e.preload), e.env, e.recycle_calls, e.recycle_bytes
        )
        for name, e in found.items()
        if e is not None and rules.allowed
    }


class Preparer:
    """Prepares the Jobs of one Session, whose own `directory` keeps the code of functions."""

    def __init__(self, session: Session, directory: Path) -> None:
        site = Path(session.site_dir)
        self._codes = Codes(directory)
        self._session = session
        self._data = session.data
        self._trusted = TrustedKeys(site / "trusted_keys")
        self._ledger = Ledger(site / "ledger")
        self._shelf = Shelf(site / "apps")
        self._changed = ChangedParameters(site / "changed")

    def prepare(self, orders: Sequence[Order], now: float) -> list[Outcome]:
        """What becomes of each order. `now` is in seconds since 1970."""
        try:
            batch = self._batch(now)
        except (ChappeError, OSError) as e:
            return [Postponed(order.holding, str(e)) for order in orders]
        return [batch.prepare(order) for order in orders]

    def examine(self, holding: Holding, now: float) -> Refused | None:
        """Whether `holding` will be refused, as far as that can be said now."""
        try:
            answer = self._batch(now).admit(holding)
        except (ChappeError, OSError):
            return None
        return answer if isinstance(answer, Refused) else None

    def claimed(self, job: str, attempt: int, request_no: int) -> bool:
        """Whether this start was claimed for the grant that the answer to this request brought. A grant
        that came again later is another one, whatever it says. Raises LedgerUnavailable."""
        owner = self._ledger.claimed(job, attempt)
        return (
            owner is not None
            and owner.session == self._session.session
            and owner.request == request_no
        )

    def recall(self, holding: Holding) -> None:
        """What the end of a Job found running is judged by: its result file, its hooks and the like."""
        try:
            spec = msgspec.json.decode(holding.spec, type=JobSpec)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if spec.function is not None:
            holding.result = MISSING
            return
        loaded = self._shelf.current().get(spec.app.name) if spec.app is not None else None
        if loaded is None:
            return
        files = loaded.app.files
        cwd = f"{os.path.realpath(self._data)}/{_where(spec, files, holding.attempt)}"
        if files.result is not None:
            holding.result = f"{cwd}/{files.result}"
        holding.after = _after(self._session, holding, spec, loaded, cwd, spec.max_attempts)

    def judge(self, holding: Holding, ended: Ended, after: After) -> Judged:
        """What the end of a run means (see pilot.aftermath)."""
        return judge(holding, ended, after, self._changed)

    def _batch(self, now: float) -> _Batch:
        trusted = self._trusted.current()
        apps = self._shelf.current()
        return _Batch(
            self._session,
            self._data,
            self._ledger,
            apps,
            trusted,
            now,
            self._codes,
            self._changed,
        )


class _Batch:
    """What the Jobs of one batch share."""

    def __init__(
        self,
        session: Session,
        data: Path,
        ledger: Ledger,
        apps: Mapping[str, LoadedApp],
        trusted: frozenset[str],
        now: float,
        codes: Codes,
        changed: ChangedParameters,
    ) -> None:
        self._codes = codes
        self._session = session
        self._changed = changed
        self._mode = 0o777 & ~session.options.umask
        self._data = data
        self._ledger = ledger
        self._apps = apps
        self._trusted = trusted
        self._now = now
        self._made: dict[str, str] = {}

    def admit(self, h: Holding) -> admission.Admitted | Refused:
        grant = Grant(h.job, h.epoch, h.attempt, msgspec.Raw(h.spec), h.submission, h.idx)
        answer = admission.admit(
            grant,
            h.verified,
            trusted=self._trusted,
            apps=self._apps,
            site=self._session.site,
            project=self._session.project,
            now=self._now,
            functions=self._session.functions,
        )
        if isinstance(answer, admission.Refusal):
            return Refused(h, answer.code, answer.message)
        return answer

    def prepare(self, order: Order) -> Outcome:
        h = order.holding
        answer = self.admit(h)
        if isinstance(answer, Refused):
            return answer
        try:
            task = self._task(order, answer)
        except PathEscape as e:
            return Refused(h, "bad_path", e.message)
        except Invalid as e:
            return Refused(h, "bad_parameters", e.message)
        except OSError as e:
            full = e.errno in NO_SPACE or e.errno == errno.EROFS
            return Failed(h, f"its directory cannot be made: {e}", full)
        return self._claim(h, task, answer.not_after)

    def _claim(self, h: Holding, task: Task, not_after: float | None) -> Outcome:
        if h.claimed:
            return Prepared(h, task)
        try:
            claim = self._ledger.claim(
                h.job, h.attempt, self._session.session, h.epoch, not_after, h.request_no
            )
        except ChappeError as e:
            return Postponed(h, e.message)
        reach("pilot.after_claim")
        if claim is Claim.OURS:
            # Our journal lost it, so nobody knows whether it ran: the attempt counts, and is over.
            message = "this pilot claimed its start before, and lost its trace"
            return Failed(h, message, reason=Reason.LAUNCHER_LOST)
        if claim is Claim.TAKEN:
            return Refused(
                h, STARTED_BEFORE, f"attempt {h.attempt} was started before at this site"
            )
        return Prepared(h, task)

    def _task(self, order: Order, admitted: admission.Admitted) -> Task:
        h, spec = order.holding, admitted.spec
        files = _files(admitted)
        workdir = _workdir(spec, files)
        where = directory(workdir, h.attempt, files)
        cwd = self._directory(where, files.own_directory)
        slot, resources = h.slot, spec.resources
        if admitted.app is None:
            argv = list(spec.command or ())
            env: dict[str, str] = {}
            care = None
        else:
            context = Context(h.job, h.attempt, where, h.need.cores, self._session.site_name)
            parameters = self._parameters(h, admitted.app, admitted)
            argv = admitted.app.command.render(parameters, context)
            env = dict(admitted.app.app.env)
            h.after = _after(self._session, h, spec, admitted.app, cwd, admitted.max_attempts)
            care = _care(h, admitted.app, parameters, context, self._session)
        if spec.env:
            env.update(spec.env)
        env["CHAPPE_WORKDIR"] = cwd
        env |= resource_env(resources)
        if slot is not None:
            env |= gpu_env(slot)
        if h.parents_file:
            env["CHAPPE_PARENTS"] = h.parents_file
        if files.result is not None:
            env["CHAPPE_RESULT"] = h.result = f"{cwd}/{files.result}"
        if h.after is not None and h.after.scratch:
            env["CHAPPE_SCRATCH"] = h.after.scratch
        if slot is not None:
            hosts = [share.node.name for share in slot.shares]
            hostfile = f"{cwd}/{h.job}.{h.attempt}.hosts"
            argv = ranks.command(argv, self._session.options, resources, hosts, hostfile)
        logs = names(h.job, h.attempt, workdir, files)
        call = None
        if spec.function is not None and admitted.environment is not None:
            env = {**admitted.environment.env, **env}
            h.result = MISSING
            call = self._call(h, spec.function, admitted, where, files.own_directory)
        return Task(
            job=h.job,
            epoch=h.epoch,
            attempt=h.attempt,
            argv=argv,
            env=env,
            cwd=cwd,
            start_by=order.start_by,
            log=files.log,
            stdout="" if logs.stdout is None else f"{cwd}/{os.path.basename(logs.stdout)}",
            stderr="" if logs.stderr is None else f"{cwd}/{os.path.basename(logs.stderr)}",
            cores=[] if slot is None else slot.cpus,
            wall_limit_s=resources.wall_s,
            takeover_deadline=order.takeover_deadline,
            tail_bytes=limits.TAIL_BYTES,
            lane=0 if slot is None else slot.lane,
            warn_s=resources.warn_s,
            warn_signal=0
            if resources.warn_s is None
            else signal.Signals[f"SIG{resources.warn_signal}"],
            ends_at=None if resources.warn_s is None else order.ends_at,
            place="" if slot is None else places.note(slot),
            call=call,
            care=care,
        )

    def _call(
        self,
        h: Holding,
        function: FunctionRef,
        admitted: admission.Admitted,
        where: str,
        own_directory: bool,
    ) -> Call:
        """The function, its code in a file and its arguments as they were signed."""
        stem = "" if own_directory else f"{h.job}.{h.attempt}."
        environment = admitted.environment or FunctionEnvironment()
        return Call(
            environment=function.environment,
            name=function.name,
            code=self._codes.keep(function.code, admitted.code),
            sha256=function.code,
            arguments=function.arguments,
            python=function.python,
            result=f"{self._data}/{where}/{stem}result",
            reference=f"{where}/{stem}result",
            result_bytes=environment.result_bytes,
            own_process=function.own_process,
        )

    def _parameters(
        self, h: Holding, app: LoadedApp, admitted: admission.Admitted
    ) -> Mapping[str, Any]:
        """The Job's parameters, with what hooks changed. Raises Invalid, OSError."""
        if not app.hooks:
            return admitted.parameters
        try:
            changed = {**self._changed.get(h.job, h.attempt), **h.parameters}
        except msgspec.MsgspecError as e:
            raise Invalid(f"what a hook changed cannot be read: {e}", field="parameters") from e
        if not changed:
            return admitted.parameters
        return app.validate({**admitted.spec.parameters, **changed})

    def _directory(self, relative: str, own: bool) -> str:
        """The absolute path of a directory below data/, made if need be."""
        if not own:
            return self._shared(relative)
        made = self._parent(os.path.dirname(relative))
        path = f"{made}/{os.path.basename(relative)}"
        try:
            self._mkdir(path)
        except FileExistsError:
            # From a start of this attempt that was cut short; a link in its place would lead elsewhere.
            if os.path.islink(path) or not os.path.isdir(path):
                raise PathEscape(f"{path} is not a directory: remove it", field="workdir") from None
        return path

    def _shared(self, relative: str) -> str:
        """A directory that several Jobs of the batch may have in common: its path is resolved once."""
        made = self._made.get(relative)
        if made is None:
            made = self._made[relative] = str(make_below(self._data, relative, self._mode))
        return made

    def _parent(self, relative: str) -> str:
        """The directory that holds a Job's attempts. What can be made new below a directory that is known
        is no link, and need not be resolved: that is most of the cost of a directory."""
        if relative in self._made:
            return self._made[relative]
        above, name = os.path.split(relative)
        path = f"{self._shared(above)}/{name}"
        try:
            self._mkdir(path)
        except FileExistsError:
            return self._shared(relative)
        self._made[relative] = path
        return path

    def _mkdir(self, path: str) -> None:
        """Make a directory with the Site's mode for those of Jobs; the head's own umask is the strictest."""
        os.mkdir(path)
        if self._mode != _PRIVATE:
            os.chmod(path, self._mode)


def _workdir(spec: JobSpec, files: Files) -> str:
    """Where a Job works, below which its attempts may have directories of their own."""
    shared = spec.function is not None and not files.own_directory
    return spec.workdir or (SHARED if shared else f"jobs/{spec.id}")


class Codes:
    """The pickled functions of one Session: a file each, which the workers load."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "code"
        self._kept: set[str] = set()

    def keep(self, sha256: str, code: bytes) -> str:
        """The file that holds `code`, which was found to have this sha256. Raises OSError."""
        path = self._directory / sha256
        if sha256 not in self._kept:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            write_atomic(path, code, durable=False)
            self._kept.add(sha256)
        return str(path)


def _files(admitted: admission.Admitted) -> Files:
    """Where the Job works and what it leaves."""
    if admitted.environment is not None:
        return admitted.environment.files
    return _RAW_FILES if admitted.app is None else admitted.app.app.files


def _where(spec: JobSpec, files: Files, attempt: int) -> str:
    """The directory of one attempt, relative to data/."""
    return directory(_workdir(spec, files), attempt, files)


def _after(
    session: Session,
    h: Holding,
    spec: JobSpec,
    loaded: LoadedApp,
    cwd: str,
    max_attempts: int,
) -> After | None:
    """What the end of such a Job is judged by, None when its exit status says it all."""
    files = loaded.app.files
    if not (loaded.hooks or files.cleanup or files.scratch or files.count_io):
        return None
    node = "" if h.slot is None else h.slot.node.name
    scratch = f"{scratch_of(session, node)}/{h.job}.{h.epoch}" if files.scratch else ""
    verdict = f"{cwd}/{'' if files.own_directory else f'{h.job}.{h.attempt}.'}verdict.json"
    return After(spec, max_attempts, files, cwd, verdict, scratch, loaded.validate)


def _care(
    h: Holding,
    loaded: LoadedApp,
    parameters: Mapping[str, Any],
    context: Context,
    session: Session,
) -> Care | None:
    """What the launcher does around the command."""
    if h.after is None:
        return None
    hooks = [
        Hook(name.value, command.render(parameters, context), loaded.app.hooks.limit_s)
        for name, command in loaded.hooks.items()
        if name is not HookName.PREPROCESS or not h.preprocessed
    ]
    return Care(
        hooks,
        h.after.verdict,
        h.after.scratch,
        loaded.app.files.count_io,
        str(session.scratch_base),
    )
