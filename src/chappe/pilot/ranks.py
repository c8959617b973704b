"""How the ranks of a Job are started on its nodes: by a launcher, or by a command of the Site's own.

The own command is a list of words; a Job's follows them. What stands in braces is filled in: {ranks}
{ranks_per_node} {threads} {nodes}, {hosts} (names, with commas) and {hostfile} (a file with a line for each
node). Without one it is the launcher that the owner names in `[launch] ranks`, or that is found here
(`launchers.choose`), asked for when the first such Job comes.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from chappe.core.jobs import Resources
from chappe.link.files import write_atomic
from chappe.pilot.job_env import base_env, gpu_env
from chappe.pilot.launchers import LAUNCHERS, shells
from chappe.pilot.launchers.base import Binding, Launcher, Ranks
from chappe.pilot.launchers.choose import Choice, for_ranks, this_machine
from chappe.pilot.placement import Slot
from chappe.pilot.session import Session
from chappe.pilot.topology import VARIABLES

#: What every process of a Job is known by; its own launcher sets them.
MARKS = ("CHAPPE_SESSION", "CHAPPE_JOB_ID", "CHAPPE_EPOCH", "CHAPPE_ATTEMPT")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Starter:
    """Makes the commands that start the ranks of one Session's Jobs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._options = session.options

    @cached_property
    def choice(self) -> Choice:
        """The launcher of this machine. Raises Invalid when the owner names one that there is not."""
        wanted = self._options.launch.ranks
        if not wanted:
            return Choice(LAUNCHERS["fork"], "", (), "nothing else was asked for")
        return for_ranks(wanted, this_machine())

    def launcher(self, resources: Resources) -> Launcher | None:
        """Whose words may tell of a rank that died; None when none of ours started any."""
        alone = resources.ranks == 1 and resources.nodes == 1
        return None if alone or self._options.ranks else self.choice.launcher

    def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        resources: Resources,
        slot: Slot,
        hostfile: str,
    ) -> tuple[list[str], dict[str, str]]:
        """The command of a Job that starts its ranks if it has several, and its environment. Raises
        Invalid when they cannot be started here, OSError when the host file cannot be written."""
        if resources.ranks == 1 and resources.nodes == 1:
            return list(argv), dict(env)
        hosts = [share.node.name or os.uname().nodename for share in slot.shares]
        if self._options.ranks:
            return self._own(argv, resources, hosts, hostfile), dict(env)
        return self._launch(argv, env, resources, slot, hosts, hostfile)

    def _launch(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        resources: Resources,
        slot: Slot,
        hosts: Sequence[str],
        hostfile: str,
    ) -> tuple[list[str], dict[str, str]]:
        choice, emulated = self.choice, self._session.hosts.kind == "emulated"
        launcher = choice.launcher
        ours = launcher.programs and launcher.ranks is not None
        request = Ranks(
            program=choice.program,
            argv=[*_on_each(slot, hosts, emulated=emulated), *argv] if ours else argv,
            hosts=hosts,
            counts=spread(resources, len(hosts)),
            threads=resources.threads,
            gpus=int(resources.gpus),
            binding=self._binding(slot),
            env=self._names(env, alone=len(hosts) == 1),
            hostfile=hostfile,
            extra=self._options.launch.args,
            version=choice.version,
            emulated=emulated,
            root=os.geteuid() == 0,
        )
        launch = (launcher.ranks or shells.fork)(request)
        if launch.hostfile:
            write_atomic(Path(hostfile), launch.hostfile.encode(), 0o644, durable=False)
        return launch.argv, {**launcher.kept(os.environ), **env, **launch.env}

    def _own(
        self, argv: Sequence[str], resources: Resources, hosts: Sequence[str], hostfile: str
    ) -> list[str]:
        counts = spread(resources, len(hosts))
        values = {
            "ranks": str(resources.ranks),
            "ranks_per_node": str(resources.node_ranks),
            "threads": str(resources.threads),
            "nodes": str(resources.nodes),
            "hosts": ",".join(hosts),
            "hostfile": hostfile,
        }
        lines = [
            _fill(self._options.host_line, {"node": host, "ranks": str(count)})
            for host, count in zip(hosts, counts, strict=True)
            if count > 0
        ]
        write_atomic(Path(hostfile), ("\n".join(lines) + "\n").encode(), 0o644, durable=False)
        return [*(_fill(word, values) for word in self._options.ranks), *argv]

    def _binding(self, slot: Slot) -> Binding:
        """As the owner says where the Job has whole nodes; a launcher counts cores from the first, and
        would bind Jobs that share a node to the same ones."""
        whole = all(slot.need.cores >= share.node.cores for share in slot.shares)
        return self._options.launch.binding if whole else "none"

    def _names(self, env: Mapping[str, str], *, alone: bool) -> list[str]:
        """The variables that every rank is to have. Which GPUs it may see differs from node to node."""
        base = base_env(self._session, os.environ)
        local = set() if alone else set(VARIABLES.values())
        names = dict.fromkeys((*base, *env, *MARKS))
        return [name for name in names if _NAME.fullmatch(name) and name not in local]


def _on_each(slot: Slot, hosts: Sequence[str], *, emulated: bool) -> list[str]:
    """What stands before the command of each rank, so that it finds what is true on its own node."""
    if len(hosts) == 1:
        return []
    cases = []
    for share, host in zip(slot.shares, hosts, strict=True):
        variables = gpu_env(share)
        told = ";".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
        if told:
            cases.append(f"{shlex.quote(host)}|{shlex.quote(host.partition('.')[0])}) {told};;")
    if not cases:
        # Of the node that the launcher's command runs on; nodes themselves are told apart by no mark.
        return [] if emulated else ["env", "-u", "CHAPPE_NODE"]
    where = "$CHAPPE_NODE" if emulated else "$(uname -n)"
    forget = "" if emulated else "unset CHAPPE_NODE;"
    return ["/bin/sh", "-c", f'{forget}case {where} in {"".join(cases)} esac;exec "$@"', "sh"]


def spread(resources: Resources, nodes: int) -> list[int]:
    """How many ranks each node gets: as many as it may, from the first on, but one each if that goes."""
    left, counts = resources.ranks, []
    for k in range(nodes):
        others = nodes - k - 1
        counts.append(min(resources.node_ranks, max(left - others, 1), left))
        left -= counts[-1]
    return counts


def _fill(word: str, values: dict[str, str]) -> str:
    # Not str.format: a word may hold braces of its own.
    for name, value in values.items():
        word = word.replace("{" + name + "}", value)
    return word
