"""The way in: every request of the sandbox Okta passes here once.

Counts it, lets a queued fault or a limit end it, has the caller checked, runs the handler in a worker thread, and
records how it ended. Handlers know nothing of this.
"""

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from email.utils import formatdate

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from rotator.sandbox.okta_limits import (
    AFTER_STORING,
    CallRecord,
    Fault,
    FaultKind,
    Faults,
    Limits,
    answer_of,
    bucket_of,
    too_many,
)
from rotator.sandbox.okta_state import State
from rotator.sandbox.okta_wire import Answer, Call, Caller, Endpoint, error
from rotator.sandbox.server import drop_connection

# Signs a caller in: the caller, or the answer that turns it away.
SignIn = Callable[[Call, Endpoint], Caller | Answer]


class Gate:
    """The ASGI application."""

    def __init__(self, state: State, endpoints: Sequence[Endpoint], sign_in: SignIn) -> None:
        self._state = state
        self._routes = [(compile_path(endpoint.path)[0], endpoint) for endpoint in endpoints]
        self._sign_in = sign_in
        self._limits = Limits(state.switches, state.epoch)
        self._in_flight = 0
        self._lock = threading.Lock()
        self.faults = Faults()
        self.calls: list[CallRecord] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        fault = self.faults.take(request.method, request.url.path)
        if fault is not None and fault.kind is FaultKind.DROPPED_BEFORE_STORING:
            self._record(request, 0)
            drop_connection(scope)
            return
        with self._lock:
            self._in_flight += 1
            busy = self._in_flight > self._state.switches.concurrency_limit
        try:
            answer, headers = await self._answer(request, body, fault, busy=busy)
        finally:
            with self._lock:
                self._in_flight -= 1
        if fault is not None and fault.kind is FaultKind.TIMEOUT_AFTER_STORING:
            self._record(request, 0)
            await self._hold(receive, fault.hold_seconds)
            drop_connection(scope)
            return
        self._record(request, answer.status)
        await self._response(answer, headers)(scope, receive, send)

    async def _answer(
        self, request: Request, body: bytes, fault: Fault | None, *, busy: bool
    ) -> tuple[Answer, tuple[tuple[str, str], ...]]:
        bucket = bucket_of(request.url.path)
        allowed, headers = self._limits.count(bucket)
        endpoint, params = self._route(request)
        scopes = endpoint.scopes if isinstance(endpoint, Endpoint) else ()
        if busy or (fault is not None and fault.kind is FaultKind.CONCURRENCY):
            return too_many(), self._limits.busy()
        if not allowed or (fault is not None and fault.kind is FaultKind.RATE_LIMIT):
            return too_many(), self._limits.blocked(bucket)
        url = str(request.url.replace(query=""))
        if fault is not None and fault.kind not in AFTER_STORING:
            return answer_of(fault.kind, url, scopes), headers
        if isinstance(endpoint, Answer):
            return endpoint, headers
        call = Call(
            method=request.method,
            url=url,
            path=request.url.path,
            query=dict(request.query_params),
            params=params,
            headers={name.lower(): value for name, value in request.headers.items()},
            body=body,
        )
        await asyncio.sleep(self._latency(request.method))
        answer = await run_in_threadpool(self._work, call, endpoint)
        if fault is not None and fault.kind is FaultKind.ERROR_AFTER_STORING:
            return answer_of(fault.kind, url, scopes), headers
        return answer, headers

    def _work(self, call: Call, endpoint: Endpoint) -> Answer:
        if not endpoint.public():
            caller = self._sign_in(call, endpoint)
            if isinstance(caller, Answer):
                return caller
            call = replace(call, caller=caller)
        media_type = call.headers.get("content-type", "").partition(";")[0].strip()
        if endpoint.media_type is not None and media_type != endpoint.media_type:
            summary = "Bad request. Accept and/or Content-Type headers likely do not match supported values."
            return error(400, "E0000021", summary)
        return endpoint.handler(call)

    def _route(self, request: Request) -> tuple[Endpoint | Answer, dict[str, str]]:
        known = False
        for pattern, endpoint in self._routes:
            match = pattern.match(request.url.path)
            if match is None:
                continue
            known = True
            if endpoint.method == request.method:
                return endpoint, match.groupdict()
        if known:
            return error(405, "E0000022", "The endpoint does not support the provided HTTP method"), {}
        return error(404, "E0000008", "The requested path was not found"), {}

    def _latency(self, method: str) -> float:
        switches = self._state.switches
        return switches.read_seconds if method == "GET" else switches.write_seconds

    @staticmethod
    async def _hold(receive: Receive, seconds: float) -> None:
        """Until the client hangs up, or the time is over."""
        try:
            async with asyncio.timeout(seconds):
                while (await receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return

    def _record(self, request: Request, status: int) -> None:
        with self._lock:
            self.calls.append(CallRecord(time.monotonic(), request.method, request.url.path, status))

    def _response(self, answer: Answer, headers: tuple[tuple[str, str], ...]) -> Response:
        if answer.body is None:
            response = Response(b"", answer.status)
        elif isinstance(answer.body, str):
            response = Response(answer.body, answer.status, media_type="text/html")
        else:
            response = Response(json.dumps(answer.body), answer.status, media_type="application/json")
        response.headers["date"] = formatdate(self._state.epoch(), usegmt=True)
        response.headers["x-okta-request-id"] = uuid.uuid4().hex
        for name, value in (*headers, *answer.headers):
            response.headers.append(name, value)
        return response
