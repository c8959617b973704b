"""Have PostgreSQL's programs for the tests: `python -m tools.get_postgres`.

Standard library only, for it runs before anything is installed. Nothing is done where they are there
already, or where this is not root on Debian or Ubuntu: then the tests that want them say how to get them.
No server of the system's is made or started; the tests run one of their own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "postgresql"
PATIENCE_S = 600
#: What tells Debian's packages whether they may start what they install.
POLICY = Path("/usr/sbin/policy-rc.d")


def main() -> int:
    """Install the package if it is missing and can be had; 1 when it could not."""
    if present():
        return 0
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return 0
    print("installing PostgreSQL for the tests …", flush=True)
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-q", "-o", "DPkg::Lock::Timeout=300"]
    install = ["install", "-y", "--no-install-recommends", PACKAGE]
    try:
        with starting_nothing():
            for arguments in (["update"], install):
                subprocess.run(
                    ["apt-get", *options, *arguments],
                    env=environ,
                    stdout=subprocess.DEVNULL,
                    timeout=PATIENCE_S,
                    check=True,
                )
    except (OSError, subprocess.SubprocessError) as error:
        print(f"PostgreSQL could not be installed: {error}", file=sys.stderr)
        return 1
    return 0


def present() -> bool:
    """Whether PostgreSQL's programs are where the tests look for them."""
    if shutil.which("postgres") and shutil.which("initdb"):
        return True
    return any(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@contextlib.contextmanager
def starting_nothing() -> Iterator[None]:
    """Keep packages from starting servers, unless this machine has a policy of its own."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
