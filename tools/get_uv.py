"""Get uv, the installer, into a directory of this checkout. Standard library only.

By pip, in a virtual environment of its own, for pip knows this machine's index, proxy and
certificates. A bare Debian or Ubuntu Python has neither pip nor ensurepip: there uv's wheel, which
holds one executable, is taken from the index directly and checked against the hash that it gives.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

#: Reads the lock file of this checkout; any of these does.
REQUIREMENT = "uv>=0.13,<1"
DEFAULT_INDEX = "https://pypi.org/simple"
TIMEOUT_S = 60


def ensure(directory: Path) -> Path:
    """The path of a uv that runs, installed into `directory` if it was not there.

    Raises CalledProcessError or OSError when neither way works.
    """
    uv = directory / "bin/uv"
    if not runs(uv):
        try:
            by_pip(directory)
        except subprocess.CalledProcessError:
            print("pip could not install uv; taking it from the package index", file=sys.stderr)
            by_download(uv)
    return uv


def runs(uv: Path) -> bool:
    """Whether the file is there and can be executed to its end."""
    with contextlib.suppress(OSError):
        return subprocess.run([uv, "--version"], capture_output=True, check=False).returncode == 0
    return False


def by_pip(directory: Path) -> None:
    """Make a virtual environment with pip, and install uv into it."""
    # Without ensurepip, venv explains at length how to install it; that is not needed here.
    venv: list[str | Path] = [sys.executable, "-m", "venv", "--clear", directory]
    subprocess.run(venv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pip: list[str | Path] = [
        directory / "bin/python",
        "-m",
        "pip",
        "install",
        "-qq",
        "--disable-pip-version-check",
    ]
    subprocess.run([*pip, REQUIREMENT], check=True)


def by_download(uv: Path) -> None:
    """Fetch the newest wheel of uv for this machine and unpack its executable."""
    index = os.environ.get("PIP_INDEX_URL") or DEFAULT_INDEX
    page = f"{index.rstrip('/')}/uv/"
    chosen = newest(links(fetch(page).decode()), platform_tag())
    body = fetch(urllib.parse.urljoin(page, chosen.address))
    if (
        f"sha256={hashlib.sha256(body).hexdigest()}"
        != urllib.parse.urlsplit(chosen.address).fragment
    ):
        raise OSError(
            f"{chosen.name}: the bytes received do not have the hash that the index gives"
        )
    with zipfile.ZipFile(BytesIO(body)) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".data/scripts/uv"))
        uv.parent.mkdir(parents=True, exist_ok=True)
        part = uv.with_name("uv.part")
        part.write_bytes(wheel.read(name))
    part.chmod(0o755)
    part.replace(uv)


class Link(NamedTuple):
    """A file that an index offers. The fragment of its address is its hash."""

    name: str
    address: str


def links(page: str) -> list[Link]:
    """The files on a page of a package index (PEP 503), without those that were withdrawn."""
    found: list[Link] = []

    class Anchors(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            address = dict(attrs).get("href")
            if tag == "a" and address and "data-yanked" not in dict(attrs):
                path = urllib.parse.unquote(urllib.parse.urlsplit(address).path)
                found.append(Link(path.rpartition("/")[2], address))

    Anchors().feed(page)
    return found


def newest(offered: list[Link], tag: str) -> Link:
    """The file of the highest version that fits REQUIREMENT and the platform `tag`."""
    fitting = []
    for link in offered:
        version, _, tags = link.name.removeprefix("uv-").partition("-")
        numbers = version.split(".")
        if not tags.endswith(".whl") or not all(number.isdigit() for number in numbers):
            continue
        key = tuple(int(number) for number in numbers)
        if (0, 13) <= key < (1,) and all(word in tags for word in tag.split("*")):
            fitting.append((key, link))
    if not fitting:
        raise OSError(
            f"the package index has no {REQUIREMENT} for {tag}; install pip for this Python"
        )
    return max(fitting)[1]


def platform_tag() -> str:
    """What a wheel's name must contain here, as `kind*machine`."""
    machine = platform.machine().lower()
    if sys.platform == "darwin":
        return f"macosx*{machine}"
    kind = "manylinux" if platform.libc_ver()[0] == "glibc" else "musllinux"
    return f"{kind}*{machine}"


def fetch(url: str) -> bytes:
    """The body at an https address (proxies as the environment says)."""
    if not url.startswith("https://"):
        raise OSError(
            f"{url}: the package index must be reached by https to fetch a program from it"
        )
    # S310 is about other schemes than https, which were refused above.
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply:  # noqa: S310
        body: bytes = reply.read()
    return body


def index_environment(uv: Path) -> dict[str, str]:
    """UV_DEFAULT_INDEX, when only pip was told of an index; uv reads its own configuration itself.

    By the environment and not as an option, for such an address may hold a password.
    """
    if {"UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_CONFIG_FILE"} & os.environ.keys():
        return {}
    found = os.environ.get("PIP_INDEX_URL", "")
    python = uv.parent / "python"
    if not found and python.exists():
        command: list[str | Path] = [python, "-m", "pip", "config", "get", "global.index-url"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        found = answer.stdout.strip() if answer.returncode == 0 else ""
    return {"UV_DEFAULT_INDEX": found} if found else {}
