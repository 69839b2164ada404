"""A loopback proxy in front of a real OpenBao that does what networks, gateways and failing clusters do to a request."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests


@dataclass(frozen=True)
class Reply:
    """Answered by the proxy; Vault never hears of it."""

    status: int
    body: str = '{"errors":[]}'
    kind: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Fault:
    """`applied`: Vault gets the request first. Then the connection is reset, closed, or the answer cut or held back."""

    how: str  # "pass", "reset", "close", "cut_body", "cut_headers", "hold", "trickle"
    applied: bool = False
    times: int = 1  # how often Vault gets it; the last answer counts


PASS = Fault("pass", applied=True)
LOST = Fault("close", applied=True)  # Vault did it; the answer never came
TWICE = Fault("pass", applied=True, times=2)  # a gateway that sends a POST again by itself
RESET = Fault("reset")  # the request was read and dropped


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Proxy:
    """`script` is used up by requests whose method and path contain `only`; others, and later ones, pass."""

    address: str
    upstream: str
    script: list[Reply | Fault] = field(default_factory=list)
    only: str = ""
    seen: list[Seen] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def next(self, seen: Seen) -> Reply | Fault:
        self.seen.append(seen)
        return self.script.pop(0) if self.script and self.only in f"{seen.method} {seen.path}" else PASS


@contextmanager
def proxy(upstream: str = "") -> Iterator[Proxy]:
    """Runs until the block ends; every connection it holds back is let go then."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    running = Proxy(f"http://127.0.0.1:{server.server_address[1]}", upstream)
    server.proxy = running  # type: ignore[attr-defined]  # how the handler finds it
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield running
    finally:
        running.released.set()
        server.shutdown()
        thread.join(30)
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        running: Proxy = self.server.proxy  # type: ignore[attr-defined]  # set by proxy()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        step = running.next(Seen(self.command, self.path, dict(self.headers.items()), body))
        if isinstance(step, Reply):
            self._answer(step.status, step.body.encode(), {"Content-Type": step.kind, **dict(step.headers)})
            return
        status, content, headers = 200, b"{}", {"Content-Type": "application/json"}
        for _ in range(step.times if step.applied else 0):
            status, content, headers = _forward(running.upstream, self.command, self.path, dict(self.headers), body)
        self._do(step.how, running, status, content, headers)

    def _do(self, how: str, running: Proxy, status: int, content: bytes, headers: dict[str, str]) -> None:
        if how == "pass":
            self._answer(status, content, headers)
            return
        self.close_connection = True
        with suppress(OSError):  # the client may have gone
            if how == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            elif how == "cut_headers":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Ty")
            elif how == "cut_body":
                head = (
                    f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
                )
                self.wfile.write(head.encode() + content[: len(content) // 2])
            elif how == "hold":
                running.released.wait(60)
            elif how == "trickle":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not running.released.wait(0.05):
                    self.wfile.write(b"x")

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status != 204:
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_LIST = do_DELETE = _handle  # noqa: N815  # the names http.server calls

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server's name
        """Quiet."""


def _forward(
    upstream: str, method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, bytes, dict[str, str]]:
    with requests.Session() as session:
        session.trust_env = False
        kept = {k: v for k, v in headers.items() if k.lower() not in ("host", "connection", "content-length")}
        answer = session.request(method, upstream + path, headers=kept, data=body, timeout=30, allow_redirects=False)
        return answer.status_code, answer.content, dict(answer.headers)
