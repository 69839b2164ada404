"""The laboratory's child processes: how they are started, read, waited for and ended, each by its own id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rotator.sandbox.vault import LAUNCHER


class LabError(Exception):
    """A process of the laboratory did not do what was waited for."""


def launch(arguments: Sequence[str], log: Path, home: Path) -> subprocess.Popen[bytes]:
    """The rotator's own program in the background, its stderr into `log`; the kernel ends it with the calling thread."""
    program = [sys.executable, "-m", "rotator.cli", *arguments]
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), *program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            env=environment(home),
        )


def environment(home: Path) -> dict[str, str]:
    """The children's: no proxy, no Vault variables of the person who runs us, and bytecode made once for all of them."""
    left_out = ("VAULT_", "PYTHONDONTWRITEBYTECODE")
    keep = {k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY") and not k.startswith(left_out)}
    path = (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH"))
    return keep | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONPYCACHEPREFIX": str(home / "bytecode")}


def logged(log: Path, event: str) -> list[dict[str, Any]]:
    """The lines of one event in a JSON log that may still be written to."""
    complete = log.read_text().rpartition("\n")[0]
    lines = (json.loads(line) for line in complete.splitlines() if line.startswith("{") and event in line)
    return [line for line in lines if line.get("event") == event]


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    """End a process that we started, by its own id; its exit code."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """What `condition` gives once it is true; LabError after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > until:
            raise LabError(f"waited {seconds:g} s for {what}")
        time.sleep(0.02)
