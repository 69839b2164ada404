"""The System Log of the sandbox Okta: events, the subset of its filter language, and paging by Link.

An event can be read only once it is stored, `log_delay_seconds` after it was published. A polling query (ascending,
no `until`) goes by the time of storing, so it misses nothing; a bounded one goes by `published` and can miss late
events (Okta docs: system-log-query).
"""

import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from rotator.sandbox.okta_filter import BadFilterError, parse
from rotator.sandbox.okta_state import App, State, stamp
from rotator.sandbox.okta_wire import Answer, Call, Caller, error, invalid

OKTA_SYSTEM = Caller(id="system", type="SystemPrincipal", name="Okta System")
_MESSAGES: Mapping[str, str] = {
    "application.configuration.update": "Okta could not verify the API credentials of the application",
    "application.integration.authentication_failure": "Okta could not authenticate at the remote API",
    "application.integration.rate_limit_exceeded": "The remote API's rate limit was exceeded",
    "application.integration.general_failure": "The remote API reported an error",
    "application.provision.user.push": "Push new user to external application",
    "application.provision.user.push_profile": "Push user's profile to external application",
    "application.provision.group_push.pushed": "Push group to external application",
    "application.provision.group_push.mapping.update.or.delete.failed.with.error": "Group push failed, not retried",
    "application.lifecycle.update": "Update application",
    "app.oauth2.token.grant.access_token": "OAuth 2.0 access token is granted",
    "app.oauth2.invalid_client_credentials": "OAuth 2.0 client authentication failed",
    "system.api_token.revoke": "Revoke API token",
    "system.api_token.update": "Update API token",
}


@dataclass(frozen=True, slots=True)
class _Entry:
    published: datetime
    stored: datetime
    number: int
    event: dict[str, Any] = field(repr=False)


class SystemLog:
    def __init__(self, state: State) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._entries: list[_Entry] = []

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event written so far, also those that can't be read yet, oldest first."""
        with self._lock:
            return [entry.event for entry in self._entries]

    def write(
        self,
        event_type: str,
        result: str,
        *,
        app: App | None = None,
        caller: Caller = OKTA_SYSTEM,
        reason: str | None = None,
        targets: Sequence[Mapping[str, Any]] = (),
        change: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
    ) -> None:
        """One event. `targets` come before the app; `change` is what the app was and is now (never a credential)."""
        published = self._state.now()
        all_targets: list[dict[str, Any]] = [dict(target) for target in targets]
        if app is not None:
            entry = {"id": app.id, "type": "AppInstance", "alternateId": app.label, "displayName": app.name}
            if change is not None:
                entry["changeDetails"] = {"from": dict(change[0]), "to": dict(change[1])}  # type: ignore[assignment]  # a nested object among strings
            all_targets.append(entry)
        detail = {"requestApiTokenId": caller.token_id} if caller.token_id else {}
        event = {
            "uuid": str(uuid.uuid4()),
            "published": stamp(published),
            "eventType": event_type,
            "version": "0",
            "severity": "INFO" if result == "SUCCESS" else "WARN",
            "displayMessage": _MESSAGES.get(event_type, event_type),
            "actor": {
                "id": caller.id,
                "type": caller.type,
                "alternateId": caller.name,
                "displayName": caller.name,
                "detailEntry": None,
            },
            "outcome": {"result": result, "reason": reason[:255] if reason else None},
            "target": all_targets,
            "transaction": {
                "type": "JOB" if caller is OKTA_SYSTEM else "WEB",
                "id": uuid.uuid4().hex,
                "detail": detail,
            },
            "debugContext": {"debugData": {"appname": app.name} if app is not None else {}},
        }
        with self._lock:
            stored = published + timedelta(seconds=self._state.switches.log_delay_seconds)
            self._entries.append(_Entry(published, stored, len(self._entries) + 1, event))

    def handle(self, call: Call) -> Answer:
        """GET /api/v1/logs."""
        query = call.query
        try:
            limit = int(query.get("limit", "100"))
            until = _moment(query["until"]) if "until" in query else None
            since = _moment(query["since"]) if "since" in query else (until or self._state.now()) - timedelta(days=7)
        except ValueError:
            return invalid("since, until or limit")
        if not 0 <= limit <= 1000:
            return invalid("limit", "The limit must be between 0 and 1000.")
        try:
            wanted = parse(query["filter"]) if query.get("filter") else None
        except BadFilterError as bad:
            return error(400, "E0000031", f"Invalid search criteria. {bad}")
        words = query.get("q", "").split()
        if len(words) > 10 or any(len(word) > 40 for word in words):
            return invalid("q", "At most 10 keywords of at most 40 characters.")
        descending = query.get("sortOrder", "ASCENDING").upper() == "DESCENDING"
        polling = until is None and not descending
        page = self._page(since, until, query.get("after"), polling=polling, descending=descending)
        if isinstance(page, Answer):
            return page
        found = [
            entry
            for entry in page
            if (wanted is None or wanted(entry.event))
            and all(word.lower() in str(entry.event).lower() for word in words)
        ]
        shown = found[:limit]
        headers = [("link", f'<{call.url}?{urlencode(dict(query))}>; rel="self"')]
        if polling or len(found) > len(shown):  # a polling query always has a next page
            after = _cursor(shown[-1], polling=polling) if shown else query.get("after", _start(since))
            headers.append(("link", f'<{call.url}?{urlencode({**query, "after": after})}>; rel="next"'))
        return Answer(200, [entry.event for entry in shown], tuple(headers))

    def _page(
        self, since: datetime, until: datetime | None, after: str | None, *, polling: bool, descending: bool
    ) -> list[_Entry] | Answer:
        now = self._state.now()
        with self._lock:
            visible = [entry for entry in self._entries if entry.stored <= now]
        order = {entry.number: _position(entry, polling=polling) for entry in visible}
        inside = [
            entry for entry in visible if order[entry.number][0] >= since and (until is None or entry.published < until)
        ]
        inside.sort(key=lambda entry: order[entry.number], reverse=descending)
        if after is None:
            return inside
        try:
            microseconds, _, number = after.partition("_")
            mark = (_EPOCH + timedelta(microseconds=int(microseconds)), int(number))
        except ValueError:
            return invalid("after")
        if descending:
            return [entry for entry in inside if order[entry.number] < mark]
        return [entry for entry in inside if order[entry.number] > mark]


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _position(entry: _Entry, *, polling: bool) -> tuple[datetime, int]:
    return (entry.stored if polling else entry.published), entry.number


def _cursor(entry: _Entry, *, polling: bool) -> str:
    moment, number = _position(entry, polling=polling)
    return f"{(moment - _EPOCH) // timedelta(microseconds=1)}_{number}"


def _start(since: datetime) -> str:
    return f"{(since - _EPOCH) // timedelta(microseconds=1)}_0"


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
