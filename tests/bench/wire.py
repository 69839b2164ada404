"""A loopback relay in front of a server: counts and keeps the requests that pass, and can make each of them slower.

What a program really sends is read here, on the wire, and not from what it says about itself.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO, Self
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it passed. `path` is with its query; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str] = field(repr=False)  # holds credentials
    body: bytes = field(repr=False)
    at: float = field(default_factory=time.monotonic)


class Relay:
    """`with Relay(url) as relay:` listens at `relay.url` and passes everything on to the server at `url` (http)."""

    def __init__(self, upstream: str, *, delay: float = 0.0) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self.delay = delay  # seconds before each request is passed on
        self.requests: list[Request] = []
        self._listener = socket.socket()

    def __enter__(self) -> Self:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="relay", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), name="relay-connection", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._upstream) as server, client.makefile("rb") as stream:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_pour, args=(server, client), name="relay-answers", daemon=True).start()
            with suppress(OSError):
                while (raw := self._take(stream)) is not None:
                    if self.delay:
                        time.sleep(self.delay)
                    server.sendall(raw)
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)

    def _take(self, stream: BinaryIO) -> bytes | None:
        """The next request's bytes, remembered; None at the connection's end."""
        head = [stream.readline()]
        while head[-1] not in {b"\r\n", b""}:
            head.append(stream.readline())
        if head[-1] == b"":
            return None
        method, path, _ = head[0].decode("latin-1").split(" ", 2)
        fields = (line.decode("latin-1").partition(":") for line in head[1:-1])
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        body = stream.read(int(headers.get("content-length", "0")))
        self.requests.append(Request(method, path, headers, body))
        return b"".join(head) + body


def _pour(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
