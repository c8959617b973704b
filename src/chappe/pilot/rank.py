"""One rank of a function that is an MPI program: `python -m chappe.pilot.rank CALL`, started by a launcher.

Every rank calls the function with the same arguments, inside MPI as mpi4py opens it. What rank 0 returns is
the value. The first rank that raises leaves its exception for the Job and ends the others (MPI_Abort), which
may wait for it for ever. Both are left as references beside the call, for the pilot to deliver.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle
import msgspec

from chappe.link.files import write_atomic
from chappe.link.values import ERROR, VALUE_LEFT
from chappe.pilot.encode import encode, encode_exception
from chappe.pilot.launch_wire import Call
from chappe.pilot.worker import CodeProblem, load_function

RANKS = "CHAPPE_RANKS"


class NotParallel(RuntimeError):
    """The ranks of a function do not find each other; the message says what to look at."""


def main(path: str) -> int:
    """Make the call that is described in `path`; the exit status."""
    call = msgspec.msgpack.decode(Path(path).read_bytes(), type=Call)
    world: Any = None
    try:
        world = _world()
        function = load_function(call)
        args, kwargs = cloudpickle.loads(call.arguments)
        value = function(*args, **kwargs)
        if world.Get_rank() == 0:
            reference = encode(value, call)
            write_atomic(Path(call.result + VALUE_LEFT), reference.encode(), durable=False)
    except BaseException as error:  # noqa: BLE001 - whatever a function raises is its outcome
        if world is not None:
            error.add_note(f"in rank {world.Get_rank()} of {world.Get_size()}")
        reference, text = encode_exception(error)
        _leave_error(call, reference)
        print(text, file=sys.stderr, flush=True)
        if world is not None:
            world.Abort(1)
        return 1
    return 0


def _world() -> Any:
    """All ranks. Raises NotParallel, CodeProblem."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as e:
        raise CodeProblem(
            f"a function with ranks needs mpi4py, and an MPI library, at the site: {e}"
        ) from e
    world = MPI.COMM_WORLD
    wanted = int(os.environ.get(RANKS, "1"))
    if world.Get_size() != wanted:
        raise NotParallel(
            f"there are to be {wanted} ranks, and this one sees {world.Get_size()}: the site's launcher "
            "([launch] ranks in site.toml) is not one for the MPI library of mpi4py "
            f"({MPI.Get_library_version().splitlines()[0].strip()})"
        )
    return world


def _leave_error(call: Call, reference: str) -> None:
    """The first that fails tells why; what the others raise may only follow from it."""
    with suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(call.result + ERROR, flags, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(reference)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
