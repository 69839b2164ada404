"""What every KeyStore does, the fake and the one on a real OpenBao."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from rotator.adapters.vault_keys import VaultKeyStore
from rotator.core.secret import Secret
from rotator.errors import Conflict, Misconfigured
from rotator.ports import KeyStore, Slot, StoredKey
from tests.adapters.vault_helpers import client
from tests.fakes.vault import FakeKeyStore
from tests.openbao import OpenBao

_AT = datetime(2026, 3, 1, 12, 0, 0, 250000, tzinfo=UTC)


@dataclass(frozen=True)
class World:
    """A store, and how to get one whose `keys/` keeps so many versions or deletes them after so many seconds."""

    store: KeyStore
    limited: Callable[[int, int], KeyStore]


@pytest.fixture(params=["fake", "openbao"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "fake":
        return World(FakeKeyStore(), lambda keep, after: FakeKeyStore(max_versions=keep, delete_version_after=after))
    bao: OpenBao = request.getfixturevalue("openbao")
    vault = client(bao.address, bao.root_token)

    def limited(keep: int, after: int) -> KeyStore:
        return VaultKeyStore(vault, bao.mount(max_versions=keep, delete_version_after=f"{after}s"), "rotator")

    return World(VaultKeyStore(vault, bao.mount(), "rotator"), limited)


@pytest.fixture
def store(world: World) -> KeyStore:
    return world.store


def _key(value: str = "k-1", **changes: object) -> StoredKey:
    fields: dict[str, object] = {
        "key_id": "id-7",
        "rotation_id": "r-1",
        "label": "prod/graf/3/1",
        "minted_at": _AT,
        "expires_at": _AT.replace(year=2027),
    }
    return StoredKey(key=Secret(value), **{**fields, **changes})  # type: ignore[arg-type]  # fields by name


def _value(stored: StoredKey | None) -> str | None:
    assert stored is not None
    return None if stored.key is None else stored.key.reveal()


def test_a_key_comes_back_with_everything_that_names_it(store: KeyStore) -> None:
    assert store.write("graf", Slot.CURRENT, _key(), 0) == 1
    read = store.read("graf", Slot.CURRENT)
    assert read is not None
    assert _value(read) == "k-1"
    assert read.ref_fingerprint == Secret("k-1").fingerprint
    assert (read.key_id, read.rotation_id, read.label) == ("id-7", "r-1", "prod/graf/3/1")
    assert (read.minted_at, read.expires_at, read.version) == (_AT, _AT.replace(year=2027), 1)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param('a"b\\c', id="quotes and backslashes"),
        pytest.param(" padded\t\n", id="blanks around it, which are never trimmed"),
        pytest.param("ключ-鍵", id="beyond ASCII"),
        pytest.param("", id="an empty one"),
        pytest.param("x" * 20_000, id="20,000 characters"),
    ],
)
def test_a_keys_value_is_kept_to_the_letter(store: KeyStore, value: str) -> None:
    store.write("graf", Slot.STAGED, StoredKey(key=Secret(value)), 0)
    assert _value(store.read("graf", Slot.STAGED)) == value


def test_a_bare_key_has_its_fingerprint_and_nothing_else(store: KeyStore) -> None:
    store.write("graf", Slot.HANDOFF, StoredKey(key=Secret("bare")), 0)
    read = store.read("graf", Slot.HANDOFF)
    assert read is not None
    assert read.ref_fingerprint == Secret("bare").fingerprint
    assert (read.key_id, read.rotation_id, read.label, read.minted_at, read.expires_at) == (None,) * 5


def test_a_void_version_has_a_number_and_no_key(store: KeyStore) -> None:
    assert store.write("graf", Slot.STAGED, StoredKey(key=None, rotation_id="r-2"), 0) == 1
    read = store.read("graf", Slot.STAGED)
    assert read is not None
    assert (read.key, read.ref_fingerprint, read.rotation_id, read.version) == (None, None, "r-2", 1)


def test_nothing_written_is_none_and_version_0(store: KeyStore) -> None:
    assert store.read("graf", Slot.CURRENT) is None
    assert store.read("graf", Slot.CURRENT, 3) is None
    assert store.newest("graf", Slot.CURRENT) == 0


def test_slots_and_connections_are_apart(store: KeyStore) -> None:
    store.write("graf", Slot.CURRENT, _key("c"), 0)
    assert store.read("graf", Slot.STAGED) is None
    assert store.read("other", Slot.CURRENT) is None


def test_an_older_version_can_still_be_read(store: KeyStore) -> None:
    store.write("graf", Slot.CURRENT, _key("old"), 0)
    store.write("graf", Slot.CURRENT, _key("new"), 1)
    assert _value(store.read("graf", Slot.CURRENT)) == "new"
    assert _value(store.read("graf", Slot.CURRENT, 1)) == "old"
    assert store.newest("graf", Slot.CURRENT) == 2


@pytest.mark.parametrize(
    ("written", "cas"),
    [
        pytest.param(1, 0, id="0 means that there must be none"),
        pytest.param(2, 1, id="an older version"),
        pytest.param(1, 5, id="a version that is not there yet"),
        pytest.param(0, 1, id="a version of something never written"),
    ],
)
def test_a_write_against_another_version_is_a_conflict_and_changes_nothing(
    store: KeyStore, written: int, cas: int
) -> None:
    for version in range(written):
        store.write("graf", Slot.CURRENT, _key(f"k-{version}"), version)
    with pytest.raises(Conflict):
        store.write("graf", Slot.CURRENT, _key("zombie"), cas)
    assert store.newest("graf", Slot.CURRENT) == written


def test_destroyed_versions_are_gone_and_the_numbers_go_on(store: KeyStore) -> None:
    store.write("graf", Slot.STAGED, _key("a"), 0)
    store.write("graf", Slot.STAGED, _key("b"), 1)
    store.destroy("graf", Slot.STAGED, (1, 2))
    assert store.read("graf", Slot.STAGED) is None
    assert store.read("graf", Slot.STAGED, 1) is None
    assert store.newest("graf", Slot.STAGED) == 2
    with pytest.raises(Conflict):
        store.write("graf", Slot.STAGED, _key("c"), 0)
    assert store.write("graf", Slot.STAGED, _key("c"), 2) == 3


@pytest.mark.parametrize(
    "versions",
    [
        pytest.param((), id="none at all"),
        pytest.param((1, 1), id="one twice"),
        pytest.param((9,), id="one that never was"),
    ],
)
def test_destroying_is_harmless_where_there_is_nothing(store: KeyStore, versions: tuple[int, ...]) -> None:
    store.destroy("graf", Slot.STAGED, versions)
    store.write("graf", Slot.STAGED, _key("a"), 0)
    store.destroy("graf", Slot.STAGED, versions)
    store.destroy("graf", Slot.STAGED, versions)
    assert (store.read("graf", Slot.STAGED) is None) is (1 in versions)


def test_versions_beyond_the_limit_are_pruned(world: World) -> None:
    store = world.limited(4, 0)
    for version in range(6):
        store.write("graf", Slot.CURRENT, _key(f"k-{version}"), version)
    kept = [version for version in range(1, 7) if store.read("graf", Slot.CURRENT, version) is not None]
    assert kept == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("keep", "after", "refused"),
    [
        pytest.param(10, 0, None, id="the usual mount is fine"),
        pytest.param(4, 0, None, id="four versions are just enough"),
        pytest.param(3, 0, "only 3 versions", id="three versions are too few"),
        pytest.param(10, 3600, "deletes? .*versions|versions are deleted", id="versions that delete themselves"),
    ],
)
def test_check_refuses_a_mount_that_would_lose_keys(world: World, keep: int, after: int, refused: str | None) -> None:
    store = world.limited(keep, after)
    if refused is None:
        store.check("graf")
        assert store.newest("graf", Slot.CURRENT) == 0
    else:
        with pytest.raises(Misconfigured, match=refused):
            store.check("graf")


def test_where_names_the_path_for_a_person(store: KeyStore) -> None:
    assert store.where("graf", Slot.HANDOFF).endswith("/rotator/handoff/graf")
