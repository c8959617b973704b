"""The sandbox keeps what it says: who runs, what is seen, what is written, what is reached."""
# ruff: noqa: S104, S108 - the places of a sandbox are named here, and shown to be private.

from __future__ import annotations

import ast
import hashlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import chappe
from chappe.testing import sandbox_init
from chappe.testing.relay import Relay
from chappe.testing.sandbox import (
    FOLDERS,
    MACHINES,
    USER_NAMESPACES,
    Isolation,
    Sandbox,
    SandboxError,
    probe,
)

if TYPE_CHECKING:
    from tests.conftest import Require

DEADLINE_S = 30.0


ALLOW = "root with CAP_SYS_ADMIN, or user namespaces (sysctl user.max_user_namespaces), Linux 5.12"


@pytest.fixture
def namespaces(require: Require) -> Isolation:
    isolation = probe()
    require(isolation.mounts, f"namespaces. {isolation.explanation}", ALLOW)
    return isolation


@pytest.fixture(params=["probed", "folders"])
def any_isolation(request: pytest.FixtureRequest) -> Isolation:
    if request.param == "folders":
        return FOLDERS
    return request.getfixturevalue("namespaces")  # type: ignore[no-any-return]


@pytest.fixture
def hub() -> Iterator[socket.socket]:
    """A listening socket in the place of a hub; the test accepts."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE_S)
        yield server


def port_of(server: socket.socket) -> int:
    port: int = server.getsockname()[1]
    return port


def python(sandbox: Sandbox, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return sandbox.run([sys.executable, "-c", program, *arguments], timeout_s=DEADLINE_S)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def running(mark: str) -> list[int]:
    """The processes of this machine, in whatever namespace, with `mark` among their arguments."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in cmdline.read_bytes().split(b"\0"):
                found.append(int(cmdline.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


# A client inside: says "hello", then returns every byte it gets; its exit status says how it ended.
ECHO = """
import socket, sys
try:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
        s.sendall(b"hello")
        while data := s.recv(100):
            s.sendall(data)
except ConnectionResetError:
    sys.exit(9)
"""


def connect(sandbox: Sandbox, hub: socket.socket) -> socket.socket:
    """Start the echo client and return the hub's end of its connection."""
    sandbox.popen([sys.executable, "-c", ECHO, str(sandbox.port)])
    connection, _ = hub.accept()
    connection.settimeout(DEADLINE_S)
    assert connection.recv(5) == b"hello"
    return connection


def test_probe_says_plainly_what_it_found() -> None:
    isolation = probe()
    assert isolation.uid == (isolation == MACHINES)
    assert isolation.mounts == isolation.network
    assert "each site" in isolation.explanation.lower() or "folders" in isolation.explanation


def test_command_runs_as_its_own_user_without_privileges(tmp_path: Path, require: Require) -> None:
    require(probe().uid, "user for each sandbox", "run the tests as root with CAP_SYS_ADMIN")
    status = "print(open('/proc/self/status').read())"
    with Sandbox("a", 9, tmp_path / "a") as a, Sandbox("b", 9, tmp_path / "b") as b:
        assert len({a.uid, b.uid, os.getuid()}) == 3
        for sandbox in (a, b):
            fields = dict(
                line.split(":\t", 1) for line in python(sandbox, status).stdout.splitlines() if line
            )
            assert fields["Uid"].split() == [str(sandbox.uid)] * 4
            assert fields["Gid"].split() == [str(sandbox.uid)] * 4
            assert not fields["Groups"].split()
            assert {fields[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {
                "0" * 16
            }
            assert fields["NoNewPrivs"] == "1"
            assert sandbox.directory.stat().st_uid == sandbox.uid
        named = a.uid
    with Sandbox("a", 9, tmp_path / "a") as again:
        assert again.uid == named, "a site that is set up again keeps its files"


def test_host_files_and_other_sites_are_out_of_sight(tmp_path: Path, namespaces: Isolation) -> None:
    (tmp_path / "secret").write_text("host")
    look = (
        "import os, sys; print([p for p in sys.argv[1:] if os.path.lexists(p)], os.listdir('/tmp'))"
    )
    with (
        Sandbox("a", 9, tmp_path / "a", isolation=namespaces) as a,
        Sandbox("b", 9, tmp_path / "b", isolation=namespaces) as b,
    ):
        (b.directory / "theirs").write_text("b")
        assert python(b, "open('/tmp/mine', 'w').write('b')").returncode == 0
        hidden = [tmp_path / "secret", b.directory, b.directory / "theirs", Path("/tmp/mine")]
        seen = python(a, look, *map(str, hidden), str(a.directory)).stdout
        # In its /tmp there is nothing, but the way to its directory, or to Python, when they lie there.
        shown, listed = map(ast.literal_eval, seen.strip().replace("] [", "]\n[").split("\n"))
        assert shown == [str(a.directory)]
        python_at = (sys.prefix, sys.base_prefix, chappe.__file__)
        ways = [a.directory, *map(Path, python_at)]
        assert set(listed) <= {way.parts[2] for way in ways if way.is_relative_to("/tmp")}
        processes = a.run(["/bin/sh", "-c", "ls -d /proc/[0-9]*"]).stdout.split()
        assert len(processes) <= 3, "the host's processes show"
    assert not Path("/tmp/mine").exists()


def test_only_its_directory_and_private_memory_are_writable(
    tmp_path: Path, namespaces: Isolation
) -> None:
    program = """
import os, sys
mounts = [line.split() for line in open("/proc/self/mountinfo")]
print(sorted(m[4] for m in mounts if "rw" in m[5].split(",") and os.path.isdir(m[4])))
for place in sys.argv[1:]:
    try:
        open(os.path.join(place, "written"), "w").write("x")
        print(place)
    except OSError:
        pass
"""
    extra = tmp_path / "model"
    extra.mkdir(mode=0o777)
    with Sandbox("a", 9, tmp_path / "a", [extra], isolation=namespaces) as sandbox:
        mine = str(sandbox.directory)
        refused = ["/", "/etc", "/usr", "/dev", "/proc", "/sys", "/var", "/run", sys.prefix]
        refused += [sys.base_prefix, str(extra), str(Path(__file__).parent)]
        result = python(sandbox, program, mine, "/tmp", "/dev/shm", *refused)
        writable_mounts, *written = result.stdout.splitlines()
        assert written == [mine, "/tmp", "/dev/shm"], result.stderr
        assert writable_mounts == str(sorted([mine, "/tmp", "/dev/shm", "/proc"]))
        assert (Path(mine) / "written").read_text() == "x"
        assert (Path(mine) / "written").stat().st_uid == sandbox.uid
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "model"]


def test_this_python_and_its_packages_work_inside(tmp_path: Path, namespaces: Isolation) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "model.txt").write_text("beta plane")
    program = """
import chappe, msgspec, cryptography, pathlib, socket, sys
print(sys.prefix, socket.gethostname(), pathlib.Path.home(), pathlib.Path(sys.argv[1]).read_text())
"""
    with Sandbox(
        "paris", 9, tmp_path / "a", [tmp_path / "examples"], isolation=namespaces
    ) as sandbox:
        result = python(sandbox, program, str(tmp_path / "examples" / "model.txt"))
        assert result.stdout == f"{sys.prefix} paris {sandbox.directory} beta plane\n", result
        by_name = sandbox.run(["python", "-c", "import sys; print(sys.executable)"])
        assert by_name.stdout.strip() == sys.executable


def test_two_sandboxes_reach_the_hub_at_one_port(
    tmp_path: Path, any_isolation: Isolation, hub: socket.socket
) -> None:
    with (
        Sandbox("a", port_of(hub), tmp_path / "a", isolation=any_isolation) as a,
        Sandbox("b", port_of(hub), tmp_path / "b", isolation=any_isolation) as b,
    ):
        if any_isolation.network:
            assert a.port == b.port == port_of(hub)
        with connect(a, hub) as from_a, connect(b, hub) as from_b:
            for connection, word in ((from_a, b"paris"), (from_b, b"tours")):
                connection.sendall(word)
                assert connection.recv(5) == word


def test_nothing_but_the_hub_can_be_reached(
    tmp_path: Path, namespaces: Isolation, hub: socket.socket
) -> None:
    program = """
import socket, sys
for address in sys.argv[1:]:
    host, port = address.rsplit(":", 1)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as s:
        s.settimeout(5)
        try:
            s.connect((host, int(port)))
            print(address, "reached")
        except OSError as error:
            print(address, type(error).__name__)
print(sorted(name for _, name in socket.if_nameindex()))
"""
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_server(("0.0.0.0", 0)) as everywhere,
        Sandbox("a", port_of(hub), tmp_path / "a", isolation=namespaces) as sandbox,
    ):
        local = f"127.0.0.1:{port_of(hub)}"
        others = [f"127.0.0.1:{port_of(other)}", f"127.0.0.2:{port_of(everywhere)}"]
        beyond = ["192.0.2.1:443", "8.8.8.8:53", "2001:db8::1:443"]
        *lines, interfaces = python(sandbox, program, local, *others, *beyond).stdout.splitlines()
        assert lines[0] == f"{local} reached"
        assert lines[1:3] == [f"{address} ConnectionRefusedError" for address in others]
        assert lines[3:] == [f"{address} OSError" for address in beyond], "unreachable, at once"
        # The kernel may add tunnels of its own to a new namespace: they are down.
        assert "lo" in interfaces


def test_cut_holds_what_is_sent_and_restore_delivers_it(
    tmp_path: Path, any_isolation: Isolation, hub: socket.socket
) -> None:
    with (
        Sandbox("a", port_of(hub), tmp_path / "a", isolation=any_isolation) as a,
        Sandbox("b", port_of(hub), tmp_path / "b", isolation=any_isolation) as b,
        connect(a, hub) as cut,
        connect(b, hub) as whole,
    ):
        a.cut()
        cut.sendall(b"late")
        newcomer = a.popen([sys.executable, "-c", ECHO, str(a.port)])
        for _ in range(100):
            whole.sendall(b"fine")  # the same way, meanwhile, a hundred times
            assert whole.recv(4) == b"fine"
        assert select.select([cut, hub], [], [], 0) == ([], [], []), "bytes crossed the cut"
        a.restore()
        assert cut.recv(4) == b"late"
        late, _ = hub.accept()
        late.close()
        newcomer.wait(DEADLINE_S)


def test_cut_with_reset_ends_connections_and_refuses_new_ones(
    tmp_path: Path, any_isolation: Isolation, hub: socket.socket
) -> None:
    with Sandbox("a", port_of(hub), tmp_path / "a", isolation=any_isolation) as sandbox:
        client = sandbox.popen([sys.executable, "-c", ECHO, str(sandbox.port)])
        connection, _ = hub.accept()
        with connection:
            connection.settimeout(DEADLINE_S)
            assert connection.recv(5) == b"hello"
            sandbox.cut(reset=True)
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        assert client.wait(DEADLINE_S) == 9
        again = sandbox.popen([sys.executable, "-c", ECHO, str(sandbox.port)])
        assert again.wait(DEADLINE_S) != 0
        sandbox.restore()
        connect(sandbox, hub).close()


def test_relay_keeps_every_byte_half_close_and_back_pressure(hub: socket.socket) -> None:
    sent = os.urandom(1 << 16) * 256  # 16 MiB: more than the buffers on the way can hold
    digests = []

    def answer() -> None:
        connection, _ = hub.accept()
        with connection:
            whole = b"".join(iter(lambda: connection.recv(1 << 20), b""))
            digests.append(hashlib.sha256(whole).digest())
            connection.sendall(whole)

    relay = Relay(socket.create_server(("127.0.0.1", 0)), port_of(hub))
    hub_side = threading.Thread(target=answer)
    hub_side.start()
    try:
        with socket.create_connection(relay.address, timeout=DEADLINE_S) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            received = b"".join(iter(lambda: client.recv(1 << 20), b""))
    finally:
        hub_side.join(DEADLINE_S)
        relay.close()
    assert received == sent
    assert digests == [hashlib.sha256(sent).digest()]


def test_relay_resets_clients_of_an_absent_hub() -> None:
    with socket.socket() as deaf:  # holds its port, and does not listen
        deaf.bind(("127.0.0.1", 0))
        relay = Relay(socket.create_server(("127.0.0.1", 0)), port_of(deaf))
        try:
            for _ in range(3):
                with (
                    pytest.raises(ConnectionResetError),
                    socket.create_connection(relay.address, timeout=DEADLINE_S) as client,
                ):
                    client.recv(1)
        finally:
            relay.close()
            relay.close()


# Stays, and leaves a grandchild behind in another session, whose parent is gone.
HIDE = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
time.sleep(9999)
"""


def test_close_kills_all_even_what_hides_in_other_sessions(
    tmp_path: Path, any_isolation: Isolation
) -> None:
    mark = f"mark-{uuid.uuid4()}"
    with Sandbox("a", 9, tmp_path / "a", isolation=any_isolation) as sandbox:
        command = sandbox.popen([sys.executable, "-c", HIDE, mark])
        # The forked child is a zombie without arguments, or reaped; two are left.
        wait_until(lambda: len(running(mark)) == 2)
        assert command.poll() is None
    assert running(mark) == []
    assert command.poll() == -signal.SIGKILL
    with pytest.raises(SandboxError, match="cannot start"):
        sandbox.popen(["true"])


def test_sandbox_dies_with_its_first_process(tmp_path: Path, namespaces: Isolation) -> None:
    mark = f"mark-{uuid.uuid4()}"
    with Sandbox("a", 9, tmp_path / "a", isolation=namespaces) as sandbox:
        command = sandbox.popen([sys.executable, "-c", HIDE, mark])
        wait_until(lambda: len(running(mark)) == 2)
        for pid in running(sandbox_init.__file__):
            if f"PPid:\t{os.getpid()}\n" in Path(f"/proc/{pid}/status").read_text():
                os.kill(pid, signal.SIGKILL)
        assert command.wait(DEADLINE_S) == -signal.SIGKILL
        wait_until(lambda: running(mark) == [])
        with pytest.raises(SandboxError, match="cannot start"):
            sandbox.popen(["true"])


def test_sandbox_dies_with_its_maker(tmp_path: Path, any_isolation: Isolation) -> None:
    mark = f"mark-{uuid.uuid4()}"
    program = """
import sys, time
from chappe.testing import sandbox
kind = sandbox.FOLDERS if sys.argv[1] == "folders" else None
with sandbox.Sandbox("a", 9, sys.argv[2], isolation=kind) as made:
    made.popen(["/bin/sh", "-c", "setsid sh -c 'read x < fifo' $1 & wait", "sh", sys.argv[3]])
    time.sleep(9999)
"""
    directory = tmp_path / "a"
    directory.mkdir()
    os.mkfifo(directory / "fifo")
    kind = "probed" if any_isolation.mounts else "folders"
    maker = subprocess.Popen(
        [sys.executable, "-c", program, kind, str(directory), f"x{mark}"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    try:
        wait_until(lambda: len(running(f"x{mark}")) >= 3)
    finally:
        maker.kill()
        maker.wait()
    wait_until(lambda: running(f"x{mark}") == [])


def test_commands_can_be_signalled_waited_for_and_told_apart(
    tmp_path: Path, any_isolation: Isolation
) -> None:
    with Sandbox("a", 9, tmp_path / "a", isolation=any_isolation) as sandbox:
        first, second = (sandbox.popen(["sleep", "9999"]) for _ in range(2))
        with pytest.raises(subprocess.TimeoutExpired):
            first.wait(0)
        first.terminate()
        assert first.wait(DEADLINE_S) == -signal.SIGTERM
        assert second.poll() is None
        second.kill()
        assert select.select([second], [], [], DEADLINE_S)[0] == [second]
        assert second.poll() == -signal.SIGKILL
        second.kill()  # no effect, as the documentation says
        failed = sandbox.run(
            ["/bin/sh", "-c", "echo $GREETING; pwd >&2; exit 3"], env={"GREETING": "salut"}
        )
        assert (failed.returncode, failed.stdout) == (3, "salut\n")
        assert failed.stderr == f"{sandbox.directory}\n"
        with pytest.raises(FileNotFoundError, match="no-such-program"):
            sandbox.popen(["no-such-program"])
        with pytest.raises(OSError, match="null"):
            sandbox.popen(["true", "a\0b"])
        with pytest.raises(SandboxError, match="too long"):
            sandbox.popen(["true", "x" * 500_000])
        with pytest.raises(subprocess.TimeoutExpired):
            sandbox.run(["sleep", "9999"], timeout_s=0.01)
        assert sandbox.run(["true"]).returncode == 0


def test_orphans_are_reaped(tmp_path: Path, namespaces: Isolation) -> None:
    with Sandbox("a", 9, tmp_path / "a", isolation=namespaces) as sandbox:
        for _ in range(5):
            sandbox.run(["/bin/sh", "-c", "(true & true) & exit 0"])

        def zombies() -> str:
            return sandbox.run(["/bin/sh", "-c", "grep -ls '^State:.Z' /proc/[0-9]*/status"]).stdout

        wait_until(lambda: zombies() == "")


def test_what_cannot_be_made_is_said(tmp_path: Path, namespaces: Isolation) -> None:
    with pytest.raises(FileNotFoundError):
        Sandbox("a", 9, tmp_path / "a", [tmp_path / "absent"], isolation=namespaces)
    with pytest.raises(SandboxError, match="host name"):
        Sandbox("a" * 1000, 9, tmp_path / "a", isolation=namespaces)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(FileExistsError):
        Sandbox("a", 9, file, isolation=namespaces)


UNPRIVILEGED = """
import os, socket, sys, tempfile
from chappe.testing.sandbox import FOLDERS, USER_NAMESPACES, Sandbox, probe
isolation = probe()
if isolation != USER_NAMESPACES:
    sys.exit("refused: " + isolation.explanation)
with socket.create_server(("127.0.0.1", 0)) as hub, tempfile.TemporaryDirectory() as base:
    port = hub.getsockname()[1]
    with Sandbox("a", port, base + "/a") as a, Sandbox("b", port, base + "/b") as b:
        assert a.uid == b.uid == os.getuid()
        for who in ("self", "1"):
            status = a.run(["cat", f"/proc/{who}/status"]).stdout
            assert f"Uid:\\t{a.uid}\\t{a.uid}" in status
            assert f"CapEff:\\t{0:016}\\nCapBnd:\\t{0:016}\\n" in status
        code = "import os, chappe, msgspec; open('/tmp/own', 'w'); open('own', 'w'); print(os.listdir('..'))"
        assert a.run([sys.executable, "-c", code]).stdout == "['a']\\n"
        assert os.listdir(base + "/a") == ["own"] and not os.path.exists("/tmp/own")
        assert b.run(["ls", "/tmp/own"]).returncode != 0
        for place in ("/", "/usr", sys.prefix):
            assert b.run(["touch", place + "/own"]).returncode != 0
        talk = "import socket; socket.create_connection(('127.0.0.1', %d)).sendall(b'hi')"
        assert b.run([sys.executable, "-c", talk % port]).returncode == 0
        assert hub.accept()[0].recv(2) == b"hi"
        with socket.create_server(("127.0.0.1", 0)) as other:
            reached = b.run([sys.executable, "-c", talk % other.getsockname()[1]])
        assert "ConnectionRefusedError" in reached.stderr
print("all held")
"""


def test_ordinary_user_gets_all_but_separate_users(
    tmp_path: Path, namespaces: Isolation, require: Require
) -> None:
    """As root, inside a sandbox, which is an ordinary user that can reach this Python."""
    if namespaces.uid:
        with Sandbox("user", 9, tmp_path / "user") as sandbox:
            result = python(sandbox, UNPRIVILEGED)
    else:
        result = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED], capture_output=True, text=True, check=False
        )
    refused = result.stderr.startswith("refused: ")
    require(not refused, f"user namespaces for ordinary users ({result.stderr.strip()})", ALLOW)
    assert result.stdout == "all held\n", result.stderr


def test_isolation_constants_promise_less_and_less() -> None:
    kinds = (MACHINES, USER_NAMESPACES, FOLDERS)
    assert [(k.uid, k.mounts, k.network) for k in kinds] == [
        (True, True, True),
        (False, True, True),
        (False, False, False),
    ]
