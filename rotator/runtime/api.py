"""The HTTP API: its routes, and what they need of the dispatcher.

Handlers check and pass on; the work happens in the dispatcher's pool. Keeps I5: no route takes or gives key material,
and no error repeats what was sent. Everything but health needs a bearer token.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Protocol

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from rotator.core.model import Ask, Ended, Rotation
from rotator.core.reasons import Reason
from rotator.core.view import ConnectionView
from rotator.errors import PortError
from rotator.runtime import api_models as models
from rotator.runtime.api_guard import Shield, Throttle, Tokens
from rotator.runtime.api_routes import ROUTES, ApiRoute, openapi

logger = logging.getLogger("rotator.api")

MAX_BODY = 16 * 1024  # bytes
BODY_SECONDS = 10.0  # for the whole body to arrive
CHANGES_AT_ONCE = 8  # POSTs that wait for their answer; reads and health have threads of their own
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Submitted(StrEnum):
    ACCEPTED = "accepted"
    RUNNING = "running"  # one is open already; its id is given
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class SubmitAnswer:
    """`rotation_id` where one is open; `reason` and `text` where it was refused. Given after the claim is written."""

    submitted: Submitted
    rotation_id: str = ""
    reason: Reason | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class AskAnswer:
    """Whether the request was written into the record; `reason` and `text` say why not."""

    accepted: bool
    rotation_id: str = ""
    reason: Reason | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class VerifyAnswer:
    """What a proof of the current key found on each side; nothing was changed."""

    ok: bool
    target: str  # a ports.Answer, or the error's class in snake_case
    idp: str  # a ports.ConnectionStatus, or the error's class
    text: str = ""
    missing: tuple[str, ...] = ()  # proof sources that our credentials don't allow


@dataclass(frozen=True, slots=True)
class FoundRotation:
    connection: str
    rotation: Rotation | Ended


class ApiService(Protocol):
    """What the dispatcher offers. Called from several threads at once. A PortError becomes a 503."""

    def submit(self, connection: str, note: str) -> SubmitAnswer:
        """Ask for a rotation with Trigger.HTTP."""

    def ask(self, connection: str, what: Ask) -> AskAnswer:
        """Ask for something of the open rotation."""

    def verify(self, connection: str) -> VerifyAnswer:
        """Prove the current key on both sides; change nothing."""

    def list_connections(self) -> Sequence[ConnectionView]:
        """All configured connections."""

    def connection(self, name: str) -> ConnectionView | None:
        """One configured connection."""

    def rotation(self, rotation_id: str) -> FoundRotation | None:
        """An open rotation, or a connection's last one."""

    def alive(self) -> bool:
        """The threads that must run do. Answers at once."""

    def ready(self) -> tuple[bool, tuple[str, ...]]:
        """Vault is writable and the last tick is recent; else sentences that say what is not."""

    def metrics(self) -> bytes:
        """The exposition, text format 0.0.4."""


def build_api(
    service: ApiService,
    tokens: Tokens | None,
    *,
    now: Callable[[], datetime],
    version: str,
    open_metrics: bool = False,
    per_minute: int = 60,
    monotonic: Callable[[], float] = time.monotonic,
) -> Starlette:
    """The ASGI app, for `api_server.serve`.

    Without `tokens` only health answers, and metrics when open. `open_metrics`: /metrics needs no token; `serve` takes
    that on loopback only. `per_minute`: how many POSTs of each kind are taken, in bursts of up to as many.
    """
    api = _Api(service, tokens, now, version, Throttle(per_minute, monotonic), open_metrics=open_metrics)
    app = Starlette(
        routes=[Route(route.path, api.endpoint(route), methods=[route.method], name=route.name) for route in ROUTES],
        exception_handlers={HTTPException: _no_route},
    )
    app.router.redirect_slashes = False  # it would send callers, with their token, where the Host header says
    app.add_middleware(Shield)
    app.state.authenticated = tokens is not None
    app.state.open_metrics = open_metrics
    return app


class _Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, error: str, message: str, **headers: str) -> None:
        self.response = _error(status, error, message, {name.replace("_", "-"): v for name, v in headers.items()})


@dataclass(frozen=True, slots=True)
class _Call:
    """A request that was let in: the name in its path, and its body."""

    name: str
    body: BaseModel | None


class _Api:
    def __init__(
        self,
        service: ApiService,
        tokens: Tokens | None,
        now: Callable[[], datetime],
        version: str,
        throttle: Throttle,
        *,
        open_metrics: bool,
    ) -> None:
        self._service = service
        self._tokens = tokens
        self._now = now
        self._throttle = throttle
        self._open_metrics = open_metrics
        self._document = json.dumps(openapi(version)).encode()
        self._changes = ThreadPoolExecutor(CHANGES_AT_ONCE, thread_name_prefix="api-change")

    def endpoint(self, route: ApiRoute) -> Callable[[Request], Awaitable[Response]]:
        """The route's handler behind authentication, throttle and body checks; every failure is an Error body."""
        handler: Callable[[_Call], Response] = getattr(self, route.name)

        async def endpoint(request: Request) -> Response:
            try:
                self._let_in(route, request)
                body = await _read_body(request, route.body) if route.body else None
                call = _Call(request.path_params.get("name", ""), body)
                if route.body:
                    return await asyncio.get_running_loop().run_in_executor(self._changes, handler, call)
                return await run_in_threadpool(handler, call)
            except _Refused as refused:
                return refused.response
            except PortError as error:
                return _error(503, "unavailable", f"{error}", {"retry-after": "10"})
            except Exception:
                logger.exception("a request failed: %s", route.name)
                return _error(500, "unexpected", "the rotator failed to answer; its log says why")

        return endpoint

    def _let_in(self, route: ApiRoute, request: Request) -> None:
        if route.role is not None and not (route.name == "metrics" and self._open_metrics):
            role = self._tokens.role_of(request.headers.get("authorization")) if self._tokens else None
            if role is None:
                message = "a valid bearer token is needed" if self._tokens else "no tokens are configured"
                raise _Refused(401, "unauthorized", message, www_authenticate='Bearer realm="rotator"')
            if not role.may(route.role):
                raise _Refused(403, "forbidden", f"this token may not do that; it needs the role {route.role.value}")
        if route.body:
            wait = self._throttle.wait(route.name)
            if wait:
                raise _Refused(
                    429, "rate_limited", "too many requests of this kind; try later", retry_after=str(math.ceil(wait))
                )

    # --- changes ---

    def rotate(self, call: _Call) -> Response:
        self._known(call.name)
        note = call.body.reason if isinstance(call.body, models.RotateBody) else ""
        answer = self._service.submit(call.name, note)
        if answer.submitted is Submitted.REFUSED:
            return _conflict(answer.reason, answer.text, answer.rotation_id)
        if answer.submitted is Submitted.RUNNING:
            return _json(200, models.Submitted(rotation_id=answer.rotation_id, status="running"))
        return _json(202, models.Submitted(rotation_id=answer.rotation_id, status="accepted"))

    def rollback(self, call: _Call) -> Response:
        return self._ask(call.name, Ask.ROLLBACK)

    def cancel(self, call: _Call) -> Response:
        return self._ask(call.name, Ask.CANCEL)

    def _ask(self, name: str, what: Ask) -> Response:
        self._known(name)
        answer = self._service.ask(name, what)
        if not answer.accepted:
            return _conflict(answer.reason, answer.text, answer.rotation_id)
        return _json(202, models.Asked(rotation_id=answer.rotation_id, asked=what))

    def verify(self, call: _Call) -> Response:
        self._known(call.name)
        answer = self._service.verify(call.name)
        return _json(
            200,
            models.Verified(
                connection=call.name,
                ok=answer.ok,
                target=answer.target,
                idp=answer.idp,
                message=answer.text,
                missing_proofs=answer.missing,
            ),
        )

    # --- reads ---

    def connections(self, _call: _Call) -> Response:
        now = self._now()
        views = self._service.list_connections()
        return _json(
            200, models.ConnectionsAnswer(connections=tuple(models.ConnectionAnswer.of(view, now) for view in views))
        )

    def connection(self, call: _Call) -> Response:
        return _json(200, models.ConnectionAnswer.of(self._known(call.name), self._now()))

    def rotation(self, call: _Call) -> Response:
        found = self._service.rotation(call.name)
        if found is None:
            raise _Refused(404, "not_found", "no such rotation; a connection keeps its open and its last one")
        return _json(200, models.RotationAnswer.of(found.connection, found.rotation))

    def healthz(self, _call: _Call) -> Response:
        alive = self._service.alive()
        return _json(200 if alive else 503, models.Health(ok=alive))

    def readyz(self, _call: _Call) -> Response:
        ready, reasons = self._service.ready()
        return _json(200 if ready else 503, models.Health(ok=ready, reasons=reasons))

    def metrics(self, _call: _Call) -> Response:
        return Response(self._service.metrics(), headers={"content-type": METRICS_TYPE})

    def document(self, _call: _Call) -> Response:
        return Response(self._document, media_type="application/json")

    def _known(self, name: str) -> ConnectionView:
        view = self._service.connection(name)
        if view is None:
            raise _Refused(404, "not_found", "no such connection in the configuration")
        return view


async def _read_body(request: Request, model: type[models.Body]) -> models.Body:
    raw = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > MAX_BODY:
                    raise _Refused(413, "too_large", f"a body has at most {MAX_BODY} bytes", connection="close")
    except TimeoutError:
        raise _Refused(408, "timeout", "the body did not arrive in time", connection="close") from None
    except ClientDisconnect:
        raise _Refused(400, "bad_request", "the body was cut off") from None
    if not raw:
        return model()
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise _Refused(415, "unsupported_media_type", "a body must be JSON: content-type application/json")
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        # Where and what, never the value: somebody may have sent a key
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        allowed = ", ".join(model.model_fields) or "none"
        where = (
            "field" if first["type"] == "extra_forbidden" else ".".join(str(part) for part in first["loc"]) or "body"
        )
        raise _Refused(400, "bad_request", f"{where}: {first['type']}; allowed fields: {allowed}") from None


async def _no_route(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    phrase = HTTPStatus(error.status_code).phrase.lower()
    return _error(error.status_code, phrase.replace(" ", "_"), f"{phrase} on this path", dict(error.headers or {}))


def _conflict(reason: Reason | None, text: str, rotation_id: str) -> Response:
    word = reason.value if reason else "refused"
    return _json(409, models.Error(error=word, message=text, rotation_id=rotation_id or None))


def _error(status: int, error: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return _json(status, models.Error(error=error, message=message), headers)


def _json(status: int, answer: BaseModel, headers: dict[str, str] | None = None) -> Response:
    return Response(answer.model_dump_json(), status, headers, "application/json")
