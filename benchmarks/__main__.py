"""`python -m benchmarks [NAMES] [--rounds 3] [--json FILE] [--quick]`: measure, and print the table.

A name is a group of rows (see --list). The exit code is 0 when every bound that was looked at is kept.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench
from benchmarks.figures import Row, bound_shown, shown
from benchmarks.machine import describe, in_words

#: Groups in the order in which they run: each is a module with `run(bench)`.
GROUPS = (
    *("create", "sync", "crowd", "idle", "latency", "spawn", "emit", "functions"),
    *(
        "million",
        "filters",
        "hands",
        "sites",
        "elastic",
        "slurm",
        "fronts",
        "ingest",
        "mail",
        "amqp",
        "bus",
        "postgres",
    ),
)
#: Run only when named: for whoever tunes a part.
EXTRA = ("store_only", "launcher", "amqp_million")


def main(argv: list[str]) -> int:
    """Run the groups, print the table, write the JSON."""
    options = _options(argv)
    unknown = set(options.names) - {*GROUPS, *EXTRA}
    if unknown:
        print(
            f"there is no group {min(unknown)!r}: {', '.join((*GROUPS, *EXTRA))}", file=sys.stderr
        )
        return 2
    # Where it is set, each process that is started would compile every module anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="chappe-bench-", dir=options.dir) as directory:
        bench = Bench(Path(directory), 1 if options.quick else options.rounds, options.quick)
        machine = describe(bench.directory)
        print(in_words(machine), file=sys.stderr)
        began = time.monotonic()
        for name in options.names or GROUPS:
            bench.say(f"— {name}")
            try:
                importlib.import_module(f"benchmarks.group_{name}").run(bench)
            except Exception as error:  # noqa: BLE001 - the other groups go on
                bench.say(f"{name} failed: {type(error).__name__}: {error}")
                bench.problems[name] = str(error)
        taken_s = time.monotonic() - began
    machine["load_1m_end"] = os.getloadavg()[0]
    lines = bench.table()
    print(in_words(machine) + f", at the end {machine['load_1m_end']:.2f}; took {taken_s:.0f} s\n")
    print(table(lines))
    if options.json is not None:
        record = {
            "machine": machine,
            "rounds": bench.rounds,
            "quick": bench.quick,
            "taken_s": taken_s,
            "rows": lines,
            "problems": bench.problems,
        }
        options.json.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return int(bool(bench.problems) or any(line["met"] is False for line in lines))


def table(lines: list[dict[str, Any]]) -> str:
    """The table in Markdown: value, bound, whether it is kept, and what it stands beside."""
    rows = ["| what | median | unit | to reach | | peers, notes |", "|---|---|---|---|---|---|"]
    for line in lines:
        row = Row(**{name: line[name] for name in Row._fields})
        value = "–" if line["value"] is None else shown(line["value"])
        verdict = {None: "", True: "met", False: "NOT MET"}[line["met"]]
        beside = "; ".join(filter(None, (row.peer, line["note"], line["problem"])))
        rows.append(
            f"| {row.what} | {value} | {row.unit} | {bound_shown(row)} | {verdict} | {beside} |"
        )
    return "\n".join(rows)


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join((*GROUPS, *EXTRA)))
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--quick", action="store_true", help="one small round: a smoke test")
    parser.add_argument("--dir", type=Path, help="where databases and sites go for the while")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
