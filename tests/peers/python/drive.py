"""What the drivers of the Python peers share: the payload, the clock, what they print."""
import json
import os
import sys
import time
from collections.abc import Callable

URL = os.environ["PEER_REDIS"]
PAYLOAD = "x" * 90
CHAIN = 10
WIDTH = 50
# String: runs that are finished.
DONE = "bench:done"

now_ns = time.monotonic_ns


def latencies(all_ms: list[float]) -> dict[str, float | None]:
    """Median and 99th percentile. The first tenth warms up and does not count."""
    ms = sorted(all_ms[len(all_ms) // 10 :])
    shares = {"p50": 0.5, "p99": 0.99}
    return {name: ms[min(len(ms) - 1, int(len(ms) * share))] if ms else None for name, share in shares.items()}


def run(submit: dict[str, Callable[[int], None]], idle: dict[str, Callable[[], int | None]]) -> None:
    """`submit KIND N` submits N; `idle KIND N` does one at a time: its call gives when the job began, if it knows."""
    verb, kind, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    began = now_ns()
    if verb == "submit":
        submit[kind](count)
        answer = {"began_ns": began, "seconds": (now_ns() - began) / 1e9}
    else:
        starts: list[float] = []
        ends: list[float] = []
        for _ in range(count):
            began = now_ns()
            started = idle[kind]()
            ends.append((now_ns() - began) / 1e6)
            if started is not None:
                starts.append((started - began) / 1e6)
        answer = {"start_ms": latencies(starts), "end_ms": latencies(ends)}
    print(json.dumps(answer), flush=True)
    # Threads of the client do not keep the program.
    os._exit(0)
