"""The agent's log: one JSON object per line in logs/agent.log, of bounded size."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import msgspec
import structlog

from chappe.core.limits import MIB

FILE_BYTES = 5 * MIB
FILES = 4


def configure(path: Path, *, also_stderr: bool = False) -> None:
    """Send all of this process's logging to `path`, rotated; warnings too, of libraries as well."""
    handlers: list[logging.Handler] = [
        RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8")
    ]
    if also_stderr:
        handlers.append(logging.StreamHandler())
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
    ]
    render = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_json),
        ],
    )
    for handler in handlers:
        handler.setFormatter(render)
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    # The HTTP client tells of every request at INFO.
    for noisy in ("httpx2", "httpcore2", "httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _json(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()
