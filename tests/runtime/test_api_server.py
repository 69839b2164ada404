"""Serving the API: where it may listen, with what, and what a bad file or address says."""

from __future__ import annotations

import signal
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette

from rotator.runtime.api import build_api
from rotator.runtime.api_guard import Role, TokenFileError, Tokens
from rotator.runtime.api_server import Served, ServeError, TlsFiles, serve
from tests.runtime.test_api import NOW, OPERATE, Service

DAY = timedelta(days=1)


def app(*, tokens: Tokens | None = None, open_metrics: bool = False) -> Starlette:
    return build_api(Service(), tokens, now=lambda: NOW, version="1", open_metrics=open_metrics)


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(written(tmp_path / "tokens", f"operate {OPERATE}\n"))


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def make_tls(folder: Path, name: str = "localhost", issuer: TlsFiles | None = None) -> TlsFiles:
    """A certificate and its key; self-signed, or by `issuer`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    by, signer = subject, key
    if issuer:
        by = x509.load_pem_x509_certificate(issuer.certificate.read_bytes()).subject
        loaded = serialization.load_pem_private_key(issuer.key.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer = loaded
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    files = TlsFiles(folder / f"{name}.pem", folder / f"{name}.key")
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


Start = Callable[..., Served]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[Served] = []

    def go(*args: Any, **options: Any) -> Served:
        running.append(serve(*args, **options))
        return running[-1]

    yield go
    for served in running:
        served.stop()


# --- where it may listen -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_needs_neither_tokens_nor_tls(start: Start, host: str) -> None:
    served = start(app(open_metrics=True), host, 0)
    assert httpx.get(f"{served.url}/metrics", trust_env=False).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
@pytest.mark.parametrize(
    ("with_tokens", "with_tls", "open_metrics", "lacks"),
    [
        pytest.param(False, True, False, ["a token file"], id="without tokens"),
        pytest.param(True, False, False, ["a TLS certificate"], id="without TLS"),
        pytest.param(True, True, True, ["metrics behind a token"], id="with open metrics"),
        pytest.param(False, False, False, ["a token file", "a TLS certificate"], id="without anything"),
    ],
)
def test_a_public_bind_is_refused(
    tokens: Tokens, tmp_path: Path, host: str, with_tokens: bool, with_tls: bool, open_metrics: bool, lacks: list[str]
) -> None:
    made = app(tokens=tokens if with_tokens else None, open_metrics=open_metrics)
    with pytest.raises(ServeError, match="not loopback") as refused:
        serve(made, host, 0, make_tls(tmp_path) if with_tls else None)
    named = [
        thing
        for thing in ("a token file", "metrics behind a token", "a TLS certificate")
        if thing in str(refused.value)
    ]
    assert named == lacks


def test_a_public_bind_with_tokens_and_tls_is_served(start: Start, tokens: Tokens, tmp_path: Path) -> None:
    served = start(app(tokens=tokens), "0.0.0.0", 0, make_tls(tmp_path))
    assert served.url.startswith("https://0.0.0.0:")


def test_a_public_bind_without_tls_is_served_when_a_proxy_does_it(start: Start, tokens: Tokens) -> None:
    served = start(app(tokens=tokens), "0.0.0.0", 0, allow_public=True)
    assert httpx.get(f"http://127.0.0.1:{served.port}/healthz", trust_env=False).status_code == 200


def test_a_proxy_that_does_tls_does_not_make_tokens_needless() -> None:
    with pytest.raises(ServeError, match="a token file"):
        serve(app(), "0.0.0.0", 0, allow_public=True)


def test_an_address_in_use_is_an_error_of_the_start(start: Start) -> None:
    served = start(app(), "127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        serve(app(), "127.0.0.1", served.port)


# --- TLS ---------------------------------------------------------------------------------------------------------------


def client(trust: Path, certificate: TlsFiles | None = None) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(trust))
    if certificate:
        context.load_cert_chain(certificate.certificate, certificate.key)
    return httpx.Client(verify=context, trust_env=False)


def test_over_tls_browsers_are_told_to_stay_there(start: Start, tokens: Tokens, tmp_path: Path) -> None:
    tls = make_tls(tmp_path)
    served = start(app(tokens=tokens), "localhost", 0, tls)
    answer = client(tls.certificate).get(f"https://localhost:{served.port}/healthz")
    assert (answer.status_code, answer.headers["strict-transport-security"]) == (200, "max-age=31536000")


def test_old_protocols_are_refused_whatever_the_host_allows(start: Start, tmp_path: Path) -> None:
    context = start(app(), "localhost", 0, make_tls(tmp_path))._server.config.ssl
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_with_a_client_ca_only_its_clients_get_in(start: Start, tmp_path: Path) -> None:
    tls, ca = make_tls(tmp_path), make_tls(tmp_path, "ca")
    known, stranger = make_tls(tmp_path, "known", issuer=ca), make_tls(tmp_path, "stranger")
    served = start(app(), "localhost", 0, TlsFiles(tls.certificate, tls.key, client_ca=ca.certificate))
    url = f"https://localhost:{served.port}/healthz"
    assert client(tls.certificate, known).get(url).status_code == 200
    for certificate in (None, stranger):
        with pytest.raises(httpx.TransportError):
            client(tls.certificate, certificate).get(url)


def test_a_renewed_certificate_is_taken_and_a_bad_one_leaves_the_old(start: Start, tmp_path: Path) -> None:
    tls = make_tls(tmp_path)
    served = start(app(), "localhost", 0, tls)
    url = f"https://localhost:{served.port}/healthz"
    old = written(tmp_path / "old.pem", tls.certificate.read_text())
    tls.certificate.write_text("rubbish")
    with pytest.raises(ServeError, match=r"localhost\.pem"):
        served.reload_tls()
    assert client(old).get(url).status_code == 200
    make_tls(tmp_path)
    served.reload_tls()
    assert client(tls.certificate).get(url).status_code == 200
    with pytest.raises(httpx.ConnectError):
        client(old).get(url)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda tls: tls.key.unlink(), id="no key file"),
        pytest.param(lambda tls: tls.certificate.write_text("x"), id="not a certificate"),
        pytest.param(lambda tls: make_tls(tls.key.parent, "other").key.replace(tls.key), id="a key of another one"),
    ],
)
def test_bad_tls_files_are_named_at_the_start(tmp_path: Path, spoil: Callable[[TlsFiles], object]) -> None:
    tls = make_tls(tmp_path)
    spoil(tls)
    with pytest.raises(ServeError, match=r"localhost\.pem, .*localhost\.key"):
        serve(app(), "localhost", 0, tls)


# --- a thread among others ---------------------------------------------------------------------------------------------


def test_the_daemon_s_signal_handlers_stay_and_stop_ends_the_thread(start: Start) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)]
    served = start(app(), "127.0.0.1", 0)
    assert httpx.get(f"{served.url}/healthz", trust_env=False).status_code == 200
    assert before == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)]
    assert served.alive()
    served.stop()
    assert not served.alive()
    assert "api" not in {thread.name for thread in threading.enumerate()}


def test_answers_do_not_wait_for_nagle(start: Start) -> None:
    served = start(app(), "127.0.0.1", 0)
    with httpx.Client(trust_env=False) as kept:
        kept.get(f"{served.url}/healthz")  # its connection is kept alive, so it is there to be looked at
        (connection,) = served._server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# --- the token file ----------------------------------------------------------------------------------------------------

GOOD = "read-token-0123456789"
HEX = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"  # of "password"


@pytest.mark.parametrize(
    ("text", "mode", "where"),
    [
        pytest.param(f"read {GOOD}\n", 0o604, "tokens:1: everybody on this host can read", id="world-readable"),
        pytest.param(f"read {GOOD}\n", 0o602, "everybody on this host can write", id="world-writable"),
        pytest.param(
            f"read sha256:{HEX}\n", 0o606, "everybody on this host can write", id="a digest that all may change"
        ),
        pytest.param("", 0o600, "holds no token", id="empty"),
        pytest.param("# nothing\n\n", 0o600, "holds no token", id="comments only"),
        pytest.param(f"# x\nadmin {GOOD}\n", 0o600, "tokens:2: expected", id="an unknown role"),
        pytest.param(f"{GOOD}\n", 0o600, "tokens:1: expected", id="no role"),
        pytest.param(f"read {GOOD} extra\n", 0o600, "tokens:1: expected", id="more than a token"),
        pytest.param("read sha256:12ab\n", 0o600, "tokens:1: expected", id="a digest cut off"),
        pytest.param(f"read {GOOD[:19]}\n", 0o600, "tokens:1: a token must have at least 20", id="a short token"),
        pytest.param(f"read {GOOD}\xe9\n", 0o600, "tokens:1: expected", id="not ASCII"),
    ],
)
def test_a_bad_token_file_is_named_without_its_content(tmp_path: Path, text: str, mode: int, where: str) -> None:
    path = written(tmp_path / "tokens", text, mode)
    with pytest.raises(TokenFileError, match=where) as refused:
        Tokens(path)
    assert GOOD[:19] not in str(refused.value)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o440])
def test_owner_and_group_may_read_the_token_file(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "tokens", f"read {GOOD}\n", mode)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert Tokens(path).role_of(f"Bearer {GOOD}") is Role.READ


def test_a_digest_stands_for_its_token_and_not_for_itself(tmp_path: Path) -> None:
    tokens = Tokens(written(tmp_path / "tokens", f"operate sha256:{HEX}\n", 0o644))
    assert tokens.role_of("Bearer password") is Role.OPERATE
    assert tokens.role_of(f"Bearer sha256:{HEX}") is None
    assert tokens.role_of(f"Bearer {HEX}") is None


@pytest.mark.parametrize("order", [("read", "operate"), ("operate", "read")])
def test_a_token_in_both_roles_may_operate(tmp_path: Path, order: tuple[str, str]) -> None:
    tokens = Tokens(written(tmp_path / "tokens", "".join(f"{role} {GOOD}\n" for role in order)))
    assert tokens.role_of(f"Bearer {GOOD}") is Role.OPERATE


def test_two_tokens_of_a_role_serve_while_one_is_replaced(tmp_path: Path) -> None:
    tokens = Tokens(written(tmp_path / "tokens", f"read {GOOD}\nread {GOOD}-next\n"))
    assert tokens.role_of(f"Bearer {GOOD}") is tokens.role_of(f"Bearer {GOOD}-next") is Role.READ
