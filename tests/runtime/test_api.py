"""The HTTP API, over a real socket: who gets in, what is answered, and what never gets through."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from rotator.core.model import (
    Ask,
    Binding,
    By,
    Debt,
    DebtKind,
    Ended,
    KeyRef,
    Limits,
    Outcome,
    Phase,
    PhaseTime,
    Record,
    Rotation,
    StrategyName,
    Trigger,
)
from rotator.core.reasons import Reason
from rotator.core.view import ConnectionView
from rotator.errors import Transient
from rotator.runtime.api import (
    MAX_BODY,
    ApiService,
    AskAnswer,
    FoundRotation,
    SubmitAnswer,
    Submitted,
    VerifyAnswer,
    build_api,
)
from rotator.runtime.api_guard import Tokens
from rotator.runtime.api_routes import ROUTES, openapi
from rotator.runtime.api_server import Served, serve

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
READ, OPERATE = "read-token-0123456789", "operate-token-0123456789"
CANARY = "c4n4ry-7f3e9b"

KEY = KeyRef(
    "1a2b3c4d5e6f", "id-1", "rotator-graf-7-1", 3, NOW - timedelta(days=10), NOW + timedelta(days=20), ours=True
)
OPEN = Rotation(
    id="r1",
    installation="test",
    sequence=7,
    trigger=Trigger.HTTP,
    note="quarterly",
    why=Reason.ASKED,
    binding=Binding("acme", "0oa1", "https://scim", "graf", StrategyName.OVERLAP, By.API, By.API),
    limits=Limits(),
    started_at=NOW,
    phase=Phase.OVERLAP,
    phase_since=NOW,
    waiting=Reason.OVERLAPPING,
    evidence=("pushed",),
    times=(PhaseTime(Phase.PUSH, 1.5), PhaseTime(Phase.PUSH, 0.5)),
)
ENDED = Ended(
    "r0", 6, Trigger.SCHEDULE, StrategyName.OVERLAP, Outcome.ROLLED_BACK, Reason.KEY_REFUSED, "refused", NOW, NOW
)
RECORD = Record(
    "graf-1",
    current=KEY,
    previous=KEY,
    rotation=OPEN,
    last=ENDED,
    debts=(Debt(DebtKind.PERSON, KEY, NOW, Reason.STILL_ALIVE),),
)
VIEW = ConnectionView("graf-1", "graf", "acme", RECORD, NOW + timedelta(days=1), None, 3600.0)


ACCEPTED = SubmitAnswer(Submitted.ACCEPTED, "r2")
ASKED = AskAnswer(accepted=True, rotation_id="r1")


@dataclass
class Service:
    """A dispatcher that answers what the test says and remembers what it was asked."""

    asked: list[tuple[object, ...]] = field(default_factory=list)
    submits: SubmitAnswer | Exception = ACCEPTED
    asks: AskAnswer = ASKED
    view: ConnectionView = VIEW
    lives: bool = True
    readiness: tuple[bool, tuple[str, ...]] = (True, ())

    def submit(self, connection: str, note: str) -> SubmitAnswer:
        self.asked.append(("submit", connection, note))
        if isinstance(self.submits, Exception):
            raise self.submits
        return self.submits

    def ask(self, connection: str, what: Ask) -> AskAnswer:
        self.asked.append(("ask", connection, what))
        return self.asks

    def verify(self, connection: str) -> VerifyAnswer:
        self.asked.append(("verify", connection))
        return VerifyAnswer(ok=True, target="accepted", idp="enabled", text="both sides agree", missing=("System Log",))

    def list_connections(self) -> Sequence[ConnectionView]:
        return (self.view,)

    def connection(self, name: str) -> ConnectionView | None:
        return self.view if name == self.view.name else None

    def rotation(self, rotation_id: str) -> FoundRotation | None:
        found: dict[str, Rotation | Ended] = {"r1": OPEN, "r0": ENDED}
        return FoundRotation("graf-1", found[rotation_id]) if rotation_id in found else None

    def alive(self) -> bool:
        return self.lives

    def ready(self) -> tuple[bool, tuple[str, ...]]:
        return self.readiness

    def metrics(self) -> bytes:
        return b"# HELP x y\n"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# who: what\nread {READ}\n\noperate {OPERATE}\n")
    path.chmod(0o600)
    return path


Serve = Callable[..., tuple[Service, httpx.Client]]


@pytest.fixture
def start(token_file: Path) -> Iterator[Serve]:
    """Serves a Service on loopback; gives it and a client that carries the operate token."""
    running: list[tuple[Served, httpx.Client]] = []

    def go(
        service: Service | None = None, *, token: str | None = OPERATE, request_seconds: float = 15.0, **options: Any
    ) -> tuple[Service, httpx.Client]:
        service = service or Service()
        port_holds: ApiService = service
        tokens = options.pop("tokens", Tokens(token_file))
        app = build_api(port_holds, tokens, now=lambda: NOW, version="1.2.3", **options)
        served = serve(app, "127.0.0.1", 0, request_seconds=request_seconds)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        client = httpx.Client(base_url=served.url, headers=headers, trust_env=False, timeout=30, verify=False)  # noqa: S501 - plain HTTP here; saves loading the CAs
        running.append((served, client))
        return service, client

    yield go
    for served, client in running:
        client.close()
        served.stop()
        assert not served.alive()


def error_of(answer: httpx.Response) -> str:
    """The word of a uniform error body."""
    body = answer.json()
    assert set(body) == {"error", "message", "rotation_id"}
    assert body["message"]
    return str(body["error"])


# --- triggers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("submits", "status", "body"),
    [
        pytest.param(
            SubmitAnswer(Submitted.ACCEPTED, "r2"),
            202,
            {"rotation_id": "r2", "status": "accepted"},
            id="a new rotation",
        ),
        pytest.param(
            SubmitAnswer(Submitted.RUNNING, "r1"),
            200,
            {"rotation_id": "r1", "status": "running"},
            id="one runs: its id is answered",
        ),
        pytest.param(
            SubmitAnswer(Submitted.REFUSED, "", Reason.FREEZE, "frozen until Monday"),
            409,
            {"error": "freeze", "message": "frozen until Monday", "rotation_id": None},
            id="refused, with the reason",
        ),
        pytest.param(
            SubmitAnswer(Submitted.REFUSED, "r1", Reason.STUCK, "needs a person"),
            409,
            {"error": "stuck", "message": "needs a person", "rotation_id": "r1"},
            id="refused because the last one is stuck, with its id",
        ),
        pytest.param(
            Transient("writing the claim", system="vault", detail="503"),
            503,
            {"error": "unavailable", "message": "writing the claim (vault): 503", "rotation_id": None},
            id="Vault is down: nothing was claimed",
        ),
        pytest.param(
            RuntimeError(CANARY),
            500,
            {"error": "unexpected", "message": "the rotator failed to answer; its log says why", "rotation_id": None},
            id="a bug is no answer",
        ),
    ],
)
def test_rotate(start: Serve, submits: SubmitAnswer | Exception, status: int, body: dict[str, Any]) -> None:
    service, client = start(Service(submits=submits))
    answer = client.post("/v1/connections/graf-1/rotate", json={"reason": "leak in CI"})
    assert (answer.status_code, answer.json()) == (status, body)
    assert service.asked == [("submit", "graf-1", "leak in CI")]


@pytest.mark.parametrize("path", ["rollback", "cancel"])
def test_asking_for_something_of_the_open_rotation(start: Serve, path: str) -> None:
    service, client = start()
    answer = client.post(f"/v1/connections/graf-1/{path}")
    assert (answer.status_code, answer.json()) == (202, {"rotation_id": "r1", "asked": path})
    assert service.asked == [("ask", "graf-1", Ask(path))]
    service.asks = AskAnswer(accepted=False, reason=Reason.NOT_FOUND, text="no rotation is open")
    answer = client.post(f"/v1/connections/graf-1/{path}", json={})
    assert (answer.status_code, error_of(answer)) == (409, "not_found")


def test_verify_tells_both_sides_and_what_could_not_be_looked_at(start: Serve) -> None:
    service, client = start()
    assert client.post("/v1/connections/graf-1/verify").json() == {
        "connection": "graf-1",
        "ok": True,
        "target": "accepted",
        "idp": "enabled",
        "message": "both sides agree",
        "missing_proofs": ["System Log"],
    }
    assert service.asked == [("verify", "graf-1")]


@pytest.mark.parametrize("path", ["rotate", "verify", "rollback", "cancel"])
def test_an_unknown_connection_is_not_asked_about(start: Serve, path: str) -> None:
    service, client = start()
    answer = client.post(f"/v1/connections/nobody/{path}")
    assert (answer.status_code, error_of(answer), service.asked) == (404, "not_found", [])


# --- reads -------------------------------------------------------------------------------------------------------------


def test_a_connection_tells_its_state_keys_by_name_debts_and_rotations(start: Serve) -> None:
    _, client = start()
    body = client.get("/v1/connections/graf-1").json()
    assert (body["state"], body["healthy"], body["slack_seconds"]) == ("in_progress", True, 20 * 86400 - 3600)
    assert body["current"]["fingerprint"] == "1a2b3c4d5e6f"
    assert [debt["kind"] for debt in body["debts"]] == ["person"]
    assert (body["rotation"]["id"], body["rotation"]["status"], body["last"]["status"]) == ("r1", "open", "rolled_back")
    assert client.get("/v1/connections").json() == {"connections": [body]}


@pytest.mark.parametrize(
    ("rotation_id", "expected"),
    [
        pytest.param(
            "r1", {"status": "open", "phase": "overlap", "reason": "overlapping", "seconds": {"push": 2.0}}, id="open"
        ),
        pytest.param(
            "r0", {"status": "rolled_back", "phase": None, "reason": "key_refused", "message": "refused"}, id="ended"
        ),
    ],
)
def test_a_rotation(start: Serve, rotation_id: str, expected: dict[str, Any]) -> None:
    _, client = start()
    body = client.get(f"/v1/rotations/{rotation_id}").json()
    assert body["connection"] == "graf-1"
    assert {key: body[key] for key in expected} == expected


def test_a_stuck_rotation_says_so(start: Serve) -> None:
    stuck = replace(VIEW, record=replace(RECORD, rotation=replace(OPEN, stuck=Reason.BOTH_DEAD)))
    _, client = start(Service(view=stuck))
    body = client.get("/v1/connections/graf-1").json()
    assert (body["state"], body["rotation"]["status"], body["rotation"]["reason"]) == ("stuck", "stuck", "both_dead")


@pytest.mark.parametrize("path", ["/v1/connections/nobody", "/v1/rotations/r9", "/v1/nothing", "/metrics/", "/"])
def test_what_is_not_there_is_a_uniform_404_without_redirects(start: Serve, path: str) -> None:
    _, client = start()
    answer = client.get(path)
    assert (answer.status_code, error_of(answer)) == (404, "not_found")


def test_the_wrong_method_is_told_the_right_one(start: Serve) -> None:
    _, client = start()
    answer = client.get("/v1/connections/graf-1/rotate")
    assert (answer.status_code, error_of(answer), answer.headers["allow"]) == (405, "method_not_allowed", "POST")


def test_health_needs_no_token_and_tells_what_is_not_ready(start: Serve) -> None:
    service, client = start(token=None)
    assert client.get("/healthz").json() == {"ok": True, "reasons": []}
    assert client.get("/readyz").status_code == 200
    service.lives = False
    service.readiness = (False, ("Vault can't be written",))
    assert client.get("/healthz").status_code == 503
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"ok": False, "reasons": ["Vault can't be written"]})


def test_metrics_are_text_for_prometheus(start: Serve) -> None:
    _, client = start(token=READ)
    answer = client.get("/metrics")
    assert (answer.status_code, answer.content) == (200, b"# HELP x y\n")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


# --- who gets in -------------------------------------------------------------------------------------------------------


def test_every_route_asks_for_its_role(start: Serve) -> None:
    _, client = start(token=None)
    for route in ROUTES:
        path = route.path.replace("{name}", "graf-1" if "connections" in route.path else "r1")
        statuses = {
            token: client.request(
                route.method, path, headers={"authorization": f"Bearer {token}"} if token else {}
            ).status_code
            for token in ("", "wrong-token-0123456789", READ, OPERATE)
        }
        fine = next(status for status in (202, 200) if status in route.answers)
        needed = {None: (fine, fine, fine), "read": (401, fine, fine), "operate": (401, 403, fine)}[route.role]
        assert tuple(statuses.values()) == (needed[0], *needed), route.name


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(OPERATE, id="no scheme"),
        pytest.param(f"Basic {OPERATE}", id="another scheme"),
        pytest.param(f"Bearer {OPERATE}x", id="more than the token"),
        pytest.param(f"Bearer {OPERATE[:-1]}", id="less than the token"),
        pytest.param("Bearer", id="no token"),
        pytest.param("Bearer \xff", id="not ASCII"),
    ],
)
def test_what_is_not_the_token_is_401_with_a_challenge(start: Serve, header: str) -> None:
    service, client = start(token=None)
    answer = client.post("/v1/connections/graf-1/rotate", headers={b"authorization": header.encode("latin-1")})
    assert (answer.status_code, error_of(answer), service.asked) == (401, "unauthorized", [])
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_the_scheme_s_case_does_not_matter(start: Serve) -> None:
    _, client = start(token=None)
    assert client.get("/v1/connections", headers={"authorization": f"bearer {READ}"}).status_code == 200


def test_without_tokens_only_health_answers(start: Serve) -> None:
    _, client = start(tokens=None)
    assert client.get("/healthz").status_code == 200
    assert client.get("/metrics").status_code == 401
    assert client.post("/v1/connections/graf-1/rotate").status_code == 401


def test_open_metrics_open_nothing_else(start: Serve) -> None:
    _, client = start(tokens=None, open_metrics=True)
    assert client.get("/metrics").status_code == 200
    assert client.get("/v1/connections").status_code == 401


def test_a_reload_takes_new_tokens_and_a_bad_file_leaves_the_old(start: Serve, token_file: Path) -> None:
    tokens = Tokens(token_file)
    _, client = start(tokens=tokens, token=None)

    def status(token: str) -> int:
        return client.get("/v1/connections", headers={"authorization": f"Bearer {token}"}).status_code

    token_file.write_text("read other-token-0123456789\n")
    tokens.reload()
    assert (status(READ), status("other-token-0123456789")) == (401, 200)
    token_file.write_text("rubbish\n")
    with pytest.raises(ValueError, match="expected"):
        tokens.reload()
    assert status("other-token-0123456789") == 200


# --- bodies ------------------------------------------------------------------------------------------------------------


STATUS_OF = {None: 202, "bad_request": 400, "too_large": 413, "unsupported_media_type": 415}


@pytest.mark.parametrize(
    ("content", "content_type", "error"),
    [
        pytest.param(b"", None, None, id="no body"),
        pytest.param(b"{}", "application/json; charset=utf-8", None, id="an empty object"),
        pytest.param(b"{}", "text/plain", "unsupported_media_type", id="not said to be JSON"),
        pytest.param(b"{", "application/json", "bad_request", id="not JSON"),
        pytest.param(b"[]", "application/json", "bad_request", id="not an object"),
        pytest.param(b'{"reason": 1}', "application/json", "bad_request", id="not text"),
        pytest.param(b'{"reason": "a\\nb"}', "application/json", "bad_request", id="more than a line"),
        pytest.param(b'{"reason": "%s"}' % (b"x" * 501), "application/json", "bad_request", id="a long story"),
        pytest.param(
            b'{"key": "%s"}' % CANARY.encode(), "application/json", "bad_request", id="a key that somebody sent"
        ),
        pytest.param(
            b'{"%s": 1}' % CANARY.encode(), "application/json", "bad_request", id="a key sent as a field's name"
        ),
        pytest.param(b'{"reason": %s' % CANARY.encode(), "application/json", "bad_request", id="a key in bad JSON"),
        pytest.param(b" " * (MAX_BODY + 1), "application/json", "too_large", id="too large"),
    ],
)
def test_bodies(
    start: Serve,
    content: bytes,
    content_type: str | None,
    error: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    status = STATUS_OF[error]
    service, client = start()
    headers = {"content-type": content_type} if content_type else {}
    answer = client.post("/v1/connections/graf-1/rotate", content=content, headers=headers)
    assert answer.status_code == status
    assert bool(service.asked) == (status == 202)
    assert CANARY not in answer.text + caplog.text
    if error:
        assert error_of(answer) == error


def test_a_chunked_body_is_cut_off_at_the_limit_too(start: Serve) -> None:
    _, client = start()
    chunks = (b" " * 1024 for _ in range(64))
    try:
        answer = client.post(
            "/v1/connections/graf-1/rotate", content=chunks, headers={"content-type": "application/json"}
        )
    except httpx.WriteError:
        pytest.fail("the answer must be readable although the body was not read to its end")
    assert (answer.status_code, error_of(answer)) == (413, "too_large")


# --- limits ------------------------------------------------------------------------------------------------------------


def test_triggers_are_throttled_by_kind_and_say_when_to_come_back(start: Serve) -> None:
    time = [0.0]
    service, client = start(per_minute=2, monotonic=lambda: time[0])
    assert [client.post("/v1/connections/graf-1/rotate").status_code for _ in range(3)] == [202, 202, 429]
    answer = client.post("/v1/connections/graf-1/rotate")
    assert (error_of(answer), answer.headers["retry-after"]) == ("rate_limited", "30")
    assert client.post("/v1/connections/graf-1/rollback").status_code == 202
    assert client.get("/v1/connections").status_code == 200
    time[0] = 30.0
    assert [client.post("/v1/connections/graf-1/rotate").status_code for _ in range(2)] == [202, 429]
    time[0] = 1000.0
    assert [client.post("/v1/connections/graf-1/rotate").status_code for _ in range(3)] == [202, 202, 429]
    assert len(service.asked) == 6


def test_who_has_no_token_can_t_use_up_the_triggers(start: Serve) -> None:
    _, client = start(per_minute=1)
    for _ in range(3):
        assert client.post("/v1/connections/graf-1/rotate", headers={"authorization": ""}).status_code == 401
    assert client.post("/v1/connections/graf-1/rotate").status_code == 202


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\n", id="half a head"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /he", id="half a head after an answer"),
    ],
)
def test_who_sends_too_slowly_is_hung_up_on(start: Serve, sent: bytes) -> None:
    _, client = start(request_seconds=0.3)
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=60) as slow:
        slow.sendall(sent)
        received = b""
        while chunk := slow.recv(4096):
            received += chunk
    assert received.count(b"HTTP/1.1 200") == sent.count(b"\r\n\r\n")


def test_a_slow_answer_is_not_hung_up_on_but_who_then_sends_too_slowly_is(start: Serve) -> None:
    class Slow(Service):
        def verify(self, connection: str) -> VerifyAnswer:
            # A socket that nobody answers, so that the wait is a real one
            with socket.socket() as quiet:
                quiet.bind(("127.0.0.1", 0))
                quiet.listen()
                with socket.create_connection(quiet.getsockname(), timeout=0.6) as waiting:
                    try:
                        waiting.recv(1)
                    except TimeoutError:
                        return super().verify(connection)
            raise AssertionError

    _, client = start(Slow(), request_seconds=0.2)
    head = f"POST /v1/connections/graf-1/verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {OPERATE}\r\n\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=30) as patient:
        patient.sendall(head.encode())
        assert patient.recv(4096).startswith(b"HTTP/1.1 200")
        patient.sendall(b"GET /he")
        while patient.recv(4096):  # ends because the rest of this head never comes
            pass


# --- headers and document ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/healthz", "/v1/connections", "/metrics", "/openapi.json", "/nowhere"])
def test_answers_stay_out_of_caches_and_browsers(start: Serve, path: str) -> None:
    _, client = start()
    headers = client.get(path, headers={"origin": "https://evil.example"}).headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["referrer-policy"] == "no-referrer"
    assert not [name for name in headers if name.startswith("access-control") or name == "server"]


def test_the_document_lists_exactly_the_routes(start: Serve) -> None:
    _, client = start(token=READ)
    document = client.get("/openapi.json").json()
    assert document == json.loads(json.dumps(openapi("1.2.3")))
    listed = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    assert listed == {
        ("POST", "/v1/connections/{name}/rotate"),
        ("POST", "/v1/connections/{name}/verify"),
        ("POST", "/v1/connections/{name}/rollback"),
        ("POST", "/v1/connections/{name}/cancel"),
        ("GET", "/v1/connections"),
        ("GET", "/v1/connections/{name}"),
        ("GET", "/v1/rotations/{name}"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
    }
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert references == set(schemas), "a reference without a schema, or a schema that nothing uses"


@pytest.mark.parametrize("rotation", [pytest.param(OPEN, id="rotation open"), pytest.param(None, id="none open")])
def test_answers_are_as_the_document_says(start: Serve, rotation: Rotation | None) -> None:
    _, client = start(Service(view=replace(VIEW, record=replace(RECORD, rotation=rotation))))
    document = openapi("1")
    checked = 0
    for route in ROUTES:
        for name in ("graf-1", "r1", "r0", "nobody"):
            answer = client.request(route.method, route.path.replace("{name}", name))
            operation = document["paths"][route.path][route.method.lower()]
            content = operation["responses"][str(answer.status_code)].get("content")
            if content:
                schema = {**content["application/json"]["schema"], "components": document["components"]}
                checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
                checker.validate(answer.json())
                checked += 1
    assert checked == 9 * 4


def test_no_schema_has_room_for_a_key() -> None:
    """A field that could hold key material would be text that is named like it, in any body or answer."""
    for name, schema in openapi("1")["components"]["schemas"].items():
        for field_name, description in schema.get("properties", {}).items():
            if re.search(r"(^|_)(key|secret|token|password|value)s?$", field_name):
                assert description.get("$ref") or description.get("anyOf"), f"{name}.{field_name}"
