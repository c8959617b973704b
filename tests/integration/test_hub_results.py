"""Results over the Hub's network: one by one, many at once, and their bounds."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest

from chappe.core import limits
from chappe.core.errors import Conflict, TooLarge
from chappe.core.leases import Outcome, Reason
from chappe.link.clock import new_id
from chappe.link.http import HubClient
from chappe.testing.hub import RunningHub
from chappe.wire.results import AskResults, PutResults, PutResultsReply, Results, ResultUpload
from chappe.wire.sync import Report
from tests.integration.hub_rig import world


async def test_a_result_goes_there_and_back(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        (id,) = await w.create(1)
        (grant,) = (await pilot.sync()).grants
        data = b'{"energy": 1.0}'
        digest = hashlib.sha256(data).hexdigest()
        put = {"epoch": grant.epoch, "sha256": digest}
        path = f"/v1/jobs/{id}/result"

        async def send(params: dict[str, Any], media: str = "application/json") -> None:
            await pilot.client.request("PUT", path, data, params=params, media=media)

        with pytest.raises(Conflict) as refused:
            await send({**put, "epoch": grant.epoch + 1})
        assert refused.value.code == "stale_lease"
        for wrong in ({**put, "sha256": "0" * 64}, {"epoch": 1}, {**put, "epoch": -1}):
            with pytest.raises(Exception, match=r"sha256|epoch"):
                await send(wrong)
        with pytest.raises(Exception, match="no kind of result"):
            await send(put, media="text/html")
        await send(put)
        await send(put)
        end = msgspec.structs.replace(
            pilot.end(grant), outcome=Outcome(reason=Reason.EXIT, exit=0, result_sha256=digest)
        )
        reply = await pilot.sync([end], slots=0)
        assert [v.verdict for v in reply.verdicts] == ["applied"]
        got = await w.user.fetch("GET", path)
        assert got.data == data
        assert got.headers["content-type"] == "application/json"
        assert got.headers["etag"] == f'"{digest}"'
        assert got.headers["content-disposition"] == "attachment"


async def put_results(client: HubClient, *uploads: ResultUpload) -> list[tuple[str, str]]:
    """Send them together; the verdicts and what they say."""
    reply = await client.request("POST", "/v1/results", PutResults(list(uploads)), PutResultsReply)
    assert [(v.job, v.epoch) for v in reply.verdicts] == [(u.job, u.epoch) for u in uploads]
    return [(v.verdict, v.message) for v in reply.verdicts]


def upload(
    job: str, data: bytes, *, epoch: int = 1, media: str = "application/json"
) -> ResultUpload:
    return ResultUpload(job, epoch, hashlib.sha256(data).hexdigest(), media, data)


async def test_many_results_in_one_request_are_judged_one_by_one(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot, other = await w.pilot(), await w.pilot()
        await w.create(3)
        grants = (await pilot.sync(slots=3)).grants
        mine = [grant.job for grant in grants]
        assert len(mine) == 3
        (free,) = await w.create(1)
        uploads = [
            upload(mine[0], b"[0]"),
            upload(mine[1], b"{"),
            upload(mine[1], b"[1]", media="text/html"),
            msgspec.structs.replace(upload(mine[1], b"[1]"), sha256="0" * 64),
            upload("none", b"[1]"),
            upload(mine[1], b"[1]", epoch=2),
            upload(free, b"[1]"),
            upload(new_id(), b"[1]"),
            upload(mine[1], b" " * limits.RESULT_BYTES + b"1"),
            upload(mine[2], b"[2]"),
        ]
        said = await put_results(pilot.client, *uploads)
        assert [verdict for verdict, _ in said] == [
            "stored",
            *["invalid"] * 4,
            *["stale_lease"] * 3,
            "invalid",
            "stored",
        ]
        for at, words in (
            (1, "json"),
            (2, "kind of result"),
            (3, "sha256"),
            (4, "UUIDv7"),
            (8, "limit"),
        ):
            assert words in said[at][1]
        assert await put_results(pilot.client, *uploads) == said
        assert await put_results(pilot.client) == []
        # Another Session's Job looks as one that never was.
        theirs = await put_results(other.client, upload(mine[0], b"[9]"), upload(new_id(), b"[9]"))
        assert theirs == [("stale_lease", "")] * 2
        for at, sent in ((0, uploads[0]), (2, uploads[-1])):
            outcome = Outcome(reason=Reason.EXIT, exit=0, result_sha256=sent.sha256)
            end = msgspec.structs.replace(pilot.end(grants[at]), outcome=outcome)
            reply = await pilot.sync([end], slots=0)
            assert [v.verdict for v in reply.verdicts] == ["applied"]
            got = await w.user.fetch("GET", f"/v1/jobs/{mine[at]}/result")
            assert got.data == sent.body
        # An answer that was lost, and the end that went another way meanwhile.
        assert await put_results(pilot.client, uploads[0], uploads[-1]) == [("stored", "")] * 2
        changed = upload(mine[0], b"[3]")
        assert await put_results(pilot.client, changed) == [("stale_lease", "")]


async def test_the_bounds_of_a_request_with_results(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        most = [upload(new_id(), b"[1]") for _ in range(limits.RESULTS_PER_REQUEST)]
        assert await put_results(pilot.client, *most) == [("stale_lease", "")] * len(most)
        with pytest.raises(TooLarge) as refused:
            await put_results(pilot.client, *most, most[0])
        assert refused.value.field == "results"
        data = b'"' + b"x" * (limits.RESULT_BYTES - 2) + b'"'
        with pytest.raises(TooLarge):
            await put_results(pilot.client, *[upload(new_id(), data) for _ in range(6)])


async def test_a_result_that_is_too_large_is_refused(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        (id,) = await w.create(1)
        await pilot.sync()
        data = b" " * (limits.RESULT_BYTES + 1)
        with pytest.raises(TooLarge):
            await pilot.client.request(
                "PUT",
                f"/v1/jobs/{id}/result",
                data,
                params={"epoch": 1, "sha256": hashlib.sha256(data).hexdigest()},
            )


async def test_small_results_come_with_the_reports_of_their_ends(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        await w.create(6)
        grants = (await pilot.sync(slots=6)).grants

        def end(at: int, body: bytes, **changes: Any) -> Report:
            digest = changes.pop("sha256", hashlib.sha256(body).hexdigest())
            outcome = Outcome(Reason.EXIT, exit=changes.pop("exit", 0), result_sha256=digest)
            media = changes.pop("media", "application/json")
            made = pilot.end(changes.pop("grant", grants[at]))
            return msgspec.structs.replace(made, outcome=outcome, media=media, body=body)

        stale = msgspec.structs.replace(grants[4], epoch=9)
        reports = [
            end(0, b"[0]"),
            end(1, b"[1]", exit=1),
            end(2, b"{"),
            end(3, b"[3]", sha256="0" * 64),
            end(4, b"[4]", grant=stale),
            end(5, b'"' + b"x" * limits.REPORT_RESULT_BYTES + b'"'),
        ]
        reply = await pilot.sync(reports, slots=0)
        assert [v.verdict for v in reply.verdicts] == [
            *["applied"] * 2,
            *["illegal"] * 2,
            "stale_lease",
            "illegal",
        ]
        ids = [grant.job for grant in grants]
        asked = AskResults([*ids[:2], new_id(), *ids[2:]])
        found = await w.user.request("POST", "/v1/jobs/results", asked, Results)
        assert [(r.job, r.media, r.body) for r in found.results] == [
            (ids[0], "application/json", b"[0]"),
            (ids[1], "application/json", b"[1]"),
        ]
        assert found.rest == []


async def test_many_results_are_answered_in_parts(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        await w.create(7)
        grants = (await pilot.sync(slots=7)).grants
        large = [upload(g.job, b'"' + b"x" * 1_000_000 + b'"') for g in grants]
        for one in large:
            assert await put_results(pilot.client, one) == [("stored", "")]
        ends = [
            msgspec.structs.replace(
                pilot.end(g), outcome=Outcome(Reason.EXIT, exit=0, result_sha256=u.sha256)
            )
            for g, u in zip(grants, large, strict=True)
        ]
        await pilot.sync(ends, slots=0)
        waiting, found = [g.job for g in grants], dict[str, bytes]()
        parts = 0
        while waiting:
            page = await w.user.request("POST", "/v1/jobs/results", AskResults(waiting), Results)
            assert 0 < len(page.results) <= 4
            found |= {r.job: r.body for r in page.results}
            waiting, parts = page.rest, parts + 1
        assert parts == 2
        assert found == {u.job: u.body for u in large}
        many = AskResults([new_id()] * 1_001)
        with pytest.raises(TooLarge):
            await w.user.request("POST", "/v1/jobs/results", many, Results)
