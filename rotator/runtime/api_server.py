"""Serves the API with uvicorn in a thread of its own, and refuses to be more public than it was told to be.

In a thread uvicorn leaves the signals to the daemon. The socket is bound here, so that an address in use is an error of
the start and not of a thread.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 256  # more are answered 503
REQUEST_SECONDS = 15.0  # for a whole request head to arrive, counted from the connection or the last answer
KEEP_ALIVE = 10  # seconds
STOP_SECONDS = 5  # for answers in progress when stopping
MAX_HEAD = 16 * 1024  # bytes


class ServeError(ValueError):
    """The API can't be served so: the sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. With `client_ca` only clients with a certificate of it get in, and still need a token."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


class Served:
    """A running API. `stop` ends it; answers in progress get some seconds."""

    def __init__(self, server: Server, listener: socket.socket, tls: TlsFiles | None) -> None:
        self.host, self.port = listener.getsockname()[:2]
        self._server = server
        self._tls = tls
        self._thread = threading.Thread(target=server.run, args=([listener],), name="api", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    def alive(self) -> bool:
        return self._thread.is_alive()

    def reload_tls(self) -> None:
        """Read certificate and key again, for new connections. ServeError when they don't fit; the old ones stay."""
        context = self._server.config.ssl
        if self._tls is None or context is None:
            return
        try:
            # Tried on a context aside first: a failing load leaves the live one half changed
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._tls.certificate, self._tls.key)
            context.load_cert_chain(self._tls.certificate, self._tls.key)
        except OSError as error:
            raise _bad_tls(self._tls, error) from None

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS * 2)


def serve(
    app: Starlette,
    host: str,
    port: int,
    tls: TlsFiles | None = None,
    *,
    allow_public: bool = False,
    request_seconds: float = REQUEST_SECONDS,
) -> Served:
    """Serve the app of `build_api`; port 0 takes a free one. Returns once connections are taken.

    Off loopback it must ask for tokens, on /metrics too, and speak TLS, unless `allow_public`: a proxy does TLS.
    ServeError when it is refused or a TLS file is bad, OSError when the address can't be bound.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        _refuse_public(app, host, tls, tls_elsewhere=allow_public)
    config = Config(
        app,
        http=_protocol(request_seconds),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=STOP_SECONDS,
        h11_max_incomplete_event_size=MAX_HEAD,
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
        ssl_ca_certs=tls.client_ca if tls else None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if tls and tls.client_ca else ssl.CERT_NONE,
    )
    try:
        config.load()
        if config.ssl:
            config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2  # not what the host's OpenSSL happens to allow
    except OSError as error:  # ssl.SSLError is one
        if tls is None:
            raise
        raise _bad_tls(tls, error) from None
    return Served(Server(config), _listen(family, address), tls)


def _listen(family: socket.AddressFamily, address: tuple[object, ...]) -> socket.socket:
    # Named as TCP, unlike by socket.create_server: else asyncio leaves Nagle on, and each answer waits 40 ms
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(CONNECTIONS)
    except OSError:
        listener.close()
        raise
    return listener


def _refuse_public(app: Starlette, host: str, tls: TlsFiles | None, *, tls_elsewhere: bool) -> None:
    wanting = []
    if not app.state.authenticated:
        wanting.append("a token file")
    if app.state.open_metrics:
        wanting.append("metrics behind a token")
    if tls is None and not tls_elsewhere:
        wanting.append("a TLS certificate")
    if wanting:
        raise ServeError(
            f"the API is not served on {host}: that is not loopback, and it lacks {', '.join(wanting)}. "
            "Configure it, bind 127.0.0.1, or say allow_public_without_tls where a proxy in front does TLS"
        )


def _bad_tls(tls: TlsFiles, error: OSError) -> ServeError:
    files = ", ".join(str(path) for path in (tls.certificate, tls.key, tls.client_ca) if path)
    reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
    return ServeError(f"the API's TLS files can't be used ({files}): {reason}")


def _protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol that hangs up on who sends a request's head too slowly; uvicorn itself waits for ever."""

    class Impatient(H11Protocol):
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
            super().connection_made(transport)
            self._wait()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._patience:
                self._patience.cancel()

        def _wait(self) -> None:
            if self._patience:
                self._patience.cancel()
            self._patience = self.loop.call_later(seconds, self._hang_up)

        def _hang_up(self) -> None:
            if getattr(self.cycle, "response_complete", True):  # else a request is being answered
                self.transport.close()

    return Impatient
