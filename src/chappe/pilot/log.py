"""The pilot's log: one JSON object per line in pilot.log, of bounded size. One line per batch, never per Job.

structlog alone, without the standard library's logging behind it, and without the pretty printer that it
loads where `rich` is installed: that would be a third of the head's memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import structlog
from structlog.types import EventDict, FilteringBoundLogger, WrappedLogger

from chappe.core.limits import MIB

FILE_BYTES = 16 * MIB


class LogFile:
    """Appends lines to a file; beyond its limit the file becomes `<name>.1`, replacing an older one."""

    def __init__(self, path: Path, limit_bytes: int = FILE_BYTES) -> None:
        self._path = path
        self._limit = limit_bytes
        self.stream = path.open("ab", buffering=0)
        """The open file, for a child's stderr."""
        self._size = path.stat().st_size

    def msg(self, message: str) -> None:
        """Write one line. What cannot be written (a full disk) is lost: Jobs matter more than a line."""
        line = message.encode() + b"\n"
        try:
            if self._size + len(line) > self._limit:
                self._turn()
            self.stream.write(line)
        except OSError:
            return
        self._size += len(line)

    debug = info = warning = error = critical = msg

    def close(self) -> None:
        """Close the file."""
        self.stream.close()

    def _turn(self) -> None:
        self._path.replace(self._path.with_name(self._path.name + ".1"))
        old, self.stream = self.stream, self._path.open("ab", buffering=0)
        old.close()
        self._size = 0


def open_log(path: Path, session: str) -> tuple[FilteringBoundLogger, LogFile]:
    """A logger for this Session, and its file. Raises OSError."""
    file = LogFile(path)
    logger: FilteringBoundLogger = structlog.wrap_logger(
        file,
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(20),
    ).bind(session=session, pid=os.getpid())
    return logger, file


def _render(_logger: WrappedLogger, _name: str, event: EventDict) -> str:
    return _encoder.encode(event).decode()


def _text(value: Any) -> str:
    return str(value)


_encoder = msgspec.json.Encoder(enc_hook=_text)
