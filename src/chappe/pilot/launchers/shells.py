"""What starts one process on one node and knows nothing of ranks: ssh, PBS's pbsdsh, and nothing at all."""

from __future__ import annotations

import shlex

from chappe.core.errors import Invalid
from chappe.pilot.launchers.base import HandRequest, Launch, Launcher, Ranks


def _with_env(request: HandRequest) -> list[str]:
    """The command behind `env`: neither of them takes our variables along."""
    return ["env", *(f"{name}={value}" for name, value in request.env.items()), *request.argv]


def _ssh(request: HandRequest) -> list[str]:
    argv = [request.program, "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-T", "-x"]
    # A shell on the other side reads one line.
    return [*argv, request.node, "exec " + shlex.join(_with_env(request))]


def _pbsdsh(request: HandRequest) -> list[str]:
    return [request.program, "-n", str(request.position), "--", *_with_env(request)]


def fork(request: Ranks) -> Launch:
    """The command as it is. Raises Invalid for several nodes."""
    if len(request.hosts) > 1:
        raise Invalid(
            "no launcher was found that starts ranks on several nodes: name one in [launch] ranks of "
            "site.toml, or give your own command in [pilot] ranks",
            field="resources.nodes",
        )
    return Launch(list(request.argv))


SSH = Launcher(
    name="ssh",
    title="ssh",
    programs=("ssh",),
    keeps=("SSH_AUTH_SOCK",),
    quirks=("it must log in without a question: keys, or host-based authentication",),
    hand=_ssh,
)

PBSDSH = Launcher(
    name="pbsdsh",
    title="PBS's pbsdsh",
    programs=("pbsdsh",),
    keeps=("PBS_*",),
    quirks=(
        "a node is named by its position in PBS_NODEFILE",
        "Torque's and OpenPBS's take the same words for that",
    ),
    hand=_pbsdsh,
)

FORK = Launcher(
    name="fork",
    title="no launcher",
    programs=(),
    quirks=(
        "the command is started once, on one node; it finds in CHAPPE_RANKS how many ranks it may start",
    ),
    verified="any machine",
    ranks=fork,
)
