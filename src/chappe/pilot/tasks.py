"""From an admitted Job to what the launcher is told: command, environment, directory, what judges its end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from chappe.core import arrays, limits
from chappe.core.errors import Invalid
from chappe.core.hooks import HookName
from chappe.core.jobs import FunctionRef, JobSpec, Resources
from chappe.link import admission
from chappe.link.appdef import Files
from chappe.link.apps import LoadedApp
from chappe.link.changed import ChangedParameters
from chappe.link.files import write_atomic
from chappe.link.functions import SHARED, FunctionEnvironment
from chappe.link.joblogs import directory, names
from chappe.link.templates import Context
from chappe.link.values import MISSING, left_at
from chappe.pilot import places
from chappe.pilot.aftermath import After
from chappe.pilot.directories import Directories
from chappe.pilot.holding import Holding
from chappe.pilot.job_env import gpu_env, resource_env
from chappe.pilot.launch_wire import Call, Care, Hook, Task
from chappe.pilot.outcomes import Order
from chappe.pilot.ranks import Starter
from chappe.pilot.scratch import scratch_of
from chappe.pilot.session import Session
from chappe.pilot.shelf import Codes

_RAW_FILES = Files()


class Tasks:
    """Makes the tasks of one batch."""

    def __init__(
        self, session: Session, codes: Codes, changed: ChangedParameters, starter: Starter
    ) -> None:
        self._session = session
        self._starter = starter
        self._codes = codes
        self._changed = changed
        self._data = session.data
        self._directories = Directories(session.data, 0o777 & ~session.options.umask)

    def make(self, order: Order, admitted: admission.Admitted) -> Task:
        """The task of one order. Raises PathEscape, Invalid, OSError."""
        h, spec = order.holding, admitted.spec
        files = _files(admitted)
        workdir = _workdir(spec, files)
        where = directory(workdir, h.attempt, files)
        cwd = self._directories.make(where, files.own_directory)
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
            h.after = after_of(self._session, h, spec, admitted.app, cwd, admitted.max_attempts)
            care = _care(h, admitted.app, parameters, context, self._session)
        self._tell(env, h, admitted, files, cwd)
        call = None
        if spec.function is not None and admitted.environment is not None:
            env = {**admitted.environment.env, **env}
            call = self._call(h, spec.function, admitted, where, files.own_directory)
            h.result = MISSING
            if parallel(resources):
                h.result = left_at(call.result)
                argv, call = _ranks(call, admitted.environment), None
        if slot is not None:
            hostfile = f"{cwd}/{h.job}.{h.attempt}.hosts"
            argv, env = self._starter.start(argv, env, resources, slot, hostfile)
            h.started_by = self._starter.launcher(resources)
        logs = names(h.job, h.attempt, workdir, files)
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
            warn_signal=_warn_signal(resources),
            ends_at=None if resources.warn_s is None else order.ends_at,
            place="" if slot is None else places.note(slot),
            call=call,
            care=care,
            mem_limit_bytes=resources.mem_bytes if self._session.options.hold_memory else 0,
        )

    def _tell(
        self,
        env: dict[str, str],
        h: Holding,
        admitted: admission.Admitted,
        files: Files,
        cwd: str,
    ) -> None:
        """What its spec wants a Job to find in its environment, and what we tell it."""
        spec, slot = admitted.spec, h.slot
        if spec.env:
            env.update(spec.env)
        if spec.task is not None:
            env |= arrays.environment(spec.task)
        if spec.script is not None:
            env["CHAPPE_SCRIPT"] = self._codes.keep(spec.script, admitted.code)
        env["CHAPPE_WORKDIR"] = cwd
        env |= resource_env(spec.resources)
        if slot is not None:
            env |= gpu_env(slot.shares[0])
        if h.parents_file:
            env["CHAPPE_PARENTS"] = h.parents_file
        if files.result is not None:
            env["CHAPPE_RESULT"] = h.result = f"{cwd}/{files.result}"
        if h.after is not None and h.after.scratch:
            env["CHAPPE_SCRATCH"] = h.after.scratch

    def _call(
        self,
        h: Holding,
        function: FunctionRef,
        admitted: admission.Admitted,
        where: str,
        own_directory: bool,
    ) -> Call:
        """The function, its code in a file and its arguments as they were signed."""
        path = f"{where}/{_result_name(h, own_directory)}"
        environment = admitted.environment or FunctionEnvironment()
        return Call(
            environment=function.environment,
            name=function.name,
            code=self._codes.keep(function.code, admitted.code),
            sha256=function.code,
            arguments=function.arguments,
            python=function.python,
            result=f"{self._data}/{path}",
            reference=path,
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


def parallel(resources: Resources) -> bool:
    """Whether a Job has several ranks."""
    return resources.ranks > 1 or resources.nodes > 1


def _ranks(call: Call, environment: FunctionEnvironment) -> list[str]:
    """The command of each rank of a function. Raises OSError."""
    path = f"{call.result}.call"
    write_atomic(Path(path), msgspec.msgpack.encode(call), durable=False)
    return [environment.python or sys.executable, "-P", "-m", "chappe.pilot.rank", path]


def result_stem(session: Session, h: Holding, spec: JobSpec, files: Files) -> str:
    """Where the function of a Job found running leaves its value (absolute path, without suffix)."""
    return f"{session.data}/{where(spec, files, h.attempt)}/{_result_name(h, files.own_directory)}"


def _result_name(h: Holding, own_directory: bool) -> str:
    return "result" if own_directory else f"{h.job}.{h.attempt}.result"


def _warn_signal(resources: Resources) -> int:
    return 0 if resources.warn_s is None else signal.Signals[f"SIG{resources.warn_signal}"]


def _workdir(spec: JobSpec, files: Files) -> str:
    """Where a Job works, below which its attempts may have directories of their own."""
    shared = spec.function is not None and not files.own_directory
    return spec.workdir or (SHARED if shared else f"jobs/{spec.id}")


def _files(admitted: admission.Admitted) -> Files:
    """Where the Job works and what it leaves."""
    if admitted.environment is not None:
        return admitted.environment.files
    return _RAW_FILES if admitted.app is None else admitted.app.app.files


def where(spec: JobSpec, files: Files, attempt: int) -> str:
    """The directory of one attempt, relative to data/."""
    return directory(_workdir(spec, files), attempt, files)


def after_of(
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
