"""Set up the environments of this checkout: `python -m tools.setup_env demo|serve|dev|bench|test`.

Standard library only, for it runs before anything is installed. What is installed is what uv.lock
says, by hash: the lock is exported to a requirements file, so that the files may come from whatever
index this machine's uv or pip is configured to use, not only from the one where the lock was made.
`demo`, `serve`, `dev` and `bench` share `.venv`, with Chappe itself editable, and only add to it;
`test` has `.state/test-venv`, with Chappe from a wheel built now by the backend in `.state/build-venv`.
A stamp makes an up-to-date set-up free, and without need of a network.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tools import get_uv

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".state"
#: The build backend and what it needs, by hash: uv.lock does not hold what only a build needs.
BUILD_REQUIREMENTS = ROOT / "tools/build-requirements.txt"
#: Seconds to wait before each try of an installation; the last one is by pip (see `install`).
PAUSES_S = (0, 3, 10)


Command = list[str | Path]


class Profile(NamedTuple):
    """An environment, and what of uv.lock it must hold: extras and dependency groups.

    `parts` is empty for the one that holds the build backend, which uv.lock does not know.
    """

    venv: Path
    parts: frozenset[str]


#: Files that say what an environment holds, and how it comes about.
_INPUTS = ("uv.lock", "pyproject.toml", "tools/setup_env.py", "tools/build-requirements.txt")
_HUB = frozenset({"extra:hub"})
_DEV = _HUB | {
    *("extra:amqp", "extra:examples", "extra:mail", "extra:postgresql", "group:dev"),
}
PROFILES = {
    "serve": Profile(ROOT / ".venv", _HUB),
    "demo": Profile(ROOT / ".venv", _HUB | {"extra:examples", "extra:mail"}),
    "dev": Profile(ROOT / ".venv", _DEV),
    "bench": Profile(ROOT / ".venv", _DEV | {"group:bench"}),
    "test": Profile(STATE / "test-venv", _DEV),
}
BUILD = Profile(STATE / "build-venv", frozenset())


def main() -> int:
    """Bring the named profile up to date, and say how long that took if there was work to do."""
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in PROFILES:
        print(f"usage: python -m tools.setup_env {'|'.join(PROFILES)}", file=sys.stderr)
        return 2
    profile = PROFILES[name]
    began = time.monotonic()
    STATE.mkdir(exist_ok=True)
    try:
        with one_at_a_time():
            worked = [set_up(BUILD), set_up(profile)]
            put_chappe(profile.venv, editable=name != "test")
    except subprocess.CalledProcessError as error:
        command = shlex.join(map(str, error.cmd))
        print(f"set-up failed, for the reason above: {command}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"set-up failed: {error}", file=sys.stderr)
        return 1
    if any(worked):
        print(f"set-up took {time.monotonic() - began:.0f} s", flush=True)
    return 0


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the set-up lock of this checkout; where the file system has no locks, go on without."""
    with (STATE / "setup.lock").open("w") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def set_up(profile: Profile) -> bool:
    """Install what the profile lacks; False if it lacked nothing."""
    stamp = read_stamp(profile.venv)
    digest = lock_digest()
    # Parts of other profiles stay: a demo must not take the developer's tools away.
    parts = profile.parts | set(stamp.get("parts", ()))
    if stamp.get("digest") == digest and set(stamp["parts"]) >= profile.parts:
        return False
    print(f"setting up {profile.venv.relative_to(ROOT)} …", flush=True)
    uv = get_uv.ensure(STATE / "uv")
    stamp_path(profile.venv).unlink(missing_ok=True)
    call(uv, "venv", "--quiet", "--allow-existing", "--python", base_python(), profile.venv)
    install(uv, profile.venv, requirements(uv, sorted(parts)))
    write_stamp(profile.venv, {"digest": digest, "parts": sorted(parts)})
    return True


def lock_digest() -> str:
    """The hash of what an environment depends on: the files in _INPUTS, the Python, the place."""
    parts = [(ROOT / name).read_bytes() for name in _INPUTS]
    parts += [sys.version.encode(), base_python().encode(), os.fsencode(ROOT)]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def base_python() -> str:
    """The interpreter itself, even when this one runs from the environment that is to be set up."""
    return getattr(sys, "_base_executable", None) or sys.executable


def stamp_path(venv: Path) -> Path:
    """The file that says what an environment holds."""
    return venv / "chappe-setup.json"


def read_stamp(venv: Path) -> dict[str, Any]:
    """What the environment holds (digest, parts, wheel); empty if its set-up never ended."""
    try:
        stamp = json.loads(stamp_path(venv).read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and (venv / "bin/python").exists() else {}


def write_stamp(venv: Path, stamp: dict[str, Any]) -> None:
    """Say what the environment holds, now that it does."""
    stamp_path(venv).write_text(json.dumps(stamp))


def requirements(uv: Path, parts: list[str]) -> Path:
    """The file of requirements, with hashes, for these extras and groups of uv.lock."""
    if not parts:
        return BUILD_REQUIREMENTS
    options = [word for part in parts for word in ("--" + part.split(":")[0], part.split(":")[1])]
    target = STATE / "requirements.txt"
    call(
        uv, "export", "--quiet", "--frozen", "--no-emit-project", "--no-header", "--no-annotate",
        "--no-default-groups", *options, "--python", base_python(), "--output-file", target,
    )  # fmt: skip
    return target


def install(uv: Path, venv: Path, wanted: Path) -> None:
    """Make the environment hold the requirements and nothing else; tries again, as networks fail.

    The last try is by pip where it is at hand, because pip knows what only its configuration says
    (certificates, several indexes, a directory of wheels); it leaves extra packages in place.
    """
    by_uv: Command = [uv, "pip", "sync", *quiet(venv), "--require-hashes", wanted]
    pip = uv.parent / "pip"
    by_pip: Command = [
        uv.parent / "python", "-m", "pip", "--python", venv / "bin/python", "install", "--quiet",
        "--require-hashes", "-r", wanted,
    ]  # fmt: skip
    index = get_uv.index_environment(uv)
    for number, pause_s in enumerate(PAUSES_S, start=1):
        last = number == len(PAUSES_S)
        time.sleep(pause_s)
        try:
            call(*(by_pip if last and pip.exists() else by_uv), environment=index)
        except subprocess.CalledProcessError:
            if last:
                raise
            print(
                f"the installation failed (try {number} of {len(PAUSES_S)}); trying again",
                file=sys.stderr,
            )
        else:
            return


def put_chappe(venv: Path, *, editable: bool) -> None:
    """Build Chappe and put it into the environment, unless this very wheel is there."""
    stamp = read_stamp(venv)
    if editable and "wheel" in stamp:
        return
    dist = STATE / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    kind = "editable" if editable else "wheel"
    backend = f"import hatchling.build; hatchling.build.build_{kind}({str(dist)!r})"
    call(BUILD.venv / "bin/python", "-c", backend)
    (wheel,) = dist.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if stamp.get("wheel") != digest:
        uv = get_uv.ensure(STATE / "uv")
        call(uv, "pip", "install", *quiet(venv), "--no-deps", "--offline", "--reinstall", wheel)
        write_stamp(venv, {**stamp, "wheel": digest})
    if not editable:
        print(f"testing {wheel.name}, as installed", flush=True)


def quiet(venv: Path) -> tuple[str, ...]:
    """The options that every `uv pip` call here has."""
    return ("--quiet", "--python", str(venv / "bin/python"))


def call(*command: str | Path, environment: dict[str, str] | None = None) -> None:
    """Run a command in the checkout; uv never fetches a Python of its own."""
    env = {**os.environ, **(environment or {}), "UV_PYTHON_DOWNLOADS": "never"}
    subprocess.run(command, cwd=ROOT, env=env, check=True)


if __name__ == "__main__":
    sys.exit(main())
