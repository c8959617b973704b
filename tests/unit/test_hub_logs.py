"""The Hub's log: JSON lines, and never a secret."""

from __future__ import annotations

import errno
import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from chappe.hub import logs
from chappe.store.principal import make_token


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """The log of this test; afterwards logging is as it was."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    stream = io.StringIO()
    logs.configure("info", stream)
    yield stream
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:], root.level = before


def entries(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("scope", ["user", "site", "session"])
def test_a_token_never_reaches_the_log(out: io.StringIO, scope: str) -> None:
    token, prefix, _ = make_token(scope)
    secret = token.rsplit(prefix, 1)[1]
    log = structlog.get_logger()
    log.info(f"got {token}", header=f"Bearer {token}", deep={"a": [token, (token,)], token: 1})
    log.info("bytes", body=token.encode())
    try:
        int(token)
    except ValueError:
        log.exception("it failed")
    logging.getLogger("some.library").warning("sent %s", token)
    assert secret not in out.getvalue()
    assert prefix in out.getvalue()
    assert len(entries(out)) == 4


def test_other_credentials_are_taken_out(out: io.StringIO) -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\n-----END PRIVATE KEY-----"
    structlog.get_logger().info("x", header="authorization: bearer abc.def", pem=f"a {key} b")
    assert "abc.def" not in out.getvalue()
    assert "MIGHAgEA" not in out.getvalue()
    assert entries(out)[0]["pem"] == "a *** private key *** b"


def test_lines_are_json_with_time_and_level(out: io.StringIO) -> None:
    log = structlog.get_logger()
    log.debug("not this")
    log.info("this", n=1, ratio=0.5, none=None)
    (entry,) = entries(out)
    assert entry["event"] == "this"
    assert entry["level"] == "info"
    assert str(entry["at"]).endswith("Z")
    assert (entry["n"], entry["ratio"], entry["none"]) == (1, 0.5, None)


class FullDisk(io.StringIO):
    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_takes_nothing_stops_nobody(out: io.StringIO) -> None:
    """The writer's thread logs what fails on a full disk, and the log lies on that disk."""
    logs.configure("info", FullDisk())
    structlog.get_logger().error("a failure")
    logging.getLogger("uvicorn").error("another")
