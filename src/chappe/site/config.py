"""site.toml: what it may say, said once.

The Structs below are the table: their types, bounds, defaults and descriptions give the checks, the
commented file that `chappe site init` writes, and the reference in the documentation.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from chappe.core import limits
from chappe.core.batchjobs import BatchJobIntent, check_intent
from chappe.core.errors import Invalid
from chappe.core.policy import Policy, QueueRule, check_policy
from chappe.link.functions import FunctionEnvironment, FunctionRules, check_rules
from chappe.site.config_lines import line_of, split_error
from chappe.site.config_text import commented, documented
from chappe.site.elastic_config import ElasticConfig, check_elastic
from chappe.site.spool_config import SpoolConfig

FILE = "site.toml"

Seconds = Annotated[float, Meta(gt=0, le=limits.WALL_MAX_S)]


class SiteProblem(Invalid):
    """Something in the Site's directory is wrong; the message names the file and, if it can, the line."""

    default_code = "site_problem"


class Hub(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the Hub is, and how to reach it."""

    url: Annotated[
        str,
        Meta(pattern=r"^https?://[^/\s]+/?$", description="Address of the Hub, without a path."),
    ]
    ca_file: Annotated[
        str,
        Meta(
            description="Certificate authority (PEM) that signed the Hub's certificate; relative to "
            "this directory. Empty: those that the machine trusts."
        ),
    ] = ""
    proxy: Annotated[
        str,
        Meta(
            description="HTTP proxy towards the Hub. Empty: what HTTPS_PROXY and NO_PROXY say in the "
            "agent's environment."
        ),
    ] = ""


class SiteIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who this Site is. The Hub knows it by its id; do not change it."""

    id: Annotated[str, Meta(min_length=36, max_length=36, description="Id of the Site, made once.")]
    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
            description="Name of the Site, as users and the Hub call it.",
        ),
    ]
    project: Annotated[str, Meta(min_length=1, description="Id of the project it belongs to.")]


class SchedulerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The machine's batch system."""

    kind: Annotated[
        str, Meta(description='Batch system. "local": this machine itself, without any.')
    ] = "local"
    status_interval_s: Annotated[
        float,
        Meta(
            ge=1,
            le=3600,
            description="Time between two queries for the states of all our BatchJobs. Pilots tell the Hub "
            "themselves when they start and end, so nothing waits for a query.",
        ),
    ] = 60.0
    status_fast_s: Annotated[
        float,
        Meta(
            ge=1,
            le=3600,
            description="The same while a BatchJob waits in the queue or has just ended, if shorter.",
        ),
    ] = 15.0
    queue: Annotated[
        str, Meta(description="Queue (Slurm: partition) for BatchJobs that name none.")
    ] = ""
    account: Annotated[str, Meta(description="Account to charge for those that name none.")] = ""
    qos: Annotated[str, Meta(description="Quality of service for those that name none.")] = ""
    reservation: Annotated[str, Meta(description="Reservation for those that name none.")] = ""
    constraint: Annotated[
        str, Meta(description="Features of nodes (Slurm), for BatchJobs that name none.")
    ] = ""
    job_extra_directives: Annotated[
        list[str],
        Meta(description='Further directives for every BatchJob: ["--exclusive"].'),
    ] = []
    shell: Annotated[
        str,
        Meta(
            pattern=r"^/[^\x00-\x1f]+$",
            description='Shell of the batch script; "/bin/bash -l" where `module` is wanted.',
        ),
    ] = "/bin/sh"
    prologue: Annotated[
        list[str],
        Meta(
            description="Lines of shell that run in the allocation before the pilot: "
            '["module load python"]. They come from this file only, never from the Hub.'
        ),
    ] = []
    epilogue: Annotated[
        list[str], Meta(description="Lines of shell that run after the pilot has ended.")
    ] = []
    template: Annotated[
        str,
        Meta(
            description="Jinja2 file, relative to this directory, for the whole batch script in place of "
            "ours; `chappe batch-job preview` shows what comes of it."
        ),
    ] = ""


class PilotConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The pilots, which run Jobs inside allocations."""

    keep: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="Pilots to keep without being asked: a new allocation is requested when "
            "fewer are alive. 0: only what users request. For what follows the waiting Jobs see [elastic].",
        ),
    ] = 1
    cores: Annotated[
        int, Meta(ge=0, le=limits.CORES_MAX, description="Cores a pilot may use. 0: all it finds.")
    ] = 0
    mem_bytes: Annotated[
        int, Meta(ge=0, description="Memory (bytes) a pilot may give to Jobs. 0: all it finds.")
    ] = 0
    hold_memory: Annotated[
        bool,
        Meta(
            description="Whether a Job that uses more memory than the `mem_bytes` it asked for is killed: by "
            "the kernel where the allocation's cgroup belongs to the Site's user, else its processes are "
            "looked at a few times a second."
        ),
    ] = True
    file_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="No file of a Job grows beyond so many bytes, its output included: who tries gets "
            "SIGXFSZ. It counts for each file. 0: no bound.",
        ),
    ] = 0
    processes: Annotated[
        int,
        Meta(
            ge=0,
            description="A Job starts no process or thread while this account has so many on the node, "
            "whichever Jobs' they are. Root is not bound by it. 0: no bound.",
        ),
    ] = 0
    slots: Annotated[
        int, Meta(ge=0, le=100_000, description="Jobs a pilot may run at once. 0: one per core.")
    ] = 0
    urgent_cores: Annotated[
        int,
        Meta(
            ge=0,
            le=limits.CORES_MAX,
            description="Cores of each node that only urgent Jobs get; a core at least is left to all. "
            "0: none.",
        ),
    ] = 0
    urgent_priority: Annotated[
        int,
        Meta(
            ge=-limits.PRIORITY_ABS,
            le=limits.PRIORITY_ABS,
            description="Jobs of this priority or a higher one are urgent.",
        ),
    ] = 100
    idle_s: Annotated[
        float,
        Meta(
            ge=0,
            le=limits.WALL_MAX_S,
            description="A pilot without any Job for so long ends its allocation. 0: it stays.",
        ),
    ] = 0.0
    wall_s: Annotated[
        float,
        Meta(
            ge=0,
            le=limits.WALL_MAX_S,
            description="Wall-clock limit to ask the scheduler for. 0: none.",
        ),
    ] = 0.0
    drain_s: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="So long before the allocation's end a pilot ends its Jobs and reports.",
        ),
    ] = 30.0
    kill_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="After a cancel or at the wall-clock limit: so long Jobs may take from TERM to KILL.",
        ),
    ] = limits.KILL_TIME_S
    head_grace_s: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="So long Jobs go on when their pilot has died and may be restarted.",
        ),
    ] = limits.HEAD_GRACE_S
    node_local: Annotated[
        str,
        Meta(
            description="Directory on the node's own disk or memory for sockets. Empty: $TMPDIR, or /tmp."
        ),
    ] = ""
    node_names: Annotated[
        list[str],
        Meta(
            description="Command that prints the names of an allocation's nodes, one to a line: "
            '["scontrol", "show", "hostnames"]. Empty: the scheduler\'s variables name them.'
        ),
    ] = []
    hands: Annotated[
        list[str],
        Meta(
            description="Command of your own that runs what follows it on a further node of the allocation: "
            '["ssh", "{node}"]. Needed with `node_names`.'
        ),
    ] = []
    ranks: Annotated[
        list[str],
        Meta(
            description="Your own command that starts the ranks of a Job, whose command follows it. It may "
            "use {ranks}, {ranks_per_node}, {threads}, {nodes}, {hosts} and {hostfile}: "
            '["mpiexec", "-n", "{ranks}", "-f", "{hostfile}"].'
        ),
    ] = []
    host_line: Annotated[
        str, Meta(description="A line of {hostfile}; Open MPI wants `{node} slots={ranks}`.")
    ] = "{node}:{ranks}"
    node_tags: Annotated[
        dict[
            Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")],
            Annotated[int, Meta(ge=1, le=100_000)],
        ],
        Meta(
            description="How many nodes of an allocation are set apart for Jobs that ask for such a "
            "`node_tag`, as a table; the last ones are, and the first never."
        ),
    ] = {}
    scratch: Annotated[
        str,
        Meta(
            description="Directory on the node for the scratch directories of Jobs whose App wants one. "
            "Empty: as node_local."
        ),
    ] = ""
    umask: Annotated[
        str,
        Meta(
            pattern="^([0-7]{3,4})?$",
            description='Umask of Jobs and of the directories that are made for them, as "007" where a group '
            "is to write there. Empty: that of whoever runs `chappe site start`, but others may at most "
            "read. Secrets are private whatever it says.",
        ),
    ] = ""
    topology: Annotated[
        str,
        Meta(
            description="JSON file, relative to this directory, that says what a node is made of: its CPUs "
            "by NUMA domain, and its GPUs. Empty: the kernel is asked."
        ),
    ] = ""
    python: Annotated[
        str,
        Meta(
            description="Python that runs pilots, with Chappe, on all nodes. Empty: the agent's own."
        ),
    ] = ""
    env: Annotated[
        dict[str, str], Meta(description="Environment variables for the pilots, as a table.")
    ] = {}


class LaunchConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How processes come to the nodes of an allocation; `chappe site check` explains what `auto` is."""

    hands: Annotated[
        str,
        Meta(
            pattern="^[a-z]*$",
            description="Launcher that starts a pilot's hand on each further node: srun, pbsdsh, flux, pals, "
            "ssh, or auto. [pilot] hands overrides it. Empty: only the first node is used.",
        ),
    ] = "auto"
    ranks: Annotated[
        str,
        Meta(
            pattern="^[a-z]+$",
            description="Launcher that starts the ranks of a Job: srun, openmpi, hydra, intelmpi, pals, "
            "jsrun, flux, fork (the command is started once, on one node), or auto. [pilot] ranks "
            "overrides it.",
        ),
    ] = "auto"
    binding: Annotated[
        Literal["none", "core", "numa"],
        Meta(
            description="What ranks are bound to where a Job has whole nodes: none, core (as many as a rank "
            "has threads) or numa."
        ),
    ] = "none"
    args: Annotated[
        list[str],
        Meta(description='Further words for the launcher of ranks: ["--mpi=pmix"].'),
    ] = []


class RelayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The way to the Hub through the agent, for compute nodes without a route out."""

    enabled: Annotated[
        bool,
        Meta(
            description="Pilots reach the Hub through the agent. New pilots heed it; those that run keep "
            "their way."
        ),
    ] = False
    interface: Annotated[
        str,
        Meta(
            description='The interface of this machine that compute nodes reach, as "ib0". Empty: all '
            "whose address is private; with the local scheduler this machine's own."
        ),
    ] = ""
    address: Annotated[
        str, Meta(description="The address to listen at, instead of an interface's.")
    ] = ""
    port: Annotated[
        int,
        Meta(
            ge=0,
            le=65_535,
            description="The port to listen at. 0: a free one, and the same again after a restart.",
        ),
    ] = 0


class ResourcesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What else Jobs can ask this Site for."""

    named: Annotated[
        dict[str, Annotated[int, Meta(ge=0, le=limits.NAMED_MAX)]],
        Meta(
            description="Countable things that all Jobs of the Site share, as a table: how many licences "
            "there are of each kind. The Hub counts who has them."
        ),
    ] = {}


class SiteConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of site.toml."""

    hub: Hub
    site: SiteIdentity
    scheduler: SchedulerConfig = SchedulerConfig()
    policy: Policy = Policy()
    pilot: PilotConfig = PilotConfig()
    launch: LaunchConfig = LaunchConfig()
    relay: RelayConfig = RelayConfig()
    elastic: ElasticConfig = ElasticConfig()
    resources: ResourcesConfig = ResourcesConfig()
    spool: SpoolConfig = SpoolConfig()
    functions: FunctionRules = FunctionRules()

    def ca_path(self, directory: Path) -> str | None:
        """The file with the Hub's authority, absolute; None for the machine's own."""
        return str(directory / self.hub.ca_file) if self.hub.ca_file else None


def with_umask(config: SiteConfig, umask: int) -> SiteConfig:
    """The same, with a umask for Jobs if it has none: this one, but others never write.

    Who can write where a Job works decides what it runs; an owner who wants that says so in the file.
    """
    if config.pilot.umask:
        return config
    pilot = msgspec.structs.replace(config.pilot, umask=f"{umask | 0o022:03o}")
    return msgspec.structs.replace(config, pilot=pilot)


def load(directory: Path) -> SiteConfig:
    """Read and check `directory`/site.toml. Raises SiteProblem naming file, line and field."""
    path = directory / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SiteProblem(
            f"{path}: there is no such file, so this is no site directory; make one with "
            "`chappe site init`"
        ) from None
    except (OSError, UnicodeDecodeError) as e:
        raise SiteProblem(f"{path}: it cannot be read: {e}") from None
    return parse(text, str(path))


def parse(text: str, where: str) -> SiteConfig:
    """The configuration in `text`; `where` names it in errors. Raises SiteProblem."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        line = re.search(r"at line (\d+)", str(e))
        raise SiteProblem(
            f"{where}:{line.group(1) if line else text.count(chr(10)) + 1}: {e}"
        ) from None
    try:
        config = msgspec.convert(raw, SiteConfig, strict=True)
    except msgspec.ValidationError as e:
        message, field = split_error(e)
        raise SiteProblem(
            f"{where}:{line_of(text, field)}: {field or 'file'}: {message}", field=field or None
        ) from None
    for name in config.pilot.env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in config.pilot.env[name]:
            field = f"pilot.env.{name}"
            raise SiteProblem(
                f"{where}:{line_of(text, field)}: {field}: this cannot be an environment variable",
                field=field,
            )
    try:
        _check_values(config)
    except Invalid as e:
        field = e.field or "file"
        raise SiteProblem(
            f"{where}:{line_of(text, field)}: {field}: {e.message}", field=field
        ) from None
    if config.relay.address and config.relay.interface:
        field = "relay.address"
        raise SiteProblem(
            f"{where}:{line_of(text, field)}: {field}: give an address or an interface, not both",
            field=field,
        )
    if bool(config.pilot.hands) != bool(config.pilot.node_names):
        field = "pilot.hands"
        raise SiteProblem(
            f"{where}:{line_of(text, field)}: {field}: give both `hands` and `node_names`, or neither",
            field=field,
        )
    return config


def _check_values(config: SiteConfig) -> None:
    """What types cannot say. Raises Invalid naming the field."""
    check_rules(config.functions)
    check_policy(config.policy)
    check_elastic(config.elastic, config.scheduler.kind)
    scheduler = config.scheduler
    asked = BatchJobIntent(
        queue=scheduler.queue,
        account=scheduler.account,
        qos=scheduler.qos,
        reservation=scheduler.reservation,
        constraint=scheduler.constraint,
    )
    check_intent(asked, "scheduler")
    for name in ("job_extra_directives", "prologue", "epilogue"):
        for line in getattr(scheduler, name):
            if not line.isprintable():
                raise Invalid("a line has no control characters", field=f"scheduler.{name}")


# --- the same table as a file to edit and as a page to read

_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "hub": Hub,
    "site": SiteIdentity,
    "scheduler": SchedulerConfig,
    "policy": Policy,
    "pilot": PilotConfig,
    "launch": LaunchConfig,
    "relay": RelayConfig,
    "elastic": ElasticConfig,
    "resources": ResourcesConfig,
    "spool": SpoolConfig,
    "functions": FunctionRules,
}
_TABLES: dict[str, type[msgspec.Struct]] = {
    "policy.queues.NAME": QueueRule,
    "functions.environments.NAME": FunctionEnvironment,
}


def render(given: Mapping[str, Mapping[str, str | bool]]) -> str:
    """A commented site.toml in which `given` (section → key → value) is set and all else is a comment."""
    return commented(_SECTIONS, given)


def reference() -> str:
    """The reference of site.toml in Markdown."""
    return documented(_SECTIONS | _TABLES)


TEMPLATE = render(
    {
        "hub": {"url": "https://hub.example.org:8443"},
        "site": {
            "id": "00000000-0000-7000-8000-000000000000",
            "name": "my-site",
            "project": "00000000-0000-7000-8000-000000000001",
        },
    }
)
"""A complete site.toml with placeholders, for the documentation."""


def use_proxy(config: SiteConfig) -> None:
    """Let this process, and what it starts, go through the configured proxy."""
    if config.hub.proxy:
        os.environ["HTTPS_PROXY"] = os.environ["HTTP_PROXY"] = config.hub.proxy
