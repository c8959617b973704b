"""Frames between head and launcher."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from chappe.core.leases import Reason
from chappe.pilot import launch_wire as wire
from chappe.pilot.launch_wire import FrameError, FrameReader, Task

TASK = Task("job", 2, 3, ["/bin/true", "é"], {"A": "b"}, "/", 12.5, cores=[0, 1], lane=4)
HEAD_FRAMES: list[wire.HeadFrame] = [
    wire.BaseEnv({"A": "b"}, "/log"),
    wire.Start([TASK, Task("other", 1, 1, [], {}, "/", 0.0)]),
    wire.Kill([wire.KillOrder("job", 2, "cancelled", 1.5)]),
    wire.Withdraw([("job", 2)]),
    wire.Renew([("job", 2, 99.0)]),
    wire.Ack([("job", 2)]),
    wire.Stop(kill=True),
]


@pytest.mark.parametrize("chunk", [1, 3, 4, 5, 1000])
def test_frames_survive_any_cut(chunk: int) -> None:
    stream = b"".join(map(wire.encode, HEAD_FRAMES))
    reader = FrameReader()
    heard = [
        wire.decode_head(payload)
        for at in range(0, len(stream), chunk)
        for payload in reader.feed(stream[at : at + chunk])
    ]
    assert heard == HEAD_FRAMES


def test_launcher_frames_survive() -> None:
    started = wire.Started("job", 1, 1, 77, 5.0)
    ended = wire.Ended("job", 1, 1, "signal", None, 9, 5.0, 6.0, tail="é")
    refused = wire.Refused("x", 1, 1, "late")
    for frame in (
        wire.Snapshot("s", 1, [started], [ended], [("w", 1)], more=True),
        wire.Events([started], [ended], [refused]),
    ):
        (payload,) = FrameReader().feed(wire.encode(frame))
        assert wire.decode_launcher(payload) == frame
    assert started.key == ended.key == ("job", 1)
    assert refused.key == ("x", 1)


def test_a_field_that_a_newer_side_adds_is_passed_over() -> None:
    raw = msgspec.msgpack.encode(["stop", True, "cancelled", 1.0, "new"])
    assert wire.decode_head(raw) == wire.Stop(kill=True, reason="cancelled", grace_s=1.0)
    assert wire.decode_head(msgspec.msgpack.encode(["stop"])) == wire.Stop()


def test_what_is_too_long_is_refused_on_both_sides() -> None:
    with pytest.raises(FrameError, match="exceeds"):
        wire.encode(wire.BaseEnv({"A": "x" * wire.FRAME_BYTES}))
    with pytest.raises(FrameError, match="exceeds"):
        list(FrameReader().feed((wire.FRAME_BYTES + 1).to_bytes(4, "big")))


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x00", b"\x91\xa3odd", b"\x92\xa5start\xc0"])
def test_rubbish_is_a_frame_error(payload: bytes) -> None:
    with pytest.raises(FrameError):
        wire.decode_head(payload)
    with pytest.raises(FrameError):
        wire.decode_launcher(payload)


def test_every_reason_is_one_that_the_hub_knows() -> None:
    assert {*get_args(wire.EndReason), *get_args(wire.KillReason)} <= {*Reason}
