"""What a sick Vault, network or gateway becomes: the right typed error, and no write doubled, lost or guessed at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from rotator.adapters.vault_keys import VaultKeyStore
from rotator.adapters.vault_state import VaultStateStore
from rotator.core.model import Record
from rotator.core.secret import Secret
from rotator.errors import Ambiguous, Conflict, Denied, Misconfigured, PortError, RateLimited, Transient
from rotator.ports import Slot, StoredKey
from tests.adapters.vault_faults import LOST, RESET, TWICE, Fault, Proxy, Reply, proxy
from tests.adapters.vault_helpers import Calls, SteadyClock, client
from tests.fakes.clock import FakeClock
from tests.openbao import OpenBao

_HTML = "<html>please sign in</html>"
_NO_ACTIVE = '{"errors":["local node not active but active cluster node not found"]}'
_LEADERSHIP = '{"errors":["leadership lost while committing log"]}'
_UPGRADING = '{"errors":["Upgrading from non-versioned to versioned data. This backend will be unavailable"]}'
_SEALED = '{"errors":["Vault is sealed"]}'
_ELSEWHERE = (("Location", "http://127.0.0.1:1/v1/stolen"),)


class World:
    """A store behind the proxy, one that goes straight to Vault, and what was called."""

    def __init__(self, bao: OpenBao, faulty: Proxy, **settings: Any) -> None:
        self.calls = Calls()
        self.clock = FakeClock()
        self.mount = bao.mount()
        self.faulty = faulty
        vault = client(faulty.address, bao.root_token, meter=self.calls, clock=self.clock, **settings)
        self.state = VaultStateStore(vault, self.mount, "rotator")
        self.keys = VaultKeyStore(vault, self.mount, "rotator")
        straight = client(bao.address, bao.root_token)
        self.truth = VaultStateStore(straight, self.mount, "rotator")
        self.true_keys = VaultKeyStore(straight, self.mount, "rotator")
        vault.login()
        self.truth.save(Record("graf"), 0)

    def on_writes(self, *script: Reply | Fault) -> None:
        self.faulty.only = "POST /v1/" + self.mount + "/data/"
        self.faulty.script = list(script)

    def on_all(self, *script: Reply | Fault) -> None:
        self.faulty.only = ""
        self.faulty.script = list(script)


@pytest.fixture
def world(openbao: OpenBao) -> Iterator[World]:
    with proxy(openbao.address) as faulty:
        yield World(openbao, faulty, read_timeout=2.0)


@pytest.mark.parametrize(
    ("step", "error", "says"),
    [
        pytest.param(Reply(500, _NO_ACTIVE), Transient, "not active", id="500 of a standby without a leader"),
        pytest.param(Reply(500, _LEADERSHIP), Transient, "leadership lost", id="500 of a leader that lost its place"),
        pytest.param(Reply(503, _SEALED), Transient, "sealed", id="503 sealed"),
        pytest.param(Reply(503, _HTML, "text/html"), Transient, "503", id="503 of a load balancer"),
        pytest.param(Reply(502, _HTML, "text/html"), Transient, "502", id="502 of a gateway"),
        pytest.param(Reply(504, _HTML, "text/html"), Transient, "504", id="504 of a gateway"),
        pytest.param(Reply(412), Transient, "412", id="412: a standby behind our last write"),
        pytest.param(Reply(472), Transient, "472", id="472: a disaster recovery replica"),
        pytest.param(Reply(473), Transient, "473", id="473: a performance standby"),
        pytest.param(Reply(501), Transient, "501", id="501 not initialised"),
        pytest.param(Reply(429), RateLimited, "429", id="429 with empty errors"),
        pytest.param(Reply(403, '{"errors":["permission denied"]}'), Denied, "permission denied", id="403"),
        pytest.param(Reply(404, _HTML, "text/html"), Misconfigured, "404", id="404 that is not Vault's"),
        pytest.param(Reply(200, _HTML, "text/html"), Misconfigured, "web page", id="200 with a login page"),
        pytest.param(Reply(200, "garbage"), Transient, "without Vault's answer", id="200 with garbage"),
        pytest.param(Reply(200, "[1]"), Misconfigured, "no JSON object", id="200 with a JSON list"),
        pytest.param(Reply(200, '{"data":{"x":1}}'), Misconfigured, "KV version 2", id="200 of some other API"),
        pytest.param(
            Reply(307, "", headers=_ELSEWHERE), Transient, "standby", id="307 of a standby that can't forward"
        ),
        pytest.param(Reply(301, "", headers=_ELSEWHERE), Misconfigured, "not followed", id="301 of another address"),
        pytest.param(RESET, Transient, "broke", id="the connection is reset"),
        pytest.param(Fault("close"), Transient, "broke", id="the connection is closed"),
        pytest.param(Fault("cut_body", applied=True), Transient, "broke", id="the body is cut"),
        pytest.param(Fault("cut_headers"), Transient, "without Vault's answer", id="the headers are cut"),
        pytest.param(Fault("hold"), Transient, "no answer in time", id="no answer comes"),
    ],
)
def test_a_read_that_fails(world: World, step: Reply | Fault, error: type[PortError], says: str) -> None:
    world.on_all(step, step)
    with pytest.raises(PortError, match=says) as caught:
        world.state.load("graf")
    assert type(caught.value) is error
    world.faulty.script.clear()
    assert world.state.load("graf") == (Record("graf"), 1), "a later read is well again"


@pytest.mark.parametrize(
    ("step", "error"),
    [
        pytest.param(Reply(500, _NO_ACTIVE), Transient, id="500 of a standby without a leader"),
        pytest.param(Reply(503, _SEALED), Transient, id="503 sealed"),
        pytest.param(Reply(412), Transient, id="412: a standby behind our last write"),
        pytest.param(Reply(473), Transient, id="473: a performance standby"),
        pytest.param(Reply(400, _UPGRADING), Transient, id="400 of a mount that has just been made"),
        pytest.param(Reply(429), RateLimited, id="429"),
        pytest.param(Reply(307, "", headers=_ELSEWHERE), Transient, id="307 of a standby that can't forward"),
        pytest.param(Reply(413), Misconfigured, id="413 too large"),
    ],
)
def test_a_write_that_was_clearly_refused_is_sent_once(world: World, step: Reply, error: type[PortError]) -> None:
    world.on_writes(step)
    with pytest.raises(PortError) as caught:
        world.state.save(Record("graf", epoch=1), 1)
    assert type(caught.value) is error
    assert [operation for operation, _ in world.calls.seen if operation != "lookup"] == ["save_state"]
    assert world.truth.load("graf") == (Record("graf"), 1)


@pytest.mark.parametrize(
    ("step", "sent"),
    [
        pytest.param(LOST, 1, id="Vault wrote it and the connection closed"),
        pytest.param(Fault("reset", applied=True), 1, id="Vault wrote it and the connection was reset"),
        pytest.param(Fault("cut_body", applied=True), 1, id="Vault wrote it and its answer was cut"),
        pytest.param(Fault("hold", applied=True), 1, id="Vault wrote it and its answer came too late"),
        pytest.param(RESET, 2, id="the request was dropped with a reset"),
        pytest.param(Fault("close"), 2, id="the request was dropped without a word"),
        pytest.param(Fault("cut_headers"), 2, id="the headers of an answer were cut"),
        pytest.param(Reply(200, _HTML, "text/html"), 2, id="a login page answered 200"),
        pytest.param(Reply(502, _HTML, "text/html"), 2, id="a gateway answered 502"),
        pytest.param(Reply(504, _HTML, "text/html"), 2, id="a gateway answered 504"),
        pytest.param(Reply(503, _HTML, "text/html"), 2, id="a load balancer answered 503"),
        pytest.param(Reply(500, _LEADERSHIP), 2, id="a leader lost its place while writing"),
    ],
)
def test_a_write_whose_answer_is_lost_is_settled(world: World, step: Reply | Fault, sent: int) -> None:
    world.on_writes(step)
    assert world.state.save(Record("graf", epoch=1), 1) == 2
    assert world.truth.load("graf") == (Record("graf", epoch=1), 2), "written exactly once"
    assert [operation for operation, _ in world.calls.seen].count("save_state") == sent
    assert ("save_state", "ambiguous") in world.calls.seen


def test_a_key_whose_answer_is_lost_is_settled_too(world: World) -> None:
    world.on_writes(LOST)
    assert world.keys.write("graf", Slot.STAGED, StoredKey(Secret("k-1")), 0) == 1
    assert world.true_keys.newest("graf", Slot.STAGED) == 1


def test_a_lost_write_that_somebody_overtook_is_still_ours(world: World) -> None:
    world.on_writes(LOST)
    original = world.faulty.next

    def overtaken(seen: Any) -> Reply | Fault:
        if seen.method == "GET" and len(world.faulty.script) == 0 and not overtakers:
            overtakers.append(world.truth.save(Record("graf", holder="other"), 2))
        return original(seen)

    overtakers: list[int] = []
    world.faulty.next = overtaken  # type: ignore[method-assign]  # a moment that no script can name
    assert world.state.save(Record("graf", holder="us"), 1) == 2
    assert overtakers == [3]


def test_a_dropped_write_that_somebody_else_made_is_a_conflict(world: World) -> None:
    world.on_writes(RESET)
    original = world.faulty.next

    def overtaken(seen: Any) -> Reply | Fault:
        if seen.method == "GET" and not overtakers:
            overtakers.append(world.truth.save(Record("graf", holder="other"), 1))
        return original(seen)

    overtakers: list[int] = []
    world.faulty.next = overtaken  # type: ignore[method-assign]  # a moment that no script can name
    with pytest.raises(Conflict):
        world.state.save(Record("graf", holder="us"), 1)
    assert world.truth.load("graf") == (Record("graf", holder="other"), 2)


def test_a_conflict_with_our_own_earlier_sending_is_success(world: World) -> None:
    """A gateway that sends a POST twice gives us the second one's answer: a mismatch with ourselves."""
    world.on_writes(TWICE)
    assert world.state.save(Record("graf", epoch=1), 1) == 2
    assert world.truth.load("graf") == (Record("graf", epoch=1), 2)


@pytest.mark.parametrize(
    ("writes", "reads"),
    [
        pytest.param([LOST], [RESET], id="the read-back breaks too"),
        pytest.param([LOST], [Reply(503, _SEALED)], id="Vault is sealed at the read-back"),
        pytest.param([LOST], [Reply(403), Reply(403)], id="the read-back is denied"),
        pytest.param([RESET, RESET], [], id="dropped twice"),
        pytest.param([RESET, Reply(503, _SEALED)], [], id="dropped, then sealed"),
    ],
)
def test_what_cannot_be_settled_is_ambiguous(world: World, writes: list[Any], reads: list[Any]) -> None:
    world.on_all(*writes[:1], *reads)
    if not reads:
        world.on_writes(*writes)
    with pytest.raises(Ambiguous):
        world.state.save(Record("graf", epoch=1), 1)
    world.faulty.script.clear()
    found = world.truth.load("graf")
    assert found in ((Record("graf"), 1), (Record("graf", epoch=1), 2)), "made once or not at all"


@pytest.mark.parametrize("step", [pytest.param(LOST, id="lost after it was done"), pytest.param(RESET, id="dropped")])
def test_destroying_is_repeated_once_when_its_answer_is_lost(world: World, step: Fault) -> None:
    world.true_keys.write("graf", Slot.STAGED, StoredKey(Secret("k-1")), 0)
    world.faulty.only, world.faulty.script = "/destroy/", [step]
    world.keys.destroy("graf", Slot.STAGED, (1,))
    assert world.true_keys.read("graf", Slot.STAGED) is None
    assert [operation for operation, _ in world.calls.seen].count("destroy_key") == 2


def test_a_destroy_lost_twice_is_ambiguous(world: World) -> None:
    world.faulty.only, world.faulty.script = "/destroy/", [RESET, RESET]
    with pytest.raises(Ambiguous):
        world.keys.destroy("graf", Slot.STAGED, (1,))


def test_a_refused_connection_is_transient_for_a_write_too(openbao: OpenBao) -> None:
    with proxy(openbao.address) as gone:
        vault = client(gone.address, openbao.root_token)
        vault.login()
        gone.only, gone.script = "GET", [Fault("close")]  # so that no connection is kept open
        with pytest.raises(Transient):
            VaultStateStore(vault, "kv", "rotator").load("graf")
    with pytest.raises(Transient, match="no connection"):
        VaultStateStore(vault, "kv", "rotator").save(Record("graf"), 0)


def test_an_answer_that_trickles_ends_at_the_deadline_not_at_the_last_byte(openbao: OpenBao) -> None:
    with proxy(openbao.address) as slow:
        vault = client(slow.address, openbao.root_token, clock=SteadyClock(), read_timeout=0.5, deadline=1.0)
        vault.login()
        slow.script = [Fault("trickle")]
        with pytest.raises(Transient, match="too slow"):
            VaultStateStore(vault, "kv", "rotator").load("graf")


def test_retry_after_is_told_in_our_time(world: World) -> None:
    world.on_all(Reply(429, headers=(("Retry-After", "7"),)))
    with pytest.raises(RateLimited) as caught:
        world.state.load("graf")
    assert caught.value.reset_at == world.clock.now() + timedelta(seconds=7)


def test_no_redirect_takes_the_token_elsewhere(world: World, openbao: OpenBao) -> None:
    with proxy(openbao.address) as thief:
        for status in (301, 302, 303, 307, 308):
            world.on_all(Reply(status, "", headers=(("Location", f"{thief.address}/v1/x"),)))
            with pytest.raises(PortError):
                world.state.load("graf")
        assert thief.seen == []


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("canary-k3y-value", id="plain"),
        pytest.param('canary"with\\quotes', id="with characters that JSON escapes"),
    ],
)
@pytest.mark.parametrize("status", [400, 403, 429, 500, 503])
def test_an_answer_that_repeats_the_key_or_the_token_is_not_quoted(
    world: World, openbao: OpenBao, key: str, status: int
) -> None:
    echo = Reply(status, json.dumps({"errors": [f"bad request: {json.dumps(key)} by {openbao.root_token}"]}))
    world.on_all(*[echo] * 6)
    with pytest.raises(PortError) as caught:
        world.keys.write("graf", Slot.STAGED, StoredKey(Secret(key)), 0)
    shown: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        shown.append(f"{error} {error!r} {vars(error)}")
        error = error.__context__
    for text in shown:
        assert "canary" not in text
        assert openbao.root_token not in text


def test_a_missing_mount_is_not_taken_for_an_empty_one(world: World, openbao: OpenBao) -> None:
    nowhere = VaultStateStore(client(openbao.address, openbao.root_token), "no-such-mount", "rotator")
    with pytest.raises(Misconfigured, match="Check address, namespace and mount"):
        nowhere.load("graf")
    with pytest.raises(Misconfigured):
        nowhere.names()


def test_a_kv_version_1_mount_is_refused_by_check(openbao: OpenBao) -> None:
    keys = VaultKeyStore(client(openbao.address, openbao.root_token), openbao.mount(version=1), "rotator")
    with pytest.raises(Misconfigured, match="version 2"):
        keys.check("graf")


def test_a_state_record_deleted_by_hand_is_not_taken_for_none(world: World, openbao: OpenBao) -> None:
    openbao.client().secrets.kv.v2.delete_latest_version_of_secret("rotator/state/graf", mount_point=world.mount)
    with pytest.raises(Misconfigured, match="undelete"):
        world.state.load("graf")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param({}, "record: missing", id="no record in it"),
        pytest.param({"record": {"schema": 99, "connection": "graf"}}, "newer rotator", id="of a newer rotator"),
        pytest.param({"record": {"schema": 1, "connection": "graf", "epoch": "x"}}, "epoch", id="mistyped"),
        pytest.param({"record": {"schema": 1, "connection": "other"}}, "record of 'other'", id="another connection's"),
    ],
)
def test_a_state_record_that_cannot_be_right_is_refused(
    world: World, openbao: OpenBao, data: dict[str, Any], says: str
) -> None:
    openbao.client().secrets.kv.v2.create_or_update_secret("rotator/state/graf", data, cas=1, mount_point=world.mount)
    with pytest.raises(Misconfigured, match=says):
        world.state.load("graf")


def test_a_record_without_zone_is_refused_before_it_is_sent(world: World) -> None:
    with pytest.raises(Misconfigured, match="time zone"):
        world.state.save(replace(Record("graf"), last_rotated_at=datetime(2026, 1, 1)), 1)  # noqa: DTZ001  # the case


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", " a", "a\n"])
def test_a_name_that_would_leave_its_folder_is_refused(world: World, name: str) -> None:
    with pytest.raises(Misconfigured):
        world.state.load(name)
    with pytest.raises(Misconfigured):
        world.keys.newest(name, Slot.CURRENT)
