"""The declarative family: any target whose admin API can be described by calls and JSON pointers.

I2: a mint whose answer is lost, or holds no key where one is due, is Ambiguous; the label finds it. I3: ids from answers
that would address another resource are refused; a 401 or 403 here is our own credential and says nothing about a key.
I5: the key goes from the answer into a Secret; no error quotes an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode, urljoin, urlsplit

from requests.utils import parse_header_links

from rotator import errors
from rotator.adapters.http import HttpAnswer, HttpClient, Timeouts, status_error
from rotator.adapters.targets.description import (
    Call,
    Cursor,
    Description,
    LinkHeader,
    Listing,
    Pages,
    Taken,
    at,
    moment,
    render,
)
from rotator.adapters.targets.scim import ScimProbe, ScimSettings, scim_probe
from rotator.core.secret import Secret
from rotator.ports import Clock, KeyInfo, Meter, Minted, Probe, ProbeResult, TargetCapabilities

OPERATIONS = ("mint", "list", "disable", "revoke")  # the meter's words of the admin API's calls
MAX_PAGES = 1000

_POINTER_FIX = "Compare the JSON pointers in the configuration with the target's API"


@dataclass(frozen=True, slots=True)
class AdminHeader:
    """One header of the rotator's own credential at the target. A callable is asked at every call (a file re-read)."""

    name: str
    secret: Secret | Callable[[], Secret]
    prefix: str = ""  # "Bearer "


@dataclass(frozen=True, slots=True)
class HttpTargetSettings:
    name: str  # of the target, for errors and metrics
    url: str  # of the admin API
    admin: tuple[AdminHeader, ...]
    description: Description
    scim: ScimSettings
    ca_file: str | None = None


def http_target(settings: HttpTargetSettings, clock: Clock, meter: Meter) -> HttpTarget:
    """A target by its description. Misconfigured when the description, a URL or a CA file can't be used."""
    client = HttpClient(
        settings.url,
        system=f"target:{settings.name}",
        clock=clock,
        meter=meter,
        ca_file=settings.ca_file,
        timeouts=Timeouts(total=settings.scim.deadline),
    )
    probe = scim_probe(settings.name, settings.scim, clock, meter)
    return HttpTarget(client, AdminAuth(settings.admin), settings.description, probe, clock)


class HttpTarget:
    """A `ports.Target` over HTTP."""

    def __init__(
        self, http: HttpClient, admin: AdminAuth, description: Description, probe: ScimProbe, clock: Clock
    ) -> None:
        if problems := description.problems():
            raise errors.Misconfigured(
                "reading the target's description", system=http.system, detail="; ".join(problems)
            )
        self._http = http
        self._admin = admin
        self._description = description
        self._probe = probe
        self._clock = clock

    @property
    def capabilities(self) -> TargetCapabilities:
        return self._description.capabilities

    def mint(self, label: str, value: Secret | None = None) -> Minted:
        """CHANGES. Issue a key under `label`, or set `value`.

        Conflict: the name is taken or the cap of live keys is reached. Ambiguous: issued perhaps, or surely, but the
        key could not be read.
        """
        doing = "issuing a key"
        mint = self._description.mint
        if self.capabilities.supplies != (value is not None):
            raise errors.Unsupported(
                doing,
                system=self._http.system,
                detail="this target sets a value of ours" if value is None else "this target chooses the value itself",
            )
        values: dict[str, str | int] = {"label": label}
        if value is not None:
            values["value"] = value.reveal()
        expires_at = None
        if (ttl := self._description.ttl_seconds) is not None:
            expires_at = self._clock.now() + timedelta(seconds=ttl)
            values |= {"ttl_seconds": ttl, "expires_at": _rfc3339(expires_at)}
        answer = self._call(mint.call, values, doing, "mint", taken=mint.taken)
        key = value
        if mint.key is not None:
            text = at(answer.json, mint.key)
            if not isinstance(text, str) or not text:
                raise errors.Ambiguous(
                    doing,
                    system=self._http.system,
                    detail=f"HTTP {answer.status}: a key was issued, but there is none at {mint.key!r} in the answer",
                    fix=_POINTER_FIX,
                )
            key = Secret(text)
        assert key is not None  # noqa: S101  Description.problems: a pointer, or {value} which needs `value`
        return Minted(key, _id(at(answer.json, mint.key_id)) if mint.key_id else None, self._expiry(answer, expires_at))

    def list_keys(self) -> tuple[KeyInfo, ...]:
        """All live keys, every page read, oldest id first as the target tells them. Unsupported without a list call."""
        doing = "listing keys"
        listing = self._description.listing
        if listing is None:
            raise errors.Unsupported(doing, system=self._http.system, detail="this target can't list its keys")
        found: dict[str, KeyInfo] = {}  # by id: a page that shifts while it is read repeats a key
        for answer in self._pages(listing, doing):
            items = at(answer.json, listing.items)
            if not isinstance(items, list):
                raise self._unreadable(doing, f"no list at {listing.items!r} in the answer")
            for item in items:
                if any(_same(at(item, pointer), dead) for pointer, dead in listing.dead):
                    continue
                key = self._info(listing, item, doing)
                if key.expires_at is None or key.expires_at > (answer.date or answer.received_at):
                    found[key.key_id] = key
        return tuple(found.values())

    def revoke(self, key_id: str) -> None:
        """CHANGES. Kill one key; one that is gone (404, 410) is success, though a target that hides what we may not see
        answers the same: list again.
        """
        doing = "revoking a key"
        description = self._description
        if description.revoke is None:
            raise errors.Unsupported(doing, system=self._http.system, detail="this target can't revoke one key")
        if description.disable is not None:
            self._call(description.disable, {"key_id": key_id}, "disabling a key", "disable", gone_ok=True)
        self._call(description.revoke, {"key_id": key_id}, doing, "revoke", gone_ok=True)

    def probe(self, key: Secret, probe: Probe) -> ProbeResult:
        return self._probe(key, probe)

    # --- calls ---

    def _call(
        self,
        call: Call,
        values: Mapping[str, str | int],
        doing: str,
        operation: str,
        *,
        taken: tuple[Taken, ...] = (),
        gone_ok: bool = False,
    ) -> HttpAnswer:
        """A changing call. Its answer is one of `call.ok`, or 404 or 410 when `gone_ok`."""

        def judge(answer: HttpAnswer) -> errors.PortError | None:
            if answer.status in call.ok or (gone_ok and answer.status in {404, 410}):
                return None
            if any(_matches(answer, rule) for rule in taken):
                return errors.Conflict(
                    doing,
                    system=self._http.system,
                    detail=f"HTTP {answer.status}: the name is taken or the cap of live keys is reached",
                )
            return status_error(answer, doing=doing, system=self._http.system, changing=True) or errors.Ambiguous(
                doing,
                system=self._http.system,
                detail=f"HTTP {answer.status} is not among the answers that mean success",
                fix="Add it to `ok` in the configuration if it does",
            )

        return self._http.request(
            call.method,
            self._path(call, values, doing),
            doing=doing,
            operation=operation,
            changing=True,
            headers=call.headers,
            json=render(call.body, values),
            auth=self._admin,
            judge=judge,
            json_due=operation == "mint" and self._description.mint.key is not None,
        )

    def _get(self, call: Call, doing: str, query: str) -> HttpAnswer:
        def judge(answer: HttpAnswer) -> errors.PortError | None:
            if answer.status in call.ok:
                return None
            return status_error(answer, doing=doing, system=self._http.system, changing=False) or self._unreadable(
                doing, f"HTTP {answer.status} is not among the answers that mean success"
            )

        return self._http.request(
            call.method,
            call.path.partition("?")[0] + (f"?{query}" if query else ""),
            doing=doing,
            operation="list",
            changing=False,
            headers=call.headers,
            json=call.body,
            auth=self._admin,
            judge=judge,
        )

    def _path(self, call: Call, values: Mapping[str, str | int], doing: str) -> str:
        if "{key_id}" not in call.path:
            return call.path
        key_id = str(values["key_id"])
        # "" and ".." would address the collection or its owner: a DELETE there kills more than a key.
        if key_id in {"", ".", ".."}:
            raise errors.Misconfigured(doing, system=self._http.system, detail="the key's id can't stand in a path")
        return call.path.replace("{key_id}", quote(key_id, safe=""))

    # --- pages ---

    def _pages(self, listing: Listing, doing: str) -> Iterator[HttpAnswer]:
        fixed = listing.call.path.partition("?")[2]
        match listing.pages:
            case None:
                yield self._get(listing.call, doing, fixed)
            case Pages() as pages:
                yield from self._numbered(listing.call, pages, fixed, doing)
            case Cursor() as cursor:
                yield from self._cursors(listing.call, cursor, fixed, doing)
            case LinkHeader():
                yield from self._linked(listing.call, fixed, doing)

    def _numbered(self, call: Call, pages: Pages, fixed: str, doing: str) -> Iterator[HttpAnswer]:
        size = {pages.size_parameter: pages.size} if pages.size_parameter else {}
        number = 0
        total = 1
        while number < total:
            number += 1
            answer = self._get(call, doing, _query(fixed, {**size, pages.parameter: number}))
            told = at(answer.json, pages.total)
            if type(told) is not int or not 0 <= told <= MAX_PAGES:
                raise self._unreadable(doing, f"no number of pages (at most {MAX_PAGES}) at {pages.total!r}")
            total = told
            yield answer

    def _cursors(self, call: Call, cursor: Cursor, fixed: str, doing: str) -> Iterator[HttpAnswer]:
        seen: set[str] = set()
        query = fixed
        while True:
            answer = self._get(call, doing, query)
            yield answer
            told = at(answer.json, cursor.next)
            if told is None or told == "":
                return
            if type(told) not in {str, int} or str(told) in seen or len(seen) >= MAX_PAGES:
                raise self._unreadable(doing, f"the cursors at {cursor.next!r} do not end")
            seen.add(str(told))
            query = _query(fixed, {cursor.parameter: told})

    def _linked(self, call: Call, fixed: str, doing: str) -> Iterator[HttpAnswer]:
        here = self._http.base_url + call.path.partition("?")[0]
        seen: set[str] = set()
        query = fixed
        while True:
            answer = self._get(call, doing, query)
            yield answer
            target = _next_link(answer.header("link"))
            if target is None:
                return
            there = _split(urljoin(here, target)) if len(target) < 4000 else None
            # Our credential goes with it: only to where it was meant to go.
            if there is None or there[:-1] != (_split(here) or ())[:-1]:
                raise self._unreadable(doing, "the link to the next page leads to another place")
            query = there[-1]
            if query in seen or len(seen) >= MAX_PAGES:
                raise self._unreadable(doing, "the links to the next page do not end")
            seen.add(query)

    # --- answers ---

    def _info(self, listing: Listing, item: Any, doing: str) -> KeyInfo:
        key_id = _id(at(item, listing.key_id))
        if key_id is None:
            raise self._unreadable(doing, f"a key without an id at {listing.key_id!r}")
        label = at(item, listing.label) if listing.label else None
        return KeyInfo(
            key_id=key_id,
            label=label if isinstance(label, str) else None,
            created_at=self._time(item, listing.created_at, doing),
            last_used_at=self._time(item, listing.last_used_at, doing),
            expires_at=self._time(item, listing.expires_at, doing),
        )

    def _time(self, item: Any, pointer: str | None, doing: str) -> datetime | None:
        try:
            return moment(at(item, pointer)) if pointer else None
        except ValueError:
            raise self._unreadable(doing, f"no time that can be read at {pointer!r}") from None

    def _expiry(self, answer: HttpAnswer, asked: datetime | None) -> datetime | None:
        """When the fresh key expires: as told, else as asked for. An odd time here must not cost us the key."""
        pointer = self._description.mint.expires_at
        try:
            return (moment(at(answer.json, pointer)) if pointer else None) or asked
        except ValueError:
            return asked

    def _unreadable(self, doing: str, detail: str) -> errors.Misconfigured:
        return errors.Misconfigured(doing, system=self._http.system, detail=detail, fix=_POINTER_FIX)


class AdminAuth:
    """The rotator's own credential, one or more headers (Datadog wants two)."""

    def __init__(self, headers: tuple[AdminHeader, ...]) -> None:
        self._headers = headers

    def headers(self, method: str, url: str) -> Mapping[str, str]:
        del method, url
        return {
            header.name: header.prefix
            + (header.secret if isinstance(header.secret, Secret) else header.secret()).reveal()
            for header in self._headers
        }

    def renew(self, answer: HttpAnswer) -> bool:
        del answer
        return False


def _matches(answer: HttpAnswer, rule: Taken) -> bool:
    if answer.status != rule.status:
        return False
    return rule.pointer is None or at(answer.json, rule.pointer) == rule.equals


def _same(value: Any, expected: Any) -> bool:
    return type(value) is type(expected) and bool(value == expected)  # JSON: 1 is not true


def _id(value: Any) -> str | None:
    return str(value) if type(value) in {str, int} and str(value) else None


def _rfc3339(when: datetime) -> str:
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _query(fixed: str, more: Mapping[str, str | int]) -> str:
    added = urlencode(more, quote_via=quote)  # %20, not '+'
    return f"{fixed}&{added}" if fixed else added


def _next_link(header: str) -> str | None:
    for link in parse_header_links(header) if header else []:
        if "next" in link.get("rel", "").lower().split():
            return str(link.get("url", ""))
    return None


def _split(url: str) -> tuple[str, str | None, int, str, str] | None:
    """(scheme, host, port, path, query); None when it is no URL."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    return parts.scheme, parts.hostname, port, parts.path, parts.query
