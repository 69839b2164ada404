"""A total deadline for a sync HTTP call, kept at the socket.

httpx bounds each single wait, so a server that drips a byte at a time would hold a call for ever (I6). All I/O of a
sync call happens in its own thread; the sockets here shorten every wait to what that thread's call has left, in
connecting, in the TLS handshake, in headers and in the body alike. Resolving a host name is the system resolver's time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class DeadlineBeforeSending(TimeoutError):
    """The call's time was over before there was a connection: nothing was sent."""


class DeadlinePassed(TimeoutError):
    """The call's time was over while sending or waiting."""


_current = threading.local()


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """What this thread does with a `Backend` inside ends within `seconds`."""
    _current.ends = time.monotonic() + seconds
    try:
        yield
    finally:
        _current.ends = None


class Stream:
    """A socket of httpcore whose waits end with the call's deadline."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> Any:
        return self._stream.read(max_bytes, _shortened(timeout, DeadlinePassed))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _shortened(timeout, DeadlinePassed))

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> Any:
        return Stream(self._stream.start_tls(ssl_context, server_hostname, _shortened(timeout, DeadlineBeforeSending)))

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class Backend:
    """httpcore's network, handing out such sockets."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, **more: Any) -> Any:
        return Stream(self._backend.connect_tcp(host, port, timeout=_shortened(timeout, DeadlineBeforeSending), **more))

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


def _shortened(timeout: float | None, over: type[TimeoutError]) -> float:
    ends = getattr(_current, "ends", None)
    remaining = float("inf") if ends is None else ends - time.monotonic()
    if remaining <= 0:
        raise over("the call's deadline has passed")
    shortest = min(float("inf") if timeout is None else timeout, remaining)
    return shortest if shortest != float("inf") else 3600.0
