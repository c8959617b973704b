"""Reads the examples of a page of documentation, runs them as its reader would, and compares what they print.

A page says `<!-- tested: site -->` (its reader has a Hub and the Site `paris`) or `<!-- tested: nothing -->`;
from there on its blocks run in order, in one shell, one Python and one directory. ```console blocks hold
`$ command` lines and what they print; ```python blocks may be followed by what they print in a ```text
block; other blocks are for reading. Comments before a block change what is done with it:

    <!-- file: PATH -->      the block is written to this file instead
    <!-- exit: N -->         its last command ends with this status, and not with 0
    <!-- terminal: NAME -->  its one command stays: it has printed what stands there, and goes on
    <!-- hidden: COMMAND --> a command that the page only describes in words; it needs no block

In expected output `…` stands for anything (a line of its own: for any lines); times, amounts and the port
of an address may differ. Ids differ too, and are learnt: the id that a page shows means the one printed.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chappe.pilot.procs import kill_marked

COMMAND_S = 60.0
_MARKER = "=== that was all:"

_COMMENT = re.compile(r"<!-- (\w+): (.*?) -->")
_FENCE = re.compile(r"```(\w*)$")
_ID = r"01[0-9a-f]{6}(?:-[0-9a-f]+)*"
#: What may differ between two runs, as (how it looks on the page, what it may be instead).
_DIFFERS = (
    (rf"\b{_ID}(?![\w-])", rf"({_ID})"),
    (r"https://127\.0\.0\.1:\d+", r"https://127\.0\.0\.1:\d+"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"),
    (r"\d\d:\d\d:\d\d", r"\d\d:\d\d:\d\d"),
    (r"\d[\d.]* (?:s|min|h|d|B|KiB|MiB|GiB)\b", r"\d[\d.]* (?:s|min|h|d|B|KiB|MiB|GiB)"),
    (r"…", r".*?"),
    (r"\s+", r"\s+"),
)
_TOKEN = re.compile("|".join(f"({looks})" for looks, _ in _DIFFERS))


@dataclass
class Example:
    """One block of a page, or one comment that is a command."""

    kind: str
    text: str
    line: int
    options: Mapping[str, str] = field(default_factory=dict)
    prints: str | None = None


def examples(page: str) -> tuple[str, list[Example]]:
    """What a reader of this page has at its beginning ("" : the page is not run), and its examples."""
    world, found = "", list[Example]()
    options: dict[str, str] = {}
    lines = enumerate(page.splitlines(), 1)
    for number, line in lines:
        if comment := _COMMENT.fullmatch(line):
            name, value = comment.groups()
            if name == "tested":
                world = value
            elif name == "hidden":
                found.append(Example("hidden", value, number))
            else:
                options[name] = value
        elif fence := _FENCE.fullmatch(line):
            text = _block(lines)
            if world and fence[1] == "text" and found and found[-1].kind == "python":
                found[-1].prints = text
            elif world and (options or fence[1] in ("console", "python")):
                found.append(
                    Example("file" if "file" in options else fence[1], text, number, options)
                )
            options = {}
    return world, found


def _block(lines: Iterator[tuple[int, str]]) -> str:
    """The lines up to the end of a block."""
    body = list[str]()
    for _, line in lines:
        if line == "```":
            return "\n".join(body) + "\n"
        body.append(line)
    raise AssertionError("a block has no end")


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with what it prints ("" : the page does not say)."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found:
            command, prints = found.pop()
            found.append((command, prints + line + "\n"))
        else:
            raise AssertionError(f"a console block begins with a command, not with {line!r}")
    return found


def pattern_of(prints: str) -> tuple[str, list[str]]:
    """A regular expression for what should be printed, and the ids that its groups stand for."""
    parts, ids = [], []
    for line in prints.splitlines():
        if line.strip() == "…":
            parts.append(r"(?:.*\n)*?")
            continue
        at = 0
        for token in _TOKEN.finditer(line):
            parts.append(re.escape(line[at : token.start()]))
            may_be = next(may_be for looks, may_be in _DIFFERS if re.fullmatch(looks, token[0]))
            parts.append(may_be)
            if may_be.startswith("("):
                ids.append(token[0])
            at = token.end()
        parts.append(re.escape(line[at:]) + r"[^\S\n]*\n")
    return "".join(parts), ids


class Talk:
    """A process that is typed to, and what it answers. Its stderr comes with its stdout."""

    def __init__(self, argv: list[str], directory: Path, environ: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            argv,
            cwd=directory,
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        self._heard = b""

    def say(self, text: str) -> None:
        """Type `text`."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())

    def hear(self, until: str) -> re.Match[str]:
        """All that is printed, as a match of the regular expression `until`, which it must come to match."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + COMMAND_S
        while True:
            heard = self._heard.decode(errors="replace")
            if found := re.match(until, heard, re.DOTALL):
                self._heard = b""
                return found
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self._process.stdout], [], [], left)[0], f"no end: {heard}"
            more = os.read(self._process.stdout.fileno(), 65_536)
            assert more, f"it ended too early: {heard}"
            self._heard += more

    def end(self, sig: signal.Signals | None = None) -> None:
        """Close its stdin or send it a signal, and wait for its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        if sig is not None:
            self._process.send_signal(sig)
        try:
            self._process.wait(COMMAND_S)
        finally:
            self._process.kill()
            self._process.stdout.close()


class Reader:
    """Somebody who reads a page and types what stands there, in a directory and with a HOME of their own."""

    def __init__(self, directory: Path, home: Path) -> None:
        self.directory = directory
        scripts = Path(sys.executable).parent
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("CHAPPE_", "XDG_"))}
        self.environ = inherited | {
            "HOME": str(home),
            "PATH": f"{scripts}:{os.environ['PATH']}",
            "COLUMNS": "80",
            "PYTHONIOENCODING": "utf-8",
        }
        self._ids: dict[str, str] = {}
        self._shell = Talk(["bash", "--noprofile", "--norc"], directory, self.environ)
        self._python = Talk([sys.executable, "-u", "-c", _READER], directory, self.environ)
        self._kept: list[Talk] = []

    def follow(self, example: Example) -> None:
        """Do what an example says, and compare. Raises AssertionError."""
        match example.kind:
            case "file":
                path = self.directory / example.options["file"]
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists() or path.read_text() != example.text:
                    path.write_text(example.text)
            case "console" if "terminal" in example.options:
                ((command, prints),) = commands(example.text)
                self._stay(command, prints)
            case "console":
                *others, last = commands(example.text)
                for command, prints in others:
                    self.type(command, prints)
                self.type(*last, int(example.options.get("exit", 0)))
            case "hidden":
                self.type(example.text)
            case "python":
                self._python.say(f"{len(example.text)}\n{example.text}")
                self._compare(example.text, example.prints or "", self._python, 0)
            case other:
                raise AssertionError(f"what is to be done with a block of {other}?")

    def type(self, command: str, prints: str = "", status: int = 0) -> None:
        """Run one command in the shell."""
        command = re.sub(_ID, lambda found: self._real_id(found[0]), command)
        self._shell.say(f"{{ {command}\n}} </dev/null; printf '\\n{_MARKER} %s\\n' $?\n")
        self._compare(f"$ {command}", prints, self._shell, status)

    def _real_id(self, shown: str) -> str:
        """The id that a page means by `shown`, or by the beginning of it."""
        for page_id, real in self._ids.items():
            if page_id.startswith(shown) or shown.startswith(page_id):
                return real
        return shown

    def _stay(self, command: str, prints: str) -> None:
        """Start a command that goes on, once it has printed what the page says."""
        port = " --port 0" if command.startswith("chappe hub start") else ""
        # Its log is for another terminal, or nobody.
        argv = ["bash", "-c", f"exec {command}{port} 2>stderr.log"]
        kept = Talk(argv, self.directory, self.environ)
        self._kept.append(kept)
        kept.hear(pattern_of(prints)[0])

    def _compare(self, typed: str, prints: str, talk: Talk, status: int) -> None:
        # The line feed before the marker is ours.
        found = talk.hear(rf"(.*)\n{_MARKER} (\d+)\n")
        printed, ended = found[1], int(found[2])
        assert ended == status, f"{typed}\n{printed}\nended with {ended}, not {status}"
        if not prints:
            return
        pattern, ids = pattern_of(prints)
        same = re.fullmatch(pattern, f"{printed.rstrip()}\n")
        assert same, f"{typed}\n{printed}\n--- where the page has\n{prints}"
        self._ids.update(zip(ids, same.groups(), strict=True))

    def leave(self) -> None:
        """End the shells, the agents and pilots, and what was started to stay, in this order."""
        for talk in (self._shell, self._python):
            talk.end()
        for config in self.directory.glob("*/site.toml"):
            if not config.parent.is_symlink():
                stop_site(config.parent, self.environ)
        for kept in self._kept:
            kept.end(signal.SIGTERM)


def stop_site(site: Path, environ: Mapping[str, str]) -> None:
    """End a Site's agent, and all that still runs in its allocations."""
    stop = [sys.executable, "-m", "chappe.cli.main", "site", "stop", str(site)]
    subprocess.run(stop, env=dict(environ), capture_output=True, timeout=COMMAND_S, check=False)
    for session in (site / "sessions").iterdir():
        kill_marked(session.name, lambda _process: True)


#: Runs blocks of code in one namespace, as a notebook does; each comes as its length and its text.
_READER = f"""
import sys, traceback
names = {{"__name__": "__main__"}}
while size := sys.stdin.readline():
    status = 0
    try:
        exec(compile(sys.stdin.read(int(size)), "<page>", "exec"), names)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        status = 1
    print("\\n{_MARKER}", status, flush=True)
"""
