"""The ledger's chain: whatever is changed, left out, added or swapped afterwards is found, and where."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from rotator.core.ledger import append, entry_hash, from_line, to_line, verify
from rotator.core.model import LedgerEntry, Record

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
Change = Callable[[list[LedgerEntry]], list[LedgerEntry]]


def chain(connection: str = "graf", length: int = 4) -> list[LedgerEntry]:
    record = Record(connection)
    for step in range(length):
        record = append(record, T0 + timedelta(minutes=step), "phase_done", "r1", "host-a", {"phase": f"p{step}"})
    return list(record.ledger_pending)


def resealed(entry: LedgerEntry, **changes: object) -> LedgerEntry:
    """The entry as a forger writes it: altered, with a hash that fits."""
    altered = replace(entry, **changes)  # type: ignore[arg-type]  # names are given by the cases
    return replace(altered, hash=entry_hash(altered))


def test_append_moves_the_head_and_leaves_the_rest_of_the_record_alone() -> None:
    before = Record("graf", sequence=7)
    after = append(before, T0, "claimed", "r1", "host-a", {"why": "interval"})
    (entry,) = after.ledger_pending
    assert (entry.number, entry.prev, entry.connection) == (1, "", "graf")
    assert (after.ledger_number, after.ledger_hash) == (1, entry.hash)
    assert replace(after, ledger_number=0, ledger_hash="", ledger_pending=()) == before


def test_the_next_entry_carries_the_hash_of_the_one_before_also_when_nothing_is_pending() -> None:
    first = append(Record("graf"), T0, "claimed", "r1", "host-a", {})
    cleared = replace(first, ledger_pending=())
    (second,) = append(cleared, T0, "ended", "r1", "host-a", {}).ledger_pending
    assert (second.number, second.prev) == (2, first.ledger_hash)


def test_the_hash_does_not_depend_on_the_time_zone_or_the_order_of_data() -> None:
    one = append(Record("graf"), T0, "e", "r", "b", {"a": "1", "b": "2"})
    east = timezone(timedelta(hours=5))
    other = append(Record("graf"), T0.astimezone(east), "e", "r", "b", {"b": "2", "a": "1"})
    assert one.ledger_hash == other.ledger_hash


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        append(Record("graf"), datetime(2026, 3, 1), "e", "r", "b", {})  # noqa: DTZ001 - the naive time is the case


@pytest.mark.parametrize(
    ("change", "number", "problem"),
    [
        pytest.param(lambda c: c, None, "", id="an untouched chain holds"),
        pytest.param(lambda c: c[::-1], None, "", id="the order of lines does not matter"),
        pytest.param(lambda c: [*c, c[1]], None, "", id="the same entry twice is no break"),
        pytest.param(lambda c: [*c, *chain("other")], None, "", id="two connections are two chains"),
        pytest.param(lambda c: c[1:], 1, "entry 1 is missing", id="the first entry left out"),
        pytest.param(lambda c: [c[0], c[3]], 2, "entries 2 to 3 are missing", id="two in the middle left out"),
        pytest.param(lambda c: [c[0], replace(c[1], by="x"), *c[2:]], 2, "altered", id="who did it altered"),
        pytest.param(
            lambda c: [c[0], replace(c[1], data=(("phase", "x"),)), *c[2:]], 2, "altered", id="a datum altered"
        ),
        pytest.param(lambda c: [c[0], replace(c[1], at=T0), *c[2:]], 2, "altered", id="the time altered"),
        pytest.param(
            lambda c: [c[0], resealed(c[1], by="x"), *c[2:]],
            3,
            "prev",
            id="altered with a new hash: the next link tells",
        ),
        pytest.param(lambda c: [*c, resealed(c[1], by="x")], 2, "stands twice", id="a forged copy beside the true one"),
        pytest.param(
            lambda c: [*c, replace(c[1], by="x")], 2, "stands twice", id="a forged copy under the true one's hash"
        ),
        pytest.param(lambda c: [resealed(c[0], prev="ab"), *c[1:]], 1, "prev", id="the first entry has a predecessor"),
    ],
)
def test_verify_names_the_first_wrong_link(change: Change, number: int | None, problem: str) -> None:
    breaks = verify(change(chain()))
    if number is None:
        assert breaks == []
        return
    (found,) = breaks
    assert (found.connection, found.number) == ("graf", number)
    assert problem in found.problem


HEAD = (4, chain()[3].hash)


@pytest.mark.parametrize(
    ("entries", "head", "number", "problem"),
    [
        pytest.param(chain(), HEAD, None, "", id="the chain ends where the record says"),
        pytest.param(chain()[:2], HEAD, 3, "entries 3 to 4 are missing", id="the end was cut off"),
        pytest.param([], HEAD, 1, "entries 1 to 4 are missing", id="all is gone"),
        pytest.param(chain(length=5), HEAD, 5, "goes on", id="the record is older than the ledger"),
        pytest.param(
            [*chain()[:3], resealed(chain()[3], by="x")], HEAD, 4, "not the one", id="the last entry was forged"
        ),
        pytest.param([], (0, ""), None, "", id="nothing happened yet"),
    ],
)
def test_the_record_s_head_proves_the_end(
    entries: list[LedgerEntry], head: tuple[int, str], number: int | None, problem: str
) -> None:
    breaks = verify(entries, {"graf": head})
    assert [(b.number, problem in b.problem) for b in breaks] == ([] if number is None else [(number, True)])


def test_only_the_first_wrong_link_of_each_connection_is_reported() -> None:
    breaks = verify([*chain("a")[2:], *chain("b"), *chain("c")[1:]])
    assert [b.connection for b in breaks] == ["a", "c"]


def test_a_line_gives_its_entry_back() -> None:
    (entry,) = append(Record("graf"), T0, "ended", "r1", "host-a", {"b": "2", "a": "1"}).ledger_pending
    assert from_line(to_line(entry)) == entry
    assert "\n" not in to_line(replace(entry, event="two\nlines"))


GOOD = json.loads(to_line(chain()[0]))


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="cut off"),
        pytest.param("[" * 100_000, id="nested without end"),
        pytest.param("[]", id="not an object"),
        pytest.param(json.dumps({**GOOD, "extra": "unproved"}), id="a field that no hash covers"),
        pytest.param(json.dumps({k: v for k, v in GOOD.items() if k != "by"}), id="a field missing"),
        pytest.param(to_line(chain()[0])[:-1] + ',"by":"x"}', id="a field twice"),
        pytest.param(json.dumps({**GOOD, "number": "1"}), id="number as text"),
        pytest.param(json.dumps({**GOOD, "number": True}), id="number as a truth value"),
        pytest.param(json.dumps({**GOOD, "number": 0}), id="number 0"),
        pytest.param(json.dumps({**GOOD, "at": "2026-03-01T12:00:00"}), id="time without a zone"),
        pytest.param(json.dumps({**GOOD, "at": "soon"}), id="time that is none"),
        pytest.param(json.dumps({**GOOD, "data": {"phase": 1}}), id="data that is no text"),
        pytest.param(json.dumps({**GOOD, "rotation": None}), id="null"),
    ],
)
def test_what_is_not_exactly_an_entry_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not a ledger entry"):
        from_line(line)
