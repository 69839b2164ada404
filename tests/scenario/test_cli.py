"""Every command on a real laboratory: what it prints with --json, its exit code, and that no key is ever in either.

One laboratory, without a daemon until the last section. The tests stand in the order of a first day's work and each
leaves its connection as the next one needs it; the connections are otherwise each test's own.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rotator.sandbox.lab import Lab, end, wait_for
from rotator.sandbox.lab_process import environment

DONE, UNEXPECTED, USAGE, ROLLED_BACK, STUCK, REFUSED, WAITING = range(7)
BY_PERSON = "scim2testapp"  # an app whose connection Okta's API does not set
FROZEN = '[defaults]\nfreeze = [{ from = 2020-01-01, until = 2999-01-01, reason = "audit" }]\n'


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(tick="300ms", lease="4s", call_deadline="2s") as lab:
        quick = {"settle": "0s"}
        lab.connect("graf", **quick)
        lab.connect("refused", **quick)
        lab.connect("typed", app=BY_PERSON, target="graf", **quick)
        lab.connect("late", app=BY_PERSON, target="graf", person_deadline="1s", **quick)
        lab.connect("minted", shape="manual", **quick)
        lab.connect("fresh", target="graf", **quick)
        lab.connect("long", target="graf", overlap="3h", watch_every="1s", **quick)
        lab.targets["refused"].behaviour.mint_only_for = "rotator"  # Okta's own test of the candidate fails
        lab.write()
        yield lab


def one(answer: Any) -> dict[str, Any]:
    """The one row of a command's results."""
    (row,) = answer["results"]
    found: dict[str, Any] = row
    return found


def rotate(lab: Lab, name: str, *options: str) -> tuple[int, dict[str, Any]]:
    code, answer, _ = lab.cli("rotate", name, *options)
    row = one(answer)
    assert row["code"] == code
    return code, row


def test_check_config_tells_each_connections_strategy_and_what_people_do(lab: Lab) -> None:
    code, answer, _ = lab.cli("check-config")

    assert code == DONE
    assert answer["ok"] is True
    assert answer["connections"]["graf"]["strategy"] == "overlap"
    assert answer["connections"]["typed"]["push"] == "person"
    assert answer["connections"]["minted"]["mint"] == "person"


def test_plan_names_every_call_and_changes_nothing(lab: Lab) -> None:
    before = len(lab.okta.calls), dict(lab.targets["graf"].calls)
    code, answer, _ = lab.cli("plan", "graf")

    assert code == DONE
    assert answer["no_return"] == "retire"
    assert [s["phase"] for s in answer["steps"]] == [
        *("preflight", "mint", "stage", "prove", "push", "confirm", "promote", "overlap", "retire")
    ]
    assert all(s["if_it_dies"] and s["on_failure"] and s["calls"] for s in answer["steps"])
    assert (len(lab.okta.calls), dict(lab.targets["graf"].calls)) == before


# --- adopt -------------------------------------------------------------------------------------------------------------


def test_a_key_that_nobody_adopted_is_not_rotated(lab: Lab) -> None:
    code, row = rotate(lab, "fresh")

    assert (code, row["reason"]) == (REFUSED, "key_unknown")
    assert lab.record("fresh") == {}


@pytest.mark.parametrize(
    ("flaw", "sentence"),
    [
        pytest.param(lambda key: f" {key}", "leading whitespace at position 0", id="a blank in front"),
        pytest.param(lambda key: f"Bearer {key}", "scheme", id="its scheme in front"),
        pytest.param(lambda key: f"{key}\r", "trailing whitespace", id="a Windows line end"),
        pytest.param(lambda _: "", "the key is empty", id="nothing at all"),
        pytest.param(lambda key: f"{key}x", "does not accept this key", id="a key that the target refuses"),
    ],
)
def test_adopt_refuses_what_is_no_key_of_the_target(lab: Lab, flaw: Any, sentence: str) -> None:
    code, answer, error = lab.cli("adopt", "graf", "--stdin", stdin=flaw(lab.benches["graf"].first_key) + "\n")

    assert code == REFUSED
    assert sentence in answer["message"]
    assert sentence in error
    assert lab.record("graf") == {}


def test_adopt_refuses_an_id_that_the_target_does_not_list_and_names_those_that_it_does(lab: Lab) -> None:
    code, answer, _ = lab.cli("adopt", "graf", "--key-id", "424242")

    assert code == REFUSED
    assert "lists no key 424242" in answer["message"]
    assert lab.benches["graf"].first_id in answer["message"]
    assert lab.record("graf") == {}


def test_adopt_reads_a_key_that_comes_in_pieces(lab: Lab) -> None:
    bench = lab.benches["graf"]
    command = [sys.executable, "-m", "rotator.cli", "adopt", "graf", "--stdin", "--json", "--config", str(lab.config)]
    process = subprocess.Popen(
        [*command, "--key-id", bench.first_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(lab.home),
    )
    assert process.stdin is not None
    half = len(bench.first_key) // 2
    process.stdin.write(bench.first_key[:half].encode())
    process.stdin.flush()
    wait_for(lambda: _drained(process.stdin), "the first half to be read", 30)
    out, error = process.communicate(bench.first_key[half:].encode() + b"\n", timeout=60)
    lab.answers += [out.decode(), error.decode()]

    assert process.returncode == DONE, error
    current = lab.record("graf")["record"]["current"]
    assert current["key_id"] == bench.first_id
    assert current["ours"] is True


def _drained(pipe: Any) -> bool:
    """Whether the reader has taken all that lies in the pipe."""
    import fcntl
    import termios

    waiting = fcntl.ioctl(pipe.fileno(), termios.FIONREAD, b"\0" * 4)
    return int.from_bytes(waiting, sys.byteorder) == 0


def test_adopt_takes_the_key_that_lies_in_vault(lab: Lab) -> None:
    lab.adopt("refused", "typed", "late", "minted", "long")

    for name in ("refused", "typed", "late", "minted", "long"):
        record, bench = lab.record(name)["record"], lab.benches[name]
        assert record["current"]["version"] == 1
        assert bench.target.accepts(bench.first_key)


# --- looking -----------------------------------------------------------------------------------------------------------


def test_status_tells_every_connections_state(lab: Lab) -> None:
    code, answer, _ = lab.cli("status")

    assert code == DONE
    states = {c["name"]: c["state"] for c in answer["connections"]}
    assert states["graf"] == "ok"
    assert states["fresh"] == "unknown_key"
    assert all(c["key"] for c in answer["connections"] if c["name"] != "fresh")


def test_verify_proves_both_sides_and_a_dead_key_is_told(lab: Lab) -> None:
    code, answer, _ = lab.cli("verify", "graf")
    assert (code, answer["ok"], answer["target"], answer["idp"]) == (DONE, True, "accepted", "enabled")

    with lab.targets["graf"].down():
        code, answer, _ = lab.cli("verify", "graf")
    assert (code, answer["ok"], answer["target"]) == (UNEXPECTED, False, "transient")


# --- rotating ----------------------------------------------------------------------------------------------------------


def test_rotate_ends_with_0_when_rotated(lab: Lab) -> None:
    bench = lab.benches["graf"]
    code, row = rotate(lab, "graf", "--reason", "first day")

    assert (code, row["outcome"]) == (DONE, "rotated")
    held = lab.okta.held_key(bench.app_id)
    assert held == lab.stored("keys", "graf")["key"]
    assert held != bench.first_key
    assert not bench.target.accepts(bench.first_key)


def test_rotate_ends_with_3_when_rolled_back(lab: Lab) -> None:
    bench = lab.benches["refused"]
    code, row = rotate(lab, "refused")

    assert (code, row["outcome"], row["reason"]) == (ROLLED_BACK, "rolled_back", "key_refused_by_idp")
    assert lab.okta.held_key(bench.app_id) == bench.first_key
    assert len(bench.target.live_keys()) == 1


def test_rotate_ends_with_5_in_a_freeze(lab: Lab) -> None:
    frozen = lab.home / "frozen.toml"
    frozen.write_text(lab.config.read_text() + FROZEN)
    code, out, _ = run(lab, frozen, "rotate", "graf")

    row = one(json.loads(out))
    assert (code, row["reason"]) == (REFUSED, "freeze")
    assert "audit" in row["message"]


def test_rotate_ends_with_6_when_a_person_has_to_type_and_confirm_ends_it(lab: Lab) -> None:
    bench = lab.benches["typed"]
    code, row = rotate(lab, "typed")
    assert code == WAITING
    assert lab.cli("status", "typed")[0] == WAITING

    again, same = rotate(lab, "typed")
    assert (again, same["rotation_id"]) == (WAITING, row["rotation_id"]), "who asks again is told the same"

    lab.okta.person_types_key(bench.app_id, lab.stored("staged", "typed")["key"])
    code, answer, _ = lab.cli("confirm", "typed")
    assert (code, one(answer)["outcome"]) == (DONE, "rotated")
    assert not bench.target.accepts(bench.first_key)


def test_a_key_that_a_person_mints_is_staged_with_their_own_token(lab: Lab) -> None:
    bench = lab.benches["minted"]
    assert rotate(lab, "minted")[0] == WAITING
    key = bench.target.person_mints("by hand")
    token = ("--vault-token-file", str(lab.person_token_file))

    for bad, sentence in ((f"{key} ", "trailing whitespace"), (bench.first_key, "was used before")):
        code, answer, _ = lab.cli("stage", "minted", *token, stdin=f"{bad}\n")
        assert (code, sentence in answer["message"]) == (REFUSED, True), answer
        assert lab.stored("handoff", "minted") == {}
    code, answer, _ = lab.cli("stage", "minted", "--vault-token-file", str(lab.home / "no-such-file"), stdin=key)
    assert (code, "can't be read" in answer["message"]) == (USAGE, True)
    assert lab.cli("stage", "minted", stdin=key)[0] == USAGE, "no token: it can't be asked for beside a key on stdin"

    code, answer, _ = lab.cli("stage", "minted", *token, stdin=f"{key}\n")
    assert code == DONE
    assert lab.stored("handoff", "minted")["key"] == key
    code, row = rotate(lab, "minted")
    assert (code, row["outcome"]) == (DONE, "rotated")
    assert lab.okta.held_key(bench.app_id) == key


def test_stage_needs_no_credentials_but_the_persons_own(lab: Lab) -> None:
    """On a person's own machine the rotator's secret id is not there."""
    theirs = lab.home / "theirs.toml"
    theirs.write_text(lab.config.read_text().replace(f"{lab.home}/vault-secret-id", f"{lab.home}/not-here"))
    bench = lab.benches["minted"]
    key = bench.target.person_mints("next")
    code, out, error = run(
        lab, theirs, "stage", "minted", "--vault-token-file", str(lab.person_token_file), stdin=f"{key}\n"
    )

    assert code == DONE, (out, error)
    assert lab.stored("handoff", "minted")["key"] == key


def test_cancel_ends_a_rotation_that_changed_nothing(lab: Lab) -> None:
    lab.kv().delete_metadata_and_all_versions("rotator/handoff/minted", mount_point="secret")
    assert rotate(lab, "minted")[0] == WAITING

    code, answer, _ = lab.cli("cancel", "minted")

    assert (code, one(answer)["outcome"], one(answer)["reason"]) == (REFUSED, "cancelled", "cancel_asked")
    assert lab.cli("cancel", "minted")[0] == REFUSED


def test_rollback_gives_a_person_the_old_key_to_type_back(lab: Lab) -> None:
    bench = lab.benches["typed"]
    old = lab.stored("keys", "typed")["key"]
    assert rotate(lab, "typed")[0] == WAITING

    code, answer, _ = lab.cli("rollback", "typed")
    assert code == WAITING, answer
    assert lab.record("typed")["record"]["rotation"]["phase"] == "await_restore"
    lab.okta.person_types_key(bench.app_id, old)
    code, answer, _ = lab.cli("confirm", "typed")
    assert (code, one(answer)["reason"]) == (ROLLED_BACK, "rollback_asked")
    assert lab.okta.held_key(bench.app_id) == old


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_long_overlap_is_announced_and_laid_down_when_the_command_is_ended(lab: Lab, number: signal.Signals) -> None:
    errors = lab.home / f"long-{number}.log"
    with errors.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "rotator.cli", "rotate", "long", "--json", "--config", str(lab.config)],
            stdout=subprocess.PIPE,
            stderr=stream,
            env=environment(lab.home),
        )
    wait_for(lambda: "both keys live until" in errors.read_text(), "the overlap to be announced")
    code = end(process, number)
    assert process.stdout is not None
    out = process.stdout.read().decode()
    lab.answers += [out, errors.read_text()]

    row = one(json.loads(out))
    record = lab.record("long")["record"]
    assert code == WAITING
    assert "laid down" in row["message"]
    assert record["rotation"]["phase"] == "overlap"
    assert record["rotation"]["id"] == row["rotation_id"]
    assert record.get("holder") is None
    assert "Traceback" not in errors.read_text()


# --- wrong words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("rotate", "nobody"), id="an unknown connection"),
        pytest.param(("plan", "nobody"), id="a plan of an unknown connection"),
        pytest.param(("adopt", "nobody"), id="an adoption of an unknown connection"),
        pytest.param(("rotate",), id="no name"),
        pytest.param(("rotate", "graf", "--all"), id="a name and --all"),
        pytest.param(("turn", "graf"), id="an unknown command"),
        pytest.param(("rotate", "graf", "--fast"), id="an unknown option"),
    ],
)
def test_wrong_usage_ends_with_2(lab: Lab, words: tuple[str, ...]) -> None:
    sequence = lab.record("graf")["record"]["sequence"]
    code, _, error = run(lab, lab.config, *words)

    assert code == USAGE
    assert error
    assert lab.record("graf")["record"]["sequence"] == sequence


def test_every_mistake_of_a_configuration_is_named_at_once_with_its_place_and_without_its_value(lab: Lab) -> None:
    canary = "canary-value-of-a-secret"
    text = lab.config.read_text()
    bad = lab.home / "bad.toml"
    bad.write_text(
        text.replace('tick = "300ms"', "tick = 300")
        .replace(f'token = "file:{lab.home}/okta-token"', f'token = "{canary}"', 1)
        .replace('app = "scim2testapp"', 'app = "scim2testapp"\nkolor = "blue"', 1)
    )
    for command in (("check-config",), ("rotate", "graf"), ("status",), ("run",)):
        code, out, error = run(lab, bad, *command)

        assert code == USAGE
        for wanted in ("rotator.tick", "idp.okta.auth.token", "kolor"):
            line = next(line for line in error.splitlines() if wanted in line)
            assert re.match(rf"{re.escape(str(bad))}:\d+ ", line), line
        assert canary not in out + error


def test_an_unsafe_strategy_names_the_reason_and_the_way_out(lab: Lab) -> None:
    bad = lab.home / "unsafe.toml"
    bad.write_text(lab.config.read_text().replace('kind = "manual"', 'kind = "manual"\nlive_keys = "one"'))

    code, out, _ = run(lab, bad, "check-config")

    assert code == USAGE
    assert "minting kills the old key" in json.loads(out)["message"]
    assert "allow_gap = true" in json.loads(out)["message"]


def test_a_public_bind_without_tls_is_refused(lab: Lab) -> None:
    bad = lab.home / "public.toml"
    bad.write_text(lab.config.read_text().replace('listen = "127.0.0.1:0"', 'listen = "0.0.0.0:0"'))

    code, _, error = run(lab, bad, "run")

    assert code == USAGE
    assert "api.listen" in error
    assert "TLS" in error


# --- beside a daemon ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> subprocess.Popen[bytes]:
    return lab.start()


def test_a_daemon_goes_on_with_what_a_command_laid_down(lab: Lab, daemon: subprocess.Popen[bytes]) -> None:
    rotation = lab.record("long")["record"]["rotation"]["id"]
    assert daemon.poll() is None

    code, answer, _ = lab.cli("rollback", "long")

    assert (code, one(answer)["outcome"], one(answer)["rotation_id"]) == (ROLLED_BACK, "rolled_back", rotation)
    assert lab.okta.held_key(lab.benches["long"].app_id) == lab.benches["long"].first_key


def test_a_command_and_a_daemon_do_not_fight_over_a_rotation(lab: Lab, daemon: subprocess.Popen[bytes]) -> None:
    bench, before = lab.benches["graf"], lab.record("graf")["record"]["sequence"]
    posts = [lab.api("POST", "/v1/connections/graf/rotate", {})]
    code, row = rotate(lab, "graf")

    assert posts[0].status_code == 202
    assert (code, row["outcome"]) == (DONE, "rotated")
    record = lab.record("graf")["record"]
    assert record["sequence"] in {before + 1, before + 2}  # the second, where the first was through already
    assert lab.okta.held_key(bench.app_id) == lab.stored("keys", "graf")["key"]
    assert daemon.poll() is None


def test_a_deadline_without_proof_ends_with_4_until_a_person_resumes_or_adopts(
    lab: Lab, daemon: subprocess.Popen[bytes]
) -> None:
    bench = lab.benches["late"]
    assert daemon.poll() is None
    assert rotate(lab, "late", "--no-wait")[0] == DONE
    wait_for(lambda: lab.record("late")["record"]["rotation"].get("stuck"), "the deadline")

    assert rotate(lab, "late")[0] == STUCK
    assert lab.cli("status", "late")[0] == STUCK
    assert bench.target.accepts(bench.first_key), "which key Okta holds is unknown: none is revoked"

    code, answer, _ = lab.cli("resume", "late")
    assert code == WAITING, answer
    wait_for(lambda: lab.record("late")["record"]["rotation"].get("stuck"), "the second deadline")
    candidate = lab.stored("staged", "late")["key"]
    assert bench.target.accepts(candidate)
    code, answer, _ = lab.cli("adopt", "late", "--key-id", bench.first_id)
    assert code == DONE, answer
    assert lab.record("late")["record"].get("rotation") is None
    assert [d["kind"] for d in lab.record("late")["record"]["debts"]] == ["person"]
    assert bench.target.accepts(candidate), "Okta may hold it: only a person may revoke it"
    bench.target.person_revokes(candidate)
    wait_for(lambda: not lab.record("late")["record"].get("debts"), "the daemon to notice the candidate's death", 90)
    assert bench.target.accepts(bench.first_key)


def test_history_verifies_the_chain_and_tells_a_change(lab: Lab, daemon: subprocess.Popen[bytes]) -> None:
    end(daemon)
    code, answer, _ = lab.cli("history")
    assert (code, answer["problems"], answer["note"]) == (DONE, [], "")
    events = [e["event"] for e in answer["entries"] if e["connection"] == "graf"]
    assert events[:2] == ["adopted", "claimed"]
    assert {e["connection"] for e in answer["entries"]} == set(lab.benches) - {"fresh"}

    forged = lab.home / "forged.jsonl"
    forged.write_text(lab.ledger.read_text().replace("first day", "other day"))
    code, answer, _ = lab.cli("history", "--ledger", str(forged))
    assert code == UNEXPECTED
    assert answer["problems"]


def test_no_key_was_ever_printed_logged_or_written_down(lab: Lab) -> None:
    keys = {b.first_key for b in lab.benches.values()}
    for name in lab.benches:
        for slot in ("keys", "staged", "handoff"):
            for version in range(1, 9):
                keys.add(_version(lab, slot, name, version))
    keys |= {str(lab.okta.held_key(b.app_id)) for b in lab.benches.values()}
    keys.discard("")
    places = {
        "answers": "".join(lab.answers),
        "logs": lab.logs(),
        "ledger": lab.ledger.read_text(),
        "records": "".join(json.dumps(lab.record(n)) for n in lab.benches),
    }

    assert len(keys) > len(lab.benches)
    assert all(places.values())
    assert [where for where, text in places.items() if any(key in text for key in keys)] == []


def _version(lab: Lab, slot: str, name: str, version: int) -> str:
    import hvac.exceptions

    try:
        read = lab.kv().read_secret_version(
            f"rotator/{slot}/{name}", version=version, mount_point="secret", raise_on_deleted_version=True
        )
    except hvac.exceptions.InvalidPath:
        return ""
    return str(read["data"]["data"].get("key") or "")


def run(lab: Lab, config: Path, *words: str, stdin: str | None = None) -> tuple[int, str, str]:
    """A command with a configuration of its own: exit code, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "rotator.cli", *words, "--config", str(config), "--json"],
        input=stdin or "",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(lab.home),
    )
    lab.answers += [done.stdout, done.stderr]
    return done.returncode, done.stdout, done.stderr
