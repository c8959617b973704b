"""Simulations that tell of themselves: what libIGCM sends, in all the ways that it goes, by a seed.

A scenario is a list of messages with when each was said and when it arrives, and how everything must stand
at its end. The same seed gives the same bytes. `mails` puts them into mails as libIGCM would.
"""

from __future__ import annotations

import base64
import json
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from email.message import EmailMessage
from enum import StrEnum

from chappe.core.lateness import State

START_S = 1_473_929_586  # 2016-09-15
CARD = (
    "[UserChoices]\nJobName={name}\nCalendarType=360d\nDateBegin=1850-01-01\nDateEnd=1850-12-30\n"
)


class Course(StrEnum):
    """How a simulation goes."""

    OK = "ok"
    ERROR = "error"
    CONTINUATION = "continuation"
    NEW_TRY = "new_try"
    CANCELLED = "cancelled"
    STORM = "storm"
    LEFTOVERS = "leftovers"
    PURGED = "purged"


class Dialect(StrEnum):
    """How messages are written."""

    OLD = "2014"
    MODERN = "2.8"
    NATIVE = "chappe"


@dataclass(frozen=True)
class Said:
    """One message: its bytes, when it was said and when it arrives (seconds since 1970), and the card that
    comes with it."""

    raw: bytes
    simulation: str
    code: str
    at_s: float
    arrives_s: float
    card: str | None = None


@dataclass
class Scenario:
    """What is said, and how all stands when it is over: the state of each simulation, and those of them that
    a list shows."""

    said: list[Said] = field(default_factory=list)
    states: dict[str, State] = field(default_factory=dict)
    active: set[str] = field(default_factory=set)

    @property
    def end_s(self) -> float:
        """A moment long after it, since 1970: all that could be late is."""
        return max(s.arrives_s for s in self.said) + 10 * 86_400

    def arriving(self) -> list[bytes]:
        """The messages in the order in which they arrive."""
        return [s.raw for s in sorted(self.said, key=lambda s: s.arrives_s)]


_TYPES = {
    "0000": "simulation.started",
    "0100": "simulation.ended",
    "1000": "job.started",
    "1001": "job.period",
    "1100": "job.ended",
    "1900": "command.failed",
    "1999": "job.fatal",
    "2000": "post.started",
    "2100": "post.ended",
    "7000": "io",
    "8888": "simulation.purged",
}
_OLD_CODES = {"1900": "9000", "1999": "9999"}


class _Model:
    """One try of a simulation, telling."""

    def __init__(self, rng: random.Random, name: str, dialect: Dialect, into: Scenario) -> None:
        self.rng, self.name, self.dialect, self.into = rng, name, dialect, into
        self.uid = self._uuid()
        self.job = self._uuid()
        self.at_s = START_S + rng.uniform(0, 86_400)
        self.month = 0

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def say(self, code: str, job: str | None = None, /, **fields: str) -> None:
        """Say one message, a little later than the last."""
        self.at_s += self.rng.uniform(0.001, 60)
        at = datetime.fromtimestamp(int(self.at_s), UTC).astimezone(timezone(timedelta(hours=2)))
        nanoseconds = int(self.at_s % 1 * 1e9)
        standard = {
            "msgApplication": "monitoring",
            "msgProducer": "chappe" if self.dialect is Dialect.NATIVE else "libigcm",
            "msgProducerVersion": "1" if self.dialect is Dialect.NATIVE else "2.8.1",
            "simuid": self.uid,
            "jobuid": job or self.job,
            "msgCode": _OLD_CODES.get(code, code) if self.dialect is Dialect.OLD else code,
            "msgType": _TYPES.get(code, ""),
            "msgUID": self._uuid(),
            "msgTimestamp": f"{at:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}+0200",
        }
        if self.dialect is Dialect.OLD:
            del standard["msgProducerVersion"]
        if self.dialect is not Dialect.NATIVE:
            del standard["msgType"]
        raw = json.dumps(standard | fields, separators=(",", ":")).encode()
        delay_s = (
            self.rng.uniform(1, 48) if self.rng.random() < 0.8 else self.rng.uniform(48, 3_600)
        )
        card = CARD.format(name=self.name) if code == "0000" else None
        said = Said(raw, self.uid, code, self.at_s, self.at_s + delay_s, card)
        self.into.said.append(said)

    def starts(self, delay: str = "86400") -> None:
        self.say(
            "0000",
            activity="IPSL",
            name=self.name,
            experiment="piControl",
            space="TEST",
            model="IPSLCM6",
            startDate="1850-01-01",
            endDate="1850-12-30",
            login="p86xxxx",
            centre="TGCC",
            machine="curie",
            accountingProject="gencmip6",
            jobWarningDelay=delay,
            jobSchedulerID=str(self.rng.randrange(10**7)),
            jobSubmissionPath=f"/ccc/work/config/{self.name}",
        )

    def next_job(self) -> None:
        self.job = self._uuid()
        self.at_s += self.rng.uniform(1, 7_200)
        self.say(
            "1000",
            accountingProject="gencmip6",
            jobWarningDelay=self.rng.choice(["86400", "", "0", "NONE"]),
            jobSchedulerID=str(self.rng.randrange(10**7)),
            jobSubmissionPath=f"/ccc/work/config/{self.name}",
        )

    def computes(self, months: int = 2) -> None:
        for _ in range(months):
            self.month += 1
            if self.dialect is Dialect.OLD:
                self.say("2000", nesting="1", command="IGCM_sys_Cp", cumulPeriod=str(self.month))
                self.say("3000", nesting="1", command="IGCM_sys_Cp", cumulPeriod=str(self.month))
            else:
                self.say("7000", actionName="IGCM_sys_Cp", size_Mo=".008789", duration_ms="45")
            self.say(
                "1001",
                CumulPeriod=str(self.month),
                PeriodDateBegin=f"1850{self.month:02d}01",
                PeriodDateEnd=f"1850{self.month:02d}30",
            )

    def post_processes(self) -> str:
        """Start a post-processing job, which outlives the job that started it."""
        post = self._uuid()
        if self.dialect is not Dialect.OLD:
            self.say("2000", post, postProcessingName="create_ts", postProcessingDate="18501230")
        return post

    def post_ends(self, post: str) -> None:
        if self.dialect is not Dialect.OLD:
            self.say("2100", post)

    def fails(self, commands: int = 2) -> None:
        for _ in range(commands):
            self.say("1900", command='IGCM_sys_Put_Out "x"')
            self.at_s -= 30
        self.at_s += 30 * commands + 60
        self.say("1999")
        self.into.states[self.uid] = State.ERROR

    def completes(self) -> None:
        post = self.post_processes()
        if self.dialect is Dialect.OLD:
            self.say("1100")
        self.say("0100")
        self.post_ends(post)
        self.into.states[self.uid] = State.COMPLETE

    def runs(self, jobs: int = 3) -> None:
        """All of it, from the second job on."""
        for _ in range(jobs):
            self.say("1100")
            self.next_job()
            self.computes()
        self.completes()


def scenario(
    course: Course, seed: int, dialect: Dialect = Dialect.MODERN, *, storm: int = 301
) -> Scenario:
    """One simulation, or two tries of one, that go this way."""
    rng = random.Random(f"{course}/{seed}/{dialect}")  # noqa: S311 - repeatable, and no secret
    made = Scenario()
    name = f"{course}.{seed:03d}"
    model = _Model(rng, name, dialect, made)
    made.active.add(model.uid)
    model.starts()
    if course is Course.CANCELLED:
        made.states[model.uid] = State.LATE
        return made
    model.computes()
    if course in (Course.ERROR, Course.STORM):
        model.fails(storm if course is Course.STORM else 2)
    elif course is Course.CONTINUATION:
        model.fails()
        model.next_job()
        model.computes()
        model.runs(1)
    elif course in (Course.NEW_TRY, Course.LEFTOVERS):
        _again(model, rng, course, made)
    else:
        model.runs()
        if course is Course.PURGED:
            model.say("8888")
            model.post_ends(model.post_processes())
            made.active.clear()
    return made


def _again(first: _Model, rng: random.Random, course: Course, made: Scenario) -> None:
    """A first try fails, or is killed and leaves lines that come with the second's first mail."""
    second = _Model(rng, first.name, first.dialect, made)
    if course is Course.NEW_TRY:
        first.fails()
    else:
        made.states[first.uid] = State.LATE
    second.at_s = first.at_s + 7_200
    left = [s for s in made.said if s.code != "0000"][-3:]
    second.starts()
    if course is Course.LEFTOVERS:
        (begun,) = [s for s in made.said if s.simulation == second.uid]
        for s in left:
            at = made.said.index(s)
            made.said[at] = Said(s.raw, s.simulation, s.code, s.at_s, begun.arrives_s - 0.001)
    second.computes()
    second.runs()
    made.active = {second.uid}


def campaign(seed: int, simulations: int, dialects: Sequence[Dialect] = tuple(Dialect)) -> Scenario:
    """Many simulations at once, of all courses."""
    rng = random.Random(seed)  # noqa: S311 - repeatable, and no secret
    merged = Scenario()
    for number in range(simulations):
        one = scenario(
            rng.choice(list(Course)), seed * 100_000 + number, rng.choice(dialects), storm=20
        )
        merged.said += one.said
        merged.states |= one.states
        merged.active |= one.active
    return merged


def disturbed(raws: Sequence[bytes], seed: int, *, twice: float = 0.3) -> list[bytes]:
    """The same messages in another order, some of them twice or three times."""
    rng = random.Random(seed)  # noqa: S311 - repeatable, and no secret
    found = [*raws, *(r for r in raws if rng.random() < twice), *raws[: len(raws) // 10]]
    rng.shuffle(found)
    return found


def mails(said: Sequence[Said]) -> Iterator[bytes]:
    """The mails in which libIGCM sends these: at once at a start and at an end, else when an hour has passed.
    What is left in the buffer at the end of one simulation goes with the next."""
    buffer: list[Said] = []
    sent_s = said[0].at_s if said else 0.0
    for s in said:
        buffer.append(s)
        at_once = s.code in ("0000", "1000", "0100", "1999", "2100", "2999", "3100", "3999")
        if at_once or s.at_s - sent_s > 3_600:
            sent_s = s.at_s
            yield mail(buffer)
            buffer = []
    if buffer:
        yield mail(buffer)


def mail(said: Sequence[Said]) -> bytes:
    """One mail with these messages, a line each, and the cards that belong to them."""
    made = EmailMessage()
    made["Subject"] = "[TEMPORARY AMQP CHANNEL]"
    made["From"], made["To"] = "p86xxxx@curie.example", "hermes@example.org"
    made["Message-ID"] = (
        f"<{uuid.uuid5(uuid.NAMESPACE_OID, repr([s.raw for s in said]))}@curie.example>"
    )
    lines = "\n".join(base64.b64encode(s.raw).decode() for s in said)
    made.set_content(lines + "\n", cte="quoted-printable" if len(lines) > 998 else "7bit")
    for s in said:
        if s.card is not None:
            card = base64.encodebytes(s.card.encode()).decode()
            made.add_attachment(card, filename="config.card.base64", cte="7bit")
    return made.as_bytes()
