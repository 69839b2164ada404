"""The contract of `ports.Target`: the target in memory and every shape of the real adapters over HTTP keep it alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from rotator import errors
from rotator.adapters.targets import KINDS
from rotator.adapters.targets.description import Call, Description, Listing, Mint, Pages
from rotator.adapters.targets.grafana import GrafanaSettings
from rotator.adapters.targets.http import AdminHeader, HttpTargetSettings
from rotator.adapters.targets.manual import ManualSettings
from rotator.adapters.targets.scim import ScimSettings
from rotator.core.keyformat import corrupt, lint
from rotator.core.model import By
from rotator.core.secret import Secret
from rotator.ports import Answer, LiveKeys, Probe, Target
from rotator.sandbox.target import Shape, TargetSandbox
from tests.fakes.target import FakeTarget

LADDER = [Probe.USERS, Probe.FILTER, Probe.GROUPS]
SUPPLIED = "a-value-of-our-own-choice-0123456789-abcdefghij"


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        raise AssertionError("targets don't wait")

    def wait(self, seconds: float) -> bool:
        raise AssertionError("targets don't wait")


@dataclass
class Calls:
    """A meter that remembers."""

    seen: list[tuple[str, str, str]] = field(default_factory=list)

    def call(self, system: str, operation: str, result: str, seconds: float) -> None:
        self.seen.append((system, operation, result))

    def rate_limit(self, idp: str, bucket: str, remaining: float) -> None:
        raise AssertionError("a target has no buckets")


@dataclass
class World:
    """A target and the truth about it."""

    target: Target
    seed: Callable[[str | None], str]  # a key that was there before: its value
    live: Callable[[], int]
    accepts: Callable[[str], bool]
    down: Callable[[], None]
    pause: Callable[[], None]
    deny: Callable[[], None]

    @property
    def can(self) -> set[str]:
        """What this shape offers, in words that the tests ask for."""
        c = self.target.capabilities
        words = {
            "mints": c.mint is By.API,
            "lists": c.lists,
            "labels": c.labels,
            "revokes": c.revoke,
            "last use": c.last_used,
            "supplied": c.supplies,
            str(c.live_keys): True,
        }
        return {word for word, offered in words.items() if offered}

    def mint(self, label: str = "rk-1") -> tuple[str, str | None]:
        """(value, id)"""
        minted = self.target.mint(label, Secret(SUPPLIED) if self.target.capabilities.supplies else None)
        return minted.key.reveal(), minted.key_id

    def answer(self, key: str, probe: Probe = Probe.USERS) -> Answer:
        return self.target.probe(Secret(key), probe).answer


FAKES: dict[str, Callable[[], FakeTarget]] = {
    "fake, many keys": lambda: FakeTarget(SystemClock().now, last_used=True, last_used_throttle=0.0),
    "fake, two keys": lambda: FakeTarget(SystemClock().now, live_keys=LiveKeys.TWO),
    "fake, two keys without labels": lambda: FakeTarget(SystemClock().now, live_keys=LiveKeys.TWO, labels=False),
    "fake, rolled": lambda: FakeTarget(SystemClock().now, live_keys=LiveKeys.ONE, lists=False, revoke=False),
    "fake, supplied": lambda: FakeTarget(
        SystemClock().now, live_keys=LiveKeys.ONE, lists=False, revoke=False, supplies=True
    ),
    "fake, by hand": lambda: FakeTarget(SystemClock().now, mint=By.PERSON, lists=False, revoke=False),
}
SHAPES: tuple[Shape, ...] = ("grafana", "hcp", "auth0", "capped", "roll", "set_key", "manual")

# What each shape must turn out to offer: a description that loses a capability fails. The tests pick shapes by it.
OFFERS = {
    "grafana": {"mints", "lists", "labels", "revokes", "many"},
    "hcp": {"mints", "lists", "labels", "revokes", "last use", "many"},
    "auth0": {"mints", "lists", "revokes", "last use", "two"},
    "capped": {"mints", "lists", "labels", "revokes", "two"},
    "roll": {"mints", "one"},
    "set_key": {"mints", "supplied", "one"},
    "manual": {"many"},
    "fake, many keys": {"mints", "lists", "labels", "revokes", "last use", "many"},
    "fake, two keys": {"mints", "lists", "labels", "revokes", "two"},
    "fake, two keys without labels": {"mints", "lists", "revokes", "two"},
    "fake, rolled": {"mints", "one"},
    "fake, supplied": {"mints", "supplied", "one"},
    "fake, by hand": {"many"},
}


def description(sandbox: TargetSandbox) -> Description:
    """The shapes other than Grafana's, as a configuration would describe them."""
    match sandbox.shape:
        case "hcp":
            json_api = {"Content-Type": "application/vnd.api+json"}  # HCP Terraform docs: else 415
            attributes = {"description": "{label}", "expired-at": "{expires_at}"}
            body = {"data": {"type": "authentication-tokens", "attributes": attributes}}
            return Description(
                mint=Mint(
                    Call("POST", sandbox.path("mint"), body=body, headers=json_api),
                    key="/data/attributes/token",
                    key_id="/data/id",
                    expires_at="/data/attributes/expired-at",
                ),
                listing=Listing(
                    Call("GET", sandbox.path("list")),
                    items="/data",
                    key_id="/id",
                    label="/attributes/description",
                    created_at="/attributes/created-at",
                    last_used_at="/attributes/last-used-at",
                    expires_at="/attributes/expired-at",
                    pages=Pages("page[number]", "/meta/pagination/total-pages", "page[size]", 2),
                ),
                revoke=Call("DELETE", sandbox.path("revoke")),
                ttl_seconds=60 * 86400,
            )
        case "auth0":
            return Description(
                mint=Mint(
                    Call("POST", sandbox.path("mint"), body={"token_lifetime": "{ttl_seconds}"}),
                    key="/token",
                    key_id="/token_id",
                    expires_at="/valid_until",
                ),
                listing=Listing(
                    Call("GET", sandbox.path("list")),
                    items="",
                    key_id="/token_id",
                    created_at="/created_at",
                    last_used_at="/last_used_at",
                    expires_at="/valid_until",
                ),
                revoke=Call("DELETE", sandbox.path("revoke")),
                live_keys=LiveKeys.TWO,
                ttl_seconds=7_776_000,
            )
        case "capped":
            return Description(
                mint=Mint(Call("POST", sandbox.path("mint"), body={"name": "{label}"}), key="/key", key_id="/id"),
                listing=Listing(Call("GET", sandbox.path("list")), items="", key_id="/id", label="/name"),
                revoke=Call("DELETE", sandbox.path("revoke")),
                live_keys=LiveKeys.TWO,
            )
        case "roll":
            return Description(
                mint=Mint(Call("PUT", sandbox.path("replace"), body={}), key="/result"), live_keys=LiveKeys.ONE
            )
        case "set_key":
            return Description(
                mint=Mint(Call("POST", sandbox.path("replace"), body={"key": "{value}"}), key=None),
                live_keys=LiveKeys.ONE,
            )
        case other:
            raise AssertionError(other)


def over_http(sandbox: TargetSandbox) -> Target:
    admin = Secret(sandbox.admin_token)
    scim = ScimSettings(sandbox.scim_url, meanings={403: Answer.STATE} if sandbox.shape == "hcp" else {})
    match sandbox.shape:
        case "grafana":
            account = str(sandbox.service_account_id)
            kind, settings = "grafana", GrafanaSettings("t", sandbox.url, account, admin)
            return KINDS[kind].build(settings, SystemClock(), Calls())
        case "manual":
            return KINDS["manual"].build(ManualSettings("t", scim), SystemClock(), Calls())
        case _:
            headers = (AdminHeader("Authorization", admin, "Bearer "),)
            http = HttpTargetSettings("t", sandbox.url, headers, description(sandbox), scim)
            return KINDS["http"].build(http, SystemClock(), Calls())


def fake_world(fake: FakeTarget) -> World:
    return World(
        target=fake,
        seed=lambda label: fake.seed(label).key.reveal(),
        live=lambda: len(fake.live()),
        accepts=fake.accepts,
        down=lambda: setattr(fake, "down", True),
        pause=lambda: setattr(fake, "paused", True),
        deny=lambda: setattr(fake, "denied", True),
    )


def http_world(sandbox: TargetSandbox) -> World:
    return World(
        target=over_http(sandbox),
        seed=lambda label: sandbox.seed_key(label)[0],
        live=lambda: len(sandbox.live_keys()),
        accepts=sandbox.accepts,
        down=sandbox.go_down,
        pause=lambda: setattr(sandbox.behaviour, "scim_paused", True),
        deny=lambda: setattr(sandbox.behaviour, "admin_denied", True),
    )


@pytest.fixture(params=[*FAKES, *SHAPES])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with ExitStack() as stack:
        name = request.param
        made = fake_world(FAKES[name]()) if name in FAKES else http_world(stack.enter_context(TargetSandbox(name)))
        assert made.can == OFFERS[name]
        yield made


def offering(*words: str, but: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """The shapes that offer all of these, without those named in `but`."""
    return only(*(name for name, offered in OFFERS.items() if set(words) <= offered and name not in but))


def only(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("world", names, indirect=True)


@offering("mints")
def test_a_minted_key_is_fit_and_accepted_by_every_probe(world: World) -> None:
    key, _ = world.mint()
    assert lint(key) == ()
    assert [world.answer(key, probe) for probe in LADDER] == [Answer.ACCEPTED] * 3


def test_a_corrupted_key_is_refused_by_every_probe(world: World) -> None:
    wrong = corrupt(world.seed("old"))
    assert [world.answer(wrong, probe) for probe in LADDER] == [Answer.REFUSED] * 3


def test_a_key_can_write_a_canary_again_and_again(world: World) -> None:
    key = world.seed("old")
    assert [world.answer(key, Probe.WRITE) for _ in range(2)] == [Answer.ACCEPTED] * 2


@offering("mints")
def test_minting_beside_a_live_key_kills_it_only_where_one_lives(world: World) -> None:
    old = world.seed("old")
    new, _ = world.mint()
    assert new != old
    expected = Answer.REFUSED if "one" in world.can else Answer.ACCEPTED
    assert (world.answer(old), world.answer(new)) == (expected, Answer.ACCEPTED)


@offering("mints", "lists")
def test_a_minted_key_is_listed_with_its_id_label_and_age(world: World) -> None:
    _, key_id = world.mint("rk-acme-000001-a1")
    (info,) = world.target.list_keys()
    assert info.key_id == key_id
    assert info.label == ("rk-acme-000001-a1" if "labels" in world.can else None)
    if info.created_at is not None:
        assert abs(datetime.now(UTC) - info.created_at) < timedelta(minutes=5)


@offering("lists")
def test_all_keys_are_listed_over_all_pages(world: World) -> None:
    count = 2 if "two" in world.can else 5
    for number in range(count):
        world.seed(f"key {number}")
    infos = world.target.list_keys()
    assert len({info.key_id for info in infos}) == count
    if "labels" in world.can:
        assert {info.label for info in infos} == {f"key {number}" for number in range(count)}


@offering("lists")
def test_a_target_without_keys_lists_none(world: World) -> None:
    assert world.target.list_keys() == ()


@offering("mints", "revokes")
def test_a_revoked_key_is_dead_gone_from_the_list_and_the_other_lives(world: World) -> None:
    old = world.seed("old")
    new, key_id = world.mint()
    assert key_id is not None
    world.target.revoke(key_id)
    assert (world.answer(new), world.answer(old)) == (Answer.REFUSED, Answer.ACCEPTED)
    assert key_id not in {info.key_id for info in world.target.list_keys()}


@offering("mints", "revokes")
def test_revoking_twice_is_success(world: World) -> None:
    _, key_id = world.mint()
    assert key_id is not None
    world.target.revoke(key_id)
    world.target.revoke(key_id)
    assert world.live() == 0


@offering("two")
def test_a_third_key_at_a_target_for_two_is_a_conflict_and_changes_nothing(world: World) -> None:
    keys = [world.seed("one"), world.mint("two")[0]]
    with pytest.raises(errors.Conflict):
        world.mint("three")
    assert world.live() == 2
    assert all(world.accepts(key) for key in keys)


@offering("labels", but=("hcp",))  # HCP Terraform lets two keys bear one description
def test_a_label_in_use_is_a_conflict(world: World) -> None:
    world.mint("taken")
    with pytest.raises(errors.Conflict):
        world.mint("taken")
    assert world.live() == 1


@offering("supplied")
def test_a_supplied_value_becomes_the_key_and_setting_it_again_is_harmless(world: World) -> None:
    for _ in range(2):
        assert world.target.mint("rk-1", Secret(SUPPLIED)).key.reveal() == SUPPLIED
        assert world.accepts(SUPPLIED)


@offering("mints")
def test_a_value_is_given_exactly_where_the_target_takes_one(world: World) -> None:
    value = None if "supplied" in world.can else Secret(SUPPLIED)
    with pytest.raises(errors.Unsupported):
        world.target.mint("rk-1", value)
    assert world.live() == 0


def test_what_is_not_offered_is_unsupported(world: World) -> None:
    actions: dict[str, Callable[[], object]] = {
        "mints": lambda: world.target.mint("rk-1"),
        "lists": world.target.list_keys,
        "revokes": lambda: world.target.revoke("k1"),
    }
    missing = set(actions) - world.can
    for word in missing:
        with pytest.raises(errors.Unsupported):
            actions[word]()
    assert missing or {"mints", "lists", "revokes"} <= world.can


def test_a_target_that_is_down_says_nothing_about_the_key(world: World) -> None:
    key = world.seed("old")
    world.down()
    for probe in Probe:
        with pytest.raises(errors.Transient):
            world.target.probe(Secret(key), probe)
    if "mints" in world.can:
        with pytest.raises(errors.Transient):
            world.mint()
    if "lists" in world.can:
        with pytest.raises(errors.Transient):
            world.target.list_keys()
    if "revokes" in world.can:
        with pytest.raises(errors.Transient):
            world.target.revoke("1")
    assert world.live() == 1


@offering("mints")
def test_a_credential_without_rights_is_told_apart_from_a_bad_key(world: World) -> None:
    key = world.seed("old")
    world.deny()
    # HCP Terraform answers 404 where it means 403 (docs: api-docs/scim/tokens)
    with pytest.raises((errors.Denied, errors.NotFound)):
        world.mint()
    assert world.answer(key) is Answer.ACCEPTED


@only("hcp", *FAKES)  # elsewhere a 403 speaks of the key
def test_a_paused_target_says_state_for_a_good_key_where_its_403_means_that(world: World) -> None:
    key = world.seed("old")
    world.pause()
    assert world.answer(key) is Answer.STATE
    assert world.answer(corrupt(key)) is Answer.REFUSED


@offering("last use")
def test_the_use_of_a_key_shows_in_the_list(world: World) -> None:
    world.seed("idle")
    key, key_id = world.mint("used")
    assert world.answer(key) is Answer.ACCEPTED
    used = {info.key_id: info.last_used_at for info in world.target.list_keys()}
    assert key_id is not None
    moved = used.pop(key_id)
    assert moved is not None
    assert abs(datetime.now(UTC) - moved) < timedelta(minutes=5)
    assert list(used.values()) == [None]
