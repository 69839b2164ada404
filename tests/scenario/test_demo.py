"""`rotator demo` as people run it: a process of its own, whose every claim must hold and which leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from rotator.sandbox.lab import wait_for

SECONDS = {"type": "number", "minimum": 0}
COUNT = {"type": "integer", "minimum": 0}
TEXT = {"type": "string", "minLength": 1}


def closed(properties: dict[str, Any]) -> dict[str, Any]:
    """An object with these properties, all of them and no others."""
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def several(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


SCHEMA = closed(
    {
        "claims": several(closed({"name": TEXT, "ok": {"type": "boolean"}, "evidence": TEXT})),
        "rotations": several(
            closed(
                {
                    "connection": TEXT,
                    "trigger": {"enum": ["schedule", "signal", "http"]},
                    "strategy": {"enum": ["overlap", "make_room", "replace", "replace_supplied"]},
                    "outcome": {"enum": ["rotated", "rolled_back"]},
                    "phases": {"type": "object", "minProperties": 1, "additionalProperties": SECONDS},
                }
            )
        ),
        "traffic": closed({"calls": COUNT, "failed": COUNT, "failed_while_target_down": COUNT}),
        "calls_per_rotation": closed({"okta_apps": COUNT, "vault": COUNT, "target": COUNT}),
    }
)
PROMISED = [
    "adopted keys are not rotated merely because the daemon started",
    "rotated by schedule (strategy overlap)",
    "rotated by signal (strategy make_room)",
    "rotated by HTTP (strategy overlap)",
    "a clean rotation takes few calls",
    "rotated where one key lives (strategy replace)",
    "rotated where one key lives (strategy replace_supplied)",
    "a candidate that Okta refuses is rolled back",
    "a key that is bad only in real use is found in the overlap and rolled back",
    "a target's outage is ridden out",
    "a key that only a person can mint is handed over",
    "an app that only a person can push to is finished by proof",
    "a rotation is finished after the daemon was killed in a push",
    "where two keys can live, no provisioning call was refused",
    "no credential left the program",
]


class Demo:
    """The demo as a process. Its temporary files lie in a folder that only it and its children know."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.home = home
        environment = os.environ | {"TMPDIR": str(home), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rotator.cli", "demo", *arguments],
            env=environment,
            stdout=(home / "stdout").open("wb"),
            stderr=(home / "stderr").open("wb"),
        )

    def read(self, name: str) -> str:
        return (self.home / name).read_text()

    def alive(self) -> list[int]:
        """Processes that were started with the demo's folder in their environment or arguments."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                told = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
                if str(self.home).encode() in told and "State:\tZ" not in (folder / "status").read_text():
                    found.append(int(folder.name))
        return found

    def left(self) -> list[str]:
        """What it left in its folder."""
        return sorted(path.name for path in self.home.iterdir() if path.name not in {"stdout", "stderr"})


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        yield Path(folder)


@pytest.fixture
def started(home: Path) -> Iterator[list[Demo]]:
    demos: list[Demo] = []
    yield demos
    for demo in demos:
        if demo.process.poll() is None:
            demo.process.kill()
            demo.process.wait()


def test_every_claim_holds_and_nothing_is_left(home: Path, started: list[Demo]) -> None:
    demo = Demo(home, "--json")
    started.append(demo)
    code = demo.process.wait()
    story = demo.read("stderr")
    print(story)
    told = json.loads(demo.read("stdout"))

    jsonschema.validate(told, SCHEMA)
    assert [claim for claim in told["claims"] if not claim["ok"]] == []
    assert code == 0
    assert [claim["name"] for claim in told["claims"]] == PROMISED
    assert {r["strategy"] for r in told["rotations"]} == {"overlap", "make_room", "replace", "replace_supplied"}
    assert {r["trigger"] for r in told["rotations"]} == {"schedule", "signal", "http"}
    assert sorted(r["connection"] for r in told["rotations"] if r["outcome"] == "rolled_back") == [
        "fenced",
        "read-only",
    ]
    assert told["traffic"]["failed"] == 0
    assert told["traffic"]["calls"] > told["traffic"]["failed_while_target_down"] > 0
    assert all(told["calls_per_rotation"].values())
    assert demo.alive() == []
    assert demo.left() == []


@pytest.mark.parametrize(
    ("number", "code", "leaves"),
    [
        pytest.param(signal.SIGTERM, 128 + signal.SIGTERM, False, id="SIGTERM: in order, nothing left"),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, True, id="SIGKILL: files are left, processes are not"),
    ],
)
def test_a_demo_that_is_ended_takes_its_processes_along(
    home: Path, started: list[Demo], *, number: signal.Signals, code: int, leaves: bool
) -> None:
    demo = Demo(home)
    started.append(demo)
    wait_for(
        lambda: demo.process.poll() is not None or "By schedule" in demo.read("stdout"), "the scenes to begin", 240
    )
    assert demo.process.poll() is None, demo.read("stdout") + demo.read("stderr")
    running = demo.alive()
    assert len(running) >= 2, "the demo and the rotator: else nothing is at stake"

    demo.process.send_signal(number)

    assert demo.process.wait() == code
    wait_for(lambda: demo.alive() == [], "its processes to be gone", 30)
    assert bool(demo.left()) is leaves


def test_keep_leaves_all_running_until_ctrl_c(home: Path, started: list[Demo]) -> None:
    demo = Demo(home, "--keep")
    started.append(demo)
    wait_for(lambda: demo.process.poll() is not None or "Ctrl-C ends it" in demo.read("stdout"), "the scenes' end", 280)
    assert demo.process.poll() is None, demo.read("stdout") + demo.read("stderr")
    wait_for(lambda: "configuration " in demo.read("stdout"), "the addresses")
    shown = {line.split()[0]: line.split() for line in demo.read("stdout").splitlines() if "token in" in line}
    url, file = shown["API"][1], Path(shown["API"][5])
    token = file.read_text().split()[1]

    seen: set[str] = set()
    with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {token}"}) as client:

        def ticks() -> int:
            metrics = client.get(f"{url}/metrics").raise_for_status().text
            seen.update(
                line for line in metrics.splitlines() if line.startswith("rotator_last_tick_timestamp_seconds ")
            )
            return len(seen)

        wait_for(lambda: ticks() > 5, "the daemon to go on ticking")
    for _ in range(2):  # people press it twice
        demo.process.send_signal(signal.SIGINT)

    assert demo.process.wait() == 0
    assert demo.alive() == []
    assert demo.left() == []
