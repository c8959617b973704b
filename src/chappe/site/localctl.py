"""A batch system for one machine, with the command line of one: submit, status, find, cancel.

    python -I -S localctl.py --dir RECORDS submit --name NAME SCRIPT     → submitted ID
    python -I -S localctl.py --dir RECORDS status ID...                  → ID STATE [key=value]...
    python -I -S localctl.py --dir RECORDS find NAME                     → ID NAME, one line for each
    python -I -S localctl.py --dir RECORDS cancel ID...                  → ID cancelled

Standard library only and no chappe import: a command takes some 15 ms, so it can be called as a
cluster's would be. A script says what it wants in lines of its head, as `#SBATCH` lines do:
`#LOCAL mark NAME=VALUE` (required: the environment variable that all its processes carry), `#LOCAL
wall_s SECONDS` (limit), `#LOCAL kill_s SECONDS` (from TERM to KILL, default 30) and `#LOCAL charge NAME`
(the environment variable of those processes that others of the script look after).

How it works. `submit` writes a record, then starts a guard in a session of its own; the guard starts the
script, inherits every process that the script loses (subreaper), and ends when the last of them has:
whoever holds a pidfd of the guard learns of the end at once. At the limit, or when it is cancelled, it
sends TERM to the script and, after `kill_s`, KILL to every process that carries the mark. The guard may be
killed: whether an allocation has ended is decided by what is in /proc, never by the guard's word alone.
When the script has ended, and nobody is left but those who were to be looked after, they are killed, as a
cluster's batch system would do: else they would hold the allocation for as long as they like.
States: pending, running, ended, and unknown, which is what another machine's allocations are here.
"""

from __future__ import annotations

import os
import sys
import time

DEFAULT_KILL_S = 30.0
HEAD_LINES = 50
KEEP_RECORDS = 200
_TERM, _KILL = 15, 9
_LOOK_AGAIN_S = 0.2
_WAKE_S = 60.0

Fields = dict[str, str]


def main(argv: list[str]) -> int:
    """Run one command. Exit 2: wrong usage; 1: it failed, and stderr says why."""
    if len(argv) < 4 or argv[0] != "--dir" or argv[2] not in _COMMANDS:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        os.makedirs(argv[1], mode=0o700, exist_ok=True)
        return _COMMANDS[argv[2]](argv[1], argv[3:])
    except (OSError, ValueError) as e:
        print(f"localctl: {e}", file=sys.stderr)
        return 1


# --- commands


def submit(records: str, args: list[str]) -> int:
    """Start a script. After this returned, its processes can be found by their mark."""
    if len(args) != 3 or args[0] != "--name" or args[1].split() != [args[1]]:
        raise ValueError("usage: submit --name NAME SCRIPT (a name has no spaces)")
    name, script = args[1], os.path.abspath(args[2])
    head = read_head(script)
    prune(records)
    ident = f"{time.time_ns() // 1_000_000:x}-{os.getpid()}"
    write_record(
        records,
        ident,
        {
            "name": name,
            "script": script,
            "host": os.uname().nodename,
            "boot": boot_id(),
            "submitter": identity(os.getpid()),
            **head,
        },
    )
    mark, _, value = head["mark"].partition("=")
    null = os.open(os.devnull, os.O_RDWR)
    # Signals stay blocked until the guard is ready to take them.
    guard = os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", os.path.abspath(__file__), "--dir", records, "guard", ident],
        {**os.environ, mark: value},
        file_actions=[(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)],
        setsid=True,
        setsigmask=[1, 2, _TERM],
    )
    append(records, ident, f"guard {identity(guard)}")
    print(f"submitted {ident}")
    return 0


def status(records: str, args: list[str]) -> int:
    """Print the state of each allocation; kill what a lost guard left past its limit."""
    known = {ident: read_record(records, ident) for ident in args}
    # In this order: a submitter lives until its guard, which carries the mark, exists. Looked at the
    # other way round, an allocation that is just being born could be seen without either.
    born = {i for i, f in known.items() if f is not None and not alive(f["submitter"])}
    marked = find_marked({f["mark"] for f in known.values() if f is not None and "ended" not in f})
    for ident, fields in known.items():
        if fields is None or (fields["host"] != os.uname().nodename and "ended" not in fields):
            print(f"{ident} unknown")
            continue
        state = "pending"
        guarded = alive(fields.get("guard", ""))
        left = marked.get(fields["mark"], [])
        if "ended" in fields or fields["boot"] != boot_id():
            state = "ended"
        elif guarded or left:
            state = "running"
        elif ident in born:
            state = "ended"
        if state == "ended" and "ended" not in fields:
            append(records, ident, "ended")
        if state == "running" and not guarded and (overdue(fields) or alone(left, fields)):
            send(left, _KILL)
        facts = [f"{key}={fields[key]}" for key in ("exit", "signal", "reason") if key in fields]
        if state == "running":
            # A process whose end may be the allocation's. It may have ended by now, which is its end as well.
            facts.append(f"pid={fields['guard'].split()[0] if guarded else left[0]}")
        print(" ".join([ident, state, *facts]))
    return 0


def find(records: str, args: list[str]) -> int:
    """Print the ids of all allocations of this name, oldest first."""
    for ident in sorted(os.listdir(records)):
        fields = read_record(records, ident)
        if fields is not None and fields["name"] in args:
            print(f"{ident} {fields['name']}")
    return 0


def cancel(records: str, args: list[str]) -> int:
    """End allocations: TERM now, KILL after `kill_s` unless they ended by themselves. Does not wait."""
    for ident in args:
        fields = read_record(records, ident)
        if fields is None or fields["host"] != os.uname().nodename:
            print(f"localctl: no allocation {ident} on this machine", file=sys.stderr)
            return 1
        if "ended" not in fields and fields["boot"] == boot_id():
            if alive(fields.get("guard", "")):
                send([int(fields["guard"].split()[0])], _TERM)
            else:
                # Without its guard nobody would follow TERM with KILL.
                append(records, ident, "reason cancelled")
                send(carriers(fields["mark"]), _KILL)
        print(f"{ident} cancelled")
    return 0


# --- the guard


def guard(records: str, args: list[str]) -> int:
    """Be the parent of one allocation until its last process has ended."""
    import signal

    (ident,) = args
    fields = read_record(records, ident)
    if fields is None:
        return 1
    become_subreaper()
    ours = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, ours)
    limit = now() + float(fields["wall_s"]) if "wall_s" in fields else None
    if limit is not None:
        append(records, ident, f"limit {limit}")
    script = os.posix_spawn(
        "/bin/sh", ["/bin/sh", fields["script"]], os.environ, setsigmask=[], setsigdef=ours
    )
    ending = script_ended = False
    while True:
        left, over = reap(records, ident, script)
        script_ended = script_ended or over
        if not left:
            break
        if script_ended and alone(marked := carriers(fields["mark"]), fields):
            send(marked, _KILL)
        wait_s = _WAKE_S if limit is None else min(_WAKE_S, max(0.0, limit - now()))
        got = signal.sigtimedwait(ours, wait_s)
        cancelled = got is not None and got.si_signo != signal.SIGCHLD
        if limit is not None and now() >= limit and ending:
            send(carriers(fields["mark"]) + children(), _KILL)
            limit = now() + _LOOK_AGAIN_S
        elif not ending and (cancelled or (limit is not None and now() >= limit)):
            ending = True
            append(records, ident, "reason " + ("cancelled" if cancelled else "wall"))
            end_gently(script, fields["mark"])
            limit = now() + float(fields.get("kill_s", DEFAULT_KILL_S))
    if not carriers(fields["mark"]):
        append(records, ident, "ended")
    return 0


def reap(records: str, ident: str, script: int) -> tuple[bool, bool]:
    """Reap all children that ended; whether any are left, and whether the script, whose end is recorded, was
    among those that ended."""
    over = False
    while True:
        try:
            pid, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False, over
        if pid == 0:
            return True, over
        if pid == script:
            over = True
            value = os.waitstatus_to_exitcode(code)
            append(records, ident, f"exit {value}" if value >= 0 else f"signal {-value}")


def end_gently(script: int, mark: str) -> None:
    """TERM to the script, which passes it on; without a script, to all that carry the mark."""
    try:
        os.kill(script, 0)
    except ProcessLookupError:
        send(carriers(mark), _TERM)
    else:
        os.kill(script, _TERM)


def become_subreaper() -> None:
    """Inherit the orphans of all descendants; where that is not possible, marks still find them."""
    import ctypes

    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


# --- records: lines "key value"; one file for each allocation, written whole, then appended to


def read_head(script: str) -> Fields:
    """The `#LOCAL` lines of a script. Raises ValueError when they are wrong."""
    head: Fields = {}
    with open(script, encoding="utf-8") as lines:
        for _, line in zip(range(HEAD_LINES), lines, strict=False):
            words = line.split()
            if words[:1] != ["#LOCAL"]:
                continue
            if len(words) != 3 or words[1] not in ("mark", "wall_s", "kill_s", "charge"):
                raise ValueError(f"{script}: {line.strip()!r} is not understood")
            head[words[1]] = words[2]
    if "=" not in head.get("mark", ""):
        raise ValueError(f"{script}: a line '#LOCAL mark NAME=VALUE' is missing")
    for key in ("wall_s", "kill_s"):
        float(head.get(key, "0"))
    return head


def write_record(records: str, ident: str, fields: Fields) -> None:
    """Write a new record so that no reader sees half of it."""
    path = os.path.join(records, ident)
    with open(path + ".new", "w", encoding="utf-8") as f:
        f.writelines(f"{key} {value}\n" for key, value in fields.items())
        f.flush()
        os.fsync(f.fileno())
    os.rename(path + ".new", path)


def append(records: str, ident: str, line: str) -> None:
    """Add one line to a record."""
    fd = os.open(os.path.join(records, ident), os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, line.encode() + b"\n")
    finally:
        os.close(fd)


def read_record(records: str, ident: str) -> Fields | None:
    """The fields of a record (the last of each name counts), or None when there is none."""
    if "/" in ident or ident.endswith(".new"):
        return None
    try:
        with open(os.path.join(records, ident), encoding="utf-8") as f:
            lines = [line[:-1] for line in f if line.endswith("\n")]
    except FileNotFoundError:
        return None
    return {key: value for key, _, value in (line.partition(" ") for line in lines)}


def prune(records: str) -> None:
    """Forget the oldest ended allocations when there are many."""
    idents = sorted(i for i in os.listdir(records) if not i.endswith(".new"))
    for ident in idents[: max(0, len(idents) - KEEP_RECORDS)]:
        fields = read_record(records, ident)
        if fields is not None and "ended" in fields:
            os.unlink(os.path.join(records, ident))


# --- what the kernel says


def find_marked(marks: set[str]) -> dict[str, list[int]]:
    """The processes that carry each mark NAME=VALUE in their environment, this one excepted."""
    found: dict[str, list[int]] = {}
    if not marks:
        return found
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as f:
                environ = f.read().split(b"\0")
        except OSError:
            continue  # gone, a zombie's, or another user's
        for mark in marks.intersection(item.decode(errors="replace") for item in environ):
            found.setdefault(mark, []).append(int(entry))
    return found


def alone(pids: list[int], fields: Fields) -> bool:
    """Whether all of these are charges, so that nobody looks after them any more."""
    name = fields.get("charge", "").encode() + b"="
    return len(name) > 1 and bool(pids) and all(is_charge(pid, name) for pid in pids)


def is_charge(pid: int, name: bytes) -> bool:
    """Whether a process carries the variable `name` (with its `=`); false when that cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as f:
            return any(item.startswith(name) for item in f.read().split(b"\0"))
    except OSError:
        return False


def carriers(mark: str) -> list[int]:
    """The processes that carry one mark, this one excepted."""
    return find_marked({mark}).get(mark, [])


def children() -> list[int]:
    """The guard's children: also those that threw their mark away."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as f:
            return [int(pid) for pid in f.read().split()]
    except FileNotFoundError:
        return []  # a kernel without CONFIG_PROC_CHILDREN


def identity(pid: int) -> str:
    """`PID START`: START (ticks since boot) tells a process from a later one of the same number."""
    with open(f"/proc/{pid}/stat", "rb") as f:
        # pid (name) state ppid ... : the name may hold spaces and parentheses; START is field 22
        return f"{pid} {int(f.read().rpartition(b')')[2].split()[19])}"


def alive(who: str) -> bool:
    """Whether the process of `identity` still runs (a zombie does not)."""
    pid, _, start = who.partition(" ")
    try:
        with open(f"/proc/{int(pid or 0)}/stat", "rb") as f:
            rest = f.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return rest[0] not in (b"Z", b"X") and rest[19] == start.encode()


def overdue(fields: Fields) -> bool:
    """Whether the limit and the time to kill have passed."""
    kill_s = float(fields.get("kill_s", DEFAULT_KILL_S))
    return "limit" in fields and now() > float(fields["limit"]) + kill_s


def send(pids: list[int], signum: int) -> None:
    """Signal processes; those already gone are passed over."""
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue


def boot_id() -> str:
    """What this boot of the machine is called."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
        return f.read().strip()


def now() -> float:
    """CLOCK_BOOTTIME, in seconds: goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


_COMMANDS = {"submit": submit, "status": status, "find": find, "cancel": cancel, "guard": guard}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
