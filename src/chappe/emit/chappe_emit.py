#!/usr/bin/env python3
"""Tell a hub what a simulation does: messages that are not lost, and a simulation that is not disturbed.

This file stands alone: copy it to any machine with Python 3.6 or later. `import chappe_emit as emit` (or
`from chappe import emit`), or run it: `python3 chappe_emit.py metric name=energy value=1.5 step=3`.

A message is bytes, frozen before anything is sent: numbered within its *stream*, and with the sha256 of the
message before it, so that a missing one shows. It is first appended to a *spool file*, and is then brought on
by the first of the configured transports that confirms it; what none confirms waits in the file for a later
call or for the agent of a site. A spool file is text, so that a shell can write one (chappe-emit.sh):

    chappe-spool 1 STREAM HOST BOOT PID TICKS direct|agent        the writer; `-` for what it cannot know
    SHA256 MESSAGE                                                one line for each; JSON, on one line
    end                                                           the writer is done with the file

A line counts when it is whole and its sha256 is right; an empty one means nothing. FILE.sent says up to
which byte all is confirmed; FILE.lock is there while one of several processes that share a file appends.

Nothing here raises into the simulation, or keeps it for longer than CHAPPE_EMIT_LIMIT_S seconds.
"""

# Python 3.6 reads this file: no newer syntax, no newer modules, and what is slow to import comes late.
import atexit
import contextlib
import hashlib
import json
import os
import sys
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Tuple

CODES = {
    "simulation.started": "0000", "simulation.ended": "0100", "simulation.purged": "8888",
    "job.started": "1000", "job.period": "1001", "job.ended": "1100", "command.failed": "1900",
    "job.fatal": "1999", "post.started": "2000", "post.ended": "2100", "post.command_failed": "2900",
    "post.fatal": "2999", "checker.started": "3000", "checker.ended": "3100",
    "checker.command_failed": "3900", "checker.fatal": "3999", "io": "7000", "accounting": "7010",
    "accounting.jobs": "7011", "metric.sets": "7100", "supervision.detect": "8000",
    "supervision.format": "8100", "supervision.dispatch": "8200",
}  # fmt: skip
"""Types that have a code of libIGCM; any other type is sent without one."""
LIFECYCLE = frozenset(
    ["0000", "0100", "1000", "1100", "1999", "2000", "2100", "2999", "3000", "3100", "3999", "8888"]
)
"""Codes that are on disk, and on their way, before the call returns to the simulation's next step."""
MAGIC = "chappe-spool 1"
MESSAGE_BYTES = 256 * 1024
"""Longest message; the texts of a longer one are cut."""
_CUT = 2000
_BATCH_MESSAGES = 500
_BATCH_BYTES = 1024 * 1024
_UNWRITTEN = 1000
_INFINITE = float("inf")
_TRIES = 3
_TYPES = {code: name for name, code in CODES.items()}
_DEFAULTS = {
    "transports": "", "url": "", "token": "", "token_file": "", "ca_file": "", "spool": "",
    "simulation": "", "job": "", "limit_s": "5", "heartbeat_s": "60", "mail_to": "", "mail_from": "",
    "mail_smtp": "", "mail_sendmail": "/usr/sbin/sendmail", "mail_messages": "500",
    "mail_bytes": "1000000", "mail_age_s": "3600", "amqp_url": "", "amqp_mode": "prod",
}  # fmt: skip


class Settings:
    """What CHAPPE_EMIT_* in the environment says, else the file CHAPPE_EMIT_CONFIG (`name = value` lines)."""

    def __init__(self, **given: str) -> None:
        values = dict(_DEFAULTS)
        home = os.path.expanduser("~")
        path = os.environ.get("CHAPPE_EMIT_CONFIG") or home + "/.config/chappe/emit.conf"
        try:
            with open(path, encoding="utf-8") as file:
                lines = [line.partition("=") for line in file if not line.lstrip().startswith("#")]
            values.update((name.strip(), value.strip()) for name, _, value in lines)
        except (OSError, UnicodeDecodeError):
            pass  # there is none, or none that can be used: the environment is enough
        for name in _DEFAULTS:
            values[name] = (
                given.get(name) or os.environ.get("CHAPPE_EMIT_" + name.upper()) or values[name]
            )
        self.values = values
        state = os.environ.get("XDG_STATE_HOME") or home + "/.local/state"
        self.spool = values["spool"] or os.environ.get("CHAPPE_SPOOL") or state + "/chappe/spool"
        self.limit_s = max(0.1, _number(values["limit_s"], 5.0))
        self.token = values["token"]
        if values["token_file"]:
            try:
                with open(values["token_file"], encoding="ascii") as file:
                    self.token = file.read().strip()
            except (OSError, UnicodeDecodeError) as error:
                complain(f"no token: {error}")
        # Inside of a Job of Chappe: the first attempt bears the Job's name, and each other its own.
        ours, attempt = os.environ.get("CHAPPE_JOB_ID", ""), os.environ.get("CHAPPE_ATTEMPT", "1")
        values["simulation"] = values["simulation"] or ours
        if ours and not values["job"]:
            values["job"] = ours if attempt == "1" else f"{ours}.{attempt}"
        asked = values["transports"] or ("https,spool" if values["url"] else "spool")
        self.transports: List[str] = []
        for name in asked.replace(",", " ").split():
            if name == "spool":
                break  # from there it is the agent's
            if name in _SENDERS:
                self.transports.append(name)
            else:
                complain(
                    "there is no transport {!r}: there are {} and spool".format(
                        name, ", ".join(_SENDERS)
                    )
                )

    def __getattr__(self, name: str) -> str:
        return self.values[name]  # type: ignore[no-any-return, unused-ignore]


def complain(text: str) -> None:
    """One line for a person on stderr; a closed stderr is none of the simulation's problems."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"chappe-emit: {text}\n")


def new_uid() -> str:
    """A UUIDv7: for a message, a stream, a simulation."""
    raw = bytearray((_now_ns() // 1000000).to_bytes(6, "big") + os.urandom(10))
    raw[6], raw[8] = raw[6] & 0x0F | 0x70, raw[8] & 0x3F | 0x80
    text = bytes(raw).hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class Spool:
    """A spool file and its one writer (see the top). A full disk keeps messages in memory, up to a limit."""

    def __init__(self, folder: str, direct: bool, path: str = "", pid: int = 0) -> None:
        self.stream = new_uid()
        self.seq, self.prev, self.size = 0, "", 0
        self.path = path or os.path.join(folder, self.stream + ".spool")
        self.lost = 0
        self.unwritten: Deque[bytes] = deque()
        self._pid, self._direct = pid or os.getpid(), direct
        self._fd, self._torn, self._synced_folder = -1, False, False

    def resume(self) -> bool:
        """Go on behind what another process appended; False where no file is, or its end is not whole."""
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError:
            return False
        self.size = os.fstat(self._fd).st_size
        tail = os.pread(self._fd, MESSAGE_BYTES + 1024, max(0, self.size - MESSAGE_BYTES - 1024))
        line = tail[tail.rfind(b"\n", 0, -1) + 1 :]
        words = line.decode("utf-8", "replace").split(" ")
        if line.endswith(b"\n") and line.startswith(MAGIC.encode()) and len(words) > 3:
            self.stream = words[2]
            return True
        message = whole(line)
        if message is None:
            self.close()
            return False
        said = json.loads(message.decode())
        self.stream, self.seq, self.prev = (
            said["msgStream"],
            int(said["msgSeq"]),
            line[:64].decode(),
        )
        return True

    def append(self, fields: Dict[str, Any]) -> None:
        """Freeze a message as the next of the stream, and append it. Does not raise for a disk."""
        self.seq += 1
        fields["msgStream"], fields["msgSeq"], fields["msgPrev"] = self.stream, self.seq, self.prev
        message = _encode(fields)
        self.prev = hashlib.sha256(message).hexdigest()
        self.unwritten.append(self.prev.encode() + b" " + message + b"\n")
        if len(self.unwritten) > _UNWRITTEN:
            self.unwritten.popleft()
            self.lost += 1
        try:
            self.write()
        except OSError as error:
            if len(self.unwritten) == 1:
                complain(f"cannot write {self.path} ({error.strerror}); messages wait in memory")

    def write(self) -> None:
        """Write what is not in the file yet. Raises OSError."""
        if self._fd < 0 and self.unwritten:
            self._create()
        while self.unwritten:
            # What a full disk left of a line ends here, as a line that does not count.
            line = b"\n" + self.unwritten[0] if self._torn else self.unwritten[0]
            written = os.write(self._fd, line)
            self.size += written
            self._torn = written < len(line)
            if self._torn:
                raise OSError(28, "no space is left")
            self.unwritten.popleft()

    def _create(self) -> None:
        folder = os.path.dirname(self.path)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        owner = (_host(), _boot(), str(self._pid), _ticks(self._pid))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self.path, flags, 0o600)
        header = (MAGIC, self.stream, *owner, "direct" if self._direct else "agent")
        data = (" ".join(header) + "\n").encode()
        if os.write(fd, data) < len(data):
            os.close(fd)
            os.unlink(self.path)
            raise OSError(28, "no space is left")
        self._fd, self.size = fd, len(data)

    def sync(self) -> None:
        """Bring all of it to the disk. Raises OSError."""
        if self._fd >= 0:
            os.fsync(self._fd)
            if not self._synced_folder:
                folder = os.open(os.path.dirname(self.path), os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
                self._synced_folder = True

    def close(self, end: bool = False) -> None:
        """Let go of the file; `end`: for good."""
        if self._fd >= 0:
            if end:
                with contextlib.suppress(OSError):
                    os.write(self._fd, b"\nend\n" if self._torn else b"end\n")
            os.close(self._fd)
            self._fd = -1


def whole(line: bytes) -> Optional[bytes]:
    """The message of a line; None for one that does not count."""
    if line[64:65] != b" " or not line.endswith(b"\n"):
        return None
    message = line[65:-1]
    return message if hashlib.sha256(message).hexdigest().encode() == line[:64] else None


def unconfirmed(path: str, offset: int = -1) -> Tuple[List[bytes], int]:
    """The next messages of a spool file behind `offset` (-1: what is confirmed), and where they end."""
    if offset < 0:
        offset = _sent(path)
    messages: List[bytes] = []
    start = offset
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            message = whole(line)
            if message is not None:
                messages.append(message)
            if len(messages) >= _BATCH_MESSAGES or offset - start > _BATCH_BYTES:
                break
    return messages, offset


def confirm(path: str, offset: int) -> None:
    """Remember that all before `offset` is confirmed. Raises OSError."""
    temporary = f"{path}.sent.{os.getpid()}"
    with open(temporary, "w", encoding="ascii") as file:
        file.write(f"{offset}\n")
    os.replace(temporary, path + ".sent")


def remove(path: str) -> None:
    """Remove a spool file, all of which is confirmed, and what lies beside it."""
    for name in (path, path + ".sent"):
        with contextlib.suppress(OSError):  # whoever drained it too was faster
            os.unlink(name)


def is_orphan(path: str) -> bool:
    """Whether the writer of a spool file is known to be gone: it said so, or ran here and does no more."""
    try:
        with open(path, "rb") as file:
            words = file.readline(1000).decode("utf-8", "replace").split()
            file.seek(max(0, os.fstat(file.fileno()).st_size - 5))
            if file.read() == b"\nend\n":
                return True
    except OSError:
        return False
    if len(words) < 8 or words[3] != _host() or not words[5].isdigit():
        return False
    return words[4] != _boot() or _ticks(int(words[5])) not in (words[6], "?")


class Courier:
    """Brings messages on: by the transports in their order, with three tries and a deadline."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def send(self, messages: List[bytes], deadline: float) -> bool:
        """Whether some transport confirmed them all before `deadline` (time.monotonic)."""
        problem = ""
        for n in range(_TRIES):
            for name in self.settings.transports:
                left_s = deadline - time.monotonic()
                if left_s <= 0.05:
                    break
                try:
                    _SENDERS[name](self.settings, messages, left_s)
                    return True
                except Exception as error:
                    problem = f"{name}: {error}"
            pause_s = 0.2 * 4**n
            if n + 1 == _TRIES or time.monotonic() + pause_s > deadline:
                break
            time.sleep(pause_s)
        if problem:
            complain(f"{len(messages)} messages wait in the spool; {problem}")
        return False

    def due(self, messages: List[bytes]) -> bool:
        """Whether they are worth a mail by now; other transports take all at once."""
        if self.settings.transports[:1] != ["mail"]:
            return True
        if len(messages) >= _number(self.settings.mail_messages, 500):
            return True
        if sum(map(len, messages)) >= _number(self.settings.mail_bytes, 1e6):
            return True
        first = json.loads(messages[0].decode())["msgTimestamp"]
        import calendar

        age_s = time.time() - calendar.timegm(time.strptime(first[:19], "%Y-%m-%dT%H:%M:%S"))
        if age_s >= _number(self.settings.mail_age_s, 3600):
            return True
        return any(json.loads(m.decode()).get("msgCode") in LIFECYCLE for m in messages)

    def deliver(self, path: str, deadline: float, force: bool = False) -> bool:
        """Send what a spool file holds unconfirmed; whether nothing is left. Raises OSError."""
        while True:
            messages, end = unconfirmed(path)
            if messages:
                if not (force or self.due(messages)) or not self.send(messages, deadline):
                    return False
                confirm(path, end)
            elif end == _sent(path):
                return True
            else:
                confirm(path, end)

    def drain(self, folder: str, deadline: float, all: bool = False) -> None:
        """Send what processes that are gone left in a folder, and remove it; `all`: of the others too."""
        try:
            names = sorted(name for name in os.listdir(folder) if name.endswith(".spool"))
        except OSError:
            return
        for name in names:
            path = os.path.join(folder, name)
            if time.monotonic() > deadline - 0.1:
                return
            try:
                orphan = is_orphan(path)
                if orphan or all:
                    if not self.deliver(path, deadline, force=True):
                        return
                    if orphan:
                        remove(path)
            except OSError:
                continue  # somebody else took it


class Emitter:
    """Messages of this process: one spool file, and a thread that sends where they go further."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.courier = Courier(settings)
        self._begin()

    def _begin(self) -> None:
        """A file, locks and a thread of this process; what a fork finds are its parent's."""
        self._lock, self._sending = threading.RLock(), threading.Lock()
        self._wake = threading.Condition()
        self._urgent = self._waiting = self._stopped = self._inside = False
        self.after: Optional[Callable[[], None]] = None
        self._thread: Optional[threading.Thread] = None
        self._pid = os.getpid()
        self._spool = Spool(self.settings.spool, bool(self.settings.transports))

    def message(self, type: str, simulation: str = "", job: str = "", **fields: Any) -> None:
        """Tell something: a type (`job.period`), a code of libIGCM (`1001`) or `custom.…`, and its fields."""
        try:
            message = frame(self.settings, type, simulation, job, fields)
            if self._pid != os.getpid():
                self._begin()
            mine = threading.current_thread() is threading.main_thread()
            self._inside = self._inside or mine
            with self._lock:
                self._spool.append(message)
            self._inside = self._inside and not mine
            if mine and self.after is not None:
                after, self.after = self.after, None
                after()
            lasting = message.get("msgCode") in LIFECYCLE
            if lasting:
                within(self._spool.sync, self.settings.limit_s)
            if self.settings.transports:
                self._nudge(lasting)
        except Exception as error:
            complain(f"{type} is not told: {error}")

    def once_free(self, call: Callable[[], None]) -> None:
        """For a signal's handler, in the main thread: `call` now, or when that thread has appended."""
        if self._inside:
            self.after = call
        else:
            call()

    def flush(self, limit_s: float = 0.0) -> None:
        """Write and send all, for at most `limit_s` seconds (0: CHAPPE_EMIT_LIMIT_S)."""
        limit_s = limit_s or self.settings.limit_s
        if self._pid == os.getpid():
            within(lambda: self._deliver(time.monotonic() + limit_s, True), limit_s)

    def close(self) -> None:
        """Flush; a file of which all is confirmed is removed. What is told later opens a new one."""
        if self._pid != os.getpid():
            return
        self.flush()
        with self._lock:
            spool, self._stopped = self._spool, True
            self._spool = Spool(self.settings.spool, bool(self.settings.transports))
        with self._wake:
            self._wake.notify_all()
        if spool.unwritten or spool.lost:
            complain(f"{len(spool.unwritten) + spool.lost} messages are lost: no room on disk")
        spool.close(end=not spool.unwritten)
        if self.settings.transports and spool.size and _sent(spool.path) >= spool.size:
            remove(spool.path)

    def _nudge(self, urgent: bool) -> None:
        with self._wake:
            if self._thread is None or not self._thread.is_alive():
                self._stopped = False
                self._thread = threading.Thread(target=self._run, name="chappe-emit", daemon=True)
                self._thread.start()
            self._waiting, self._urgent = True, self._urgent or urgent
            self._wake.notify_all()

    def _run(self) -> None:
        pause_s = 0.0
        while not self._stopped:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._stopped, 60.0)
                # What comes shortly after goes along; a lifecycle code does not wait for company.
                self._wake.wait_for(lambda: self._urgent or self._stopped, 0.1)
                self._waiting = self._urgent = False
            done = self._deliver(time.monotonic() + self.settings.limit_s, False)
            pause_s = 0.0 if done else min(60.0, 2 * pause_s + 1.0)
            with self._wake:
                if pause_s:
                    self._waiting = True
                    self._wake.wait_for(lambda: self._stopped, pause_s)

    def _deliver(self, deadline: float, force: bool) -> bool:
        """Send what is in the file, and what a full disk kept out. Whether there is nothing to repeat."""
        spool = self._spool
        left: List[bytes] = []
        with self._lock:
            try:
                spool.write()
            except OSError:
                left = list(spool.unwritten)
        if not self.settings.transports:
            return not left
        try:
            with self._sending:
                done = not spool.size or self.courier.deliver(spool.path, deadline, force)
        except OSError:
            done = True  # another call or the agent has it
        if left and self.courier.send([line[65:-1] for line in left], deadline):
            with self._lock:
                for line in left:
                    if spool.unwritten and spool.unwritten[0] is line:
                        spool.unwritten.popleft()
        return done or (not force and self.settings.transports[0] == "mail")


class Simulation:
    """A simulation's life (see `simulation`). Its methods tell of it; `uid` and `job` name it."""

    def __init__(
        self, uid: str, job: str, continues: bool, ends: bool, fields: Dict[str, Any]
    ) -> None:
        self.uid, self.job = uid, job
        self._continues, self._ends, self._fields = continues, ends, fields
        self._over = threading.Event()
        self._before: Dict[int, Any] = {}

    def message(self, type: str, **fields: Any) -> None:
        """Tell something of this simulation."""
        emitter().message(type, self.uid, self.job, **fields)

    def metric(
        self, name: str, value: float, step: Any = None, time: Any = None, **fields: Any
    ) -> None:
        """Tell a number: `step` counts, `time` is the model's, as "1850-01-31"."""
        self.message("metric", name=name, value=value, step=step, time=time, **fields)

    def period(self, begin: str, end: str, number: Any = None, **fields: Any) -> None:
        """Tell that output up to `end` is complete, dates as YYYYMMDD in the model's calendar."""
        self.message(
            "job.period", CumulPeriod=number, PeriodDateBegin=begin, PeriodDateEnd=end, **fields
        )

    def __enter__(self) -> "Simulation":
        global _current  # noqa: PLW0603 - one at a time in a process
        import signal

        _current = self
        self.message("job.started" if self._continues else "simulation.started", **self._fields)
        for name in ("SIGTERM", "SIGXCPU", "SIGUSR1", "SIGUSR2", "SIGHUP"):
            number = getattr(signal, name)
            # What the simulation handles by itself is no end; SIGINT arrives as KeyboardInterrupt.
            mine = threading.current_thread() is threading.main_thread()
            if mine and signal.getsignal(number) == signal.SIG_DFL:
                self._before[number] = signal.signal(number, self._killed)
        every_s = _number(emitter().settings.heartbeat_s, 60.0)
        if every_s > 0:
            beat = threading.Thread(
                target=self._beat, args=(every_s,), name="heartbeat", daemon=True
            )
            beat.start()
        atexit.register(self._over.set)
        return self

    def __exit__(self, kind: Any, error: Optional[BaseException], trace: Any) -> None:
        global _current  # noqa: PLW0603 - one at a time in a process
        import signal

        self._over.set()
        _current = None
        for number, before in self._before.items():
            signal.signal(number, before)
        if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            self.message("simulation.ended" if self._ends else "job.ended")
        else:
            self.message("job.fatal", error=(f"{type(error).__name__}: {error}")[:_CUT])
        emitter().flush()

    def _beat(self, every_s: float) -> None:
        while not self._over.wait(every_s):
            self.message("heartbeat")

    def _killed(self, number: int, frame: Any) -> None:
        import signal

        def tell() -> None:
            self.message("job.fatal", signal=signal.Signals(number).name)
            emitter().flush(min(2.0, emitter().settings.limit_s))
            # Then as if there were no handler.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

        self._over.set()
        emitter().once_free(tell)


# (Python 3.6 wants no annotation here.)
_current = None  # type: Optional[Simulation]
_emitter = None  # type: Optional[Emitter]


def emitter() -> Emitter:
    """The one of this process, made on first use."""
    global _emitter  # noqa: PLW0603 - one in a process
    if _emitter is None:
        _emitter = Emitter(Settings())
    return _emitter


@atexit.register
def _close() -> None:
    if _emitter is not None:
        _emitter.close()


def configure(**given: str) -> None:
    """Say in the program what CHAPPE_EMIT_* would: `configure(url=…, token_file=…)`, before all else."""
    global _emitter  # noqa: PLW0603 - one in a process
    if _emitter is not None:
        _emitter.close()
    _emitter = Emitter(Settings(**given))


def message(type: str, **fields: Any) -> None:
    """Tell something, of the simulation that `simulation` opened, or else of CHAPPE_EMIT_SIMULATION."""
    (_current or emitter()).message(type, **fields)


def metric(name: str, value: float, step: Any = None, time: Any = None, **fields: Any) -> None:
    """Tell a number of the present simulation: `step` counts, `time` is the model's."""
    message("metric", name=name, value=value, step=step, time=time, **fields)


def simulation(
    uid: str = "", job: str = "", continues: bool = False, ends: bool = True, **fields: Any
) -> Simulation:
    """Tell of a simulation's start and end around a `with` block.

    What is raised out of it, or a signal that kills the process, is told as fatal. `continues` and `ends`
    are for one that runs as several jobs; `fields` are libIGCM's: name, model, experiment, startDate,
    endDate, calendar, machine …
    """
    settings = emitter().settings
    uid, job = uid or settings.simulation or new_uid(), job or settings.job
    return Simulation(uid, job, continues, ends, fields)


def flush() -> None:
    """Bring on what was told, for at most CHAPPE_EMIT_LIMIT_S seconds."""
    emitter().flush()


def frame(
    settings: Settings, type: str, simulation: str, job: str, fields: Dict[str, Any]
) -> Dict[str, Any]:
    """A message without its place in a stream."""
    name = _TYPES.get(type, type)
    now = _now_ns()
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 1000000000))
    message = {
        "msgApplication": "monitoring",
        "msgProducer": "chappe",
        "msgProducerVersion": "1",
        "msgType": name,
    }
    if name in CODES:
        message["msgCode"] = CODES[name]
    message["msgUID"], message["msgTimestamp"] = new_uid(), f"{at}.{now % 1000000000:09d}+0000"
    simulation, job = simulation or settings.simulation, job or settings.job
    if simulation:
        message["simuid"] = simulation
    if job:
        message["jobuid"] = job
    message.update((k, v) for k, v in fields.items() if v is not None and k not in message)
    return message


def within(call: Callable[[], Any], limit_s: float) -> bool:
    """Do `call`, which raises nothing but OSError, but wait no longer than `limit_s`; whether it ended."""

    def run() -> None:
        try:
            call()
        except OSError as error:
            complain(str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    return not thread.is_alive()


def _encode(fields: Dict[str, Any]) -> bytes:
    """JSON on one line: numbers as they are, what is no JSON as text, and long texts cut."""

    def text(value: Any) -> Any:
        value = value.item() if hasattr(value, "item") else str(value)
        return value if value == value and value not in (_INFINITE, -_INFINITE) else str(value)

    for name, value in fields.items():
        if isinstance(value, float) and not -_INFINITE < value < _INFINITE:
            fields[name] = str(value)
        elif isinstance(value, str):
            fields[name] = value.encode("utf-8", "replace").decode()
    raw = json.dumps(fields, separators=(",", ":"), default=text)
    if len(raw) > MESSAGE_BYTES:
        cut = {
            k: v if len(str(v)) <= _CUT else str(v)[:_CUT] + "…"
            for k, v in list(fields.items())[:100]
        }
        raw = json.dumps(cut, separators=(",", ":"), default=text)
    return raw.encode()


def _by_https(settings: Settings, messages: List[bytes], limit_s: float) -> None:
    """POST /v1/messages, as lines; 2xx confirms, for then each is stored or in quarantine. Raises."""
    import ssl
    import urllib.request

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            """A token goes where the settings say, and nowhere else."""

    scheme, _, rest = settings.url.partition("://")
    host = rest.partition("/")[0].rpartition(":")[0] or rest.partition("/")[0]
    if scheme != "https" and host not in ("127.0.0.1", "localhost", "[::1]"):
        raise ValueError(f"{settings.url} is not https")
    context = ssl.create_default_context(cafile=settings.ca_file or None)
    opener = urllib.request.build_opener(NoRedirect, urllib.request.HTTPSHandler(context=context))
    headers = {"Content-Type": "application/x-ndjson", "Authorization": "Bearer " + settings.token}
    headers["User-Agent"] = "chappe-emit/1"
    request = urllib.request.Request(  # noqa: S310 - see the scheme above
        settings.url.rstrip("/") + "/v1/messages", b"\n".join(messages) + b"\n", headers
    )
    opener.open(request, timeout=limit_s).close()


def letter(settings: Settings, messages: List[bytes]) -> bytes:
    """A mail as libIGCM writes it: one base64 line for each message; signed where there is a token."""
    import base64
    import hmac
    import quopri
    from email.utils import formatdate

    lines = [base64.b64encode(message) for message in messages]
    sender = settings.mail_from or "{}@{}".format(os.environ.get("USER", "chappe"), _host())
    head = ["From: " + sender, "To: " + settings.mail_to, "Subject: [TEMPORARY AMQP CHANNEL]"]
    head += [
        "Date: " + formatdate(),
        f"Message-ID: <{new_uid()}@{_host()}>",
        "MIME-Version: 1.0",
    ]
    if settings.token.count("_") >= 3:
        key = hashlib.sha256(settings.token.encode()).hexdigest().encode()
        mac = hmac.new(key, b"\n".join(lines), hashlib.sha256).hexdigest()
        head.append(
            "Chappe-Signature: v1 prefix={} hmac={}".format(settings.token.split("_")[2], mac)
        )
    body, encoding = b"\n".join(lines) + b"\n", "7bit"
    if max(map(len, lines)) > 998:
        body, encoding = quopri.encodestring(body), "quoted-printable"
    head += ["Content-Type: text/plain; charset=us-ascii", "Content-Transfer-Encoding: " + encoding]
    if any("\n" in line or "\r" in line for line in head):
        raise ValueError("an address has a line break")
    return "\n".join(head).encode("ascii") + b"\n\n" + body


def _by_mail(settings: Settings, messages: List[bytes], limit_s: float) -> None:
    """One mail, to the SMTP server `mail_smtp` (host:port), else by the program `mail_sendmail`. Raises."""
    text = letter(settings, messages)
    if not settings.mail_to:
        raise ValueError("CHAPPE_EMIT_MAIL_TO says to nobody")
    sender = settings.mail_from or "{}@{}".format(os.environ.get("USER", "chappe"), _host())
    if settings.mail_smtp:
        import smtplib

        host, _, port = settings.mail_smtp.rpartition(":")
        server = smtplib.SMTP(host or port, int(port) if host else 25, timeout=limit_s)
        try:
            server.sendmail(sender, [settings.mail_to], text.replace(b"\n", b"\r\n"))
            with contextlib.suppress(
                smtplib.SMTPException
            ):  # it is taken, whatever is said at the end
                server.quit()
        finally:
            server.close()
        return
    import subprocess

    command = [settings.mail_sendmail, "-i", "-f", sender, "--", settings.mail_to]
    subprocess.run(command, input=text, timeout=limit_s, check=True)


def _by_amqp(settings: Settings, messages: List[bytes], limit_s: float) -> None:
    """Publish to the exchange of the specification, each confirmed. Raises, also where there is no pika."""
    import pika  # type: ignore[import-not-found, unused-ignore]

    where = pika.URLParameters(settings.amqp_url)
    where.socket_timeout = where.blocked_connection_timeout = limit_s
    where.connection_attempts, user = 1, where.credentials.username
    connection = pika.BlockingConnection(where)
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        for raw in messages:
            said = json.loads(raw.decode())
            kind = said.get("msgCode") or said["msgType"]
            headers = {
                "producer_id": "chappe",
                "producer_version": "1",
                "timestamp_raw": said["msgTimestamp"],
            }
            headers["correlation_id_1"] = said.get("simuid", "")
            headers["correlation_id_2"] = said.get("jobuid", "")
            properties = pika.BasicProperties(
                app_id="monitoring", message_id=said["msgUID"], type=kind, user_id=user, delivery_mode=2,
                content_type="application/json", content_encoding="utf-8", priority=4,
                timestamp=int(time.time()), headers=headers,
            )  # fmt: skip
            key = f"{settings.amqp_mode}.{user}.chappe.monitoring.{kind}".lower()
            channel.basic_publish("x-primary", key, raw, properties, mandatory=True)
    finally:
        connection.close()


_SENDERS = {"https": _by_https, "mail": _by_mail, "amqp": _by_amqp}


def _number(text: str, otherwise: float) -> float:
    try:
        return float(text)
    except ValueError:
        return otherwise


def _now_ns() -> int:
    return time.time_ns() if hasattr(time, "time_ns") else int(time.time() * 1e9)


def _sent(path: str) -> int:
    try:
        with open(path + ".sent", encoding="ascii") as file:
            return int(file.readline())
    except (OSError, ValueError):
        return 0


def _host() -> str:
    return os.uname().nodename.replace(" ", "-") or "-"


def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "-"


def _ticks(pid: int) -> str:
    """When a process began, which tells it from another of its number; "" for none, "?" for unknown."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(") ")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return "" if os.path.exists("/proc/self/stat") else "?"
    except OSError:
        return "?"


def _lock(path: str) -> bool:
    """Take the lock of a shared spool file; False when another holds it for long, or died with it."""
    for _ in range(50):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            try:
                with open(path, encoding="ascii") as file:
                    holder = file.read().strip()
            except OSError:
                continue  # it is free by now
            if holder and not _ticks(int(holder)):
                return False
            time.sleep(0.01)
            continue
        os.write(fd, b"%d\n" % os.getpid())
        os.close(fd)
        return True
    return False


def tell_once(settings: Settings, fields: Dict[str, Any]) -> str:
    """Append a message to the file that all calls from one parent process share; its path. Raises OSError."""
    parent, direct = os.getppid(), bool(settings.transports)
    name = f"{_host()}.{parent}.{_ticks(parent) or '-'}.spool"
    os.makedirs(settings.spool, mode=0o700, exist_ok=True)
    path = os.path.join(settings.spool, name)
    spool, locked = Spool(settings.spool, direct, pid=parent), _lock(path + ".lock")
    try:
        if locked:
            shared = Spool(settings.spool, direct, path, parent)
            # Where the end of the file is not whole, this message begins a stream of its own.
            spool = shared if shared.resume() or not os.path.exists(path) else spool
        spool.append(fields)
        if fields.get("msgCode") in LIFECYCLE:
            spool.sync()
    finally:
        if locked:
            os.unlink(path + ".lock")
    if spool.unwritten:
        # There is no room for it: it goes as it is, or not at all.
        messages = [line[65:-1] for line in spool.unwritten]
        if not Courier(settings).send(messages, time.monotonic() + settings.limit_s):
            complain("a message is lost: it could neither be written nor sent")
        return ""
    return spool.path


USAGE = """usage: chappe-emit [--simulation UID] [--job UID] TYPE [NAME=VALUE ...]
       chappe-emit new              print an id for a simulation
       chappe-emit drain            send what waits in the spool folder
       chappe-emit copy DIRECTORY   copy the producers (Python, shell, C, Fortran) there
TYPE is simulation.started, simulation.ended, job.started, job.period, job.ended, job.fatal, command.failed,
metric (name=... value=... step=... time=...), heartbeat, log, custom.ANYTHING, or a code of libIGCM (1001).
The exit status is 0 whatever happens: a simulation does not fail because nobody heard of it.
"""


def _options(arguments: List[str]) -> Tuple[Dict[str, str], List[str]]:
    options: Dict[str, str] = {}
    rest = list(arguments)
    while rest[:1] and rest[0].startswith("--"):
        name, equals, value = rest.pop(0)[2:].partition("=")
        if name not in ("simulation", "job"):
            raise ValueError(USAGE)
        if not equals and not rest:
            raise ValueError(f"--{name} wants a value")
        options[name] = value if equals else rest.pop(0)
    return options, rest


def _copy(directory: str) -> None:
    import shutil

    here = os.path.dirname(os.path.abspath(__file__))
    os.makedirs(directory, exist_ok=True)
    names = (
        "chappe_emit.py",
        "chappe-emit.sh",
        "chappe_emit.c",
        "chappe_emit.h",
        "chappe_emit.f90",
    )
    for name in names:
        if os.path.exists(os.path.join(here, name)):
            copied = shutil.copy(os.path.join(here, name), directory)
            os.chmod(copied, 0o755 if name.endswith((".py", ".sh")) else 0o644)


def _command(arguments: List[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(USAGE)
        return
    options, words = _options(arguments)
    if words == ["new"]:
        sys.stdout.write(new_uid() + "\n")
        return
    if words[:1] == ["copy"] and len(words) == 2:
        _copy(words[1])
        return
    settings = Settings(**options)
    courier, deadline = Courier(settings), time.monotonic() + settings.limit_s
    if words == ["drain"]:
        courier.drain(settings.spool, deadline, True)
        return
    pairs = [word.partition("=") for word in words[1:]]
    if not words or not all(equals for _, equals, _ in pairs):
        raise ValueError(USAGE)
    fields = {
        name: value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        for name, _, value in pairs
    }
    path = tell_once(settings, frame(settings, words[0], "", "", dict(fields)))
    if path and settings.transports and courier.deliver(path, deadline):
        courier.drain(settings.spool, deadline)


def main(arguments: Optional[List[str]] = None) -> int:
    """The command `chappe-emit`. Its status is 0, and it takes no longer than CHAPPE_EMIT_LIMIT_S seconds."""

    def run() -> None:
        try:
            _command(sys.argv[1:] if arguments is None else arguments)
        except Exception as error:
            complain(str(error) or type(error).__name__)

    # The settings may come too late to say how long: their file may be what hangs.
    if not within(run, _number(os.environ.get("CHAPPE_EMIT_LIMIT_S", ""), 5.0) + 0.5):
        complain("it takes too long; what is in the spool waits there")
        sys.stderr.flush()
        os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
