"""What every IdentityProvider must do: over the in-memory fake, and over OktaProvider against the sandbox Okta by HTTP.

The sandbox's activation really calls a target, so "accepted" and "refused" are that target's word in every case.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

import pytest

from rotator import errors
from rotator.adapters.http import Timeouts
from rotator.adapters.idp.okta import OktaHandOffProvider, OktaProvider
from rotator.adapters.idp.okta_auth import ssws
from rotator.adapters.idp.okta_org import OktaOrg
from rotator.core.model import By
from rotator.core.secret import Secret
from rotator.ports import ConnectionStatus, EventKind, IdentityProvider
from rotator.sandbox.okta import OktaSandbox
from rotator.sandbox.okta_limits import FaultKind
from tests.fakes.idp import FakeIdp


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return datetime.now(UTC).timestamp()

    def wait(self, seconds: float) -> bool:
        raise AssertionError("an adapter never waits")


class Deaf:
    def call(self, system: str, operation: str, result: str, seconds: float) -> None:
        pass

    def rate_limit(self, idp: str, bucket: str, remaining: float) -> None:
        pass


class Keys:
    """What the target accepts now."""

    def __init__(self) -> None:
        self.live: set[str] = set()

    def new(self, *, live: bool = True) -> Secret:
        value = "key-" + secrets.token_urlsafe(24)
        if live:
            self.live.add(value)
        return Secret(value)

    def kill(self, key: Secret) -> None:
        self.live.discard(key.reveal())

    def accepts(self, key: Secret) -> bool:
        return key.reveal() in self.live


class World(Protocol):
    """One provider with the levers of its world."""

    @property
    def provider(self) -> IdentityProvider: ...
    @property
    def by_hand(self) -> IdentityProvider:
        """The same IdP with an app that a person pushes."""

    @property
    def stranger(self) -> IdentityProvider | None:
        """An app that Okta answers UNKNOWN for."""

    @property
    def nobody(self) -> IdentityProvider | None:
        """An app id that does not exist."""

    def holds(self, key: Secret) -> bool: ...
    def provision(self) -> None: ...
    def admin_disables(self) -> None: ...
    def admin_changes_features(self) -> None: ...
    def person_types(self, key: Secret) -> None: ...
    def next_answer_is_lost(self) -> None: ...
    def next_call_is(self, error: type[errors.PortError]) -> None: ...


class FakeWorld:
    stranger: IdentityProvider | None = None
    nobody: IdentityProvider | None = None

    def __init__(self, keys: Keys, key: Secret) -> None:
        clock = SystemClock()
        self.provider = FakeIdp(clock, keys.accepts, key=key)
        self.by_hand = FakeIdp(clock, keys.accepts, key=key, push_by=By.PERSON)

    def holds(self, key: Secret) -> bool:
        return self.provider.key is not None and self.provider.key.same_as(key)

    def provision(self) -> None:
        self.provider.provision()

    def admin_disables(self) -> None:
        self.provider.admin_disables()

    def admin_changes_features(self) -> None:
        self.provider.admin_changes_features()

    def person_types(self, key: Secret) -> None:
        self.by_hand.person_types(key)

    def next_answer_is_lost(self) -> None:
        self.provider.after_push.append(errors.Ambiguous("giving the IdP the key", system="idp:fake"))

    def next_call_is(self, error: type[errors.PortError]) -> None:
        if error is errors.RateLimited:
            soon = datetime.now(UTC) + timedelta(seconds=30)
            self.provider.before.append(errors.RateLimited("calling", system="idp:fake", reset_at=soon))
        else:
            self.provider.before.append(error("calling", system="idp:fake"))


class OktaWorld:
    def __init__(self, sandbox: OktaSandbox, app: str, target: str, key: Secret) -> None:
        self.sandbox = sandbox
        org = OktaOrg(
            "sandbox",
            sandbox.url,
            make_auth=lambda _http, _budget: ssws(Secret(sandbox.api_token)),
            clock=SystemClock(),
            meter=Deaf(),
            timeouts=Timeouts(connect=5, read=1.0, write=5, pool=5, total=10),
        )
        self.app_id = sandbox.add_app(
            app, label="App", base_url=target, verify_url=target, key=key.reveal(), enabled=True
        )
        self.custom_id = sandbox.add_app(
            "acme_scim_1", label="Custom", base_url=target, verify_url=target, key=key.reveal(), enabled=True
        )
        self.org = org
        self.provider = OktaProvider(org, app_id=self.app_id, app=app, base_url=target)
        self.by_hand = OktaHandOffProvider(org, app_id=self.custom_id, app="acme_scim_1")
        self.stranger = OktaProvider(org, app_id=self.custom_id, app=app, base_url=target)
        self.nobody = OktaProvider(org, app_id="0oa0000000000000000x", app=app, base_url=target)

    def holds(self, key: Secret) -> bool:
        return self.sandbox.held_key(self.app_id) == key.reveal()

    def provision(self) -> None:
        self.sandbox.provision(self.app_id, "someone")

    def admin_disables(self) -> None:
        self.sandbox.admin_disables(self.app_id)

    def admin_changes_features(self) -> None:
        self.sandbox.admin_changes_features(self.app_id)

    def person_types(self, key: Secret) -> None:
        self.sandbox.person_types_key(self.custom_id, key.reveal())

    def next_answer_is_lost(self) -> None:
        self.sandbox.faults.add(FaultKind.TIMEOUT_AFTER_STORING, "POST", "/connections/")

    def next_call_is(self, error: type[errors.PortError]) -> None:
        kinds = {
            errors.Denied: FaultKind.INVALID_TOKEN,
            errors.RateLimited: FaultKind.RATE_LIMIT,
            errors.Transient: FaultKind.READ_ONLY,
        }
        self.sandbox.faults.add(kinds[error])


class _Scim(BaseHTTPRequestHandler):
    keys: Keys

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        given = self.headers.get("authorization", "").removeprefix("Bearer ")
        status = 200 if given in self.keys.live else 401
        body = json.dumps({"totalResults": 0, "Resources": []} if self.command == "GET" else {"id": "1"}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815  the base class dispatches by these names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it so
        pass


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def old(keys: Keys) -> Secret:
    return keys.new()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[OktaSandbox]:
    with OktaSandbox(seed=1) as running:
        yield running


@pytest.fixture
def target(keys: Keys) -> Iterator[str]:
    handler = type("Handler", (_Scim,), {"keys": keys})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["the fake", "Org2Org at the sandbox Okta", "Zscaler at the sandbox Okta"])
def world(request: pytest.FixtureRequest, keys: Keys, old: Secret) -> Iterator[World]:
    if request.param == "the fake":
        yield FakeWorld(keys, old)
        return
    sandbox: OktaSandbox = request.getfixturevalue("sandbox")
    app = "okta_org2org" if "Org2Org" in request.param else "zscalerbyz"
    made = OktaWorld(sandbox, app, request.getfixturevalue("target"), old)
    yield made
    sandbox.faults.clear()
    made.org.close()


def kinds(provider: IdentityProvider, since: datetime) -> list[EventKind]:
    return [event.kind for event in provider.events(since)]


def just_now() -> datetime:
    """Log times are whole milliseconds."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def test_an_accepted_key_is_held_and_the_connection_says_enabled(world: World, keys: Keys) -> None:
    new = keys.new()
    answered = world.provider.push(new)
    assert (answered.status, answered.scheme) == (ConnectionStatus.ENABLED, "TOKEN")
    assert world.provider.read().status is ConnectionStatus.ENABLED
    assert world.holds(new)


def test_the_same_key_can_be_pushed_twice(world: World, keys: Keys) -> None:
    new = keys.new()
    assert world.provider.push(new).status is world.provider.push(new).status is ConnectionStatus.ENABLED
    assert world.holds(new)


def test_a_push_switches_a_disabled_connection_on(world: World, keys: Keys) -> None:
    world.admin_disables()
    assert world.provider.read().status is ConnectionStatus.DISABLED
    assert world.provider.push(keys.new()).status is ConnectionStatus.ENABLED


def test_a_key_that_the_target_refuses_is_refused_and_the_old_one_can_be_pushed_back(
    world: World, keys: Keys, old: Secret
) -> None:
    since = just_now()
    with pytest.raises(errors.Refused):
        world.provider.push(keys.new(live=False))
    assert EventKind.KEY_BAD in kinds(world.provider, since)
    assert world.provider.push(old).status is ConnectionStatus.ENABLED
    assert world.holds(old)


def test_neither_answers_nor_errors_show_the_key(world: World, keys: Keys) -> None:
    good, bad = keys.new(), keys.new(live=False)
    since = just_now()
    shown = [repr(world.provider.push(good)), repr(world.provider.read()), repr(world.provider.features())]
    with pytest.raises(errors.Refused) as refused:
        world.provider.push(bad)
    shown += [str(refused.value), repr(refused.value), repr(world.provider.events(since))]
    assert not [text for text in shown if good.reveal() in text or bad.reveal() in text]


def test_features_survive_a_push_and_show_an_admins_change(world: World, keys: Keys) -> None:
    before = dict(world.provider.features())
    world.provider.push(keys.new())
    assert dict(world.provider.features()) == before
    assert list(before) == sorted(before)
    assert before["USER_PROVISIONING.status"] == "ENABLED"
    world.admin_changes_features()
    assert dict(world.provider.features()) != before


def test_features_of_a_disabled_connection_are_a_marker(world: World) -> None:
    world.admin_disables()
    assert dict(world.provider.features()) == {"": "not enabled"}


@pytest.mark.parametrize(
    ("error", "changed"),
    [
        pytest.param(errors.Denied, False, id="our own credential is refused"),
        pytest.param(errors.RateLimited, False, id="the rate limit turns us away"),
        pytest.param(errors.Transient, False, id="the IdP is read-only"),
    ],
)
def test_a_push_that_is_not_taken_changes_nothing(
    world: World, keys: Keys, old: Secret, error: type[errors.PortError], changed: bool
) -> None:
    new = keys.new()
    world.next_call_is(error)
    with pytest.raises(error):
        world.provider.push(new)
    assert world.holds(new) is changed
    assert world.holds(old) is not changed


def test_a_rate_limit_names_the_time_to_come_back(world: World) -> None:
    world.next_call_is(errors.RateLimited)
    with pytest.raises(errors.RateLimited) as limited:
        world.provider.read()
    assert limited.value.reset_at is not None
    assert timedelta(0) < limited.value.reset_at - datetime.now(UTC) < timedelta(seconds=70)


def test_a_push_whose_answer_is_lost_is_ambiguous_and_may_have_been_taken(world: World, keys: Keys) -> None:
    new = keys.new()
    world.next_answer_is_lost()
    with pytest.raises(errors.Ambiguous):
        world.provider.push(new)
    assert world.holds(new)
    assert world.provider.push(new).status is ConnectionStatus.ENABLED


def test_events_tell_real_use_from_a_key_that_died_and_begin_where_asked(world: World, keys: Keys, old: Secret) -> None:
    world.provision()
    since = just_now() + timedelta(milliseconds=2)
    while just_now() <= since:  # events of the past lie strictly before
        pass
    assert kinds(world.provider, since) == []
    world.provision()
    assert EventKind.PROVED in kinds(world.provider, since)
    keys.kill(old)
    world.provision()
    events = world.provider.events(since)
    assert EventKind.KEY_BAD in [event.kind for event in events]
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert len({event.id for event in events}) == len(events)


def test_our_own_push_shows_in_the_log_as_a_change(world: World, keys: Keys) -> None:
    since = just_now()
    world.provider.push(keys.new())
    assert EventKind.CHANGED in kinds(world.provider, since)


def test_a_push_by_a_person_is_seen_in_the_log(world: World, keys: Keys) -> None:
    assert world.by_hand.capabilities.push is By.PERSON
    since = just_now()
    world.person_types(keys.new())
    assert kinds(world.by_hand, since) == [EventKind.CHANGED]


CALLS: list[Callable[[IdentityProvider], object]] = [
    lambda provider: provider.push(Secret("any")),
    lambda provider: provider.read(),
    lambda provider: provider.features(),
]


@pytest.mark.parametrize(
    "call", [pytest.param(call, id=name) for call, name in zip(CALLS, ["push", "read", "features"], strict=True)]
)
def test_what_only_a_person_can_do_is_unsupported(world: World, call: Callable[[IdentityProvider], object]) -> None:
    with pytest.raises(errors.Unsupported):
        call(world.by_hand)
    told = world.by_hand.hand_off()
    assert told.where.startswith("http")
    assert told.field
    assert told.form


@pytest.mark.parametrize(
    "call", [pytest.param(call, id=name) for call, name in zip(CALLS[:2], ["push", "read"], strict=True)]
)
def test_an_app_that_okta_answers_unknown_for_is_unsupported(
    world: World, call: Callable[[IdentityProvider], object]
) -> None:
    provider = world.stranger or world.by_hand
    with pytest.raises(errors.Unsupported):
        call(provider)


def test_an_app_that_does_not_exist_is_not_found(world: World) -> None:
    if world.nobody is None:  # the fake has one app, which exists: there the next call is told to say so
        world.next_call_is(errors.NotFound)
        with pytest.raises(errors.NotFound):
            world.provider.push(Secret("any"))
        return
    for call in CALLS:
        with pytest.raises(errors.NotFound):
            call(world.nobody)
