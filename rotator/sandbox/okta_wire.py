"""The shapes every part of the sandbox Okta speaks: a call, an answer, Okta's error body, and an endpoint."""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Caller:
    """Who signed in, as the System Log names it. `token_id` only for an API token."""

    id: str
    type: str
    name: str
    token_id: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `url` is without the query, as a DPoP proof's `htu` has it."""

    method: str
    url: str
    path: str
    query: Mapping[str, str]
    params: Mapping[str, str]
    headers: Mapping[str, str]  # names in lower case
    body: bytes = field(repr=False)
    caller: Caller | None = None

    def json(self) -> dict[str, Any] | None:
        """The body as an object; None when it is anything else (Okta: E0000003)."""
        try:
            parsed = json.loads(self.body)
        except ValueError:
            return None
        return parsed if isinstance(parsed, dict) else None


@dataclass(frozen=True, slots=True)
class Answer:
    """`body` is JSON unless it is a str (HTML); None is an empty body."""

    status: int
    body: Any = None
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Call], Answer]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`scopes`: an OAuth caller needs all; a manage scope covers reading. `public`: no sign-in, asked at each call."""

    method: str
    path: str
    handler: Handler
    scopes: tuple[str, ...] = ()
    public: Callable[[], bool] = lambda: False
    media_type: str | None = None  # what a body must be


def error(status: int, code: str, summary: str, *causes: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """Okta's error body; `errorLink` repeats the code (recorded in okta-sdk-python's cassettes)."""
    body = {
        "errorCode": code,
        "errorSummary": summary,
        "errorLink": code,
        "errorId": "oae" + secrets.token_urlsafe(16),
        "errorCauses": [{"errorSummary": cause} for cause in causes],
    }
    return Answer(status, body, headers)


def not_found(what: str, kind: str) -> Answer:
    return error(404, "E0000007", f"Not found: Resource not found: {what} ({kind})")


def malformed() -> Answer:
    return error(400, "E0000003", "The request body was not well-formed.")


def invalid(field_name: str, *causes: str) -> Answer:
    return error(400, "E0000001", f"Api validation failed: {field_name}", *causes)
