"""Values that a shell would love, through a real Hub and a real Site: the program gets exactly these bytes.

Every type of parameter, in both forms of an App, with and without a preamble; and the environment and the
directory that a Job may choose.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chappe.link.clock import new_id
from chappe.link.keys import SigningKey
from chappe.link.signing import make_submissions
from chappe.site import daemon
from chappe.site.init import HubAccess, init_site
from chappe.site.paths import SitePaths
from chappe.testing.hub import RunningHub
from tests.integration.hub_rig import raw
from tests.integration.site_rig import wait_until
from tests.security.test_secrets import kill

NASTY = [
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned",
    "& touch pwned &",
    "&& touch pwned",
    "|| touch pwned",
    "| touch pwned",
    "> pwned",
    "< /etc/passwd",
    "\ntouch pwned\n",
    "\r\ntouch pwned",
    "$HOME",
    "${IFS}a${IFS}",
    "$((1+1))",
    "$1 $@ $* $# $0",
    "${chappe_1}",
    "a b  c",
    " ",
    "",
    "'",
    "''",
    '"',
    '"; touch pwned; "',
    "'; touch pwned; '",
    "\\",
    "\\\\'",
    "\\n\\t\\0",
    "*",
    "?[a-z]{a,b}",
    "~",
    "~root",
    "-rf",
    "--",
    "--help",
    "-",
    "!!",
    "#no comment",
    "a#b",
    "{{ 7 * 7 }}",
    "{% raw %}{{ job_id }}",
    "{{# comment #}}",
    "%s%n%d",
    "\t\v\f\x01\x1b[31m\x7f",
    "é𝄞\u202e\ufeff\u2028",
    "x" * 16_000,
]

RECORD = """\
import os, sys
path = os.path.join(os.environ["CHAPPE_DATA"], "got." + os.environ["CHAPPE_JOB_ID"])
words = [os.fsencode(word) for word in sys.argv[1:]]
words.append(os.fsencode(os.environ.get("WAS", "-")))
words.append(os.fsencode(os.environ.get("WORD", "no word")))
with open(path + ".new", "wb") as file:
    file.write(b"\\0".join(words))
os.rename(path + ".new", path)
"""

PARAMETERS = """
allow_env = ["WORD"]
[parameters.s]
type = "string"
[parameters.p]
type = "path"
[parameters.c]
type = "choice"
choices = %s
[parameters.l]
type = "list"
[parameters.i]
type = "int"
[parameters.f]
type = "float"
[parameters.b]
type = "bool"
[parameters.m]
pattern = "(?s).*"
[files]
separate_stderr = true
"""
VALUES = "--s={{ s }} {{ s }} {{ p }} {{ c }} {{ m }} {{ i }} {{ f }} {{ b }} {{ l }}"


def toml(text: str) -> str:
    """A text as TOML has it; JSON's escapes are not all TOML's."""
    return (
        '"' + "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in text) + '"'
    )


def toml_list(texts: list[str]) -> str:
    return f"[{', '.join(toml(text) for text in texts)}]"


def apps(record: Path) -> dict[str, str]:
    """One App of each form, by name."""
    words = [sys.executable, "-I", str(record)]
    program = shlex.join(words)
    argv = toml_list([*words, *re.findall(r"(?:--s=)?{{ . }}", VALUES)])
    preamble = 'preamble = "export WAS=$#; set -- a b # a comment"\n'
    forms = {
        "argv": f"command = {argv}\n",
        "argv-preamble": f"command = {argv}\n{preamble}",
        "shell": f"shell = {toml(f'{program} {VALUES}')}\n",
        "shell-preamble": f"shell = {toml(f'{program} {VALUES} && true')}\n{preamble}",
    }
    parameters = PARAMETERS % toml_list(NASTY)
    return {
        name: f'name = "{name}"\nversion = "1"\n{form}{parameters}' for name, form in forms.items()
    }


class Shop:
    """A Site with these Apps at an honest Hub, and its user."""

    def __init__(self, root: Path, hub: RunningHub) -> None:
        self.hub = hub
        self.key = SigningKey(bytes(range(32)))
        access = HubAccess(hub.url, hub.token, hub.ca_file)
        self.made = init_site(root / "site", f"shop-{new_id()}", access, self.key.public_b64)
        self.paths = SitePaths.of(root / "site")
        record = root / "record.py"
        record.write_text(RECORD)
        for name, text in apps(record).items():
            (self.paths.apps / f"{name}.toml").write_text(text)
        daemon.start(self.paths.root)

    def open(self) -> None:
        """Return when the Hub knows the Apps."""
        site = f"/v1/apps?site={self.made.id}"
        wait_until(lambda: len(self.get(site)["apps"]) == 5, "the apps are published")

    def get(self, path: str) -> Any:
        return json.loads(raw(self.hub, "GET", path, self.hub.token).body)

    def submit(self, fields: list[dict[str, Any]]) -> list[str]:
        """Create signed Jobs; their ids."""
        common = {"project": self.made.project, "sites": [self.made.id]}
        specs = [msgspec.json.encode({"id": new_id(), **common, **f}) for f in fields]
        (signed,) = make_submissions(self.key, self.made.project, specs, time.time() + 3600)
        jobs = [
            {"spec": msgspec.Raw(spec), "submission": 0, "idx": i} for i, spec in enumerate(specs)
        ]
        body = msgspec.json.encode({"jobs": jobs, "submissions": [signed]})
        answer = raw(self.hub, "POST", "/v1/jobs", self.hub.token, body)
        assert answer.status == 200, answer.body
        return [verdict["id"] for verdict in json.loads(answer.body)["verdicts"]]

    def got(self, job: str) -> list[bytes]:
        """The words that a Job's program got, what its preamble saw of them, and its variable WORD."""
        path = self.paths.data / f"got.{job}"

        def done() -> bool:
            view = self.get(f"/v1/jobs/{job}")
            assert view["phase"] not in ("failed", "cancelled"), view
            return path.exists()

        wait_until(done, f"{job} writes down what it got")
        return path.read_bytes().split(b"\0")

    def close(self) -> None:
        """Leave nothing running."""
        daemon.stop(self.paths.root)
        wait_until(lambda: not kill(self.paths.sessions), "the pilots are gone")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, open_hub: RunningHub) -> Iterator[Shop]:
    made = Shop(tmp_path_factory.mktemp("shop"), open_hub)
    try:
        made.open()
        yield made
    finally:
        made.close()


def at(i: int) -> str:
    return NASTY[i % len(NASTY)]


@pytest.mark.parametrize("form", ["argv", "argv-preamble", "shell", "shell-preamble"])
def test_the_program_gets_the_bytes_as_they_are(shop: Shop, form: str) -> None:
    items = [text for text in NASTY if len(text) < 1_000]
    fields = [
        {
            "app": {"name": form},
            "parameters": {
                "s": at(i),
                "p": at(i + 1),
                "c": at(i + 2),
                "m": at(i + 3),
                "i": -5,
                "f": 0.1,
                "b": True,
                "l": items,
            },
            "env": {"WORD": at(i + 4)},
        }
        for i in range(len(NASTY))
    ]
    ids = shop.submit(fields)
    for i, id in enumerate(ids):
        plain = [at(i), at(i + 1), at(i + 2), at(i + 3), "-5", "0.1", "true", *items]
        # A preamble, and what it sources, finds none of the values as arguments of its own.
        seen = "0" if form.endswith("preamble") else "-"
        expected = [f"--s={at(i)}", *plain, seen, at(i + 4)]
        assert shop.got(id) == [word.encode() for word in expected], NASTY[i]
    assert not list(shop.paths.root.parent.rglob("pwned"))
    # The Hub kept them as they are, too.
    assert shop.get(f"/v1/jobs/{ids[0]}")["spec"]["parameters"] == fields[0]["parameters"]


def test_a_directory_is_only_a_name(shop: Shop) -> None:
    names = [text for text in NASTY if text.isprintable() and 0 < len(text) < 100]
    names = [text for text in names if not text.startswith(("~", " ")) and "/" not in text]
    fields = [
        {"app": {"name": "shell"}, "workdir": f"dirs/{i}/{text}", "env": {"WORD": text}}
        for i, text in enumerate(names)
    ]
    for i, id in enumerate(shop.submit(fields)):
        assert shop.got(id)[-1] == names[i].encode()
        assert (shop.paths.data / "dirs" / str(i) / names[i] / "attempt-1" / "stdout.log").exists()
    assert not list(shop.paths.root.parent.rglob("pwned"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("i", "1; touch pwned"),
        ("f", "$(touch pwned)"),
        ("b", "`touch pwned`"),
        ("c", "none of them"),
        ("l", "not a list"),
        ("l", [["nested"]]),
        ("s", "a\0b"),
        ("p", ["a"]),
        ("m", {"a": "b"}),
    ],
)
def test_what_has_a_type_is_of_that_type(shop: Shop, name: str, value: Any) -> None:
    spec = {
        "id": new_id(),
        "project": shop.made.project,
        "sites": [shop.made.id],
        "app": {"name": "shell"},
        "parameters": {name: value},
    }
    body = json.dumps({"jobs": [{"spec": spec}]}).encode()
    answer = raw(shop.hub, "POST", "/v1/jobs", shop.hub.token, body)
    assert answer.status == 422
    signed_only = answer.error["code"] == "unsigned"
    assert signed_only or answer.error["field"] == f"parameters.{name}"
    raw_spec = msgspec.json.encode(spec)
    (signed,) = make_submissions(shop.key, shop.made.project, [raw_spec], time.time() + 60)
    job = {"spec": msgspec.Raw(raw_spec), "submission": 0, "idx": 0}
    again = msgspec.json.encode({"jobs": [job], "submissions": [signed]})
    answer = raw(shop.hub, "POST", "/v1/jobs", shop.hub.token, again)
    assert (answer.status, answer.error["field"]) == (422, f"parameters.{name}")
