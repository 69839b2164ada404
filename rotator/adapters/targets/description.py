"""What the declarative family is told about a target's admin API: which calls, and where in the answers things lie.

Frozen and free of I/O; `http.py` beside it makes the calls. Shapes that fit: a collection of keys, a capped collection,
one key rolled in place, one key whose value we set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rotator.ports import LiveKeys, TargetCapabilities

PLACEHOLDERS = frozenset({"label", "value", "expires_at", "ttl_seconds", "key_id"})

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True, slots=True)
class Taken:
    """An answer to a mint that means: the name is taken, or the cap of live keys is reached. HTTP 409 always does."""

    status: int
    pointer: str | None = None  # JSON pointer to a code in the body; None: the status alone says it
    equals: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One request. Placeholders `{label} {value} {expires_at} {ttl_seconds} {key_id}` stand in `path` (only `key_id`)
    and in the strings of `body`; a string that is nothing but `{ttl_seconds}` becomes a number.
    """

    method: str
    path: str  # begins with "/", appended to the target's URL; may have a query
    body: Any | None = None  # JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    ok: frozenset[int] = frozenset({200, 201, 202, 204})


@dataclass(frozen=True, slots=True)
class Mint:
    """The call that issues a key, and JSON pointers (RFC 6901) into its answer."""

    call: Call
    key: str | None  # None: the answer has none, because the body sends `{value}`
    key_id: str | None = None
    expires_at: str | None = None
    taken: tuple[Taken, ...] = ()


@dataclass(frozen=True, slots=True)
class Pages:
    """`?page=1`, `?page=2` … as many as the answer says."""

    parameter: str
    total: str  # JSON pointer to the number of pages
    size_parameter: str | None = None
    size: int = 100


@dataclass(frozen=True, slots=True)
class Cursor:
    """`?cursor=…` with what the answer before named; null or empty ends."""

    parameter: str
    next: str  # JSON pointer


@dataclass(frozen=True, slots=True)
class LinkHeader:
    """`Link: <…>; rel="next"` (RFC 8288), followed only at the same origin and path."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The call that lists keys; pointers into its answer (`items`) and into one item (all others)."""

    call: Call
    items: str
    key_id: str
    label: str | None = None
    created_at: str | None = None
    last_used_at: str | None = None
    expires_at: str | None = None
    dead: tuple[tuple[str, Any], ...] = ()  # an item with this value at this pointer is no live key
    pages: Pages | Cursor | LinkHeader | None = None


@dataclass(frozen=True, slots=True)
class Description:
    """A target's admin API. `problems` says what doesn't fit together."""

    mint: Mint
    listing: Listing | None = None
    revoke: Call | None = None
    disable: Call | None = None  # made before revoke, where the target deletes only inactive keys
    live_keys: LiveKeys = LiveKeys.MANY
    ttl_seconds: int | None = None  # what `{ttl_seconds}` and `{expires_at}` stand for
    last_used_throttle: float = 60.0
    min_settle: float = 0.0

    @property
    def capabilities(self) -> TargetCapabilities:
        used = placeholders(self.mint.call)
        listing = self.listing
        return TargetCapabilities(
            live_keys=self.live_keys,
            revoke=self.revoke is not None,
            lists=listing is not None,
            labels="label" in used and listing is not None and listing.label is not None,
            last_used=listing is not None and listing.last_used_at is not None,
            last_used_throttle=self.last_used_throttle,
            supplies="value" in used,
            min_settle=self.min_settle,
        )

    def problems(self) -> tuple[str, ...]:
        """What can't work, one sentence each; empty when the description is sound."""
        found = []
        calls = {"mint": self.mint.call, "revoke": self.revoke, "disable": self.disable}
        calls["list"] = self.listing.call if self.listing else None
        fit = {"mint": PLACEHOLDERS - {"key_id"}, "revoke": {"key_id"}, "disable": {"key_id"}, "list": frozenset()}
        for name, call in calls.items():
            if call is None:
                continue
            used = placeholders(call)
            if not call.path.startswith("/") or "#" in call.path:
                found.append(f"{name}: the path must begin with / and have no #")
            found += [f"{name}: {{{word}}} means nothing here" for word in sorted(used - fit[name])]
            found += [
                f"{name}: {{{word}}} may not stand in a path"
                for word in sorted(set(_PLACEHOLDER.findall(call.path)) - {"key_id"})
            ]
            if name == "disable" and self.revoke is None:
                found.append("disable: there is no revoke that it could come before")
            if name in {"revoke", "disable"} and "key_id" not in used:
                found.append(f"{name}: without {{key_id}} it would hit every key")
        if self.listing is not None and self.listing.label is not None and "label" not in placeholders(self.mint.call):
            found.append("list: there is a label to read, but the mint sends no {label}")
        if self.ttl_seconds is None and placeholders(self.mint.call) & {"expires_at", "ttl_seconds"}:
            found.append("mint: {expires_at} and {ttl_seconds} need ttl_seconds")
        if (self.mint.key is None) != ("value" in placeholders(self.mint.call)):
            found.append("mint: either the answer holds the key, at a pointer, or the body sends {value}")
        found += [f"{pointer!r} is no JSON pointer" for pointer in self._pointers() if pointer and pointer[0] != "/"]
        return tuple(found)

    def _pointers(self) -> list[str | None]:
        mint, listing = self.mint, self.listing
        found = [mint.key, mint.key_id, mint.expires_at, *(taken.pointer for taken in mint.taken)]
        if listing is not None:
            found += [listing.items, listing.key_id, listing.label, listing.created_at, listing.last_used_at]
            found += [listing.expires_at, *(pointer for pointer, _ in listing.dead)]
            match listing.pages:
                case Pages(total=pointer) | Cursor(next=pointer):
                    found.append(pointer)
                case _:
                    pass
        return found


def placeholders(call: Call) -> set[str]:
    """The words in braces in a call's path and body strings."""
    return set(_PLACEHOLDER.findall(call.path)) | _in_strings(call.body)


def _in_strings(template: Any) -> set[str]:
    match template:
        case str():
            return set(_PLACEHOLDER.findall(template))
        case Mapping():
            return set().union(*(_in_strings(part) for part in template.values()))
        case list() | tuple():
            return set().union(*(_in_strings(part) for part in template))
        case _:
            return set()


def render(template: Any, values: Mapping[str, str | int]) -> Any:
    """The template with its strings filled in, each in one pass: a label that reads "{value}" stays as it is."""
    match template:
        case str():
            whole = _PLACEHOLDER.fullmatch(template)
            if whole and whole[1] in values:
                return values[whole[1]]
            return _PLACEHOLDER.sub(lambda found: str(values.get(found[1], found[0])), template)
        case Mapping():
            return {name: render(part, values) for name, part in template.items()}
        case list() | tuple():
            return [render(part, values) for part in template]
        case _:
            return template


def at(document: Any, pointer: str) -> Any:
    """What stands at an RFC 6901 pointer; None when nothing does."""
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(document, list) and name.isascii() and name.isdigit() and int(name) < len(document):
            document = document[int(name)]
        elif isinstance(document, dict):
            document = document.get(name)
        else:
            return None
    return document


def moment(value: Any) -> datetime | None:
    """A time as APIs write it: RFC 3339, or seconds or milliseconds since 1970. None for none: null, "", 0 and Go's
    zero time. ValueError for anything else.
    """
    match value:
        case None | "" | 0:
            return None
        case bool():
            raise ValueError("no time")
        case int() | float() | str():
            try:
                parsed = _parsed(value)
            except (OverflowError, OSError):
                raise ValueError("no time") from None
            return None if parsed.year == 1 else parsed
        case _:
            raise ValueError("no time")


def _parsed(value: float | str) -> datetime:
    if isinstance(value, str):
        parsed = datetime.fromisoformat(value)
        return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    return datetime.fromtimestamp(value / 1000 if value > 1e11 else value, UTC)
