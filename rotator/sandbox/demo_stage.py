"""What the demo's scenes share: the laboratory under provisioning traffic, claims, and rotations that were watched.

A claim is a sentence with facts. Every fact is read from a server: which key Okta holds, which keys the target accepts
and lists, what lies in Vault. What the program says is used to know when to look, never what is true.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from rotator.sandbox.lab import Lab, LabError, wait_for
from rotator.sandbox.lab_config import Bench
from rotator.sandbox.traffic import Held, Snapshot, Traffic

RATE = 24.0  # provisioning calls a second, over all connections
QUIET = (
    "beat",
    "list_beats",
    "read_beat",
    "login",
    "lookup",
    "renew",
)  # the process's own calls to Vault, not a rotation's


@dataclass(frozen=True, slots=True)
class Claim:
    name: str
    ok: bool
    evidence: str


@dataclass
class Stage:
    """The laboratory and what was seen in it so far."""

    lab: Lab
    console: Console
    claims: list[Claim] = field(default_factory=list)
    rotations: list[dict[str, Any]] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=lambda: {"okta_apps": 0, "vault": 0, "target": 0})
    keys: set[str] = field(default_factory=set)  # every key that was seen in use, to look for it where it must not be
    seen: Snapshot = field(default_factory=Snapshot)  # the traffic for which no refusal is expected
    traffic: Traffic = field(default_factory=lambda: Traffic({}))

    # --- telling ---

    def say(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False, markup=False)

    def claim(self, name: str, facts: Mapping[str, bool], note: str = "") -> None:
        """It holds if there are facts and all of them do; the evidence names each."""
        ok = bool(facts) and all(facts.values())
        evidence = "; ".join(fact if true else f"NOT TRUE: {fact}" for fact, true in facts.items())
        self._judged(Claim(name, ok, f"{evidence} ({note})" if note else evidence))

    def play(self, title: str, scene: Callable[[Stage], None]) -> bool:
        """One scene; whether it came to its end. What goes wrong in it is a claim that does not hold."""
        self.console.print(f"\n{title}", style="bold", highlight=False, markup=False)
        try:
            scene(self)
        except Exception as error:
            self._judged(Claim(title, ok=False, evidence=f"{type(error).__name__}: {error}"))
            return False
        return True

    def _judged(self, claim: Claim) -> None:
        self.claims.append(claim)
        style = "green" if claim.ok else "bold red"
        self.console.print(f"  {'✓' if claim.ok else '✗'} {claim.name}", style=style, highlight=False, markup=False)
        self.console.print(f"    {claim.evidence}", style="dim", highlight=False, markup=False)

    # --- traffic ---

    def begin_traffic(self) -> None:
        """Provisioning at every target, with the key that Okta provisions with at that instant."""
        self.traffic = Traffic({name: self._source(name) for name in self.lab.benches}, rate=RATE)
        self.traffic.start()
        wait_for(lambda: self.traffic.snapshot().succeeded >= len(self.lab.benches), "provisioning to begin")

    def _source(self, name: str) -> Callable[[], Held | None]:
        def source() -> Held | None:
            held = self.lab.held(name)
            if held is not None:
                self.keys.add(held.key)
            return held

        return source

    # --- the servers ---

    def bench(self, name: str) -> Bench:
        return self.lab.benches[name]

    def held(self, name: str) -> str:
        """The key that Okta has stored for this connection."""
        return self.lab.okta.held_key(self.bench(name).app_id) or ""

    def changed(self, name: str, old: str) -> dict[str, bool]:
        """The facts of a rotation that came to its end: the new key on all sides, the old one dead."""
        new, bench = self.held(name), self.bench(name)
        return {
            "Okta holds another key and is ENABLED": new != old and self.lab.okta.enabled(bench.app_id),
            "the target accepts it": bench.target.accepts(new),
            "the target refuses the old one": not bench.target.accepts(old),
            "one key is live there": len(bench.target.live_keys()) == 1,
            "Vault's current key is the one that Okta holds": self.lab.stored("keys", name).get("key") == new,
            "nothing is left staged": not self.lab.stored("staged", name),
        }

    def unchanged(self, name: str, old: str) -> dict[str, bool]:
        """The facts of a rotation that was undone: the old key on all sides, the candidate dead."""
        bench = self.bench(name)
        ids = [key_id for key_id, _ in bench.target.live_keys()]
        minted = bench.target.count(side="admin", method="POST", status=200)
        return {
            "Okta holds the old key and is ENABLED": self.held(name) == old and self.lab.okta.enabled(bench.app_id),
            "the target accepts it": bench.target.accepts(old),
            f"of the {minted} key(s) it minted, none is live": minted > 0 and ids == [bench.first_id],
            "Vault's current key is the old one": self.lab.stored("keys", name).get("key") == old,
            "nothing is left staged": not self.lab.stored("staged", name),
        }

    def posts(self, name: str) -> list[int]:
        """The statuses with which Okta answered what was pushed to this app; 0: no answer."""
        app_id = self.bench(name).app_id
        return [call.status for call in self.lab.okta.calls if call.method == "POST" and app_id in call.path]

    # --- rotations ---

    def record(self, name: str) -> dict[str, Any]:
        """The state record, as it lies in Vault."""
        record: dict[str, Any] = self.lab.record(name).get("record") or {}
        return record

    def sequence(self, name: str) -> int:
        return int(self.record(name).get("sequence", 0))

    def ask(self, name: str, reason: str) -> str:
        """Rotate by HTTP; the rotation's id."""
        answer = self.lab.api("POST", f"/v1/connections/{name}/rotate", {"reason": reason})
        if answer.status_code != 202:
            raise LabError(f"asked to rotate {name}, the service answered {answer.status_code}: {answer.text}")
        return str(answer.json()["rotation_id"])

    def at(self, name: str, what: str, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Wait until the open rotation, as it lies in Vault, fulfils the condition; the rotation."""
        found: dict[str, Any] = wait_for(
            lambda: (r := self.record(name).get("rotation")) and condition(r) and r, f"{name}: {what}"
        )
        return found

    def ended(self, name: str, after: int) -> dict[str, Any]:
        """Wait until a rotation later than `after` has ended, and keep it for the table."""

        def last() -> dict[str, Any] | None:
            record = self.record(name)
            found: dict[str, Any] | None = record.get("last")
            return found if found and found["sequence"] > after and not record.get("rotation") else None

        found: dict[str, Any] = wait_for(last, f"{name}: the rotation's end")
        phases: dict[str, float] = {}
        for time in found["times"]:
            phases[time["phase"]] = round(phases.get(time["phase"], 0.0) + time["seconds"], 3)
        shown = {key: found[key] for key in ("trigger", "strategy", "outcome")}
        self.rotations.append({"connection": name, **shown, "phases": phases})
        return found

    # --- the daemon ---

    def reload(self) -> None:
        """Give the daemon the configuration that now stands in the file, by SIGHUP."""
        before = len(self.lab.told("reloaded"))
        self.lab.write()
        self.lab.processes[-1].send_signal(signal.SIGHUP)
        wait_for(lambda: len(self.lab.told("reloaded")) > before, "the new configuration to be taken")

    def metric(self, name: str, **labels: str) -> dict[str, float]:
        """A family's series from /metrics, by their label text."""
        found = {}
        for line in self.lab.api("GET", "/metrics").text.splitlines():
            match = re.fullmatch(re.escape(name) + r"(\{.*\})? (\S+)", line)
            if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
                found[match[1] or ""] = float(match[2])
        return found

    def vault_calls(self) -> int:
        """The daemon's calls to Vault so far, without its heartbeat, sign-in and token."""
        counted = self.metric("rotator_api_requests_total", system="vault")
        quiet = tuple(f'operation="{operation}"' for operation in QUIET)
        return int(sum(number for labels, number in counted.items() if not any(word in labels for word in quiet)))

    def tick(self) -> None:
        """Wait until the daemon has looked at all connections once more."""
        name = "rotator_last_tick_timestamp_seconds"
        before = self.metric(name)
        wait_for(lambda: self.metric(name) != before, "a tick")
