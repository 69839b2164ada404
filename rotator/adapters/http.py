"""HTTP, once, for all adapters: the only module that imports httpx, and where its errors become ours.

    HttpClient(base_url, *, system, clock, meter, ca_file=None, timeouts=Timeouts(), max_body=1_000_000, transport=None)
        .request(method, path, *, doing, operation, changing, params=None, headers=None, json=None, form=None,
                 auth=None, judge=None, json_due=True, seconds=None) -> HttpAnswer
        .close()
    HttpAnswer(status, headers, json, text_is_html, date, received_at); .skew, .header(name)
    SecretHeader(name, secret, prefix="")   an Auth: e.g. SecretHeader("Authorization", token, "Bearer ")
    status_error(answer, *, doing, system, changing) -> PortError | None    a plain reading of statuses, to build on
    retry_after(answer) -> seconds | None

`judge` looks at an answer and returns the error it means, or None; the client raises it and reports its class to the
meter. Without a judge every status but a redirect is returned. `path` begins with "/" and is appended to `base_url`.

What the rules here keep:
- I3, I2: a changing call whose answer is lost after it was (perhaps) sent is Ambiguous; only a call that certainly
  never left is Transient.
- I5: no error holds a body, a header value, a query or a host other than a redirect's; causes are cut off, because
  httpx and h11 quote header values in some messages. Cookies are never kept: a session cookie would let a dead key
  pass a probe. Redirects are never followed: the credential would go with them.
- I6: each call ends by its own total deadline, however slowly headers or body drip in.
"""

from __future__ import annotations

import functools
import json as jsonlib
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx

from rotator import errors
from rotator.adapters.http_deadline import Backend, DeadlineBeforeSending, DeadlinePassed, deadline
from rotator.core.secret import Secret
from rotator.ports import Clock, Meter

Judge = Callable[["HttpAnswer"], "errors.PortError | None"]
BaseTransport = httpx.BaseTransport  # for tests' annotations; nobody else imports httpx


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. `total` bounds the whole call with its answer; the others bound one wait each."""

    connect: float = 5.0
    read: float = 30.0
    write: float = 15.0
    pool: float = 5.0
    total: float = 45.0


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What came back. `headers` has lower-case names; repeated ones are joined by ", "."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    json: Any | None = field(repr=False)  # None also when the body was empty or no JSON; may hold a fresh key (I5)
    text_is_html: bool
    date: datetime | None  # the server's clock
    received_at: datetime  # ours

    @property
    def skew(self) -> float:
        """Seconds by which the server's clock is ahead of ours; 0 when it sent no date."""
        return 0.0 if self.date is None else (self.date - self.received_at).total_seconds()

    def header(self, name: str) -> str:
        return self.headers.get(name.lower(), "")


class Auth(Protocol):
    """How a request is signed. Raises only rotator.errors."""

    def headers(self, method: str, url: str) -> Mapping[str, str]:
        """Headers for one request; `url` has no query."""

    def renew(self, answer: HttpAnswer) -> bool:
        """Called after a 401. True: fresh credentials are there, send once more."""


class SecretHeader:
    """A fixed credential in one header."""

    def __init__(self, name: str, secret: Secret, prefix: str = "") -> None:
        self._name, self._secret, self._prefix = name, secret, prefix

    def headers(self, method: str, url: str) -> Mapping[str, str]:
        del method, url
        return {self._name: self._prefix + self._secret.reveal()}

    def renew(self, answer: HttpAnswer) -> bool:
        del answer
        return False


class HttpClient:
    """One outside system: one pool of connections, shared by all threads."""

    def __init__(
        self,
        base_url: str,
        *,
        system: str,
        clock: Clock,
        meter: Meter,
        ca_file: str | None = None,
        timeouts: Timeouts | None = None,
        max_body: int = 1_000_000,
        transport: BaseTransport | None = None,
    ) -> None:
        """`system` is the meter's word ("okta:acme"). Misconfigured when the URL or the CA file can't be used."""
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.username:
            raise errors.Misconfigured(
                "preparing to call", system=system, detail="the URL must be http(s)://host[:port][/path] and no more"
            )
        self.system = system
        self.base_url = base_url.rstrip("/")
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self._clock = clock
        self._meter = meter
        self._timeouts = timeouts or Timeouts()
        self._max_body = max_body
        if transport is None:
            transport = _transport(system, ca_file)
        self._client = httpx.Client(
            transport=transport,
            timeout=httpx.Timeout(
                connect=self._timeouts.connect,
                read=self._timeouts.read,
                write=self._timeouts.write,
                pool=self._timeouts.pool,
            ),
            trust_env=False,
            follow_redirects=False,
            cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
            headers={"User-Agent": "rotator", "Accept": "application/json"},
        )

    def close(self) -> None:
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        doing: str,
        operation: str,
        changing: bool,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any | None = None,
        form: Mapping[str, str] | None = None,
        auth: Auth | None = None,
        judge: Judge | None = None,
        json_due: bool = True,
        seconds: float | None = None,
    ) -> HttpAnswer:
        """One call, twice at most (a 401 that `auth` can renew was not taken). Only rotator.errors leave.

        `doing` begins the error's sentence ("giving Okta the new key"); `operation` is the meter's word; `changing`
        says whether a lost answer leaves the outcome open. `json_due`: a 2xx body that is no JSON is an error.
        `seconds`: deadline for everything, token requests of `auth` not counted; default `timeouts.total`.
        """
        call = _Call(
            method,
            self.base_url + path,
            path.partition("?")[0],
            doing,
            operation,
            changing,
            json_due,
            params,
            json,
            form,
        )
        for last in (False, True):
            signed = dict(headers or {})
            if auth is not None:
                signed.update(auth.headers(method, call.url.partition("?")[0]))
            answer, error = self._send(call, signed, judge, seconds or self._timeouts.total)
            if answer.status == 401 and auth is not None and not last and auth.renew(answer):
                continue
            if error is not None:
                raise error
            break
        return answer

    def _send(
        self,
        call: _Call,
        headers: Mapping[str, str],
        judge: Judge | None,
        seconds: float,
    ) -> tuple[HttpAnswer, errors.PortError | None]:
        """The answer and what it means; raises when there is none that could be judged."""
        started = time.monotonic()
        result = "ok"
        try:
            with deadline(seconds):
                answer = self._exchange(call, headers)
            error = judge(answer) if judge is not None else None
            told = error or status_error(answer, doing=call.doing, system=self.system, changing=call.changing)
            if told is not None:
                result = result_word(told)
        except errors.PortError as failed:
            result = result_word(failed)
            raise
        finally:
            self._meter.call(self.system, call.operation, result, time.monotonic() - started)
        return answer, error

    def _exchange(self, call: _Call, headers: Mapping[str, str]) -> HttpAnswer:
        try:
            with self._client.stream(
                call.method, call.url, params=call.params, headers=headers, json=call.json, data=call.form
            ) as response:
                body = self._body(call, response)
                return self._answer(call, response, body)
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            httpx.StreamError,
            TimeoutError,
            ValueError,
            TypeError,
        ) as failed:
            # `from None`: h11 and httpx quote header values, so the cause may hold a key (I5)
            raise _translated(failed, call, self.system) from None

    def _body(self, call: _Call, response: httpx.Response) -> bytes:
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > self._max_body:
                raise call.unclear(
                    self.system, f"the answer is longer than {self._max_body} bytes", errors.Misconfigured
                )
        return bytes(body)

    def _answer(self, call: _Call, response: httpx.Response, body: bytes) -> HttpAnswer:
        status = response.status_code
        if 300 <= status < 400 and status != 304:
            host = urlsplit(response.headers.get("location", "")).hostname or "the same host"
            raise errors.Misconfigured(
                call.doing,
                system=self.system,
                detail=f"{call.method} {call.path} was redirected (HTTP {status}) to {host[:100]}",
                fix="Redirects are not followed: configure the address that answers itself",
            )
        parsed = _json(body)
        looks_html = body.lstrip()[:1] == b"<" or "html" in response.headers.get("content-type", "").lower()
        if 200 <= status < 300 and call.json_due and body.strip() and parsed is _NO_JSON:
            what = "a web page" if looks_html else "no JSON"
            raise call.unclear(
                self.system,
                f"{call.method} {call.path} answered HTTP {status} with {what} where JSON is due",
                errors.Misconfigured,
                fix="Something else answers at this address (a proxy, a sign-in page): check the URL",
            )
        return HttpAnswer(
            status=status,
            headers={name.lower(): value for name, value in response.headers.items()},
            json=None if parsed is _NO_JSON else parsed,
            text_is_html=looks_html,
            date=_date(response.headers.get("date", "")),
            received_at=self._clock.now(),
        )


def status_error(
    answer: HttpAnswer, *, doing: str, system: str, changing: bool, detail: str = "", fix: str = ""
) -> errors.PortError | None:
    """What a status means when nothing more is known about the system; None below 400.

    401 and 403 are our own credential: an adapter that tests the rotated key reads them itself.
    """
    status, detail = answer.status, detail or f"HTTP {answer.status}"
    if status < 400:
        return None
    if status in {401, 403}:
        return errors.Denied(doing, system=system, detail=detail, fix=fix)
    if status in {404, 410}:
        return errors.NotFound(doing, system=system, detail=detail, fix=fix)
    if status in {405, 501}:
        return errors.Unsupported(doing, system=system, detail=detail, fix=fix)
    if status in {409, 412, 423}:
        return errors.Conflict(doing, system=system, detail=detail, fix=fix)
    if status == 429:
        seconds = retry_after(answer)
        reset = None if seconds is None else datetime.fromtimestamp(answer.received_at.timestamp() + seconds, UTC)
        return errors.RateLimited(doing, system=system, detail=detail, fix=fix, reset_at=reset)
    if status in {408, 503}:
        return errors.Transient(doing, system=system, detail=detail, fix=fix, retry_after=retry_after(answer))
    if status >= 500:
        if changing:
            return errors.Ambiguous(doing, system=system, detail=detail, fix=fix)
        return errors.Transient(doing, system=system, detail=detail, fix=fix, retry_after=retry_after(answer))
    return errors.Misconfigured(doing, system=system, detail=detail, fix=fix)


def retry_after(answer: HttpAnswer) -> float | None:
    """Seconds from the Retry-After header, whole or as a date (read against the server's own clock); at most a day."""
    text = answer.header("retry-after").strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return float(min(int(text[:9]), 86400))
    moment = _date(text)
    if moment is None:
        return None
    return min(max((moment - (answer.date or answer.received_at)).total_seconds(), 0.0), 86400.0)


def result_word(error: errors.PortError) -> str:
    """The error's class in snake_case: what the meter is told."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()


@dataclass(frozen=True, slots=True, repr=False)  # repr=False: `json` may hold a key
class _Call:
    method: str
    url: str
    path: str
    doing: str
    operation: str
    changing: bool
    json_due: bool
    params: Mapping[str, str] | None
    json: Any | None
    form: Mapping[str, str] | None

    def unclear(
        self, system: str, detail: str, otherwise: type[errors.PortError], *, fix: str = ""
    ) -> errors.PortError:
        """Ambiguous for a call that may have changed something, else `otherwise`."""
        kind = errors.Ambiguous if self.changing else otherwise
        return kind(self.doing, system=system, detail=detail, fix=fix)


def _translated(failed: Exception, call: _Call, system: str) -> errors.PortError:
    where = f"{call.method} {call.path}"
    match failed:
        case httpx.ConnectTimeout() | httpx.PoolTimeout() | DeadlineBeforeSending():
            return errors.Transient(
                call.doing, system=system, detail=f"{where}: no connection in time; nothing was sent"
            )
        case httpx.ConnectError():
            return _connect_error(failed, call, system)
        case httpx.TimeoutException() | DeadlinePassed():
            return call.unclear(system, f"{where}: no whole answer in time", errors.Transient)
        case httpx.LocalProtocolError() | UnicodeError():
            return errors.Misconfigured(
                call.doing, system=system, detail=f"{where}: a header value can't be sent; nothing was sent"
            )
        case httpx.DecodingError():
            return call.unclear(system, f"{where}: the answer's encoding is broken", errors.Transient)
        case httpx.TransportError() if not isinstance(failed, httpx.UnsupportedProtocol):
            return call.unclear(system, f"{where}: the connection broke before the answer was whole", errors.Transient)
        case _:
            return errors.Misconfigured(call.doing, system=system, detail=f"{where}: the request can't be made")


def _connect_error(failed: BaseException, call: _Call, system: str) -> errors.PortError:
    """Nothing was sent. A certificate that does not fit won't heal by waiting; all else may."""
    why: BaseException | None = failed
    while why is not None:
        if isinstance(why, ssl.SSLCertVerificationError):
            return errors.Misconfigured(
                call.doing,
                system=system,
                detail=f"its certificate does not fit: {why.verify_message}",
                fix="Check ca_file and the host name in the URL",
            )
        if isinstance(why, ssl.SSLError):
            return errors.Transient(call.doing, system=system, detail="the TLS handshake failed; nothing was sent")
        if isinstance(why, socket.gaierror):
            return errors.Transient(
                call.doing, system=system, detail="its host name does not resolve; nothing was sent"
            )
        why = why.__cause__ or why.__context__
    return errors.Transient(call.doing, system=system, detail="no connection; nothing was sent")


_NO_JSON = object()


def _json(body: bytes) -> Any:
    try:
        return jsonlib.loads(body)
    except (ValueError, RecursionError):  # ValueError covers bad UTF-8 and numbers of absurd length
        return _NO_JSON


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _transport(system: str, ca_file: str | None) -> BaseTransport:
    try:
        context = _ssl_context(ca_file)
    except (OSError, ssl.SSLError):
        raise errors.Misconfigured(
            "preparing to call", system=system, detail=f"the CA file {ca_file} can't be read as certificates"
        ) from None
    transport = httpx.HTTPTransport(
        verify=context,
        trust_env=False,
        # A server that closes idle connections after 5 s makes a POST on one look ambiguous; 2 s stays clear of that.
        limits=httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=2.0),
    )
    pool: Any = transport._pool  # noqa: SLF001  httpx passes no network backend through; test_http holds us to it
    pool._network_backend = Backend(pool._network_backend)  # noqa: SLF001  same
    return transport


@functools.lru_cache(maxsize=64)
def _ssl_context(ca_file: str | None) -> ssl.SSLContext:
    """Shared by all systems with the same CA: making one costs 40 ms and 1 MB."""
    if ca_file is None:
        return httpx.create_ssl_context(trust_env=False)
    return ssl.create_default_context(cafile=ca_file)
