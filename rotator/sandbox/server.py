"""An ASGI application on a loopback port of its own, in a thread, for the sandbox's simulators.

Started twice, it comes back on the same port: that is how a simulator has an outage.
"""

import socket
import threading
from asyncio import Transport
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

LOOPBACK = "127.0.0.1"
_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
_TRANSPORT = "rotator.sandbox.transport"


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: the server's certificate (for 127.0.0.1) with its key, and the CA to trust on calls to others."""

    certfile: Path
    keyfile: Path
    cafile: Path | None = None


class LoopbackServer:
    """Serves `app` from `start()` to `stop()`. `url` is known after the first start and never changes."""

    def __init__(self, app: ASGIApp, *, tls: Tls | None = None) -> None:
        self._app = app
        self._tls = tls
        self._port = 0
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        if not self._port:
            raise RuntimeError("the server was never started, so it has no port yet")
        return f"{'https' if self._tls else 'http'}://{LOOPBACK}:{self._port}"

    def start(self) -> None:
        """Returns once the port answers. RuntimeError when it runs already or does not come up."""
        if self._thread is not None:
            raise RuntimeError("the server is running already")
        # The protocol is named so that asyncio sees TCP and switches Nagle's algorithm off: 40 ms a call otherwise.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that an outage ends on the same port
        listener.bind((LOOPBACK, self._port))
        listener.listen(128)
        self._port = listener.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                self._app,
                http=_DroppableProtocol,
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                date_header=False,  # a simulator's own clock sets it
                timeout_graceful_shutdown=1,
                ssl_certfile=str(self._tls.certfile) if self._tls else None,
                ssl_keyfile=str(self._tls.keyfile) if self._tls else None,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="sandbox-server", daemon=True
        )
        self._thread.start()
        if not self._server.up.wait(_START_SECONDS):
            self.stop()
            raise RuntimeError("the server did not come up")

    def stop(self) -> None:
        """Ends it and drops what is open; harmless when it does not run."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(_STOP_SECONDS)
        self._server, self._thread = None, None


def drop_connection(scope: Scope) -> None:
    """Close the connection that this request came on, without an answer: what a crashed server or proxy looks like."""
    cast("Transport", scope["extensions"][_TRANSPORT]).abort()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


class _DroppableProtocol(H11Protocol):
    """Hands the transport to the application: ASGI itself has no word for dropping a connection."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        app = self.app

        async def with_transport(scope: Scope, receive: Receive, send: Send) -> None:
            scope.setdefault("extensions", {})[_TRANSPORT] = transport
            await app(scope, receive, send)

        self.app = with_transport
