"""Creates Jobs that fit no pilot, at full speed, until stdin closes; then prints how many a second.

    python -m benchmarks.creator CLIENT_JSON KEY_FILE

A process of its own, so that whoever measures beside it is not slowed by its work.
"""

from __future__ import annotations

import select
import sys
import time

import chappe

BATCH = 5_000


def main(config: str, key: str) -> None:
    """Say "ready" after the first batch; the rate at the end."""
    with chappe.Client(config_file=config, key=key) as client:
        app = client.app("true", site="bench").options(cores=64)
        app.map([{}] * BATCH)
        print("ready", flush=True)
        made, began = 0, time.perf_counter()
        while not select.select([sys.stdin], [], [], 0)[0]:
            app.map([{}] * BATCH)
            made += BATCH
        print(made / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
