"""Decoding messages: both dialects of libIGCM, native ones, and what is broken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chappe.core import limits
from chappe.core.messages import Mark, Message, Reason, Undecodable, decode, received
from chappe.core.vocabulary import BY_CODE, BY_CODE_2014, BY_TYPE, Phase, kind_of

SIM, JOB, UID = "7c1d5a52-90f4", "5f0a9f5e-2c3d", "d2a6c0b4-6e1f"


def message(**fields: Any) -> bytes:
    standard = {
        "msgApplication": "monitoring",
        "msgProducer": "libigcm",
        "msgProducerVersion": "2.8.1",
        "msgCode": "1100",
        "msgUID": UID,
        "msgTimestamp": "2016-04-15T22:05:35.960533073+0200",
        "simuid": SIM,
        "jobuid": JOB,
    }
    given = {k: v for k, v in {**standard, **fields}.items() if v is not ...}
    return json.dumps(given, separators=(",", ":")).encode()


def refused(raw: bytes) -> Reason:
    with pytest.raises(Undecodable) as e:
        decode(raw)
    assert e.value.message
    return e.value.reason


def test_a_message_of_libigcm() -> None:
    assert decode(message(command="x")) == Message(
        uid=UID,
        code="1100",
        type="job.ended",
        simulation=SIM,
        job=JOB,
        at_ns=1_460_750_735_960_533_073,
        at_raw="2016-04-15T22:05:35.960533073+0200",
        producer="libigcm",
        version="2.8.1",
        stream="",
        seq=0,
        prev="",
        dialect="2.8",
        marks=(),
        fields={"command": "x"},
    )


@pytest.mark.parametrize(
    ("code", "modern", "old"),
    [
        ("0000", "simulation.started", "simulation.started"),
        ("2000", "post.started", "command.pushed"),
        ("3000", "checker.started", "command.popped"),
        ("4100", "", "command.popped"),
        ("4900", "", "command.failed"),
        ("9000", "command.failed", "command.failed"),
        ("9999", "job.fatal", "job.fatal"),
        ("1001", "job.period", "job.period"),
        ("1234", "", ""),
        ("-1000", "internal.vocabulary", "internal.vocabulary"),
    ],
)
def test_the_version_tells_the_dialect(code: str, modern: str, old: str) -> None:
    new, early = (
        decode(message(msgCode=code)),
        decode(message(msgCode=code, msgProducerVersion=...)),
    )
    assert (new.dialect, new.type, new.code) == ("2.8", modern, code)
    assert (early.dialect, early.type, early.code) == ("2014", old, code)


def test_a_native_message() -> None:
    native = decode(
        message(
            msgProducer="chappe",
            msgProducerVersion="1",
            msgType="job.period",
            msgCode=...,
            msgStream="s",
            msgSeq=7,
            msgPrev="ab",
        )
    )
    assert (native.dialect, native.code, native.phase) == ("chappe", "1001", Phase.PROGRESS)
    assert (native.stream, native.seq, native.prev) == ("s", 7, "ab")
    custom = decode(message(msgProducer="chappe", msgType="custom.thing", msgCode=..., jobuid=...))
    assert (custom.type, custom.code, custom.job, custom.phase) == (
        "custom.thing",
        "",
        "",
        Phase.PROGRESS,
    )


@pytest.mark.parametrize(("seq", "kept"), [("12", 12), ("x", 0), (-1, 0), (None, 0), ("9" * 19, 0)])
def test_a_stream_without_a_number_is_marked(seq: Any, kept: int) -> None:
    found = decode(message(msgStream="s", msgSeq=seq))
    assert found.seq == kept
    assert (Mark.BAD_SEQ in found.marks) == (kept == 0)


@pytest.mark.parametrize("nothing", ["", "null", "N/A", None, " "])
def test_words_for_nothing(nothing: Any) -> None:
    found = decode(message(msgCode="7000", jobuid=nothing, experiment=nothing, name="a"))
    assert found.job == ""
    assert found.text("experiment") is None
    assert found.text("absent") is None
    assert found.text("name") == "a"
    assert refused(message(msgUID=nothing)) is Reason.NO_UID
    assert refused(message(msgCode=nothing)) is Reason.NO_CODE
    assert decode(message(msgTimestamp=nothing)).marks == (Mark.NO_TIME,)


def test_a_code_may_be_a_number() -> None:
    assert decode(message(msgCode=0)).code == "0000"
    assert decode(message(msgCode=1100)).code == "1100"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", Reason.NOT_JSON),
        (b"hello", Reason.NOT_JSON),
        (b'{"msgUID":"a"', Reason.NOT_JSON),
        (b"{}", Reason.NO_UID),
        (b"[]", Reason.NOT_AN_OBJECT),
        (b"[" * 100_000, Reason.NOT_JSON),
        (b'"' + b"x" * limits.MESSAGE_BYTES, Reason.TOO_LARGE),
        (message(msgTimestamp="yesterday"), Reason.BAD_TIMESTAMP),
        (message(simuid="N/A"), Reason.NO_SIMULATION),
        (message(simuid=..., msgCode="8888"), Reason.NO_SIMULATION),
        (message(jobuid=...), Reason.NO_JOB),
        (message(msgUID="u" * 201), Reason.TOO_LONG),
        (message(simuid="s" * 201), Reason.TOO_LONG),
        (message(msgUID=["a"]), Reason.NO_UID),
    ],
)
def test_what_is_no_message(raw: bytes, reason: Reason) -> None:
    assert refused(raw) is reason


def test_a_native_simulation_needs_no_jobs() -> None:
    assert decode(message(msgProducer="chappe", jobuid=..., msgType="job.fatal")).job == ""
    assert decode(message(jobuid="N/A", msgCode="0100")).job == ""


@pytest.mark.parametrize(
    ("broken", "path"),
    [
        (rb"/ccc/\work", "/ccc/work"),
        (rb"/ccc/C:\dir\users", "/ccc/C:dirusers"),
        (b'/ccc/"work"/x', '/ccc/"work"/x'),
        (b'/a"', '/a"'),
        (b'/a", b', '/a", b'),
        (rb"/ccc/\"work", '/ccc/"work'),
        (b"/ccc/\twork\x01", "/ccc/ work "),
        (rb"/ccc/\ud800", "/ccc/ud800"),
    ],
)
def test_broken_json_is_repaired_and_marked(broken: bytes, path: str) -> None:
    raw = message(dirFrom="@", dirTo="/to").replace(b"@", broken)
    found = decode(raw)
    assert (found.uid, found.simulation, found.fields["dirTo"]) == (UID, SIM, "/to")
    if broken == rb"/ccc/\"work":
        assert found.marks == ()  # that was JSON all along
    else:
        assert found.marks == (Mark.REPAIRED,)
    assert found.fields["dirFrom"] == path
    assert Reason.NOT_JSON is refused(raw[:-1])


def test_valid_escapes_stay_as_they_are() -> None:
    found = decode(message(dirFrom="C:\\new", note="a\nb"))
    assert found.marks == ()
    assert found.fields == {"dirFrom": "C:\\new", "note": "a\nb"}


def test_other_characters_are_shown_and_marked() -> None:
    latin = decode(message(dirFrom="@").replace(b"@", b"/\xe9t\xe9"))
    assert latin.fields == {"dirFrom": "/été"}
    assert latin.marks == (Mark.REPAIRED, Mark.NOT_UTF8)
    nul = decode(message(msgCode="7000", dirFrom=["a\0", {"b\0": 1}], simuid="s\0"))
    assert nul.fields == {"dirFrom": ["a\ufffd", {"b\ufffd": 1}]}
    assert nul.simulation == "s\ufffd"
    assert nul.marks == (Mark.NUL,)
    assert decode(b"\xef\xbb\xbf" + message()).uid == UID


def test_l11_every_form_of_time_is_read() -> None:
    """Six kept digits that are all zero, `Z` and negative offsets were lost or misread once."""
    at = {
        text: decode(message(msgTimestamp=text)).at_ns
        for text in (
            "2016-04-15T22:05:35.000000533+0200",
            "2016-04-15T20:05:35.000000533Z",
            "2016-04-15T16:35:35.000000533-0330",
        )
    }
    assert set(at.values()) == {1_460_750_735_000_000_533}
    without = decode(message(msgTimestamp="2016-04-15T20:05:35.000000533"))
    assert (without.at_ns, without.marks) == (1_460_750_735_000_000_533, (Mark.NO_OFFSET,))


def test_what_comes_from_the_future_is_suspect() -> None:
    found = decode(message())
    assert received(found, found.at_ns - limits.CLOCK_AHEAD_NS) is found
    late = received(found, found.at_ns - limits.CLOCK_AHEAD_NS - 1)
    assert late.marks == (Mark.CLOCK_SUSPECT,)
    assert received(late, 0) is late


def test_the_tables_agree() -> None:
    for code, kind in BY_CODE.items():
        if code not in ("9000", "9999"):
            assert (kind.code, BY_TYPE[kind.type]) == (code, kind)
    for kind in (*BY_CODE_2014.values(), *BY_TYPE.values()):
        assert kind_of(kind.type)[2:] == kind[2:]
    assert kind_of("custom.x").type == ""
