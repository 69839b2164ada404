"""Okta's System Log about one app: which events speak about the key, and how they are read without missing one.

Okta docs: System Log query ("polling request": ascending, no `until`, follow `next`; ordered by time of storing, so
late events are not missed) and the event types catalogue. Several of these types are written only upon failure: their
absence proves nothing, and only PROVED is a proof.

Keeps I5: an event's reason may quote the target's answer, so anything in it that looks like a credential is masked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from rotator import errors
from rotator.adapters.http import HttpAnswer
from rotator.adapters.idp.okta_org import OktaOrg
from rotator.ports import EventKind, IdpEvent

PATH = "/api/v1/logs"
PAGE = 1000  # Okta's largest
PAGES = 5  # per query; a busier log is read once more for the events that matter alone
LONGEST_TEXT = 200
DOING = "reading Okta's System Log"

BAD, CHANGED, PROVED, OTHER = EventKind.KEY_BAD, EventKind.CHANGED, EventKind.PROVED, EventKind.OTHER


@dataclass(frozen=True, slots=True)
class Rule:
    """How an event type is read, by outcome. `by_reason`: a failure is the key's only if its reason says so."""

    success: EventKind
    failure: EventKind
    by_reason: bool = False


_PUSH = Rule(PROVED, BAD, by_reason=True)  # a user's push fails for many reasons; "Unauthorized" is the key's
_USER, _GROUP = "application.provision.user.", "application.provision.group_push."

EVENTS: dict[str, Rule] = {
    "application.configuration.update": Rule(OTHER, BAD),  # Okta couldn't verify the API credentials
    "application.integration.authentication_failure": Rule(OTHER, BAD),
    "application.configuration.import_schema": Rule(OTHER, BAD, by_reason=True),
    _GROUP + "mapping.update.or.delete.failed.with.error": Rule(OTHER, BAD, by_reason=True),  # not retried by Okta
    "application.lifecycle.update": Rule(CHANGED, OTHER),
    "application.lifecycle.activate": Rule(CHANGED, OTHER),
    "application.lifecycle.deactivate": Rule(CHANGED, OTHER),
    **{
        _USER + operation: _PUSH
        for operation in (
            *("push", "push_profile", "activate", "reactivate", "deactivate", "deprovision"),
            *("sync", "verify_exists", "import_profile"),
        )
    },
    "app.user_management.push_new_user_success": Rule(PROVED, OTHER),
    **{_GROUP + operation: _PUSH for operation in ("pushed", "updated", "push_memberships", "removed")},
}

# Outcomes of Okta's schema; the rest (SKIPPED, RATE_LIMIT, DEFERRED, SCHEDULED …) say nothing about the key.
_SUCCESS = {"SUCCESS", "ALLOW"}
_FAILURE = {"FAILURE", "DENY", "UNKNOWN", ""}
_KEY_WORDS = re.compile(r"unauthori[sz]ed|not authori[sz]ed|credential|authenticat|\b401\b|insufficient", re.IGNORECASE)
_MASKED = re.compile(r"(?=\S*\d)[^\s\"'<>]{16,}|(?i:bearer|ssws|basic)\s+\S+")
_LINK = re.compile(r"<([^<>]*)>([^<]*)")


class AppLog:
    """The log of one app."""

    def __init__(self, org: OktaOrg, app_id: str) -> None:
        self._org = org
        self._app_id = app_id

    def since(self, since: datetime, *, urgent: bool) -> tuple[IdpEvent, ...]:
        """Events published since then (Okta's clock), oldest first. Denied when the log can't be read."""
        about = f'target.id eq "{self._app_id}"'
        found, whole = self._query(about, since, urgent=urgent)
        if not whole:  # a flood of pushes must not hide the one event that says the key is bad
            matter = [name for name, rule in EVENTS.items() if PROVED not in {rule.success, rule.failure}]
            wanted = " or ".join(f'eventType eq "{name}"' for name in matter)
            more, _ = self._query(f"{about} and ({wanted})", since, urgent=urgent)
            found |= more
        return tuple(sorted(found.values(), key=lambda event: event.at))

    def _query(self, wanted: str, since: datetime, *, urgent: bool) -> tuple[dict[str, IdpEvent], bool]:
        """Events by id, and whether the log was read to its end."""
        stamp = since.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        params: dict[str, str] | None = {
            "since": stamp,
            "filter": wanted,
            "sortOrder": "ASCENDING",
            "limit": str(PAGE),
        }
        path = PATH
        found: dict[str, IdpEvent] = {}
        for _ in range(PAGES):
            answer = self._org.call(
                "GET",
                path,
                bucket="logs",
                doing=DOING,
                operation="events",
                changing=False,
                scope="okta.logs.read",
                urgent=urgent,
                who=self._app_id,
                params=params,
            )
            if not isinstance(answer.json, list):
                raise errors.Misconfigured(DOING, system=self._org.system, detail="the answer is no list of events")
            events = [event for item in answer.json if (event := _event(item)) is not None]
            # Okta's `since` counts to the millisecond; ours may be finer
            found |= {event.id: event for event in events if event.at >= datetime.fromisoformat(stamp)}
            next_query = self._next(answer)
            # A polling query always names a next page: an empty page is the end
            if not answer.json or next_query is None:
                return found, True
            path, params = f"{PATH}?{next_query}", None
        return found, False

    def _next(self, answer: HttpAnswer) -> str | None:
        """The query of the next page. Misconfigured when it leads to another origin or path: our token would follow."""
        for target, parameters in _LINK.findall(answer.header("link")):
            if not re.search(r'rel\s*=\s*"?next\b', parameters):
                continue
            try:
                parts, home = urlsplit(target), urlsplit(self._org.http.base_url)
                same = (parts.scheme, parts.hostname, parts.port) == (home.scheme, home.hostname, home.port)
            except ValueError:
                same = False
            if not same or parts.path != PATH:
                raise errors.Misconfigured(
                    DOING,
                    system=self._org.system,
                    detail="the next page lies at another address than the configured one",
                    fix="Configure the org's URL as Okta itself names it in its links",
                )
            return str(parts.query)
        return None


def kind_of(event_type: str, result: str, reason: str) -> EventKind:
    """What an event says about the key."""
    rule = EVENTS.get(event_type)
    if rule is None:
        return OTHER
    if result in _SUCCESS:
        return rule.success
    if result not in _FAILURE:
        return OTHER
    if rule.by_reason and not _KEY_WORDS.search(reason):
        return OTHER
    return rule.failure


def _event(item: Any) -> IdpEvent | None:
    """None for what is no event with an id, a type and a time."""
    if not isinstance(item, dict):
        return None
    event_type, identity, published = item.get("eventType"), item.get("uuid"), item.get("published")
    outcome = item.get("outcome")
    outcome = outcome if isinstance(outcome, dict) else {}
    result, reason = outcome.get("result"), outcome.get("reason")
    result, reason = (value if isinstance(value, str) else "" for value in (result, reason))
    if not (isinstance(event_type, str) and isinstance(identity, str) and isinstance(published, str)):
        return None
    try:
        at = datetime.fromisoformat(published)
    except ValueError:
        return None
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    text = " ".join(part for part in (event_type[:100], result[:20], _MASKED.sub("[…]", reason[:1000])) if part)
    return IdpEvent(kind=kind_of(event_type, result, reason), at=at, id=identity[:64], text=text[:LONGEST_TEXT])
