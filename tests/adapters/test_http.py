"""The HTTP client against real sockets: what each way of going wrong means, and what never leaves in an error."""

from __future__ import annotations

import contextlib
import gzip
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from rotator import errors
from rotator.adapters.http import (
    HttpAnswer,
    HttpClient,
    SecretHeader,
    Timeouts,
    result_word,
    retry_after,
    status_error,
)
from rotator.core.secret import Secret
from tests.adapters.okta_stub import START, Meters, StillClock

KEY = "canary-7f3a9c51d2e84b06-key"
Script = Callable[[socket.socket], None]


class Server:
    """Reads one whole request per connection, then does what the next script says."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.scripts: list[Script] = []
        self.requests: list[bytes] = []
        self.connections: list[socket.socket] = []
        self.threads: list[threading.Thread] = []
        self._context = context
        self.thread = threading.Thread(target=self._accept)
        self.thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            worker = threading.Thread(target=self._serve, args=(connection,))
            self.connections.append(connection)
            self.threads.append(worker)
            worker.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
                self.connections.append(connection)
            while request := read_request(connection):
                self.requests.append(request)
                self.scripts.pop(0)(connection)
        except (OSError, IndexError):
            pass
        finally:
            connection.close()

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
        for thread in [self.thread, *self.threads]:
            thread.join()


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def says(status: int = 200, body: bytes = b"{}", headers: Mapping[str, str] | None = None) -> Script:
    head = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    return lambda connection: connection.sendall("\r\n".join(lines).encode() + body)


def raw(data: bytes) -> Script:
    """Sends this and hangs up."""

    def script(connection: socket.socket) -> None:
        connection.sendall(data)
        connection.close()

    return script


def resets(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()


def silent(connection: socket.socket) -> None:
    connection.recv(1)  # until the client hangs up


def drips(data: bytes) -> Script:
    """A byte every 10 ms: each wait is short, the whole is long, and in the end it is a good answer."""

    def script(connection: socket.socket) -> None:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(0.01)  # the point of this server; nobody waits for it to pass

    return script


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def meter() -> Meters:
    return Meters()


def client(
    port: int, meter: Meters, *, scheme: str = "http", host: str = "127.0.0.1", ca_file: str | None = None
) -> HttpClient:
    return HttpClient(
        f"{scheme}://{host}:{port}/base/",
        system="target:x",
        clock=StillClock(),
        meter=meter,
        ca_file=ca_file,
        timeouts=Timeouts(connect=5, read=2, write=5, pool=5, total=10),
        max_body=20_000,
    )


def call(
    it: HttpClient, *, changing: bool = True, seconds: float | None = None, headers: Mapping[str, str] | None = None
) -> HttpAnswer:
    return it.request(
        "POST",
        "/keys?token=in-query",
        doing="minting a key",
        operation="mint",
        changing=changing,
        json={"key": KEY},
        headers=headers or {"authorization": f"Bearer {KEY}"},
        seconds=seconds,
    )


LONG = b"HTTP/1.1 200 OK\r\ncontent-length: 300\r\n\r\n" + b" " * 298 + b"{}"
SLOW_HEAD = b"HTTP/1.1 200 OK\r\nx-slow: " + b"a" * 300 + b"\r\ncontent-length: 2\r\n\r\n{}"
LOST: list[tuple[str, Script, type[errors.PortError]]] = [
    ("the connection is reset", resets, errors.Transient),
    ("the server hangs up without an answer", raw(b""), errors.Transient),
    ("the status line is cut", raw(b"HTTP/1.1 20"), errors.Transient),
    ("the headers are cut", raw(b"HTTP/1.1 200 OK\r\nContent-Le"), errors.Transient),
    ("the body is cut", raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}"), errors.Transient),
    ("a chunked body is cut", raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"), errors.Transient),
    ("the answer is no HTTP", raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), errors.Transient),
    ("the body's encoding is broken", says(200, b"not gzip", {"content-encoding": "gzip"}), errors.Transient),
    ("the body is too long", says(200, b"[" + b"1," * 20_000 + b"1]"), errors.Misconfigured),
    ("the body unpacks to too much", says(200, gzip.compress(b" " * 1_000_000), {"content-encoding": "gzip"}), errors.Misconfigured),
    ("a web page where JSON is due", says(200, b"<html>sign in</html>", {"content-type": "text/html"}), errors.Misconfigured),
    ("text where JSON is due", says(200, b"hello"), errors.Misconfigured),
    ("JSON of absurd depth", says(200, b"[" * 9_000), errors.Misconfigured),
]  # fmt: skip


@pytest.mark.parametrize("changing", [True, False], ids=["changing", "reading"])
@pytest.mark.parametrize(("script", "reading"), [pytest.param(*case, id=sentence) for sentence, *case in LOST])
def test_an_answer_that_is_lost_after_sending_leaves_a_change_open(
    server: Server, meter: Meters, script: Script, reading: type[errors.PortError], changing: bool
) -> None:
    server.scripts = [script]
    expected = errors.Ambiguous if changing else reading
    with pytest.raises(errors.PortError) as raised:
        call(client(server.port, meter), changing=changing)
    assert type(raised.value) is expected
    assert KEY not in str(raised.value)
    assert "in-query" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert meter.calls == [("target:x", "mint", result_word(raised.value))]
    assert len(server.requests) == 1


@pytest.mark.parametrize("changing", [True, False], ids=["changing", "reading"])
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(silent, id="the server says nothing"),
        pytest.param(drips(LONG), id="the body drips"),
        pytest.param(drips(SLOW_HEAD), id="the headers drip"),
    ],
)
def test_a_call_ends_by_its_own_deadline(server: Server, meter: Meters, script: Script, changing: bool) -> None:
    server.scripts = [script]
    with pytest.raises(errors.Ambiguous if changing else errors.Transient, match="in time"):
        call(client(server.port, meter), changing=changing, seconds=0.3)


def test_a_slow_answer_within_the_deadline_is_taken(server: Server, meter: Meters) -> None:
    server.scripts = [drips(LONG)]
    assert call(client(server.port, meter), seconds=30).json == {}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("changing", [True, False], ids=["changing", "reading"])
def test_what_was_never_sent_is_transient(meter: Meters, changing: bool) -> None:
    with pytest.raises(errors.Transient, match="nothing was sent"):
        call(client(free_port(), meter), changing=changing)
    assert meter.calls == [("target:x", "mint", "transient")]


def test_a_name_that_does_not_resolve_is_transient(meter: Meters) -> None:
    with pytest.raises(errors.Transient, match="does not resolve"):
        call(client(1, meter, host="nowhere.invalid"))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(f"Bearer {KEY}\n", id="a line break"),
        pytest.param(f"Bearer {KEY}\u200b", id="a hidden character"),
        pytest.param(f"Bearer ключ {KEY}", id="not ASCII"),
        pytest.param(f"Bearer {KEY}\x00", id="a null byte"),
    ],
)
def test_a_key_that_cant_stand_in_a_header_is_not_sent_and_not_shown(server: Server, meter: Meters, value: str) -> None:
    with pytest.raises(errors.Misconfigured, match="nothing was sent") as raised:
        call(client(server.port, meter), headers={"authorization": value})
    assert KEY not in str(raised.value)
    assert raised.value.__suppress_context__
    assert server.requests == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_only_its_host_is_named(server: Server, meter: Meters, status: int) -> None:
    server.scripts = [says(status, b"", {"location": "https://elsewhere.example/a/b?token=secret"})] * 2
    with pytest.raises(errors.Misconfigured, match=r"to elsewhere\.example\. ") as raised:
        call(client(server.port, meter))
    assert "secret" not in str(raised.value)
    assert len(server.requests) == 1


def test_cookies_are_not_kept(server: Server, meter: Meters) -> None:
    server.scripts = [says(200, headers={"set-cookie": "sid=1; Path=/"}), says()]
    it = client(server.port, meter)
    call(it)
    call(it)
    assert b"cookie" not in server.requests[1].lower()


def test_proxies_of_the_environment_are_ignored(server: Server, meter: Meters, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    server.scripts = [says()]
    assert call(client(server.port, meter)).status == 200


def test_an_answer_says_what_came_back(server: Server, meter: Meters) -> None:
    headers = {"date": "Sun, 01 Mar 2026 12:00:30 GMT", "X-One": "1", "Link": "<a>", "link": "<b>"}
    server.scripts = [says(201, json.dumps({"key": KEY}).encode(), headers)]
    found = call(client(server.port, meter))
    assert (found.status, found.json, found.text_is_html) == (201, {"key": KEY}, False)
    assert (found.header("x-one"), found.header("LINK"), found.header("absent")) == ("1", "<a>, <b>", "")
    assert found.date == START + timedelta(seconds=30)
    assert found.skew == 30
    assert KEY not in repr(found)
    assert server.requests[0].startswith(b"POST /base/keys?token=in-query HTTP/1.1")
    assert meter.calls == [("target:x", "mint", "ok")]


def test_an_error_page_is_an_answer_for_the_adapter_to_judge(server: Server, meter: Meters) -> None:
    server.scripts = [says(502, b"<html>bad gateway</html>", {"content-type": "text/html"})]
    found = call(client(server.port, meter))
    assert (found.status, found.json, found.text_is_html) == (502, None, True)
    assert meter.calls == [("target:x", "mint", "ambiguous")]


def test_an_empty_success_needs_no_json(server: Server, meter: Meters) -> None:
    server.scripts = [lambda connection: connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")]
    assert call(client(server.port, meter)).json is None


def test_what_a_judge_finds_is_raised_and_metered(server: Server, meter: Meters) -> None:
    server.scripts = [says(200, b'{"status": "UNKNOWN"}')]
    with pytest.raises(errors.Unsupported):
        client(server.port, meter).request(
            "GET",
            "/x",
            doing="reading",
            operation="read",
            changing=False,
            judge=lambda _answer: errors.Unsupported("reading", system="target:x"),
        )
    assert meter.calls == [("target:x", "read", "unsupported")]


class Renewing:
    def __init__(self, *, can: bool) -> None:
        self.number, self.can = 1, can

    def headers(self, method: str, url: str) -> Mapping[str, str]:
        return {"authorization": f"{method} {url} {self.number}"}

    def renew(self, answer: HttpAnswer) -> bool:
        self.number += 1
        return self.can


@pytest.mark.parametrize(
    ("can", "statuses", "expected"),
    [
        pytest.param(True, [401, 200], (2, 200), id="renewed, and then it is fine"),
        pytest.param(True, [401, 401, 200], (2, 401), id="renewed in vain: no third try"),
        pytest.param(False, [401, 200], (1, 401), id="nothing to renew"),
        pytest.param(True, [403, 200], (1, 403), id="a 403 is not renewed"),
    ],
)
def test_a_401_is_sent_once_more_with_fresh_credentials(
    server: Server, meter: Meters, can: bool, statuses: list[int], expected: tuple[int, int]
) -> None:
    server.scripts = [says(status) for status in statuses]
    found = client(server.port, meter).request(
        "GET", "/x?a=b", doing="reading", operation="read", changing=False, auth=Renewing(can=can)
    )
    sent, last = expected
    assert (found.status, len(server.requests), len(meter.calls)) == (last, sent, sent)
    url = f"http://127.0.0.1:{server.port}/base/x"
    assert f"authorization: GET {url} {sent}".encode() in server.requests[-1]


def test_a_fixed_credential_goes_into_its_header(server: Server, meter: Meters) -> None:
    server.scripts = [says()]
    client(server.port, meter).request(
        "GET",
        "/x",
        doing="reading",
        operation="read",
        changing=False,
        auth=SecretHeader("X-Key", Secret(KEY), "Token "),
    )
    assert f"x-key: Token {KEY}".encode() in server.requests[0].replace(b"X-Key", b"x-key")


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("ftp://x", id="another scheme"),
        pytest.param("https://", id="no host"),
        pytest.param("https://user:pw@x", id="a password in it"),
        pytest.param("https://x/?a=b", id="a query"),
        pytest.param("x.example", id="no scheme"),
    ],
)
def test_a_url_that_cant_be_used_is_misconfigured(meter: Meters, url: str) -> None:
    with pytest.raises(errors.Misconfigured):
        HttpClient(url, system="target:x", clock=StillClock(), meter=meter)


# --- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem signs good.pem for 127.0.0.1 and other.pem for another host."""
    folder = tmp_path_factory.mktemp("tls")
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    (folder / "ca.pem").write_bytes(_certificate(ca_name, ca_name, ca_key, ca_key, None))
    names: dict[str, x509.GeneralName] = {
        "good": x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        "other": x509.DNSName("other.example"),
    }
    for name, host in names.items():
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}.pem").write_bytes(private + _certificate(subject, ca_name, key, ca_key, host))
    return folder


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    host: x509.GeneralName | None,
) -> bytes:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
    )
    if host is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([host]), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def tls_server(certificate: Path) -> Server:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return Server(context)


@pytest.mark.parametrize(
    ("certificate", "trusted", "expected"),
    [
        pytest.param("good.pem", True, None, id="a certificate of the configured CA"),
        pytest.param("good.pem", False, errors.Misconfigured, id="an unknown CA"),
        pytest.param("other.pem", True, errors.Misconfigured, id="another host's certificate"),
    ],
)
def test_certificates(
    certificates: Path, meter: Meters, certificate: str, trusted: bool, expected: type[errors.PortError] | None
) -> None:
    server = tls_server(certificates / certificate)
    server.scripts = [says()]
    it = client(server.port, meter, scheme="https", ca_file=str(certificates / "ca.pem") if trusted else None)
    try:
        if expected is None:
            assert call(it).status == 200
        else:
            with pytest.raises(expected, match="certificate does not fit"):
                call(it)
            assert server.requests == []
    finally:
        it.close()
        server.close()


def test_a_server_without_tls_is_transient_since_nothing_was_sent(server: Server, meter: Meters) -> None:
    server.scripts = [raw(b"hello, this is no TLS")] * 3

    def babble() -> None:  # it answers before it reads a request: a TLS hello is none
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=babble)
        thread.start()
        with pytest.raises(errors.Transient, match="TLS handshake failed"):
            call(client(listener.getsockname()[1], meter, scheme="https"))
        thread.join()


def test_tls_waits_end_with_the_deadline_too(certificates: Path, meter: Meters) -> None:
    server = tls_server(certificates / "good.pem")
    server.scripts = [drips(LONG)]
    try:
        with pytest.raises(errors.Ambiguous, match="in time"):
            call(client(server.port, meter, scheme="https", ca_file=str(certificates / "ca.pem")), seconds=0.4)
    finally:
        server.close()


@pytest.mark.parametrize(
    "content", [pytest.param(None, id="no file"), pytest.param("no certificate", id="no certificate")]
)
def test_a_ca_file_that_cant_be_read_is_misconfigured(tmp_path: Path, meter: Meters, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(errors.Misconfigured, match=r"CA file .*ca\.pem"):
        client(1, meter, scheme="https", ca_file=str(path))


# --- plain readings of an answer ---------------------------------------------------------------------------------------


def plain(status: int, headers: Mapping[str, str] | None = None) -> HttpAnswer:
    return HttpAnswer(status, headers or {}, None, text_is_html=False, date=START, received_at=START)


@pytest.mark.parametrize(
    ("status", "changing", "reading"),
    [
        (200, None, None),
        (304, None, None),
        (400, errors.Misconfigured, errors.Misconfigured),
        (401, errors.Denied, errors.Denied),
        (403, errors.Denied, errors.Denied),
        (404, errors.NotFound, errors.NotFound),
        (405, errors.Unsupported, errors.Unsupported),
        (408, errors.Transient, errors.Transient),
        (409, errors.Conflict, errors.Conflict),
        (410, errors.NotFound, errors.NotFound),
        (412, errors.Conflict, errors.Conflict),
        (418, errors.Misconfigured, errors.Misconfigured),
        (429, errors.RateLimited, errors.RateLimited),
        (500, errors.Ambiguous, errors.Transient),
        (501, errors.Unsupported, errors.Unsupported),
        (502, errors.Ambiguous, errors.Transient),
        (503, errors.Transient, errors.Transient),
        (504, errors.Ambiguous, errors.Transient),
        (599, errors.Ambiguous, errors.Transient),
    ],
)
def test_what_a_status_means_when_nothing_more_is_known(
    status: int, changing: type[errors.PortError] | None, reading: type[errors.PortError] | None
) -> None:
    for is_changing, expected in ((True, changing), (False, reading)):
        found = status_error(plain(status), doing="minting", system="target:x", changing=is_changing)
        assert (None if found is None else type(found)) is expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param("120", 120.0, id="seconds"),
        pytest.param(" 7 ", 7.0, id="with blanks"),
        pytest.param("Sun, 01 Mar 2026 12:01:00 GMT", 60.0, id="a date, by the server's clock"),
        pytest.param("Sun, 01 Mar 2026 11:00:00 GMT", 0.0, id="a date in the past"),
        pytest.param("99999999999999999999", 86400.0, id="a number of absurd length"),
        pytest.param("soon", None, id="a word"),
        pytest.param("-5", None, id="a negative number"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_retry_after(text: str, seconds: float | None) -> None:
    assert retry_after(plain(429, {"retry-after": text})) == seconds


def test_a_429_tells_when_to_come_back() -> None:
    found = status_error(plain(429, {"retry-after": "7"}), doing="minting", system="target:x", changing=True)
    assert isinstance(found, errors.RateLimited)
    assert found.reset_at == START + timedelta(seconds=7)
