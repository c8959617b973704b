"""How the ranks of a Job are started: by the machine's own command, `mpiexec` or `srun`, on the Job's nodes.

The Site's owner gives it as a list of words; a Job's own command follows them. What stands in braces is
filled in: {ranks} {ranks_per_node} {threads} {nodes}, {hosts} (names, with commas) and {hostfile} (a file
with a line for each node).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from chappe.core.errors import Invalid
from chappe.core.jobs import Resources
from chappe.link.files import write_atomic
from chappe.pilot.session import Options


def command(
    argv: Sequence[str], options: Options, resources: Resources, names: Sequence[str], hostfile: str
) -> list[str]:
    """The Job's command, started as ranks on the nodes of these names if it has several. Raises Invalid
    when the Site has no such command, OSError when the host file cannot be written."""
    if resources.ranks == 1 and resources.nodes == 1:
        return list(argv)
    if not options.ranks:
        if resources.nodes > 1:
            raise Invalid(
                "this site has no command that starts ranks on several nodes: [pilot] ranks in its "
                "site.toml",
                field="resources.nodes",
            )
        return list(argv)
    hosts = [name or os.uname().nodename for name in names]
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
        _fill(options.host_line, {"node": host, "ranks": str(count)})
        for host, count in zip(hosts, counts, strict=True)
        if count > 0
    ]
    write_atomic(Path(hostfile), ("\n".join(lines) + "\n").encode(), 0o644, durable=False)
    return [*(_fill(word, values) for word in options.ranks), *argv]


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
