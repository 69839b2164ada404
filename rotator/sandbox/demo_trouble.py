"""The demo's scenes in which something is in the way: a bad key, an outage, a person's step, a crash."""

from __future__ import annotations

import signal

from rotator.sandbox.demo_stage import Stage
from rotator.sandbox.lab import end, wait_for
from rotator.sandbox.okta_limits import FaultKind

USER = "demo-user@example.com"


def refused_by_okta(stage: Stage) -> None:
    """The candidate passes every probe of the rotator, and Okta's own test fails."""
    bench, old, before = stage.bench("fenced"), stage.held("fenced"), stage.sequence("fenced")
    stage.say("The target of `fenced` now mints keys with an address list that has the rotator on it, but not Okta.")
    bench.target.behaviour.mint_only_for = "rotator"
    stage.ask("fenced", "demo")
    ended = stage.ended("fenced", before)
    bench.target.behaviour.mint_only_for = ""
    posts = stage.posts("fenced")
    wait_for(lambda: stage.lab.okta.provision(bench.app_id, USER) in {200, 201}, "Okta to provision again")
    facts = {
        f"Okta refused the candidate and took the old key back (answers {posts})": 400 in posts and posts[-1] == 200
    }
    facts |= stage.unchanged("fenced", old) | {"Okta provisions": True}
    stage.claim("a candidate that Okta refuses is rolled back", facts, ended["reason"])


def bad_in_real_use(stage: Stage) -> None:
    """Reading works, so every proof passes; provisioning writes, and Okta's log says that it fails."""
    bench, old, before = stage.bench("read-only"), stage.held("read-only"), stage.sequence("read-only")
    okta = stage.lab.okta
    stage.say("The target of `read-only` now mints keys that read but don't write. Okta takes one, then provisions.")
    bench.target.behaviour.mint_read_only = True
    stage.ask("read-only", "demo")
    stage.at("read-only", "the overlap", lambda r: r["phase"] == "overlap")
    candidate = stage.held("read-only")
    promoted = stage.lab.stored("keys", "read-only").get("key")
    refused = okta.provision(bench.app_id, USER)
    stage.say(f"In the overlap Okta provisions a user: the target answers {refused}. Both keys are still alive.")
    ended = stage.ended("read-only", before)
    bench.target.behaviour.mint_read_only = False
    again = okta.provision(bench.app_id, USER)
    facts = {
        "Okta held the candidate and Vault had it as current": candidate not in {old, ""} and promoted == candidate,
        f"Okta's provisioning failed with it (HTTP {refused})": refused == 403,
    }
    facts |= stage.unchanged("read-only", old) | {f"Okta provisions again (HTTP {again})": again in {200, 201}}
    stage.claim("a key that is bad only in real use is found in the overlap and rolled back", facts, ended["reason"])


def outage(stage: Stage) -> None:
    """The target goes away while both keys live, and comes back."""
    bench, old, before = stage.bench("steady"), stage.held("steady"), stage.sequence("steady")
    bench.settings["overlap"] = "4s"
    stage.reload()
    stage.ask("steady", "demo")
    stage.at("steady", "the overlap", lambda r: r["phase"] == "overlap")
    with stage.traffic.target_down("steady"):
        with bench.target.down("refused"):
            stage.say("Okta has the new key. The target of `steady` stops listening, before the old key is revoked.")
            waiting = stage.at("steady", "the outage to be noticed", lambda r: r.get("waiting") == "target_down")
            lost = stage.traffic.snapshot("steady").failed_while_target_down
            wait_for(
                lambda: stage.traffic.snapshot("steady").failed_while_target_down > lost, "provisioning to notice too"
            )
            alive = bench.target.accepts(old)
        stage.say("The target is back.")
    ended = stage.ended("steady", before)
    facts = {
        f"the rotation waited in {waiting['phase']}, and the old key was not given up": alive,
        "it went on by itself": ended["outcome"] == "rotated",
    }
    failed = stage.traffic.snapshot("steady").failed_while_target_down
    stage.claim(
        "a target's outage is ridden out", facts | stage.changed("steady", old), f"{failed} call(s) met a target down"
    )


def person_mints(stage: Stage) -> None:
    """No API mints at this target: a person does, and hands the key over with their own Vault token."""
    bench, old, before = stage.bench("hand-minted"), stage.held("hand-minted"), stage.sequence("hand-minted")
    stage.ask("hand-minted", "demo")
    stage.at("hand-minted", "a person to be awaited", lambda r: r.get("waiting") == "awaiting_key")
    stage.say("The rotation of `hand-minted` waits. A person mints a key in the target's console, and runs")
    stage.say("`rotator stage hand-minted --vault-token-file …` with the key on stdin.")
    key = bench.target.person_mints("by hand")
    stage.keys.add(key)
    code, _, error = stage.lab.cli(
        "stage", "hand-minted", "--vault-token-file", str(stage.lab.person_token_file), stdin=f"{key}\n"
    )
    ended = stage.ended("hand-minted", before)
    left = bench.target.accepts(old)
    bench.target.person_revokes(old)
    facts = {
        f"the command ended with {code}{error.strip() if code else ''}": code == 0,
        "Okta holds the person's key": stage.held("hand-minted") == key,
        "the person's copy in Vault is destroyed": not stage.lab.stored("handoff", "hand-minted"),
        "the old key was left for the person to revoke": left,
    }
    note = f"ended {ended['outcome']}; the person has now revoked the old key"
    stage.claim("a key that only a person can mint is handed over", facts | stage.changed("hand-minted", old), note)


def person_pushes(stage: Stage) -> None:
    """Okta's API doesn't cover this app: a person types the key in, and the rotator sees it in Okta's log."""
    bench, old, before = stage.bench("hand-pushed"), stage.held("hand-pushed"), stage.sequence("hand-pushed")
    stage.ask("hand-pushed", "demo")
    stage.at("hand-pushed", "a person to be awaited", lambda r: r.get("waiting") == "awaiting_push")
    stage.say("The rotation of `hand-pushed` waits. A person reads the staged key from Vault with their own token and")
    stage.say("types it into Okta's Admin Console.")
    token = stage.lab.person_token_file.read_text().strip()
    key = str(stage.lab.stored("staged", "hand-pushed", token).get("key", ""))
    both = bench.target.accepts(old) and bench.target.accepts(key)
    typed = stage.lab.okta.person_types_key(bench.app_id, key)
    ended = stage.ended("hand-pushed", before)
    facts = {
        "both keys were alive while the person typed": both,
        "Okta's own test of the typed key passed": typed,
        "Okta holds the key that lay staged": stage.held("hand-pushed") == key != "",
        "the rotator pushed nothing to Okta": not stage.posts("hand-pushed"),
    }
    found = "; ".join(ended.get("evidence", ()))
    stage.claim(
        "an app that only a person can push to is finished by proof", facts | stage.changed("hand-pushed", old), found
    )


def killed_in_a_push(stage: Stage) -> None:
    """SIGKILL while Okta has stored the key and not answered: the next process goes on from the state record."""
    bench, old, before = stage.bench("steady"), stage.held("steady"), stage.sequence("steady")
    okta = stage.lab.okta
    live, posts = len(bench.target.live_keys()), len(stage.posts("steady"))
    okta.faults.add(FaultKind.TIMEOUT_AFTER_STORING, "POST", bench.app_id)
    stage.ask("steady", "demo")
    wait_for(lambda: stage.held("steady") != old, "Okta to hold the candidate")
    daemon = stage.lab.processes[-1]
    code = end(daemon, signal.SIGKILL)
    key, left = stage.held("steady"), stage.record("steady")
    stage.say(f"Okta stored the new key and keeps its answer back. kill -9 {daemon.pid}. A new daemon starts.")
    stage.lab.start()
    ended = stage.ended("steady", before)
    answers, after = stage.posts("steady")[posts:], stage.record("steady")
    facts = {
        "the daemon was killed": code == -signal.SIGKILL,
        "its record said push": left["rotation"]["phase"] == "push",
        "the same rotation went on": ended["id"] == left["rotation"]["id"],
        f"under a new epoch ({left['epoch']}, then {after['epoch']})": after["epoch"] > left["epoch"],
        f"the same key was pushed again (Okta's answers: {answers})": (answers[0], answers[-1]) == (0, 200)
        and stage.held("steady") == key,
        "no key was lost on the way": live == len(bench.target.live_keys()) == 1,
    }
    stage.claim("a rotation is finished after the daemon was killed in a push", facts | stage.changed("steady", old))
