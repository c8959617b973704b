"""A function's value as bytes: data where the value is data, a pickle where it is not.

Plain values become MessagePack, NumPy arrays npy, Arrow tables Arrow files; everything else, and what
MessagePack would give back as something else (a tuple, a set, a subclass), is pickled. A small value goes
into the frame that tells of the end, a larger one into a file, and one that the Hub would not take stays in
its file at the Site, and a reference to it goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import traceback
from typing import Any

import cloudpickle
import msgspec

from chappe.core import limits
from chappe.link.results import MEDIA
from chappe.link.values import (
    ARROW,
    EXCEPTION,
    MSGPACK,
    NPY,
    PICKLE,
    REFERENCE,
    RemoteException,
    SiteFileRef,
    in_file,
    inline,
)
from chappe.pilot.launch_wire import Call

_SUFFIX = {media: suffix for suffix, media in MEDIA.items()} | {PICKLE: ".pickle"}
_MOST = limits.RESULT_BYTES - limits.VALUE_ENVELOPE_BYTES
_TEXT_BYTES = 4 * limits.KIB
_MESSAGE_BYTES = limits.KIB
_PICKLE_BYTES = 4 * limits.KIB
_DEPTH = 64


class ResultTooLarge(ValueError):
    """What a function returned is larger than its environment allows; the message says what to do."""


class ResultNotPicklable(TypeError):
    """What a function returned can be sent in no way; the message says why."""


class Sink:
    """What an encoder writes into: memory at first, a file from the Hub's limit on, an end at `most`."""

    def __init__(self, path: str, most: int) -> None:
        self._path = path
        self._most = most
        self._parts = bytearray()
        self._fd = -1
        self._hash = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Take some bytes. Raises ResultTooLarge, OSError."""
        view = memoryview(data).cast("B")
        self.size += len(view)
        if self.size > self._most:
            raise ResultTooLarge(
                f"the result is larger than {self._most} bytes: write it to files at the site and "
                "return their names"
            )
        self._parts += view
        if len(self._parts) > _MOST:
            self._spill()
        return len(view)

    def flush(self) -> None:
        """Nothing is held back."""

    def end(self, media: str, reference: str) -> str:
        """The reference to all that was written; `reference` is the file's name at the Site."""
        if self._fd >= 0:
            self._spill()
            self.discard(keep=True)
            self._rename(media)
            ref = SiteFileRef(reference + _SUFFIX[media], self.size, self._hash.hexdigest(), media)
            return inline(REFERENCE, msgspec.msgpack.encode(ref))
        if self.size <= limits.VALUE_INLINE_BYTES:
            return inline(media, bytes(self._parts))
        self._spill()
        self.discard(keep=True)
        return in_file(media, self._rename(media))

    def discard(self, keep: bool = False) -> None:
        """Let go of the file; without `keep` also of what is in it."""
        self.closed = True
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if not keep:
                with contextlib.suppress(OSError):
                    os.unlink(self._path)

    def _spill(self) -> None:
        if self._fd < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._path, flags, 0o644)
        self._hash.update(self._parts)
        view = memoryview(self._parts)
        while view:
            view = view[os.write(self._fd, view) :]
        view.release()
        self._parts = bytearray()

    def _rename(self, media: str) -> str:
        path = self._path + _SUFFIX[media]
        os.replace(self._path, path)
        return path


def encode(value: Any, call: Call) -> str:
    """The reference to `value`. Raises ResultTooLarge, ResultNotPicklable, OSError."""
    sink = Sink(call.result, call.result_bytes)
    try:
        return sink.end(_write(value, sink), call.reference)
    except BaseException:
        sink.discard()
        raise


def encode_exception(error: BaseException, skip: int = 1) -> tuple[str, str]:
    """The reference to what a function raised, and its traceback as text. `skip` frames are ours."""
    tb = error.__traceback__
    for _ in range(skip):
        tb = tb.tb_next if tb is not None and tb.tb_next is not None else tb
    try:
        text = "".join(traceback.format_exception(type(error), error, tb))
        message = str(error)
    except Exception as broken:  # noqa: BLE001 - an exception whose own words raise
        text = message = f"(its text cannot be had: {type(broken).__name__})"
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    pickle: bytes | None = None
    with contextlib.suppress(Exception):
        found: bytes = cloudpickle.dumps(error.with_traceback(None))
        # What cannot be loaded here will not be loaded there either.
        if len(found) <= _PICKLE_BYTES and isinstance(cloudpickle.loads(found), type(error)):
            pickle = found
    said = RemoteException(
        name[:200],
        message.encode(errors="replace")[:_MESSAGE_BYTES].decode(errors="ignore"),
        text.encode(errors="replace")[-_TEXT_BYTES:].decode(errors="ignore"),
        pickle,
    )
    return inline(EXCEPTION, msgspec.msgpack.encode(said)), text


def _write(value: Any, sink: Sink) -> str:
    """Write `value` in the form that fits it; the media type."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and type(value) is numpy.ndarray and not value.dtype.hasobject:
        numpy.lib.format.write_array(sink, value, allow_pickle=False)
        return NPY
    arrow = sys.modules.get("pyarrow")
    if arrow is not None and type(value) is arrow.Table:
        with arrow.ipc.new_file(arrow.PythonFile(sink, "w"), value.schema) as writer:
            writer.write_table(value)
        return ARROW
    if _plain(value, _DEPTH):
        body = None
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            body = msgspec.msgpack.encode(value)
        if body is not None:
            sink.write(body)
            return MSGPACK
    try:
        cloudpickle.dump(value, sink, protocol=5)
    except (ResultTooLarge, OSError):
        raise
    except Exception as error:
        raise ResultNotPicklable(
            f"the result, a {type(value).__name__}, cannot be pickled: {error}"
        ) from error
    return PICKLE


def _plain(value: Any, depth: int) -> bool:
    """Whether MessagePack gives back exactly this: same types, same values."""
    kind = type(value)
    if kind in (int, float, str, bool, bytes) or value is None:
        return True
    if depth == 0:
        return False
    if kind is list:
        return all(_plain(item, depth - 1) for item in value)
    if kind is dict:
        return all(type(key) is str and _plain(item, depth - 1) for key, item in value.items())
    return False
