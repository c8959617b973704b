"""Runs a scheduler's commands: bounded in time and output, never by a shell."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from chappe.core.limits import MIB

TIMEOUT_S = 60.0
_OUTPUT_BYTES = 4 * MIB


@dataclass(frozen=True)
class Ran:
    """What a command did. `exit_code` is None when it was killed because it took too long."""

    exit_code: int | None
    stdout: str
    stderr: str


async def run(argv: Sequence[str], timeout_s: float = TIMEOUT_S) -> Ran:
    """Run `argv` to its end. Raises OSError when the program cannot be started.

    A command that is killed at the time limit may have done its work: ask before repeating it.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_OUTPUT_BYTES,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
        code: int | None = process.returncode
    except TimeoutError:
        out, err, code = b"", f"it took longer than {timeout_s:g} s".encode(), None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return Ran(code, _text(out), _text(err))


async def checked(argv: Sequence[str]) -> Ran:
    """Run a command that must succeed. Raises OSError when it does not."""
    ran = await run(argv)
    if ran.exit_code != 0:
        raise OSError(f"{argv[0]} … ended with {ran.exit_code}: {ran.stderr.strip()[-300:]}")
    return ran


def _text(data: bytes) -> str:
    return data[:_OUTPUT_BYTES].decode(errors="replace")
