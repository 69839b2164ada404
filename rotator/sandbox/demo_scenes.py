"""The demo's scenes in which everything goes well: adopted keys are left alone, then rotated by each trigger and strategy.

`demo_trouble.py` has the others.
"""

from __future__ import annotations

import signal

from rotator.sandbox.demo_stage import QUIET, Stage
from rotator.sandbox.lab import wait_for
from rotator.sandbox.traffic import Snapshot

ONE_KEY = ("rolled", "supplied")  # the mint kills the key that Okta holds: a gap that the configuration accepts
BAD_ON_PURPOSE = ("read-only",)  # writes with the bad key are refused, which is how it is found


def nothing_by_itself(stage: Stage) -> None:
    """Starting the daemon rotates nothing."""
    stage.say("The keys in use were adopted. The daemon has started and looks at every connection, again and again.")
    for _ in range(3):
        stage.tick()
    benches = stage.lab.benches.values()
    minted = sum(t.count(side="admin", method=method) for t in stage.lab.targets.values() for method in ("POST", "PUT"))
    stage.claim(
        "adopted keys are not rotated merely because the daemon started",
        {
            f"Okta holds the first key of all {len(benches)} apps": all(
                stage.held(b.name) == b.first_key for b in benches
            ),
            "nothing was pushed to Okta": not any(stage.posts(b.name) for b in benches),
            "no target was asked for a key": minted == 0,
        },
    )


def by_schedule(stage: Stage) -> None:
    """A short interval comes with a reload; the rotation follows by itself."""
    bench, old, before = stage.bench("steady"), stage.held("steady"), stage.sequence("steady")
    stage.say("The configuration of `steady` now says rotate_every = 5s, reloaded by SIGHUP. Nobody asks for anything.")
    bench.settings["rotate_every"] = "5s"
    stage.reload()
    ended = stage.ended("steady", before)
    bench.settings["rotate_every"] = "30d"
    stage.reload()
    stage.tick()
    while stage.record("steady").get("rotation"):  # the next was due before the interval was long again
        stage.ended("steady", ended["sequence"])
    facts = stage.changed("steady", old)
    stage.claim(
        "rotated by schedule (strategy overlap)", {"the trigger was schedule": ended["trigger"] == "schedule"} | facts
    )


def by_signal(stage: Stage) -> None:
    """SIGUSR1 rotates what the configuration names, here at a target that lets two keys live."""
    old, before = stage.held("two-keys"), stage.sequence("two-keys")
    stage.say(
        "The daemon gets SIGUSR1, which the configuration has for `two-keys`: its target allows two keys at most."
    )
    stage.lab.processes[-1].send_signal(signal.SIGUSR1)
    ended = stage.ended("two-keys", before)
    facts = {"the trigger was signal": ended["trigger"] == "signal"} | stage.changed("two-keys", old)
    stage.claim("rotated by signal (strategy make_room)", facts)


def by_http(stage: Stage) -> None:
    """POST rotates; the calls of this one rotation are counted by those who got them."""
    old, before, target = stage.held("steady"), stage.sequence("steady"), stage.bench("steady").target
    stage.say("POST /v1/connections/steady/rotate. Okta, the target and Vault's metrics count the calls that it takes.")

    def counted() -> dict[str, int]:
        agents = sum(count for call, count in target.calls.items() if call.agent.startswith("rotator"))
        return {"okta_apps": stage.lab.okta.calls_in("apps"), "vault": stage.vault_calls(), "target": agents}

    def settled() -> dict[str, int]:
        """The counts, once a whole tick has added nothing."""
        while True:
            one = counted()
            stage.tick()
            if counted() == one:
                return one

    start = settled()
    stage.ask("steady", "demo")
    stage.ended("steady", before)
    stop = settled()
    stage.calls = {system: stop[system] - start[system] for system in start}
    stage.claim("rotated by HTTP (strategy overlap)", stage.changed("steady", old))
    okta, vault, at_target = stage.calls.values()
    stage.claim(
        "a clean rotation takes few calls",
        {
            f"{okta} to Okta's apps bucket (at most 5)": 0 < okta <= 5,
            f"{vault} to Vault (at most 20)": 0 < vault <= 20,
            f"{at_target} to the target (at most 14)": 0 < at_target <= 14,
        },
        "counted by Okta, by the target for the rotator's User-Agent, and for Vault from rotator_api_requests_total"
        f" without {', '.join(QUIET)}",
    )


def one_key_only(stage: Stage) -> None:
    """Targets where minting kills the old key: the gap was allowed in the configuration, and it closes."""
    stage.say("`rolled` and `supplied` have targets with one key only; allow_gap = true accepts a short gap there.")
    names = {"rolled": "replace", "supplied": "replace_supplied"}
    old = {name: (stage.held(name), stage.sequence(name)) for name in names}
    for name in names:
        stage.ask(name, "demo")
    for name, strategy in names.items():
        key, before = old[name]
        stage.ended(name, before)
        _provisioning_goes_on(stage, name)
        refused = stage.traffic.snapshot(name).failed
        facts = stage.changed(name, key) | {"provisioning goes on": True}
        stage.claim(f"rotated where one key lives (strategy {strategy})", facts, f"{refused} call(s) fell into the gap")


def provisioning(stage: Stage) -> None:
    """What Okta's provisioning met during all the scenes."""
    apart = {name: stage.traffic.snapshot(name) for name in (*ONE_KEY, *BAD_ON_PURPOSE)}
    others = [stage.traffic.snapshot(name) for name in stage.lab.benches if name not in apart]
    seen = Snapshot(**{field: sum(getattr(one, field) for one in others) for field in Snapshot.__slots__})
    stage.seen = seen
    stage.claim(
        "where two keys can live, no provisioning call was refused",
        {
            f"{seen.calls} calls, {seen.failed} refused with the key that Okta held": seen.calls > 0
            and seen.failed == 0,
            "none went wrong in another way while the target was up": seen.connection_errors + seen.unexpected == 0,
            "there were calls during the outage": seen.failed_while_target_down > 0,
        },
        "apart, as expected: "
        + ", ".join(f"{name} {one.failed} of {one.calls} refused" for name, one in apart.items()),
    )


def _provisioning_goes_on(stage: Stage, name: str) -> None:
    good = stage.traffic.snapshot(name).succeeded
    wait_for(lambda: stage.traffic.snapshot(name).succeeded > good, f"{name}: provisioning to go on")
