"""The benchmark runs, and its output has the promised shape; its numbers are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_output_has_its_shape() -> None:
    arguments = ["--json", "--runs", "1", "--real-runs", "0", "--connections", "50", "--seconds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, "one line, and nothing else, on stdout"
    result = json.loads(done.stdout)
    idle = result.pop("idle_10k")
    assert set(result) == {"wall_ratio_zero_latency", "wall_ratio_real_latency", "cpu_seconds_per_rotation"}
    assert set(idle) == {"rss_mb", "cpu_percent", "ready_seconds"}
    assert result["wall_ratio_real_latency"] is None, "not measured here: it takes half a minute a round"
    measured = [
        result["wall_ratio_zero_latency"],
        result["cpu_seconds_per_rotation"],
        idle["rss_mb"],
        idle["ready_seconds"],
    ]
    assert all(isinstance(number, float) and number > 0 for number in measured)
    assert isinstance(idle["cpu_percent"], float)
