"""`chappe-sbatch`, `chappe-squeue`, `chappe-scancel`, `chappe-qsub`, `chappe-qstat` and `chappe-qdel`.

Each is a command of its own that takes what the original takes, prints what it prints and exits as it does,
so that programs which call the originals need not change. `python -m chappe.cli.fronts NAME …` is the same.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

from chappe import __version__
from chappe.sdk.batch import desk as desks
from chappe.sdk.batch import qstat as qstat_words
from chappe.sdk.batch import qsub as qsub_words
from chappe.sdk.batch import sbatch as sbatch_words
from chappe.sdk.batch import squeue as squeue_words
from chappe.sdk.batch.flags import Flag, Usage
from chappe.sdk.batch.request import number_of
from chappe.sdk.batch.seen import ACTIVE, Seen, printable
from chappe.sdk.errors import Busy, ChappeError, ConfigMissing, NotFound, Unavailable

#: Longest script that is read; the SDK says what the limit is.
_SCRIPT_BYTES = 1 << 20
#: PBS's exit statuses for a job that it does not know, and for one that has ended.
_UNKNOWN, _ENDED = 153, 35
_HISTORY = "historical job information"
_CONTACT = "Unable to contact slurm controller (connect failure)"

Work = Callable[[list[str]], Awaitable[int]]


class Failure(Exception):
    """What a command has to say about its failure, and its exit status."""

    def __init__(self, lines: str, status: int = 1) -> None:
        super().__init__(lines)
        self.lines = lines
        self.status = status


def sbatch() -> None:
    """Submit a script to Slurm's words."""
    _main("sbatch", _sbatch)


def squeue() -> None:
    """List jobs in Slurm's words."""
    _main("squeue", _squeue)


def scancel() -> None:
    """Cancel jobs by Slurm's words."""
    _main("scancel", _scancel)


def qsub() -> None:
    """Submit a script by PBS's words."""
    _main("qsub", _qsub)


def qstat() -> None:
    """List jobs in PBS's words."""
    _main("qstat", _qstat)


def qdel() -> None:
    """Cancel jobs by PBS's words."""
    _main("qdel", _qdel)


def _main(name: str, work: Work) -> None:
    try:
        status = asyncio.run(_run(name, work, sys.argv[1:]))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


async def _run(name: str, work: Work, words: list[str]) -> int:
    try:
        return await work(words)
    except Failure as failure:
        _complain(name, failure.lines)
        return failure.status
    except Usage as error:
        _complain(name, error.message)
        return 2 if name.startswith("q") else 1
    except ChappeError as error:
        _complain(name, _words(name, error))
        return 1


def _words(name: str, error: ChappeError) -> str:
    message = error.message
    if isinstance(error, Unavailable | Busy | ConfigMissing) and not name.startswith("q"):
        message = f"{_CONTACT}: {message}"
    if name == "sbatch":
        return f"Batch job submission failed: {message}"
    return f"slurm_load_jobs error: {message}" if name == "squeue" else message


def _complain(name: str, text: str) -> None:
    error = "" if name.startswith("q") else "error: "
    for line in text.splitlines() or [""]:
        print(f"{name}: {error}{printable(line)}", file=sys.stderr)


def _note(name: str, notes: Sequence[str]) -> None:
    for note in notes:
        print(f"{name}: note: {printable(note)}", file=sys.stderr)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _asked_about(name: str, values: dict[str, str], table: Sequence[Flag]) -> bool:
    """Answer --help and --version."""
    if "version" in values:
        original = "pbs_version = 23.06.0" if name.startswith("q") else "slurm 23.11.0"
        print(f"{original} (chappe {__version__})")
        return True
    if "help" in values:
        print(f"Usage: {name} [OPTIONS] …\nThe flags of {name} that Chappe knows:")
        for flag in table:
            print(f"  {flag!s:32} {_HELP[flag.does]}{flag.about}")
        return True
    return False


_HELP = {
    "take": "",
    "join": "",
    "quiet": "changes nothing",
    "note": "ignored: ",
    "refuse": "refused: ",
}


def _script(path: str | None) -> bytes:
    try:
        if path is None:
            return sys.stdin.buffer.read(_SCRIPT_BYTES)
        with open(path, "rb") as file:
            return file.read(_SCRIPT_BYTES)
    except OSError as e:
        raise Failure(f"Unable to open file {path}: {e.strerror}") from None


async def _sbatch(argv: list[str]) -> int:
    line = sbatch_words.command(argv)
    if _asked_about("sbatch", line.values, sbatch_words.FLAGS):
        return 0
    wrap = line.values.get("wrap")
    script = sbatch_words.wrapped(wrap) if wrap is not None else _script(line.path)
    told = sbatch_words.submission(line, script, os.environ, os.getcwd(), time.time())
    if not told.quiet:
        _note("sbatch", told.request.notes)
    async with desks.desk() as desk:
        try:
            made = await desk.submit(told.request, os.environ, _user(), socket.gethostname())
        except NotFound as error:
            if error.field != "id":
                raise
            raise Failure(
                f"Batch job submission failed: Job dependency problem: {error.message}"
            ) from None
        number, site = number_of(made[0].id), told.request.site
        if told.parsable:
            print(f"{number};{site}" if site else number)
        elif not told.quiet:
            print(f"Submitted batch job {number}" + (f" on cluster {site}" if site else ""))
        sys.stdout.flush()
        if not told.wait:
            return 0
        return max(_status(one) for one in await desk.wait(made))


def _status(seen: Seen) -> int:
    return 0 if seen.state == "COMPLETED" else seen.exit_status or 1


async def _squeue(argv: list[str]) -> int:
    values, words, notes = squeue_words.flags(squeue_words.SQUEUE, argv)
    if _asked_about("squeue", values, squeue_words.SQUEUE):
        return 0
    if words:
        raise Usage(f"{words[0][:40]!r} is no flag: --jobs names jobs")
    _note("squeue", notes)
    asked = squeue_words.asked(values, (), _user())
    states = asked.states or ACTIVE
    async with desks.desk() as desk:
        if asked.names:
            found = await desk.look(asked.names)
            if not any(found.values()):
                raise Failure("slurm_load_jobs error: Invalid job id specified")
            jobs = [one for some in found.values() for one in some]
        else:
            jobs = await desk.listed(asked, over=not states <= ACTIVE)
        context = squeue_words.Context(time.time(), await desk.sites())
    jobs = [one for one in jobs if asked.holds(one) and one.state in states]
    if "json" in values:
        print(json.dumps(squeue_words.document(jobs, context)))
        return 0
    rows, header = squeue_words.rows(jobs, each="array" in values), "noheader" not in values
    if "Format" in values:
        lines = squeue_words.columns(rows, values["Format"], context, header=header)
    else:
        usual = squeue_words.LONG if "long" in values else squeue_words.DEFAULT
        form = values.get("format", os.environ.get("SQUEUE_FORMAT", usual))
        lines = squeue_words.text(rows, form, context, header=header)
    for line in lines:
        print(line)
    return 0


async def _scancel(argv: list[str]) -> int:
    values, words, notes = squeue_words.flags(squeue_words.SCANCEL, argv)
    if _asked_about("scancel", values, squeue_words.SCANCEL):
        return 0
    _note("scancel", notes)
    asked = squeue_words.asked(
        values, [one for word in words for one in squeue_words.comma(word)], _user()
    )
    if not asked.names and not asked.some:
        raise Usage("No job identification provided")
    if not asked.names and asked.user is None:
        # Slurm cancels nobody else's; here the whole project may, so it has to be said.
        asked = asked._replace(user=_user())
    status = 0
    async with desks.desk() as desk:
        if asked.names:
            found = await desk.look(asked.names)
            for name in (name for name, some in found.items() if not some):
                status = 1
                if "quiet" not in values:
                    _complain(
                        "scancel", f"Kill job error on job id {name}: Invalid job id specified"
                    )
            jobs = [one for some in found.values() for one in some]
            jobs = [one for one in jobs if asked.user in (None, one.shown.user)]
        else:
            jobs = await desk.listed(asked, over=False)
        await desk.cancel([one for one in jobs if asked.holds(one) and one.state in ACTIVE])
    return status


async def _qsub(argv: list[str]) -> int:
    line = qsub_words.command(argv)
    if _asked_about("qsub", line.found.values, qsub_words.FLAGS):
        return 0
    script = b"" if line.argv else _script(line.path)
    told = qsub_words.submission(line, script, os.environ, os.getcwd(), time.time())
    _note("qsub", told.request.notes)
    async with desks.desk() as desk:
        made = await desk.submit(told.request, os.environ, _user(), socket.gethostname())
        if not told.quiet:
            number, array = number_of(made[0].id), "" if told.request.array is None else "[]"
            print(f"{number}{array}.chappe", flush=True)
        if not told.wait:
            return 0
        return max(_status(one) for one in await desk.wait(made))


async def _qstat(argv: list[str]) -> int:
    values, words, notes = squeue_words.flags(qstat_words.QSTAT, argv)
    if _asked_about("qstat", values, qstat_words.QSTAT):
        return 0
    _note("qstat", notes)
    if values.get("F", "json") not in ("json", "default"):
        raise Usage("-F is json or default")
    ended, status = "x" in values or "H" in values, 0
    asked = squeue_words.asked({"user": values["u"]} if "u" in values else {}, words, _user())
    jobs: list[Seen] = []
    async with desks.desk() as desk:
        if asked.names:
            for name, some in (await desk.look(asked.names)).items():
                over = [one for one in some if one.state not in ACTIVE]
                if not some:
                    status = _UNKNOWN
                    _complain("qstat", f"Unknown Job Id {name}")
                elif len(over) == len(some) and not ended:
                    status = _ENDED
                    _complain(
                        "qstat", f"{name} Job has finished, use -x or -H to obtain {_HISTORY}"
                    )
                else:
                    jobs += some
        else:
            jobs = await desk.listed(asked, over=ended)
        context = squeue_words.Context(time.time(), await desk.sites())
    jobs = [one for one in jobs if asked.user in (None, one.shown.user)]
    if "r" in values or "i" in values:
        running = "r" in values
        jobs = [one for one in jobs if (one.state != "PENDING") == running]
    single = any("[" in name and "[]" not in name for name in asked.names)
    lines = qstat_words.lines(jobs, each="t" in values or single)
    for printed in _qstat_lines(values, lines, context):
        print(printed)
    return status


def _qstat_lines(
    values: dict[str, str], lines: list[qstat_words.Line], context: squeue_words.Context
) -> list[str]:
    if "f" in values and values.get("F") == "json":
        return [json.dumps(qstat_words.document(lines, context), indent=4)]
    if "f" in values:
        return qstat_words.full(lines, context)
    if "a" in values or "u" in values:
        return qstat_words.wide(lines, context)
    return qstat_words.table(lines, context)


async def _qdel(argv: list[str]) -> int:
    values, words, notes = squeue_words.flags(qstat_words.QDEL, argv)
    if _asked_about("qdel", values, qstat_words.QDEL):
        return 0
    _note("qdel", notes)
    if not words:
        raise Usage("name a job")
    status = 0
    async with desks.desk() as desk:
        found = await desk.look(words)
        for name, some in found.items():
            if not some:
                status = _UNKNOWN
                _complain("qdel", f"Unknown Job Id {name}")
            elif not any(one.state in ACTIVE for one in some):
                status = _ENDED
                _complain("qdel", f"Job has finished {name}")
        await desk.cancel([one for some in found.values() for one in some if one.state in ACTIVE])
    return status


TABLES: dict[str, Sequence[Flag]] = {
    "sbatch": sbatch_words.FLAGS,
    "squeue": squeue_words.SQUEUE,
    "scancel": squeue_words.SCANCEL,
    "qsub": qsub_words.FLAGS,
    "qstat": qstat_words.QSTAT,
    "qdel": qstat_words.QDEL,
}
"""What each command knows."""
_COMMANDS = {
    "sbatch": sbatch,
    "squeue": squeue,
    "scancel": scancel,
    "qsub": qsub,
    "qstat": qstat,
    "qdel": qdel,
}

if __name__ == "__main__":
    _name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if _name not in _COMMANDS:
        sys.exit(f"usage: python -m chappe.cli.fronts {'|'.join(_COMMANDS)} …")
    _COMMANDS[_name]()
