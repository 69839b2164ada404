"""The wire to Vault: one request, with a total deadline, that either answered, was never sent, or was sent and lost.

Telling *not sent* from *lost* is what lets a check-and-set write be settled and never doubled (I4). Nothing comes from
the environment, no redirect is followed, so the token goes to the configured address and nowhere else (I5).
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import requests
import urllib3.exceptions as u3
from requests.adapters import HTTPAdapter

from rotator.ports import Clock

_MAX_BODY = 64 * 1024 * 1024  # LIST of 100,000 names is below 10 MiB; anything above 64 isn't Vault
_CHUNK = 64 * 1024

# TLS failures before any request is read: the server's certificate, ours, or no TLS there at all (OpenSSL's reason codes).
_HANDSHAKE = ("CERTIFICATE", "WRONG_VERSION", "UNSUPPORTED_PROTOCOL", "HANDSHAKE_FAILURE", "UNKNOWN_CA", "NO_CIPHERS")


class NotSentError(Exception):
    """The request did not reach Vault; nothing was changed. `fix` is set when only a person can help."""

    def __init__(self, detail: str, fix: str = "") -> None:
        self.detail = detail
        self.fix = fix
        super().__init__(detail)


class LostError(Exception):
    """The request may have reached Vault, and its answer is unknown."""

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__(detail)


class VaultSession(requests.Session):
    """A session for hvac. Thread-safe; one per client.

    `verify` is a CA file or True; `cert` a (certificate, key) pair of files or None; the timeouts are seconds.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        verify: str | bool,
        cert: tuple[str, str] | None,
        connect_timeout: float,
        read_timeout: float,
        pool_size: int,
    ) -> None:
        super().__init__()
        self.trust_env = False  # else REQUESTS_CA_BUNDLE and proxies would decide whom we trust
        self.headers["Accept-Encoding"] = (
            "identity"  # a decoder may hold back bytes, and an empty piece ends our reading
        )
        self._clock = clock
        self._trust = verify
        self._own_cert = cert
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._index: str | None = None
        self._skew: float | None = None
        self._local = threading.local()
        for scheme in ("https://", "http://"):
            self.mount(scheme, HTTPAdapter(pool_connections=2, pool_maxsize=pool_size, max_retries=0))

    @property
    def skew(self) -> float | None:
        """Seconds by which Vault's clock was ahead of ours at its last answer (its `Date` has whole seconds: ±0.5)."""
        return self._skew

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """All calls of this thread inside share this total deadline; an outer one holds."""
        outer: float | None = getattr(self._local, "deadline", None)
        if outer is None:
            self._local.deadline = self._clock.monotonic() + seconds
        try:
            yield
        finally:
            self._local.deadline = outer

    # Liskov is kept for how hvac calls it: everything by keyword
    def request(self, method: str, url: str, **kwargs: object) -> requests.Response:  # type: ignore[override]
        """One call with a complete answer. Raises NotSentError or LostError, nothing else."""
        sent_at, started = self._clock.now(), self._clock.monotonic()
        left = self._left(started)
        if left <= 0:
            raise NotSentError("no time is left for this call")
        headers = dict(kwargs.pop("headers", None) or {})  # type: ignore[call-overload]  # hvac passes a dict
        if self._index is not None:
            # OpenBao docs, concepts/consistency: standbys serve reads; both headers together make them fresh
            headers |= {"X-Vault-Index": self._index, "X-Vault-Inconsistent": "forward-active-node"}
        kwargs |= {
            "headers": headers,
            "verify": self._trust,  # per call: what hvac took from VAULT_CACERT at import is overruled
            "cert": self._own_cert,
            "timeout": (min(self._connect_timeout, left), min(self._read_timeout, left)),
            "allow_redirects": False,
            "stream": True,
        }
        try:
            response = super().request(method, url, **kwargs)  # type: ignore[arg-type]  # built just above
            self._read_body(response)
        except (requests.RequestException, u3.HTTPError, OSError, ValueError) as error:
            failure = _classify(error)
        else:
            self._remember(response, sent_at, started)
            return response
        raise failure  # outside the handler: the cause holds the request, and with it the token

    def _left(self, now: float) -> float:
        deadline: float | None = getattr(self._local, "deadline", None)
        return self._connect_timeout + self._read_timeout if deadline is None else deadline - now

    def _read_body(self, response: requests.Response) -> None:
        """Reads the body to its end, within the deadline: the read timeout alone starts anew with every byte."""
        give_up = self._clock.monotonic() + self._left(self._clock.monotonic())
        body = bytearray()
        while chunk := response.raw.read1(_CHUNK):
            body += chunk
            if len(body) > _MAX_BODY or self._clock.monotonic() > give_up:
                response.close()
                raise LostError("the answer is too long or too slow")
        response.raw.release_conn()
        response._content = bytes(body)  # noqa: SLF001  # where requests itself keeps a body that was read
        response._content_consumed = True  # type: ignore[attr-defined]  # noqa: SLF001  # as above

    def _remember(self, response: requests.Response, sent_at: datetime, started: float) -> None:
        index = response.headers.get("X-Vault-Index")
        if index and (self._index is None or not _older(index, self._index)):
            self._index = index
        try:
            date = parsedate_to_datetime(response.headers["Date"])
        except (KeyError, ValueError):
            return
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        half_way = (self._clock.monotonic() - started) / 2
        self._skew = (date - sent_at).total_seconds() + 0.5 - half_way  # +0.5: `Date` is cut to whole seconds


def _older(index: str, than: str) -> bool:
    """Whether an answer that came late carries an older index. OpenBao: base64 of {"cluster", "value"}; else unknown."""
    try:
        left, right = (json.loads(base64.b64decode(text)) for text in (index, than))
        return bool(left["cluster"] == right["cluster"] and int(left["value"]) < int(right["value"]))
    except (ValueError, KeyError, TypeError):
        return False


def _classify(error: Exception) -> NotSentError | LostError:
    chain = tuple(_chain(error))
    for link in chain:
        if isinstance(link, ssl.SSLError):
            reason = link.reason or ""
            if any(word in reason for word in _HANDSHAKE):
                return NotSentError(
                    f"TLS failed: {getattr(link, 'verify_message', '') or reason.replace('_', ' ').lower()}",
                    fix="Check the address, ca_file and the client certificate",
                )
    for link in chain:
        if isinstance(link, u3.NewConnectionError | u3.NameResolutionError | u3.ConnectTimeoutError):
            return NotSentError(f"no connection ({_innermost(chain)})")
    if isinstance(error, requests.RequestException | u3.HTTPError):
        if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
            return NotSentError("the address can't be used", fix="Check the address of [vault]")
        if isinstance(error, requests.ReadTimeout | u3.ReadTimeoutError):
            return LostError("no answer in time")
        return LostError(f"the connection broke ({_innermost(chain)})")
    # requests checks and loads the certificate files before it connects, and says so with OSError or ValueError
    return NotSentError(f"can't start a call ({type(error).__name__})", fix="Check ca_file and the client certificate")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and all that caused it, as urllib3 nests them: in `reason`, in `args` and as a cause."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        link = waiting.pop(0)
        if isinstance(link, BaseException) and id(link) not in seen:
            seen.add(id(link))
            yield link
            waiting += [getattr(link, "reason", None), *link.args, link.__cause__, link.__context__]


def _innermost(chain: tuple[BaseException, ...]) -> str:
    """The operating system's word for it, without addresses or bodies."""
    for link in reversed(chain):
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
    return type(chain[-1]).__name__
