"""Users, projects and tokens as people type them: an administrator, and those who log in."""

from __future__ import annotations

import json
import os
import pty
import select
import stat
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from chappe.cli import main
from chappe.link.clock import new_id
from chappe.testing.hub import RunningHub, start_hub
from tests.integration.hub_rig import raw
from tests.integration.sdk_rig import Said

PASSWORD = "correct horse battery"
WITHIN_S = 60.0


class Person:
    """Somebody with a client's file of their own."""

    def __init__(self, hub: RunningHub, home: Path) -> None:
        self.hub = hub
        self.config = home / "client.json"
        home.mkdir(exist_ok=True)
        self.environ: dict[str, str | None] = {"CHAPPE_CONFIG": str(self.config), "HOME": str(home)}

    def chappe(self, *arguments: str, stdin: str = "") -> Said:
        """Run the command line in this process: importing takes longer than most commands."""
        own = {name: None for name in os.environ if name.startswith("CHAPPE_")}
        done = CliRunner().invoke(main.root, arguments, input=stdin, env=own | self.environ)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Said(done.exit_code, done.stdout, done.stderr)

    def ok(self, *arguments: str, stdin: str = "") -> str:
        done = self.chappe(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ok(*arguments, "--json").splitlines()]

    def login(self, *answers: str, **options: str) -> Said:
        given = [text for k, v in options.items() for text in (f"--{k}", v)]
        arguments = ["login", self.hub.url, "--ca-file", self.hub.ca_file, *given]
        return self.chappe(*arguments, stdin="".join(f"{answer}\n" for answer in answers))

    @property
    def file(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.config.read_text())
        return found


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Generator[RunningHub, None, None]:
    with start_hub(tmp_path_factory.mktemp("people") / "hub") as running:
        yield running


@pytest.fixture(scope="module")
def admin(hub: RunningHub, tmp_path_factory: pytest.TempPathFactory) -> Person:
    person = Person(hub, tmp_path_factory.mktemp("admin"))
    person.config.write_bytes(hub.client_config.read_bytes())
    return person


@pytest.fixture
def person(hub: RunningHub, tmp_path: Path) -> Person:
    return Person(hub, tmp_path / "home")


def join(admin: Person, person: Person, role: str = "operator") -> str:
    """A user of a new name, a member, logged in without the command line; the name."""
    hub, name = admin.hub, f"u{new_id()}"

    def send(method: str, path: str, token: str | None = hub.token, **body: str) -> Any:
        answer = raw(hub, method, path, token, json.dumps(body).encode())
        assert answer.status == 200, answer.body
        return json.loads(answer.body)

    code = send("POST", "/v1/users", name=name)["code"]
    send("PUT", f"/v1/members/{name}", role=role)
    made = send("POST", "/v1/join", None, code=code, password=PASSWORD)
    config = {"url": hub.url, "token": made["token"], "ca_file": hub.ca_file}
    person.config.write_text(json.dumps(config))
    person.config.chmod(0o600)
    return name


def test_a_code_sets_the_password_and_the_password_logs_in(admin: Person, person: Person) -> None:
    name = f"u{new_id()}"
    code = admin.ok("user", "add", name).splitlines()[0]
    admin.ok("member", "add", name, "--role", "operator")
    link = ["login", person.hub.url, "--link", "--ca-file", person.hub.ca_file]
    person.ok(*link, stdin=f"{code}\n{PASSWORD}\n")
    assert stat.S_IMODE(person.config.stat().st_mode) == 0o600
    assert set(person.file) == {"url", "token", "project", "ca_file"}
    first = person.file["token"]
    assert name in person.ok("token", "ls")
    done = person.login(name, PASSWORD)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{name} is logged in to project default" in done.stdout
    assert person.file["token"] != first
    assert PASSWORD not in person.hub.log
    person.ok("logout")
    assert person.file["token"] == ""
    assert "chappe login" in person.chappe("job", "ls").stderr
    assert raw(person.hub, "GET", "/v1/whoami", first).status == 200
    done = person.chappe("login", stdin=f"{name}\n{PASSWORD}\n")  # the file says where
    assert done.returncode == 0, done.stderr


def test_what_is_typed_wrong_leaves_the_file_as_it_is(admin: Person, person: Person) -> None:
    name = join(admin, person)
    before = person.config.read_bytes()
    for answers in ((name, PASSWORD + "!"), ("nobody", PASSWORD)):
        done = person.login(*answers)
        assert done.returncode == 5
        assert "the name or the password is wrong" in done.stderr
    assert person.login(name).returncode == 2  # no terminal, and no line for the password
    assert person.login(name, PASSWORD, project="nowhere").returncode == 3
    assert person.config.read_bytes() == before


def test_a_file_for_another_hub_is_not_replaced_unasked(admin: Person, person: Person) -> None:
    name = join(admin, person)
    other = {"url": "https://elsewhere.example", "token": "t"}
    person.config.write_text(json.dumps(other))
    done = person.login(name, PASSWORD)
    assert done.returncode == 2
    assert "--replace" in done.stderr
    assert person.file == other
    arguments = ["login", person.hub.url, "--ca-file", person.hub.ca_file, "--replace"]
    person.ok(*arguments, stdin=f"{name}\n{PASSWORD}\n")
    assert person.file["url"] == person.hub.url


def on_terminal(person: Person, dialogue: Mapping[str, str], *arguments: str) -> str:
    """Run a command on a terminal, answering its questions; all that the terminal showed."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("CHAPPE_")}
    own = {name: value for name, value in person.environ.items() if value is not None}
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "chappe.cli.main", *arguments],
        env=inherited | own,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    shown, asked, deadline = "", 0, time.monotonic() + WITHIN_S
    questions = list(dialogue.items())
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 1.0)[0]:
                continue
            try:
                chunk = os.read(master, 4096)
            except OSError:  # the other side is closed
                break
            if not chunk:
                break
            shown += chunk.decode()
            if asked < len(questions) and shown.endswith(questions[asked][0]):
                os.write(master, questions[asked][1].encode() + b"\n")
                asked += 1
        assert process.wait(WITHIN_S) == 0, shown
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert asked == len(questions), shown
    return shown


def test_a_password_is_not_shown_on_the_terminal(admin: Person, person: Person) -> None:
    name = join(admin, person)
    again = ["login", person.hub.url, "--ca-file", person.hub.ca_file]
    shown = on_terminal(person, {"Name: ": name, "Password: ": PASSWORD}, *again)
    assert name in shown
    assert PASSWORD not in shown


def test_whoever_is_in_several_projects_is_asked_which(admin: Person, person: Person) -> None:
    name, project = join(admin, person), f"p{new_id()}"
    admin.ok("project", "create", project)
    admin.ok("member", "add", name, "--role", "viewer", "--project", project)
    done = person.login(name, PASSWORD)
    assert done.returncode == 5
    assert project in done.stderr
    dialogue = {"Name: ": name, "Password: ": PASSWORD, "Project: ": project}
    shown = on_terminal(person, dialogue, "login")
    assert f"is logged in to project {project}" in shown.replace("\r\n", "").replace("\n", "")
    assert person.file["project"] != person.hub.project
    assert {p["name"] for p in person.objects("project", "ls")} == {"default", project}
    assert person.objects("job", "ls") == []
    refused = person.chappe("job", "cancel", "--name", "x")
    assert refused.returncode == 5
    assert "yours is that of a viewer" in refused.stderr


def test_a_role_changes_and_ends_at_once(admin: Person, person: Person) -> None:
    name = join(admin, person, "viewer")
    assert person.chappe("token", "new", "--service", "viewer").returncode == 5
    admin.ok("member", "add", name, "--role", "owner")
    made = person.objects("token", "new", "--service", "viewer", "--note", "nightly")[0]
    assert (made["role"], made.get("user")) == ("viewer", None)
    assert "(service)" in person.ok("token", "ls")
    roles = {m["name"]: m["role"] for m in person.objects("member", "ls")}
    assert roles[name] == "owner"
    admin.ok("member", "rm", name)
    assert person.chappe("job", "ls").returncode == 5
    assert raw(person.hub, "GET", "/v1/whoami", made["token"]).status == 200


def test_a_disabled_user_is_out(admin: Person, person: Person) -> None:
    name = join(admin, person)
    admin.ok("user", "disable", name)
    assert person.chappe("job", "ls").returncode == 5
    assert person.login(name, PASSWORD).returncode == 5
    assert "disabled" in next(r for r in admin.ok("user", "ls").splitlines() if name in r)
    admin.ok("user", "enable", name)
    assert person.login(name, PASSWORD).returncode == 0


def test_a_password_changes(admin: Person, person: Person) -> None:
    name = join(admin, person)
    wrong = person.chappe("password", stdin=f"not it at all\n{PASSWORD} 2\n")
    assert wrong.returncode == 5
    assert person.chappe("password", stdin=f"\n{PASSWORD} 2\n").returncode == 2
    assert person.chappe("password", stdin=f"{PASSWORD}\nshort\n").returncode == 2
    person.ok("password", stdin=f"{PASSWORD}\n{PASSWORD} 2\n")
    assert person.login(name, PASSWORD).returncode == 5
    assert person.login(name, f"{PASSWORD} 2").returncode == 0


def test_a_lost_password_is_mended_by_a_new_code(admin: Person, person: Person) -> None:
    name = join(admin, person)
    code = admin.ok("user", "invite", name).splitlines()[0]
    link = ["login", "--link"]
    person.ok(*link, stdin=f"{code}\n{PASSWORD} new\n")
    assert person.login(name, PASSWORD).returncode == 5
    again = person.chappe(*link, stdin=f"{code}\n{PASSWORD}\n")
    assert again.returncode == 5
    assert "was used" in again.stderr


def test_the_first_user_is_not_shut_out(admin: Person) -> None:
    done = admin.chappe("logout")
    assert done.returncode == 5
    assert "chappe password" in done.stderr
    admin.ok("job", "ls")


def test_the_audit_shows_who_did_what(admin: Person, person: Person) -> None:
    name = join(admin, person)
    rows = [(e["actor"], e["action"], e["subject"]) for e in admin.objects("audit", "ls")]
    assert rows[:4] == [
        (name, "login", name),
        (name, "user.join", name),
        ("admin", "member.set", name),
        ("admin", "user.add", name),
    ]
    assert len(admin.objects("audit", "ls", "--limit", "2")) == 2
    assert "role=operator" in admin.ok("audit", "ls")
    assert person.chappe("audit", "ls").returncode == 5


def test_an_administrator_without_a_role_looks_after_people_only(
    admin: Person, person: Person
) -> None:
    name = f"u{new_id()}"
    code = admin.ok("user", "add", name, "--administrator").splitlines()[0]
    link = ["login", admin.hub.url, "--link", "--ca-file", admin.hub.ca_file]
    # An administrator may enter any project, and other tests have made some.
    person.ok(*link, "--project", "default", stdin=f"{code}\n{PASSWORD}\n")
    assert name in person.ok("token", "ls")
    assert "admin" in person.ok("user", "ls")
    assert f"{name}, no role, administrator" in person.ok("doctor")
    assert person.chappe("job", "ls").returncode == 5
    assert person.chappe("site", "ls").returncode == 5
    person.ok("logout")


def test_a_sites_token_is_made_anew(admin: Person, tmp_path: Path) -> None:
    site = tmp_path / f"s{new_id()}"
    admin.ok("site", "init", str(site))
    token = site / "secrets/site.token"
    before = token.read_text().strip()
    assert admin.chappe("site", "token", site.name, "--to", str(tmp_path)).returncode == 2
    admin.ok("site", "token", site.name, "--to", str(site))
    after = token.read_text().strip()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert raw(admin.hub, "GET", "/v1/whoami", before).status == 401
    assert raw(admin.hub, "GET", "/v1/whoami", after).status == 200
    shown = admin.ok("site", "token", site.name).strip()
    assert raw(admin.hub, "GET", "/v1/whoami", shown).status == 200
    assert "chappe site token" in admin.chappe("site", "check", str(site)).stdout
