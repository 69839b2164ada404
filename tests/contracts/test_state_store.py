"""What every StateStore does, the fake and the one on a real OpenBao."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from rotator.adapters.vault_state import VaultStateStore
from rotator.core.model import Debt, DebtKind, KeyRef, Record
from rotator.core.reasons import Reason
from rotator.errors import Conflict
from rotator.ports import Heartbeat, StateStore
from tests.adapters.vault_helpers import client
from tests.fakes.vault import FakeStateStore
from tests.openbao import OpenBao

_AT = datetime(2026, 3, 1, 12, 0, 0, 250000, tzinfo=UTC)
_RECORD = Record(
    "graf",
    sequence=4,
    epoch=2,
    holder="a",
    current=KeyRef(fingerprint="0123456789ab", key_id="id-7", version=3, minted_at=_AT, ours=True),
    debts=(Debt(DebtKind.REVOKE, KeyRef(key_id="id-6"), _AT, Reason.GAVE_UP, attempts=2, not_before=_AT),),
    known_fingerprints=("0123456789ab", "ba9876543210"),
)


@pytest.fixture(params=["fake", "openbao"])
def store(request: pytest.FixtureRequest) -> StateStore:
    if request.param == "fake":
        return FakeStateStore()
    bao: OpenBao = request.getfixturevalue("openbao")
    return VaultStateStore(client(bao.address, bao.root_token), bao.mount(), "rotator")


def test_a_record_comes_back_the_same_with_its_version(store: StateStore) -> None:
    assert store.save(_RECORD, 0) == 1
    assert store.load("graf") == (_RECORD, 1)


def test_no_record_is_none(store: StateStore) -> None:
    assert store.load("graf") is None
    assert store.names() == ()


@pytest.mark.parametrize(
    ("written", "version"),
    [
        pytest.param(1, 0, id="0 means that there must be none"),
        pytest.param(2, 1, id="an older version"),
        pytest.param(1, 2, id="a version that is not there yet"),
        pytest.param(0, 1, id="a version of a record never written"),
    ],
)
def test_a_save_against_another_version_is_a_conflict_and_changes_nothing(
    store: StateStore, written: int, version: int
) -> None:
    for number in range(written):
        store.save(replace(_RECORD, epoch=number), number)
    before = store.load("graf")
    with pytest.raises(Conflict):
        store.save(replace(_RECORD, holder="zombie"), version)
    assert store.load("graf") == before


def test_of_many_writers_of_one_version_exactly_one_wins(store: StateStore) -> None:
    store.save(_RECORD, 0)
    start = threading.Barrier(8)
    won: list[str] = []
    lost: list[str] = []

    def write(name: str) -> None:
        start.wait(30)
        try:
            assert store.save(replace(_RECORD, holder=name), 1) == 2
            won.append(name)
        except Conflict:
            lost.append(name)

    threads = [threading.Thread(target=write, args=(f"i-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(won), len(lost)) == (1, 7)
    assert store.load("graf") == (replace(_RECORD, holder=won[0]), 2)


def test_names_are_all_connections_with_a_record(store: StateStore) -> None:
    for name in ("zulu", "graf", "a.b_c-d", "Über uns"):
        store.save(Record(name), 0)
    store.beat(Heartbeat("i-1", 1, 15.0))
    assert store.names() == ("a.b_c-d", "graf", "zulu", "Über uns")
    assert store.load("Über uns") == (Record("Über uns"), 1)


def test_heartbeats_of_all_instances_are_seen_and_count_up(store: StateStore) -> None:
    assert store.beats() == ()
    first = Heartbeat("i-1", 1, 15.0, ("graf",))
    assert store.beat(first) == 1
    assert store.beat(replace(first, beat=2, stopped=True, open=(), version=1)) == 2
    store.beat(Heartbeat("i-2", 7, 2.5, ("a", "b")))
    assert store.beats() == (
        Heartbeat("i-1", 2, 15.0, (), stopped=True, version=2),
        Heartbeat("i-2", 7, 2.5, ("a", "b"), version=1),
    )


def test_two_programs_under_one_instance_name_collide(store: StateStore) -> None:
    store.beat(Heartbeat("i-1", 1, 15.0))
    with pytest.raises(Conflict):
        store.beat(Heartbeat("i-1", 9, 15.0))


def test_skew_is_unknown_before_vaults_first_answer(store: StateStore) -> None:
    assert store.skew() is None
