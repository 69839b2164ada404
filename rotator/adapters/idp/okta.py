"""Okta as the identity provider of one app: OktaProvider where its API takes the key, OktaHandOffProvider elsewhere.

Which apps the API takes a token for is the table TOKEN_APPS (Okta docs: "Set up an app provisioning connection"). For
any other app the same calls answer 200 with UNKNOWN and do nothing (recorded: okta-sdk-python cassettes), so the
answer's status is looked at, never the HTTP code alone.

Keeps I1 and I3: POST always carries activate=TRUE, because without it an enabled connection drops to DISABLED
(recorded: terraform-provider-okta fixtures), and a POST whose answer is lost or unreadable is Ambiguous. I5: the key
goes into one request body and nowhere else; Okta never gives it back.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import quote, urlsplit

from rotator import errors
from rotator.adapters.http import HttpAnswer
from rotator.adapters.idp.okta_errors import credential_refused, read_error
from rotator.adapters.idp.okta_log import AppLog
from rotator.adapters.idp.okta_org import OktaOrg
from rotator.core.model import By
from rotator.core.secret import Secret
from rotator.ports import ConnectionStatus, HandOff, IdpCapabilities, IdpConnection, IdpEvent


class BaseUrl(StrEnum):
    """Whether the connection's baseUrl goes with the token."""

    REQUIRED = "required"
    IF_GIVEN = "if_given"


# App name -> its base URL. Okta's list grows by a line now and then (Okta docs: app-provisioning-connection).
TOKEN_APPS: dict[str, BaseUrl] = {
    "zscalerbyz": BaseUrl.REQUIRED,  # the URL holds the customer's id and comes from the portal with the token
    "okta_org2org": BaseUrl.IF_GIVEN,  # else from the app's own settings; a given one was recorded as accepted
}

OPERATIONS = ("push", "read", "features", "events", "token")  # the meter's words of all calls to an org
URGENT_FOR = timedelta(hours=1)  # after a push, while its proof may still be open
_NOT_MANAGED = "Okta answers 200 UNKNOWN for an app whose connection its API doesn't manage"


class OktaProvider:
    """One app whose token Okta takes by API. Thread-safe; shares its org with other providers."""

    def __init__(
        self, org: OktaOrg, *, app_id: str, app: str, base_url: str = "", field: str = "API Token", header: str = ""
    ) -> None:
        """`app`: its catalogue name. Misconfigured when it isn't in TOKEN_APPS or lacks a base URL that it needs.

        `field` and `header` are what a hand-off would tell; see `hand_off`.
        """
        needs = TOKEN_APPS.get(app)
        if needs is None or (needs is BaseUrl.REQUIRED and not base_url):
            raise errors.Misconfigured(
                "preparing to give Okta keys",
                system=org.system,
                detail=f"app {app!r} needs base_url" if needs else f"Okta's API takes no token for app {app!r}",
                fix="" if needs else f"It does for {', '.join(TOKEN_APPS)}; any other app is pushed by a person",
            )
        self._org = org
        self._app_id = app_id
        self._base_url = base_url
        self._path = f"/api/v1/apps/{quote(app_id, safe='')}"
        self._log = AppLog(org, app_id)
        self._hand_off = hand_off(org.http.base_url, app=app, app_id=app_id, field=field, header=header)
        self._pushed_at: datetime | None = None
        self._lock = threading.Lock()

    @property
    def capabilities(self) -> IdpCapabilities:
        return IdpCapabilities()

    def read(self) -> IdpConnection:
        doing = "reading the provisioning connection"
        answer = self._get("/connections/default", doing, "read", judge_connection=True)
        found = _connection(answer)
        if found is None:
            raise errors.Misconfigured(
                doing, system=self._org.system, detail="the answer is no provisioning connection", fix="Check the URL"
            )
        return found

    def features(self) -> Mapping[str, str]:
        """{"": why} for an app without provisioning: also a second sign that the connection fell to DISABLED."""
        doing = "reading the provisioning features"
        answer = self._get("/features", doing, "features", judge_connection=False)
        if answer.status == 400:
            return {"": "not supported" if "not supported" in read_error(answer).causes else "not enabled"}
        if not isinstance(answer.json, list):
            raise errors.Misconfigured(doing, system=self._org.system, detail="the answer is no list of features")
        return flattened(answer.json)

    def push(self, key: Secret) -> IdpConnection:
        doing = "giving Okta the key"
        # Okta docs: "Set up an app provisioning connection"
        body: dict[str, Any] = {"profile": {"authScheme": "TOKEN", "token": key.reveal()}}
        if self._base_url:
            body["baseUrl"] = self._base_url

        def special(answer: HttpAnswer) -> errors.PortError | None:
            if credential_refused(answer):
                detail = "Okta tested the key at the target and it failed (HTTP 400 E0000001)"
                return errors.Refused(doing, system=self._org.system, detail=detail)
            if answer.status < 400 and _connection(answer) is None:
                detail = "the answer is no provisioning connection: whether Okta took the key is unknown"
                return errors.Ambiguous(doing, system=self._org.system, detail=detail)
            return self._unmanaged(answer, doing)

        try:
            answer = self._org.call(
                "POST",
                # One call that stores and switches on: between two calls the connection would stand DISABLED. The guide
                # writes TRUE, Okta's SDKs send true.
                f"{self._path}/connections/default?activate=TRUE",
                bucket="apps",
                doing=doing,
                operation="push",
                changing=True,
                scope="okta.apps.manage",
                urgent=self._urgent(),
                who=self._app_id,
                json=body,
                special=special,
            )
        except (errors.Refused, errors.Ambiguous):
            self._note_push()
            raise
        self._note_push()
        found = _connection(answer)
        if found is None:  # `special` has seen to it
            raise errors.Ambiguous(doing, system=self._org.system, detail="the answer can't be read")
        return found

    def events(self, since: datetime) -> tuple[IdpEvent, ...]:
        return self._log.since(since, urgent=self._urgent())

    def hand_off(self) -> HandOff:
        return self._hand_off

    def _get(self, path: str, doing: str, operation: str, *, judge_connection: bool) -> HttpAnswer:
        return self._org.call(
            "GET",
            self._path + path,
            bucket="apps",
            doing=doing,
            operation=operation,
            changing=False,
            scope="okta.apps.read",
            urgent=self._urgent(),
            who=self._app_id,
            special=(lambda answer: self._unmanaged(answer, doing)) if judge_connection else None,
            let=None if judge_connection else _no_features,
        )

    def _unmanaged(self, answer: HttpAnswer, doing: str) -> errors.PortError | None:
        found = _connection(answer)
        if found is None or answer.status >= 400:
            return None
        if found.status is ConnectionStatus.UNKNOWN or found.scheme == "UNKNOWN":
            return errors.Unsupported(
                doing, system=self._org.system, detail=_NOT_MANAGED, fix="Check app_id, or let a person push"
            )
        return None

    def _urgent(self) -> bool:
        with self._lock:
            return self._pushed_at is not None and self._org.clock.now() - self._pushed_at < URGENT_FOR

    def _note_push(self) -> None:
        """Okta's slot may have changed: from now on this rotation's calls may use the budget's reserve (I1)."""
        with self._lock:
            self._pushed_at = self._org.clock.now()


class OktaHandOffProvider:
    """Any other app: a person types the key into the Admin Console; the System Log tells when the app was changed."""

    def __init__(
        self, org: OktaOrg, *, app_id: str, app: str = "", field: str = "API Token", header: str = "Bearer {key}"
    ) -> None:
        self._org = org
        self._log = AppLog(org, app_id)
        self._hand_off = hand_off(org.http.base_url, app=app, app_id=app_id, field=field, header=header)

    @property
    def capabilities(self) -> IdpCapabilities:
        return IdpCapabilities(push=By.PERSON, reads_connection=False, features=False, log=True)

    def read(self) -> IdpConnection:
        raise self._unsupported("reading the provisioning connection")

    def features(self) -> Mapping[str, str]:
        raise self._unsupported("reading the provisioning features")

    def push(self, key: Secret) -> IdpConnection:
        del key
        raise self._unsupported("giving Okta the key")

    def events(self, since: datetime) -> tuple[IdpEvent, ...]:
        return self._log.since(since, urgent=False)

    def hand_off(self) -> HandOff:
        return self._hand_off

    def _unsupported(self, doing: str) -> errors.Unsupported:
        return errors.Unsupported(
            doing, system=self._org.system, detail="Okta's API doesn't manage this app's connection; a person does it"
        )


def hand_off(url: str, *, app: str, app_id: str, field: str, header: str) -> HandOff:
    """Where and how a person types the key in.

    The link is a best effort: Okta documents no such address. It is the one that the Admin Console itself shows on an
    app's Provisioning tab; without the app's name it leads to the list of apps.
    """
    parts = urlsplit(url)
    first, dot, rest = (parts.hostname or "").partition(".")
    first = first.removesuffix("-admin")
    okta_domain = rest in {"okta.com", "oktapreview.com", "okta-emea.com", "okta-gov.com", "okta.mil"}
    host = f"{first}-admin{dot}{rest}" if okta_domain else parts.netloc  # a custom domain redirects by itself
    where = f"{parts.scheme}://{host}/admin/apps/active"
    if app:
        name, identity = quote(app, safe=""), quote(app_id, safe="")
        where = f"{parts.scheme}://{host}/admin/app/{name}/instance/{identity}/#tab-user-management/api-credentials"
    before, _, after = header.partition("{key}")
    if before.strip() or after.strip():
        around = f'with "{before}" before it' + (f' and "{after}" after it' if after else "")
        form = f'the key alone where the field is headed "{before.strip()}", otherwise {around}'
    else:
        form = "the key alone, without blanks or line breaks"
    return HandOff(
        where=where,
        field=field,
        form=form,
        steps=(
            f"Open the app {app_id} in the Okta Admin Console, tab Provisioning, section Integration, and choose Edit",
            f"Put the key into the field {field}: {form}",
            "Choose Test API Credentials, then Save",
        ),
    )


@dataclass(frozen=True, slots=True)
class _Todo:
    path: str
    value: Any


def flattened(features: list[Any]) -> Mapping[str, str]:
    """Dotted path -> value, sorted, each path beginning with the feature's name; links and descriptions left out."""
    flat: dict[str, str] = {}
    todo = [
        _Todo(str(item.get("name", index)) if isinstance(item, dict) else str(index), item)
        for index, item in enumerate(features)
    ]
    while todo:  # no recursion: the depth is the server's choice
        here = todo.pop()
        if isinstance(here.value, dict):
            todo += [
                _Todo(f"{here.path}.{name}", value)
                for name, value in here.value.items()
                if name not in {"_links", "description"}
            ]
        elif isinstance(here.value, list):
            todo += [_Todo(f"{here.path}.{index}", value) for index, value in enumerate(here.value)]
        else:
            flat[here.path] = here.value if isinstance(here.value, str) else json.dumps(here.value)
    return dict(sorted(flat.items()))


def _connection(answer: HttpAnswer) -> IdpConnection | None:
    """Read leniently: `profile` was recorded as missing on a new app, `authScheme` may stand in either place."""
    body = answer.json
    if not isinstance(body, dict):
        return None
    try:
        status = ConnectionStatus(str(body.get("status", "")).lower())
    except ValueError:
        return None
    profile = body.get("profile")
    scheme = profile.get("authScheme") if isinstance(profile, dict) else None
    scheme = scheme or body.get("authScheme")
    base_url = body.get("baseUrl")
    return IdpConnection(
        status=status,
        scheme=scheme if isinstance(scheme, str) else None,
        base_url=base_url if isinstance(base_url, str) else None,
        at=answer.date,
    )


def _no_features(answer: HttpAnswer) -> bool:
    """Recorded: 400 E0000001 "Api validation failed: feature", cause "Provisioning is not supported."; Okta's spec has
    "… is not enabled for the app instance." for a connection that is off.
    """
    error = read_error(answer)
    return answer.status == 400 and error.code == "E0000001" and "provisioning is not" in error.causes + error.summary
