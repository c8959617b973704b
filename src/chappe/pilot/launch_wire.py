"""What the pilot's head and its launcher say to each other: msgpack frames on a unix socket.

A frame is a length (4 bytes, big endian) and one msgpack value of `HeadFrame` (head to launcher) or
`LauncherFrame` (back). Structs travel as arrays: short, fast, and a field added at the end with a default
is understood by both the old side and the new one. Deadlines are CLOCK_BOOTTIME seconds of this node,
which go on counting while it is suspended; `at`, `started_at` and `ended_at` are seconds since 1970.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal, TypeVar

import msgspec

from chappe.core.errors import ChappeError
from chappe.core.limits import MIB

FRAME_BYTES = 8 * MIB
"""Longest frame; execve(2) takes about 2 MiB of arguments and environment, so one task always fits."""

KillReason = Literal["timeout", "cancelled", "takeover", "allocation_end", "node_lost", "memory"]
EndReason = Literal[
    "exit",
    "signal",
    "timeout",
    "cancelled",
    "takeover",
    "allocation_end",
    "node_lost",
    "memory",
    "start_failed",
    "hook",
]
"""The values of `core.leases.Reason` that a launcher can know (not imported: it would cost memory)."""

RefusalReason = Literal["late", "full", "withdrawn", "stopping"]
"""Why a task will never be started: past its `start_by`; too many tasks known; killed or withdrawn before
its start; the launcher is stopping."""

Key = tuple[str, int]
"""(job, epoch): what a run is known by."""

_LENGTH = struct.Struct(">I")
T = TypeVar("T")


class FrameError(ChappeError):
    """The peer sent what is no frame, or one that is too long; the connection cannot go on."""

    default_code = "bad_frame"


class Environment(msgspec.Struct, frozen=True, array_like=True):
    """An interpreter in which functions run: what its zygote imports before it forks workers, and when a
    worker is replaced (after so many calls, or so much growth in bytes)."""

    python: str
    preload: list[str]
    env: dict[str, str]
    recycle_calls: int
    recycle_bytes: int


class Call(msgspec.Struct, array_like=True, gc=False):
    """A function to call in a worker, instead of a program to start.

    `code` is the file with the pickled function, `sha256` (hex) what it must hold; `arguments` are the
    pickled (args, kwargs); `python` the version that pickled them. `result` is the path, without its
    suffix, of the file for a value too large for a frame (up to `result_bytes`); `reference` the same
    relative to the Site's data directory.
    """

    environment: str
    name: str
    code: str
    sha256: str
    arguments: bytes
    python: str
    result: str
    reference: str
    result_bytes: int
    own_process: bool = False


class Hook(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A command to run before or after a task's own: preprocess | postprocess | on_error | on_timeout."""

    name: str
    argv: list[str]
    limit_s: float


class Care(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What few tasks need around their run. `verdict` is the file in which a hook says what it wants.
    `scratch` is a directory on this node, made before and removed after everything, with all that there must
    be of its path below `scratch_base`. With `count_io` the end says what the command and its descendants
    read and wrote."""

    hooks: list[Hook] = []
    verdict: str = ""
    scratch: str = ""
    count_io: bool = False
    scratch_base: str = "/"

    def hook(self, name: str) -> Hook | None:
        """The hook of this name."""
        return next((hook for hook in self.hooks if hook.name == name), None)


class HookEnd(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a hook ended. `problem` is "" when it exited with 0 within its time; else words for people."""

    name: str
    problem: str = ""


class IoCount(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Bytes and calls of read(2) and write(2) and their like; `storage_*`: what of it reached a disk. Of
    `source` "rusage" only the latter are known."""

    read_bytes: int = 0
    written_bytes: int = 0
    read_calls: int = 0
    write_calls: int = 0
    storage_read_bytes: int = 0
    storage_written_bytes: int = 0
    source: str = "proc"


class Task(msgspec.Struct, array_like=True, gc=False):
    """One process to start, or with `call` one function to call in a warm worker.

    `argv[0]` is looked up in the PATH of the task's own environment unless it holds a slash. `env` is added
    to the `BaseEnv`; the launcher itself sets CHAPPE_JOB_ID, CHAPPE_EPOCH, CHAPPE_ATTEMPT and
    CHAPPE_SESSION. `log` says where stdout goes: to the file `stdout`, to the session's shared log, or
    nowhere; `stderr` is a file of its own, or empty: with stdout. All paths are absolute.

    `cores` are the CPUs it may use (empty: all of the launcher's). `wall_limit_s` counts from its start:
    then SIGTERM, and after `grace_s` SIGKILL. It is refused as "late" when its turn comes after `start_by`,
    and killed at once when `takeover_deadline` passes without a `Renew`. With `tail_bytes` a failed run's
    end carries the last bytes of its own stderr (or merged) file.

    `lane`: tasks of one lane > 0 run one at a time, in order, without asking the head in between; lane 0 is
    started at once.

    With `warn_s` it gets `warn_signal` so long before its limit, or before `ends_at` (CLOCK_BOOTTIME), when
    the allocation ends its runs. `place` is the head's own note of where it put the task: `Started` gives
    it back to a restarted one. What uses more than `mem_limit_bytes` on this node is killed; 0: no limit.
    """

    job: str
    epoch: int
    attempt: int
    argv: list[str]
    env: dict[str, str]
    cwd: str
    start_by: float
    log: Literal["file", "shared", "none"] = "none"
    stdout: str = ""
    stderr: str = ""
    cores: list[int] = []
    wall_limit_s: float | None = None
    grace_s: float = 10.0
    takeover_deadline: float | None = None
    tail_bytes: int = 0
    lane: int = 0
    warn_s: float | None = None
    warn_signal: int = 0
    ends_at: float | None = None
    place: str = ""
    call: Call | None = None
    care: Care | None = None
    mem_limit_bytes: int = 0

    @property
    def key(self) -> Key:
        """(job, epoch)."""
        return (self.job, self.epoch)


class Bounds(msgspec.Struct, frozen=True, array_like=True):
    """What the kernel holds each process to (see setrlimit(2)): the size of a file, and how many processes
    and threads its account has on the node. 0: no bound."""

    file_bytes: int = 0
    processes: int = 0


NO_BOUNDS = Bounds()


class BaseEnv(msgspec.Struct, frozen=True, array_like=True, tag="base_env"):
    """What all tasks of the session share; sent first on each connection."""

    env: dict[str, str]
    shared_log: str = ""
    environments: dict[str, Environment] = {}
    bounds: Bounds = NO_BOUNDS


class Start(msgspec.Struct, frozen=True, array_like=True, tag="start"):
    """Start these; a task already known is answered with its present state and never started twice."""

    tasks: list[Task]


class KillOrder(msgspec.Struct, frozen=True, array_like=True):
    """End this run: SIGTERM, then SIGKILL after `grace_s` (0: at once). Waiting tasks are refused."""

    job: str
    epoch: int
    reason: KillReason
    grace_s: float


class Kill(msgspec.Struct, frozen=True, array_like=True, tag="kill"):
    """End these runs; unknown ones are passed over."""

    orders: list[KillOrder]


class Withdraw(msgspec.Struct, frozen=True, array_like=True, tag="withdraw"):
    """Refuse those of these that still wait to be started; what runs, runs on."""

    keys: list[Key]


class Renew(msgspec.Struct, frozen=True, array_like=True, tag="renew"):
    """New takeover deadlines: (job, epoch, CLOCK_BOOTTIME seconds)."""

    deadlines: list[tuple[str, int, float]]


class Keep(msgspec.Struct, frozen=True, array_like=True, tag="keep"):
    """Stay until then (CLOCK_BOOTTIME seconds), unless told again. Past it the launcher ends all that it
    runs, whoever is connected: it is out of its head's reach, and its runs may be started elsewhere."""

    until: float


class Ack(msgspec.Struct, frozen=True, array_like=True, tag="ack"):
    """The head has these ends safe; forget them."""

    keys: list[Key]


class Stop(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """Exit once nothing runs and every end is written to the socket; with `kill`, end what runs first.

    Losing the connection takes the order back: a restarted head decides anew.
    """

    kill: bool = False
    reason: KillReason = "cancelled"
    grace_s: float = 10.0


class Started(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The process exists. Not sent when the end is already known at the time of writing."""

    job: str
    epoch: int
    attempt: int
    pid: int
    at: float
    place: str = ""

    @property
    def key(self) -> Key:
        """(job, epoch)."""
        return (self.job, self.epoch)


class Ended(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The run and every process it left behind are gone. Repeated to each new head until acked.

    One of `exit` and `signal` is set unless it never started (`started_at` is None then, and `tail` says
    why). `hook` is the last hook that ran; with the reason "hook" it was `preprocess`, and the command did
    not run. Usage is of the main process and what it waited for; `max_rss_bytes` is never below the
    launcher's own peak, which vfork lends to the child until it calls exec. `result` is what a
    call returned or raised. `note` is what there is to add to the reason.
    """

    job: str
    epoch: int
    attempt: int
    reason: EndReason
    exit: int | None
    signal: int | None
    started_at: float | None
    ended_at: float
    wall_s: float = 0.0
    user_s: float = 0.0
    system_s: float = 0.0
    max_rss_bytes: int = 0
    written_bytes: int = 0
    tail: str = ""
    result: str = ""
    hook: HookEnd | None = None
    io: IoCount | None = None
    note: str = ""

    @property
    def key(self) -> Key:
        """(job, epoch)."""
        return (self.job, self.epoch)


class Refused(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The task was not started and never will be by this order; the launcher has forgotten it."""

    job: str
    epoch: int
    attempt: int
    reason: RefusalReason

    @property
    def key(self) -> Key:
        """(job, epoch)."""
        return (self.job, self.epoch)


class Snapshot(msgspec.Struct, frozen=True, array_like=True, tag="snapshot"):
    """All that the launcher knows at the moment of connection, in parts; the last has `more` false."""

    session: str
    pid: int
    running: list[Started]
    ended: list[Ended]
    waiting: list[Key]
    more: bool


class Events(msgspec.Struct, frozen=True, array_like=True, tag="events"):
    """What happened since the snapshot or the frame before."""

    started: list[Started]
    ended: list[Ended]
    refused: list[Refused]


class Work(msgspec.Struct, frozen=True, array_like=True):
    """The launcher to a worker: do this. `env` is the whole environment of the call."""

    task: Task
    env: dict[str, str]
    shared_log: str


class Done(msgspec.Struct, frozen=True, array_like=True):
    """A worker to the launcher: the call is over. Usage is of this call; `result` stands for its value or
    its exception (see link.values), "" if there is none. With `last` the worker is ending; with
    `leftovers` it has children, and the call is over only when they are gone."""

    exit: int
    user_s: float
    system_s: float
    max_rss_bytes: int
    written_bytes: int
    tail: str
    result: str
    last: bool
    leftovers: bool


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """A zygote to the launcher: it can fork. `error` says why it never will, "" if it can."""

    error: str = ""


class Forked(msgspec.Struct, frozen=True, array_like=True, tag="forked"):
    """A zygote to the launcher: the next worker asked for is this process, leader of its own session."""

    pid: int


HeadFrame = BaseEnv | Start | Kill | Withdraw | Renew | Keep | Ack | Stop
LauncherFrame = Snapshot | Events

_encoder = msgspec.msgpack.Encoder()
_head_decoder: msgspec.msgpack.Decoder[HeadFrame] = msgspec.msgpack.Decoder(HeadFrame)
_launcher_decoder: msgspec.msgpack.Decoder[LauncherFrame] = msgspec.msgpack.Decoder(LauncherFrame)


def encode(message: HeadFrame | LauncherFrame | Work | Done | Ready | Forked) -> bytes:
    """The frame of `message`. Raises FrameError when it is longer than FRAME_BYTES."""
    frame = bytearray(_LENGTH.size)
    _encoder.encode_into(message, frame, _LENGTH.size)
    length = len(frame) - _LENGTH.size
    if length > FRAME_BYTES:
        raise FrameError(f"a frame of {length} bytes exceeds {FRAME_BYTES}; send fewer items")
    _LENGTH.pack_into(frame, 0, length)
    return bytes(frame)


def decode_head(payload: bytes) -> HeadFrame:
    """What the head said. Raises FrameError."""
    return _decode(_head_decoder, payload, "head")


def decode_launcher(payload: bytes) -> LauncherFrame:
    """What the launcher said. Raises FrameError."""
    return _decode(_launcher_decoder, payload, "launcher")


_work_decoder: msgspec.msgpack.Decoder[Work] = msgspec.msgpack.Decoder(Work)
_done_decoder: msgspec.msgpack.Decoder[Done] = msgspec.msgpack.Decoder(Done)
_zygote_decoder: msgspec.msgpack.Decoder[Ready | Forked] = msgspec.msgpack.Decoder(Ready | Forked)


def decode_work(payload: bytes) -> Work:
    """What the launcher wants of a worker. Raises FrameError."""
    return _decode(_work_decoder, payload, "launcher")


def decode_done(payload: bytes) -> Done:
    """What a worker said. Raises FrameError."""
    return _decode(_done_decoder, payload, "worker")


def decode_zygote(payload: bytes) -> Ready | Forked:
    """What a zygote said. Raises FrameError."""
    return _decode(_zygote_decoder, payload, "zygote")


def _decode(decoder: msgspec.msgpack.Decoder[T], payload: bytes, who: str) -> T:
    try:
        return decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise FrameError(f"the {who} sent no valid frame: {error}") from error


class FrameReader:
    """Cuts a byte stream into frames; holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that `data` completes. Raises FrameError at a length over FRAME_BYTES."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, start)
                if length > FRAME_BYTES:
                    raise FrameError(f"a frame of {length} bytes exceeds {FRAME_BYTES}")
                end = start + _LENGTH.size + length
                if len(self._buffer) < end:
                    break
                payload = bytes(memoryview(self._buffer)[start + _LENGTH.size : end])
                start = end
                yield payload
        finally:
            del self._buffer[:start]
