"""A small threaded HTTP/1.1 server for the sandbox targets: loopback only, keep-alive, able to break a connection.

The standard library's server is used because a target must be able to do what a framework hides: answer with a TCP
reset, or not at all. Nagle's algorithm is off and each answer leaves in one write, since benchmarks compare ratios.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: close() sends RST


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str  # decoded, without the query
    query: Mapping[str, str]
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None when it is empty or no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    reset: bool = False  # no answer: the connection ends with RST


def json_response(status: int, data: Any, content_type: str = "application/json") -> Response:
    return Response(status, json.dumps(data).encode(), {"Content-Type": content_type})


class TargetServer:
    """Serves `handle` on 127.0.0.1 and a free port, one thread per connection, until `stop`.

    Started again, it comes back on the same port: stopped in between, connections to it are refused.
    """

    def __init__(self, handle: Callable[[Request], Response]) -> None:
        self.handle = handle
        self.stopping = threading.Event()  # waits inside `handle` end with it
        self._port = 0
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self.stopping.clear()
        self._server = _Server(self.handle, self._port)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="sandbox-target", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the listener, every open connection and their threads."""
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return
        self.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()
        server.drop_connections()
        self._server = self._thread = None

    @property
    def url(self) -> str:
        """Known after the first start, and the same ever after."""
        if not self._port:
            raise RuntimeError("the sandbox target was never started, so it has no port yet")
        return f"http://127.0.0.1:{self._port}"


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, handle: Callable[[Request], Response], port: int) -> None:
        self.handle = handle
        self._open: set[socket.socket] = set()
        self._reset: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
            reset = request in self._reset
            self._reset.discard(request)
        if reset:
            self.close_request(request)  # without the orderly end, so that SO_LINGER can send RST
        else:
            super().shutdown_request(request)

    def reset_on_close(self, request: socket.socket) -> None:
        request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        with self._lock:
            self._reset.add(request)

    def drop_connections(self) -> None:
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is not worth a traceback on the demo's screen."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024  # one write per answer
    server: _Server

    def _serve(self) -> None:
        length = self.headers.get("Content-Length", "0")
        url = urlsplit(self.path)
        request = Request(
            method=self.command,
            path=unquote(url.path),
            query=dict(parse_qsl(url.query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self.rfile.read(int(length)) if length.isdigit() else b"",
        )
        try:
            response = self.server.handle(request)
        except Exception as error:
            response = json_response(500, {"message": f"sandbox error: {type(error).__name__}"})
        if response.reset:
            self.server.reset_on_close(self.connection)
            self.close_connection = True
            return
        self.send_response_only(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        self.wfile.write(response.body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - the base class looks for these names

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Requests are counted, never printed."""
