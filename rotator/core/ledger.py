"""The ledger's chain: per connection, every entry carries the hash of the one before (I6).

An entry is appended to the state record in the same write as the change it tells of, and stays *pending* there until an
observer has written it to the ledger file. So a crash loses no entry; it may write one twice, which reading skips.
Entries hold no key material (I5): whoever appends gives words, ids and fingerprints only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from rotator.core.model import LedgerEntry, Record

_FIELDS = ("connection", "number", "at", "event", "rotation", "by", "data", "prev", "hash")


def append(  # noqa: PLR0917 - the order in which a line is read: when, what, in which rotation, by whom
    record: Record, at: datetime, event: str, rotation: str, by: str, data: Mapping[str, str]
) -> Record:
    """The record with one more pending entry, and its head moved. ValueError when `at` is naive."""
    entry = LedgerEntry(
        connection=record.connection,
        number=record.ledger_number + 1,
        at=at,
        event=event,
        rotation=rotation,
        by=by,
        data=tuple(sorted(data.items())),
        prev=record.ledger_hash,
        hash="",
    )
    entry = replace(entry, hash=entry_hash(entry))
    return replace(
        record,
        ledger_number=entry.number,
        ledger_hash=entry.hash,
        ledger_pending=(*record.ledger_pending, entry),
    )


def entry_hash(entry: LedgerEntry) -> str:
    """SHA-256 (hex) over canonical JSON of all fields but `hash`: sorted keys, no spaces, ASCII, time in UTC."""
    fields = to_dict(entry)
    del fields["hash"]
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


@dataclass(frozen=True, slots=True)
class Break:
    """The first wrong link of one connection's chain. `entry` is where it shows; None when the end is missing."""

    connection: str
    number: int
    problem: str
    entry: LedgerEntry | None = None


def verify(entries: Iterable[LedgerEntry], heads: Mapping[str, tuple[int, str]] | None = None) -> list[Break]:
    """The first wrong link per connection, in the connections' order; empty when every chain holds.

    `heads` gives each connection's (ledger_number, ledger_hash) from its state record. Without it a chain that was cut
    off at its end looks whole. Order of `entries` does not matter; the same entry twice is no break.
    """
    chains: dict[str, dict[tuple[int, str], LedgerEntry]] = {}
    for entry in entries:
        chain = chains.setdefault(entry.connection, {})
        # The hash alone must not hide an altered copy behind the true one
        chain.setdefault((entry.number, entry_hash(entry) + entry.hash), entry)
    heads = heads or {}
    breaks = []
    for connection in sorted(chains.keys() | heads.keys()):
        links = sorted(chains.get(connection, {}).values(), key=lambda entry: entry.number)
        found = _first_break(connection, links, heads.get(connection))
        if found:
            breaks.append(found)
    return breaks


def _first_break(connection: str, links: list[LedgerEntry], head: tuple[int, str] | None) -> Break | None:
    number, last = 0, ""
    for entry in links:
        if entry.number == number:
            return Break(connection, number, f"entry {number} stands twice, with different content", entry)
        if entry.number != number + 1:
            return Break(connection, number + 1, f"{_missing(number + 1, entry.number - 1)} missing", entry)
        if entry_hash(entry) != entry.hash:
            return Break(connection, entry.number, "the entry was altered: its content does not give its hash", entry)
        if entry.prev != last:
            return Break(connection, entry.number, "its `prev` is not the hash of the entry before", entry)
        number, last = entry.number, entry.hash
    if head is None or head == (number, last):
        return None
    if head[0] > number:
        return Break(connection, number + 1, f"{_missing(number + 1, head[0])} missing at the end")
    if head[0] < number:
        problem = f"the ledger goes on after entry {head[0]}, where the state record ends"
        return Break(connection, head[0] + 1, problem, links[head[0]])
    return Break(connection, number, "the last entry is not the one that the state record names", links[-1])


def _missing(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"


def to_dict(entry: LedgerEntry) -> dict[str, Any]:
    """The entry as JSON values; `from_dict` is its inverse. ValueError when its time is naive."""
    if entry.at.tzinfo is None:
        raise ValueError("a ledger entry's time must be aware")
    return {
        "connection": entry.connection,
        "number": entry.number,
        "at": entry.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "event": entry.event,
        "rotation": entry.rotation,
        "by": entry.by,
        "data": dict(entry.data),
        "prev": entry.prev,
        "hash": entry.hash,
    }


def to_line(entry: LedgerEntry) -> str:
    """One line of the ledger file, without its newline."""
    return json.dumps(to_dict(entry), separators=(",", ":"), ensure_ascii=True)


def from_line(line: str) -> LedgerEntry:
    """Inverse of `to_line`. ValueError, without the line's content, when it is anything but exactly one entry."""
    try:
        fields = json.loads(line, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a ledger entry: {error}") from None
    return from_dict(fields)


def from_dict(fields: Any) -> LedgerEntry:
    """Strict, because the hash covers only what is read: an unknown field could say anything unproved."""
    if not isinstance(fields, dict) or set(fields) != set(_FIELDS):
        raise ValueError(f"not a ledger entry: it must have exactly the fields {', '.join(_FIELDS)}")
    data = fields["data"]
    texts = [fields[name] for name in _FIELDS if name not in {"number", "data"}]
    if not isinstance(data, dict) or not all(isinstance(text, str) for text in [*texts, *data.values()]):
        raise ValueError("not a ledger entry: a field has the wrong type")
    if type(fields["number"]) is not int or fields["number"] < 1:
        raise ValueError("not a ledger entry: `number` must be 1 or more")
    try:
        at = datetime.fromisoformat(fields["at"])
    except ValueError:
        raise ValueError("not a ledger entry: `at` is no time") from None
    if at.tzinfo is None:
        raise ValueError("not a ledger entry: `at` has no time zone")
    return LedgerEntry(**{**fields, "at": at, "data": tuple(sorted(data.items()))})


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field stands twice")
    return fields
