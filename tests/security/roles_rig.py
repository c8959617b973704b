"""Two projects on one Hub, with everything that an id may name in each, and everybody who may ask."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from chappe.core.access import Party
from chappe.link.clock import new_id
from chappe.testing.hub import RunningHub
from tests.integration.hub_rig import Answer, raw

PASSWORD = "correct horse battery"
DIGEST = hashlib.sha256(b"[1]").hexdigest()


class Rig:
    """Requests to one Hub."""

    def __init__(self, hub: RunningHub) -> None:
        self.hub = hub

    def call(self, method: str, path: str, token: str | None, body: Any = None) -> Answer:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        return raw(self.hub, method, path, token, data, {"content-type": "application/json"})

    def ok(self, method: str, path: str, token: str | None, body: Any = None) -> Any:
        answer = self.call(method, path, token, body)
        assert answer.status < 300, answer.body
        return json.loads(answer.body) if answer.body else None

    def invite(self, role: str | None, project: str, **more: Any) -> tuple[str, str]:
        """A user, perhaps a member; the name and the code."""
        name = f"u{new_id()}"
        code = self.ok("POST", "/v1/users", self.hub.token, {"name": name, **more})["code"]
        if role is not None:
            self.member(name, role, project)
        return name, code

    def member(self, name: str, role: str, project: str) -> None:
        body = {"role": role, "project": project}
        self.ok("PUT", f"/v1/members/{name}", self.hub.token, body)

    def person(self, role: str | None, project: str, **more: Any) -> tuple[str, str]:
        """A user who has joined; the name and a token."""
        name, code = self.invite(role, project, **more)
        wish = {"code": code, "password": PASSWORD, "project": project}
        return name, self.ok("POST", "/v1/join", None, wish)["token"]


@dataclass
class Place:
    """A Site with an allocation, its pilot, and a Job that the pilot holds."""

    site: str
    token: str
    agent: str
    batch_job: str
    session: str
    pilot: str
    job: str = ""


@dataclass
class Project:
    """A project with all that there may be in it. `tokens` is by who holds one."""

    rig: Rig
    id: str
    name: str
    tokens: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)

    @property
    def owner(self) -> str:
        return self.tokens["owner"]

    def fill(self) -> Project:
        """Make one of everything, and two Sites."""
        rig = self.rig
        self.ids["members"], self.tokens["owner"] = rig.person("owner", self.id)
        for role in ("viewer", "operator"):
            _, self.tokens[role] = rig.person(role, self.id)
        for role in ("viewer", "operator", "owner"):
            new = {"role": role, "note": "service"}
            made = rig.ok("POST", "/v1/tokens/service", self.owner, new)
            self.tokens[f"service {role}"] = made["token"]
            self.ids["tokens"] = made["prefix"]
        self.places = [self.place(), self.place()]
        first = self.places[0]
        self.tokens |= {"site": first.token, "session": first.pilot}
        self.ids |= {
            "sites": first.site,
            "batch-jobs": first.batch_job,
            "sessions": first.session,
            "jobs": first.job,
            "selections": self.select(),
        }
        self.ids["acts"] = self.act(self.ids["selections"])
        self.tell()
        return self

    def tell(self) -> None:
        """A producer, a message, and something that is none."""
        rig, name = self.rig, f"u{new_id()}"
        made = rig.ok("POST", "/v1/producers", self.owner, {"name": name})
        self.tokens["producer"] = made["token"]
        uid = new_id()
        message = {"msgUID": uid, "msgType": "log"}
        rig.ok("POST", "/v1/messages", self.owner, message)
        simulation = new_id()
        told = {"msgType": "simulation.card", "simuid": simulation, "card": simulation}
        rig.ok("POST", "/v1/messages", self.owner, {"msgUID": new_id()} | told)
        nonsense = rig.ok("POST", "/v1/messages", self.owner, {"nonsense": uid})
        (bad,) = nonsense["verdicts"]
        self.ids |= {"producers": name, "messages": uid, "quarantine": str(bad["n"])}
        self.ids["simulations"] = simulation

    def place(self) -> Place:
        rig, here = self.rig, Place(new_id(), "", new_id(), new_id(), new_id(), "")
        new = {"id": here.site, "name": f"s-{here.site}"}
        here.token = rig.ok("POST", "/v1/sites", self.owner, new)["token"]
        hello = {"agent": here.agent, "host": "here"}
        rig.ok("POST", f"/v1/sites/{here.site}/agent", here.token, hello)
        app = {"name": "nop", "version": "1", "digest": "0" * 64, "unsigned": True}
        rig.ok("PUT", f"/v1/sites/{here.site}/apps", here.token, {"apps": [app]})
        rig.ok("POST", "/v1/batch-jobs", self.owner, {"id": here.batch_job, "site": here.site})
        session = {"id": here.session, "batch_job": here.batch_job}
        here.pilot = rig.ok("POST", "/v1/sessions", here.token, session)["token"]
        here.job = self.submit(here)
        (grant,) = self.sync(here)["grants"]
        assert grant["job"] == here.job
        return here

    def submit(self, place: Place) -> str:
        """An unsigned Job at a place; its id."""
        spec = {"id": new_id(), "project": self.id, "sites": [place.site], "app": {"name": "nop"}}
        self.rig.ok("POST", "/v1/jobs", self.owner, {"jobs": [{"spec": spec}]})
        return str(spec["id"])

    def sync(self, place: Place, number: int = 1) -> Any:
        """A sync of a place's pilot, which has room for one Job."""
        room = {"cores": 1, "mem_bytes": 2**40, "node_cores": 9, "node_mem_bytes": 2**40}
        body = {
            "session": place.session,
            "request_no": number,
            "answered": number - 1,
            "seen": [0, 0],
            "capacity": room,
        }
        return self.rig.ok("POST", "/v1/sync", place.pilot, body)

    def select(self) -> str:
        body = {"id": new_id(), "filter": {"name": "nothing is called so"}}
        return str(self.rig.ok("POST", "/v1/selections", self.owner, body)["id"])

    def act(self, selection: str) -> str:
        body = {"id": new_id(), "selection": selection, "verb": "cancel"}
        return str(self.rig.ok("POST", "/v1/acts", self.owner, body)["id"])


#: What each token is in the table of rules.
PARTIES: dict[str, frozenset[Party]] = {
    "viewer": frozenset({Party.VIEWER, Party.PERSON}),
    "operator": frozenset({Party.OPERATOR, Party.PERSON}),
    "owner": frozenset({Party.OWNER, Party.PERSON}),
    "service viewer": frozenset({Party.VIEWER}),
    "service operator": frozenset({Party.OPERATOR}),
    "service owner": frozenset({Party.OWNER}),
    "site": frozenset({Party.SITE}),
    "session": frozenset({Party.SESSION}),
    "producer": frozenset({Party.PRODUCER}),
    "administrator": frozenset({Party.ADMINISTRATOR, Party.PERSON}),
    "administrator and owner": frozenset({Party.ADMINISTRATOR, Party.OWNER, Party.PERSON}),
}


@dataclass
class World:
    """Two projects, and the tokens that are good for nothing (any more)."""

    rig: Rig
    here: Project
    there: Project
    bad: dict[str, str | None]


def project(rig: Rig) -> Project:
    """A further project, empty."""
    new = {"id": new_id(), "name": f"p-{new_id()}"}
    made = rig.ok("POST", "/v1/projects", rig.hub.token, new)
    return Project(rig, made["id"], made["name"])


def world(hub: RunningHub) -> World:
    """Make it all."""
    rig = Rig(hub)
    here, there = project(rig).fill(), project(rig).fill()
    _, here.tokens["administrator"] = rig.person(None, here.id, administrator=True)
    _, here.tokens["administrator and owner"] = rig.person("owner", here.id, administrator=True)
    assert PARTIES.keys() == here.tokens.keys()
    return World(rig, here, there, bad_tokens(rig, here))


def bad_tokens(rig: Rig, here: Project) -> dict[str, str | None]:
    """Tokens that nobody has, or that have ended, each in another way."""
    admin, owner = rig.hub.token, here.owner
    disabled, disabled_token = rig.person("owner", here.id)
    rig.ok("POST", f"/v1/users/{disabled}/disable", admin)
    removed, removed_token = rig.person("owner", here.id)
    rig.ok("DELETE", f"/v1/members/{removed}?project={here.id}", admin)
    _, out = rig.person("owner", here.id)
    rig.ok("POST", "/v1/logout", out)
    old_site = here.place()
    rig.ok("POST", f"/v1/sites/{old_site.site}/token", owner)
    service = rig.ok("POST", "/v1/tokens/service", owner, {"role": "owner"})
    rig.ok("DELETE", f"/v1/tokens/{service['prefix']}", owner)
    return {
        "none": None,
        "unknown": f"chp_u_aaaabbbbcccc_{'x' * 43}",
        "an invitation": rig.invite("owner", here.id)[1],
        "of a disabled user": disabled_token,
        "of a removed member": removed_token,
        "logged out": out,
        "revoked": service["token"],
        "a site's before": old_site.token,
        "two in one": f"{owner}, {owner}",
    }
