"""The journal: each message once, whatever comes how often; nothing dropped; counters that add up."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest

from chappe.store import journal
from chappe.store.journal import Arrival, Carrier, item
from chappe.testing.store import StoreRig
from chappe.wire.messages import Verdict


def raw(uid: str, **fields: Any) -> bytes:
    made = {"msgUID": uid, "msgType": "custom.step", "msgProducer": "chappe", "simuid": "s1"}
    return json.dumps(made | fields).encode()


def arrival(rig: StoreRig, *raws: bytes, producer: int = 0, **more: Any) -> Arrival:
    given: dict[str, Any] = {"door": "https", "source": "me", "received_at": rig.clock()} | more
    return Arrival(rig.user.project_n, producer, items=[item(r) for r in raws], **given)


def accept(rig: StoreRig, *raws: bytes, **more: Any) -> list[Verdict]:
    return rig.do(journal.accept, arrival(rig, *raws, **more))


def words(verdicts: Iterable[Verdict]) -> list[str]:
    return [v.verdict for v in verdicts]


def counters(rig: StoreRig) -> list[tuple[Any, ...]]:
    rows = rig.sql("SELECT received, stored, duplicate, quarantined FROM source ORDER BY n")
    return [tuple(row) for row in rows]


def stored(rig: StoreRig) -> list[tuple[int, str]]:
    return [tuple(row) for row in rig.sql("SELECT n, uid FROM message ORDER BY project, n")]


def test_a_message_is_stored_as_it_came(rig: StoreRig) -> None:
    bytes_ = raw("m1", jobuid="j1", msgStream="f1", msgSeq=7, msgCode="0100")
    (verdict,) = accept(rig, bytes_)
    assert verdict == Verdict("stored", "m1", 1)
    (row,) = rig.sql("SELECT raw, simulation, job, stream, seq, code, type FROM message")
    assert bytes(row[0]) == bytes_
    assert tuple(row)[1:] == ("s1", "j1", "f1", 7, "0100", "custom.step")


def test_what_comes_again_is_a_duplicate(rig: StoreRig) -> None:
    accept(rig, raw("m1"), raw("m2"))
    verdicts = accept(rig, raw("m2"), raw("m3"), raw("m3"))
    assert words(verdicts) == ["duplicate", "stored", "duplicate"]
    assert verdicts[0].n == 2
    assert stored(rig) == [(1, "m1"), (2, "m2"), (3, "m3")]
    assert counters(rig) == [(5, 3, 2, 0)]


def test_a_uid_with_other_bytes_is_kept_beside_and_replaces_nothing(rig: StoreRig) -> None:
    accept(rig, raw("m1", value=1))
    (verdict,) = accept(rig, raw("m1", value=2))
    assert (verdict.verdict, verdict.uid, verdict.reason) == ("conflict", "m1", "conflict")
    assert words(accept(rig, raw("m1", value=2))) == ["duplicate"]
    assert words(accept(rig, raw("m9", value=1), raw("m9", value=2))) == ["stored", "conflict"]
    assert stored(rig) == [(1, "m1"), (2, "m9")]
    assert b'"value": 1' in bytes(rig.sql("SELECT raw FROM message WHERE uid = 'm1'")[0][0])
    assert counters(rig) == [(5, 2, 1, 2)]


def test_another_producers_uid_is_another_message(rig: StoreRig) -> None:
    accept(rig, raw("m1", value=1))
    assert words(accept(rig, raw("m1", value=2), producer=5)) == ["stored"]
    assert words(accept(rig, raw("m1", value=2), producer=5)) == ["duplicate"]


def test_what_is_no_message_is_quarantined_with_its_reason(rig: StoreRig) -> None:
    verdicts = accept(rig, b"\xff\x00", raw("m1"), b"[]", b'{"msgCode": "0000"}')
    assert words(verdicts) == ["quarantined", "stored", "quarantined", "quarantined"]
    assert [v.reason for v in verdicts if v.reason] == ["not_json", "not_an_object", "no_uid"]
    assert words(accept(rig, b"\xff\x00")) == ["duplicate"]
    (row,) = rig.sql("SELECT raw FROM quarantine WHERE reason = 'not_json'")
    assert bytes(row[0]) == b"\xff\x00"
    assert counters(rig) == [(5, 1, 1, 3)]


def test_sources_are_counted_apart(rig: StoreRig) -> None:
    both = [arrival(rig, raw("m1"), source="a"), arrival(rig, raw("m1"), raw("m2"), source="b")]
    verdicts = rig.do(journal.accept_all, both)
    assert [words(v) for v in verdicts] == [["stored"], ["duplicate", "stored"]]
    assert sorted(counters(rig)) == [(1, 1, 0, 0), (2, 1, 1, 0)]


def test_positions_have_no_gaps_whatever_is_rolled_back(rig: StoreRig) -> None:
    def half(tx: Any) -> None:
        journal.accept(tx, arrival(rig, raw("lost1"), raw("lost2")))
        raise RuntimeError("the disk")

    accept(rig, raw("m1"))
    with pytest.raises(RuntimeError, match="the disk"):
        rig.do(half)
    accept(rig, raw("m2"))
    rig.restart()
    accept(rig, raw("lost1"), raw("m3"))
    assert stored(rig) == [(1, "m1"), (2, "m2"), (3, "lost1"), (4, "m3")]
    assert counters(rig) == [(4, 4, 0, 0)]


def test_a_mail_is_kept_once_and_only_for_what_is_new_in_it(rig: StoreRig) -> None:
    mail = Carrier(b"From: x\r\n\r\nbody")
    accept(rig, raw("m1"), raw("m2"), carrier=mail)
    accept(rig, raw("m1"), carrier=Carrier(b"the same by another way"))
    accept(rig, raw("m3"), carrier=mail)
    assert [bytes(row[0]) for row in rig.sql("SELECT body FROM carrier")] == [mail.raw]
    assert {row[0] for row in rig.sql("SELECT carrier FROM message")} == {1}


def test_how_long_messages_took_is_counted_by_source(rig: StoreRig) -> None:
    def stamped(uid: str, ago_s: float) -> bytes:
        at = datetime.fromtimestamp(rig.clock() - ago_s, UTC)
        return raw(uid, msgTimestamp=at.isoformat())

    # 3 s are more than 2^11 ms; a clock that is ahead took no time; one that says nothing is not counted.
    accept(rig, stamped("m1", 3.0), stamped("m2", 3.1), stamped("m3", -5.0), raw("m4"))
    rows = rig.sql("SELECT bucket, count FROM source_latency ORDER BY bucket")
    assert [tuple(row) for row in rows] == [(0, 1), (12, 2)]


def test_a_projection_gets_each_message_once_with_its_position(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, str, float]] = []

    def apply(_tx: Any, _project: int, producer: int, news: Any, received_at: float) -> None:
        seen.extend((n, f"{producer}/{m.uid}", received_at) for n, m in news)

    monkeypatch.setattr(journal, "PROJECTIONS", [apply])
    groups = [
        arrival(rig, raw("m1"), raw("m2"), source="b", received_at=5.0),
        arrival(rig, raw("m1"), raw("m3"), source="a", received_at=6.0),
        arrival(rig, raw("m1"), producer=3),
    ]
    rig.do(journal.accept_all, groups)
    assert sorted(uid for _, uid, _ in seen) == ["0/m1", "0/m2", "0/m3", "3/m1"]
    assert sorted(n for n, _, _ in seen) == [1, 2, 3, 4]
    at = {uid: when for _, uid, when in seen}
    assert (at["0/m1"], at["0/m3"]) == (5.0, 6.0)


def test_texts_that_no_database_holds_are_kept_as_bytes(rig: StoreRig) -> None:
    odd = [
        b'{"msgUID": "a\\u0000b", "msgType": "log", "simuid": "\\u0000"}',
        b'{"msgUID": "x\\ud800y", "msgType": "log"}',
        b'{"specversion": "1.0", "id": "c\\u0000", "type": "log", "source": "s"}',
        b'{"msgUID": "%s", "msgType": "log"}' % (b"x" * 5_000),
    ]
    verdicts = accept(rig, *odd)
    assert set(words(verdicts)) <= {"stored", "quarantined"}
    kept = rig.sql("SELECT raw FROM message UNION ALL SELECT raw FROM quarantine")
    assert sorted(bytes(row[0]) for row in kept) == sorted(odd)
