"""`rotator demo`: real keys on real servers on this machine, every claim checked against the servers' own state.

Starts OpenBao, an Okta, eight targets and the rotator's own program on loopback, in a folder of their own, plays the
scenes under provisioning traffic, and ends them all. The exit code is 0 only if every claim held.
"""

from __future__ import annotations

import json
import signal
import threading
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from rotator.sandbox import demo_scenes as scenes
from rotator.sandbox import demo_trouble as trouble
from rotator.sandbox.demo_leaks import nothing_leaked
from rotator.sandbox.demo_stage import Stage
from rotator.sandbox.lab import Lab

SCENES = (
    ("Nothing happens by itself", scenes.nothing_by_itself),
    ("By schedule", scenes.by_schedule),
    ("By signal", scenes.by_signal),
    ("By HTTP", scenes.by_http),
    ("Where only one key can live", scenes.one_key_only),
    ("A candidate that Okta refuses", trouble.refused_by_okta),
    ("A key that is bad only in real use", trouble.bad_in_real_use),
    ("A target's outage", trouble.outage),
    ("A key that only a person can mint", trouble.person_mints),
    ("An app that only a person can push to", trouble.person_pushes),
    ("kill -9 in the middle of a push", trouble.killed_in_a_push),
    ("Provisioning all the while", scenes.provisioning),
    ("Nothing leaked", nothing_leaked),
)


def main(*, json_output: bool, keep: bool) -> int:
    """Play it. `json_output`: one object on stdout and the story on stderr. `keep`: all stays up until Ctrl-C."""
    signal.signal(signal.SIGTERM, _terminated)  # so that the servers are ended in order
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with it ignored
    console = Console(stderr=json_output)
    if not console.is_terminal:
        console.width = 120
    with Lab(lease="4s", call_deadline="2s") as lab:
        stage = Stage(lab, console)
        try:
            if stage.play("OpenBao, Okta, targets and the rotator start on loopback", _set_up):
                for title, scene in SCENES:
                    stage.play(title, scene)
            _report(stage, json_output=json_output)
            if keep:
                _keep(stage)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end is short, and a second Ctrl-C would leave it undone
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            stage.traffic.stop()
    return 0 if all(claim.ok for claim in stage.claims) else 1


def _terminated(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _set_up(stage: Stage) -> None:
    lab = stage.lab
    lab.connect("steady")
    lab.connect("two-keys", shape="capped")
    lab.connect("rolled", shape="roll", allow_gap=True)
    lab.connect("supplied", shape="set_key", allow_gap=True)
    lab.connect("fenced")
    lab.connect("read-only", overlap="60s")
    lab.connect("hand-minted", shape="manual")
    lab.connect("hand-pushed", app="scim2testapp")
    lab.extra = '[signals]\nusr1 = ["two-keys"]'
    lab.write()
    stage.begin_traffic()
    stage.say(f"Okta provisions {len(lab.benches)} apps. A person runs `rotator adopt` for the key of each.")
    lab.adopt()
    lab.start()


def _report(stage: Stage, *, json_output: bool) -> None:
    traffic = {field: getattr(stage.seen, field) for field in ("calls", "failed", "failed_while_target_down")}
    if json_output:
        found: dict[str, Any] = {
            "claims": [{"name": c.name, "ok": c.ok, "evidence": c.evidence} for c in stage.claims],
            "rotations": stage.rotations,
            "traffic": traffic,
            "calls_per_rotation": stage.calls,
        }
        print(json.dumps(found, indent=2), flush=True)  # noqa: T201 - this is the demo's output
    table = Table(title="Rotations", title_justify="left")
    for column in ("connection", "trigger", "strategy", "outcome", "seconds", "longest phases"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for rotation in stage.rotations:
        phases = sorted(rotation["phases"].items(), key=lambda item: -item[1])
        longest = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in phases[:3])
        words = [str(rotation[key]) for key in ("connection", "trigger", "strategy", "outcome")]
        table.add_row(*words, f"{sum(rotation['phases'].values()):.1f}", longest)
    stage.console.print()
    stage.console.print(table)
    counts = ", ".join(f"{value} {field.replace('_', ' ')}" for field, value in traffic.items())
    held = sum(claim.ok for claim in stage.claims)
    stage.say(f"Provisioning where two keys can live: {counts}")
    stage.say(f"{held} of {len(stage.claims)} claims held")


def _keep(stage: Stage) -> None:
    done = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: done.set())
    lab, console = stage.lab, stage.console
    root = lab.home / "root-token"
    root.touch(mode=0o600)
    root.write_text(lab.vault.root_token + "\n")
    console.print("\nAll is still running, and provisioning goes on. Ctrl-C ends it.", style="bold")
    stage.say(f"Vault   {lab.vault.address}   root token in {root}")
    stage.say(f"Okta    {lab.okta.url}   API token in {lab.home / 'okta-token'}")
    stage.say(f"API     {lab.api_url}   bearer token in {lab.home / 'api-tokens'} (after the word operate)")
    for name, target in lab.targets.items():
        stage.say(f"target  {target.url}   {name}, admin token in {lab.home / f'{name}-admin'}")
    stage.say(f"configuration {lab.config}, ledger {lab.ledger}")
    done.wait()
    stage.say("ending")
