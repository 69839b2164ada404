"""`python -m tests.bench --json`: what the rotator costs, in numbers; no test, and nothing here fails by being slow.

    wall_ratio_zero_latency   one rotation by the engine, in times of the same calls made bare, servers answering at once
    wall_ratio_real_latency   … with servers as slow as real ones (Okta POST 2.8 s, GET 1.1 s, target 0.2 s, Vault 5 ms)
    cpu_seconds_per_rotation  of the engine's process, servers not counted
    idle_10k                  `rotator run` with 10,000 idle connections, scraped every 15 s for a minute

The numbers depend on what else the machine does: the load is told on stderr beside them. First targets: ratios of at
most 2.0 and 1.05; at most 200 MB, 2 % of a core, ready within 30 s.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench import idle, rotation
from tests.bench.servers import servers


def main() -> None:
    options = _options()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="rotator-bench-") as home, servers(Path(home)) as far:
        bare = rotation.record(far)
        zero = rotation.measure(far, bare, runs=options.runs, real=False)
        _tell("no latency", zero)
        real = rotation.measure(far, bare, runs=options.real_runs, real=True) if options.real_runs else None
        _tell("real latency", real)
    result["wall_ratio_zero_latency"] = round(zero.ratio, 3)
    result["wall_ratio_real_latency"] = round(real.ratio, 3) if real is not None else None
    result["cpu_seconds_per_rotation"] = round(zero.cpu, 4)
    calm = idle.measure(options.connections, options.seconds)
    _tell(f"{options.connections} idle connections", calm)
    result["idle_10k"] = {
        "rss_mb": round(calm.rss_mb, 1),
        "cpu_percent": round(calm.cpu_percent, 2),
        "ready_seconds": round(calm.ready_seconds, 1),
    }
    print(json.dumps(result, indent=None if options.json else 2))


def _tell(what: str, measured: object) -> None:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{what} (load {load}, {os.cpu_count()} cores): {measured}", file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure what the rotator costs.")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    parser.add_argument("--runs", type=int, default=15, help="rounds without latency")
    parser.add_argument("--real-runs", type=int, default=3, help="rounds with realistic latency, 25 s each; 0: none")
    parser.add_argument("--connections", type=int, default=10_000, help="idle connections")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the idle process is watched")
    return parser.parse_args()


if __name__ == "__main__":
    main()
