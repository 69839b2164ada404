"""What Okta's error answers mean. One table, one function; no text of a body leaves it (I5).

Okta's shape is {"errorCode", "errorSummary", "errorId", "errorCauses"} (Okta docs: Error codes); OAuth scope errors are
a 403 with an empty body and a www-authenticate header (okta-sdk-golang issue 145); proxies answer in HTML.

A 401 or 403 is the rotator's own credential, never the rotated key. The rotated key's only refusal is 400 E0000001
about "credential" (okta-sdk-nodejs, test/it/application-provisioning-connection.ts): see `credential_refused`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rotator import errors
from rotator.adapters.http import HttpAnswer, retry_after, status_error

_CODE = re.compile(r"E\d{7}")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SCOPES = re.compile(r"[A-Za-z.]{1,64}(?: [A-Za-z.]{1,64}){0,9}")

# Sentences for what a person can do, by code (Okta docs: Error codes).
FIXES: dict[str, str] = {
    "E0000004": "The rotator's own API token is wrong",
    "E0000005": "The rotator's own session is invalid: use an API token or a service app",
    "E0000006": "Give the rotator's identity an admin role that covers this app (Application administrator)",
    "E0000007": "Check app_id; the app may have been deleted",
    "E0000008": "Check the org's URL; the feature may be switched off in this org",
    "E0000011": "The rotator's own API token has expired, was revoked, or its owner was deactivated",
    "E0000015": "This org's licence does not include the feature",
    "E0000038": "The app's state forbids it: is it inactive?",
    "E0000039": "The app's state forbids it: is it inactive?",
}


@dataclass(frozen=True, slots=True)
class OktaError:
    """An error body, read leniently: any part may be missing or of the wrong type."""

    code: str
    summary: str  # lower case; for matching only, never shown
    causes: str  # the same
    id: str

    @property
    def shown(self) -> str:
        parts = [self.code, f"error id {self.id}" if self.id else ""]
        return ", ".join(part for part in parts if part)


def read_error(answer: HttpAnswer) -> OktaError:
    body = answer.json if isinstance(answer.json, dict) else {}
    causes = body.get("errorCauses")
    if isinstance(causes, dict):  # one of Okta's own examples has an object here
        causes = [causes]
    texts = [
        str(cause["errorSummary"])
        for cause in (causes if isinstance(causes, list) else [])
        if isinstance(cause, dict) and isinstance(cause.get("errorSummary"), str)
    ]
    return OktaError(
        code=_matching(_CODE, body.get("errorCode")),
        summary=str(body.get("errorSummary") or "").lower()[:1000],
        causes=" ".join(texts).lower()[:1000],
        id=_matching(_ID, body.get("errorId")),
    )


def credential_refused(answer: HttpAnswer) -> bool:
    """Okta tested the key that we gave it, and it failed."""
    error = read_error(answer)
    return answer.status == 400 and error.code == "E0000001" and "credential" in error.summary


def okta_error(answer: HttpAnswer, *, doing: str, system: str, changing: bool, scope: str) -> errors.PortError | None:
    """The error for an answer of 400 or above, None below. A 429 is the budget's to read. `scope`: what the call needs."""
    status = answer.status
    error = read_error(answer)
    detail = f"HTTP {status}" + (f" {error.shown}" if error.shown else "")
    if status == 401:
        fix = FIXES.get(error.code, "The rotator's own credential was refused")
        return errors.Denied(doing, system=system, detail=detail, fix=fix)
    if status == 403:
        return errors.Denied(doing, system=system, detail=detail, fix=_missing_right(answer, error, scope))
    if status == 423:  # Okta docs, E0000239: being reconciled
        return errors.Transient(doing, system=system, detail=detail, retry_after=retry_after(answer))
    if status == 400 and "dpop" in (_oauth_text(answer) + answer.header("www-authenticate").lower()):
        return errors.Denied(doing, system=system, detail=detail, fix='The service app demands DPoP: set dpop = "on"')
    fix = FIXES.get(error.code, "")
    return status_error(answer, doing=doing, system=system, changing=changing, detail=detail, fix=fix)


def _missing_right(answer: HttpAnswer, error: OktaError, scope: str) -> str:
    challenge = answer.header("www-authenticate")
    if "insufficient_scope" in challenge:
        named = re.search(r'scope="([^"]*)"', challenge)
        missing = _matching(_SCOPES, named.group(1)) if named else ""
        return f"Grant the service app the scope {missing or scope}"
    return FIXES.get(error.code, f"The rotator's identity needs the scope {scope} and an admin role for this app")


def _oauth_text(answer: HttpAnswer) -> str:
    body = answer.json if isinstance(answer.json, dict) else {}
    return f"{body.get('error') or ''} {body.get('error_description') or ''}".lower()[:1000]


def _matching(pattern: re.Pattern[str], value: object) -> str:
    return value if isinstance(value, str) and pattern.fullmatch(value) else ""
