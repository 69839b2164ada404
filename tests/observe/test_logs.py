"""Logs: one line per event and library message, as JSON, and no secret in any of them by any path."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from rotator.core.model import Outcome, Record
from rotator.core.reasons import Reason
from rotator.core.secret import Secret
from rotator.observe import logs
from rotator.observe.redact import MASK, clean, scrub
from rotator.ports import EventType, RotationEvent

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
CANARY = "c4n4ry-7f3e9b"


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    """configure() is for a whole process; a test gives it back."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level, sys.excepthook, threading.excepthook, logging.raiseExceptions)
    levels = {name: logging.getLogger(name).level for name in logs.QUIET}
    yield
    root.handlers[:], root.level, sys.excepthook, threading.excepthook, logging.raiseExceptions = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


@pytest.fixture
def out() -> io.StringIO:
    stream = io.StringIO()
    logs.configure(stream=stream)
    return stream


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def event(type_: EventType = EventType.PHASE_DONE, **changes: Any) -> RotationEvent:
    fields: dict[str, Any] = {"type": type_, "at": T0, "connection": "graf", "record": Record("graf"), **changes}
    return RotationEvent(**fields)


def test_an_event_is_one_line_that_leaves_out_what_says_nothing(out: io.StringIO) -> None:
    logs.LogObserver().on(
        event(rotation_id="r1", phase="push", seconds=1.23456, reason=Reason.RATE_LIMITED, fields={"try": "2"})
    )
    (line,) = lines(out)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "rotator",
        "event": "phase_done",
        "connection": "graf",
        "rotation": "r1",
        "phase": "push",
        "seconds": 1.235,
        "reason": "rate_limited",
        "at": "2026-03-01T12:00:00+00:00",
        "more": {"try": "2"},
    }


@pytest.mark.parametrize(
    ("type_", "outcome", "level"),
    [
        pytest.param(EventType.ENDED, Outcome.ROTATED, "info", id="a rotation that went well is the story"),
        pytest.param(EventType.ENDED, Outcome.CANCELLED, "info", id="cancelled: nothing was changed"),
        pytest.param(EventType.ENDED, Outcome.ROLLED_BACK, "warning", id="rolled back: look at it"),
        pytest.param(EventType.ENDED, Outcome.STUCK, "error", id="stuck: a person must act"),
        pytest.param(EventType.HELD, "", "warning", id="an alarm holds the rotation"),
        pytest.param(EventType.REMINDER, "", "warning", id="a person is still awaited"),
        pytest.param(EventType.PHASE_FAILED, "", "warning", id="a phase failed"),
        pytest.param(EventType.DEFERRED, "", "info", id="not now"),
    ],
)
def test_the_level_says_whom_it_concerns(out: io.StringIO, type_: EventType, outcome: str, level: str) -> None:
    logs.LogObserver().on(event(type_, outcome=outcome))
    assert [(line["level"], line["event"]) for line in lines(out)] == [(level, type_.value)]


def test_fields_that_are_named_like_ours_do_not_lose_the_line(out: io.StringIO) -> None:
    logs.LogObserver().on(event(fields={"event": "x", "level": "y", "connection": "z"}))
    (line,) = lines(out)
    assert (line["event"], line["connection"], line["more"]["event"]) == ("phase_done", "graf", "x")


def test_an_event_that_can_t_be_logged_raises_nothing_and_says_so(out: io.StringIO) -> None:
    logs.LogObserver().on(event(EventType.ENDED, outcome="no such outcome"))
    assert [line["event"] for line in lines(out)] == ["an event could not be logged"]


@pytest.mark.parametrize("name", logs.QUIET)
def test_a_library_speaks_through_the_same_chain_from_warning_on(out: io.StringIO, name: str) -> None:
    logging.getLogger(name).info("one line per request")
    logging.getLogger(f"{name}.below").warning("trouble with %s", "hvs.CAESIabcdef")
    (line,) = lines(out)
    assert (line["level"], line["logger"], line["event"]) == ("warning", f"{name}.below", f"trouble with {MASK}")


def test_warnings_go_through_the_chain(out: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.configure(stream=out)  # here, because pytest puts its own showwarning in place for each test
        warnings.warn("token=abc", stacklevel=1)
    (line,) = lines(out)
    assert line["logger"] == "py.warnings"
    assert f"token={MASK}" in line["event"]


def test_the_level_is_the_operator_s(out: io.StringIO) -> None:
    logs.configure(level="error", stream=out)
    structlog.stdlib.get_logger("rotator").warning("not shown")
    logging.getLogger("urllib3").warning("not shown")
    structlog.stdlib.get_logger("rotator").error("shown")
    assert [line["event"] for line in lines(out)] == ["shown"]


def test_the_console_is_readable_and_one_line_per_event() -> None:
    out = io.StringIO()
    logs.configure(console=True, stream=out)
    structlog.stdlib.get_logger("rotator").info("first\n2026 [error] forged", text="a\nb\x1b[2J")
    assert len(out.getvalue().splitlines()) == 1
    assert "\x1b[2J" not in out.getvalue()


def test_logs_go_to_stderr_and_leave_stdout_to_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    structlog.stdlib.get_logger("rotator").info("hello")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["event"] == "hello"


# --- no secret by any path ---------------------------------------------------------------------------------------------


def fail(key: str) -> None:
    header = {"plain": key}
    raise ValueError(f"the answer to {len(header)} header was: Authorization: Bearer {key}")


def by_exception(key: str) -> None:
    try:
        fail(key)
    except ValueError:
        structlog.stdlib.get_logger("rotator").exception("it failed", cause=Secret(key))


def by_library_exception(key: str) -> None:
    try:
        fail(key)
    except ValueError:
        logging.getLogger("urllib3").exception("it failed")


def by_thread(key: str) -> None:
    thread = threading.Thread(target=fail, args=(key,))
    thread.start()
    thread.join()


def by_main(key: str) -> None:
    try:
        fail(key)
    except ValueError:
        sys.excepthook(*sys.exc_info())


def by_broken_format(key: str) -> None:
    logging.getLogger("rotator").warning("%d things", key)


@pytest.mark.parametrize("console", [pytest.param(False, id="json"), pytest.param(True, id="console")])
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(by_exception, id="an exception in our code, whose frame holds the key"),
        pytest.param(by_library_exception, id="an exception in a library"),
        pytest.param(by_thread, id="an exception that nobody catches in a thread"),
        pytest.param(by_main, id="an exception that nobody catches"),
        pytest.param(by_broken_format, id="a log call whose arguments do not fit"),
        pytest.param(lambda k: structlog.get_logger("x").info("m", v=Secret(k)), id="a Secret"),
        pytest.param(lambda k: structlog.get_logger("x").info("m", v=[{"s": (Secret(k),)}]), id="a Secret deep inside"),
        pytest.param(lambda k: structlog.get_logger("x").info("m", v=k.encode()), id="bytes"),
        pytest.param(lambda k: structlog.get_logger("x").info("m", api_token=k), id="a field named like a secret"),
        pytest.param(lambda k: structlog.get_logger("x").info("m", h={"X-Api-Key": k}), id="a header named like one"),
        pytest.param(lambda k: structlog.get_logger("x").info("m", token={"deep": [k]}), id="below such a name"),
        pytest.param(lambda k: structlog.contextvars.bind_contextvars(secret=k), id="a bound context"),
    ],
)
def test_no_key_leaves(path: Callable[[str], object], console: bool, capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    logs.configure(console=console, stream=out)
    path(CANARY)
    structlog.get_logger("x").info("the end")
    structlog.contextvars.clear_contextvars()
    captured = capsys.readouterr()
    assert "the end" in out.getvalue()
    assert len(out.getvalue().splitlines()) >= 1
    assert CANARY not in out.getvalue() + captured.out + captured.err


def test_a_traceback_keeps_its_lines_and_shows_no_locals(out: io.StringIO) -> None:
    by_exception(CANARY)
    (line,) = lines(out)
    assert "in fail" in line["exception"]
    assert "ValueError: the answer to 1 header" in line["exception"]
    assert "plain" not in line["exception"].replace('{"plain": key}', "")


def test_a_lost_line_is_said(out: io.StringIO) -> None:
    logs.configure(stream=out)  # here, so that pytest's own handler, which raises, is put away
    by_broken_format(CANARY)
    (line,) = lines(out)
    assert (line["event"], line["why"]) == ("a log line was lost", "TypeError")


JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        pytest.param("x hvs.CAESIJabc-_D y", f"x {MASK} y", id="Vault service token"),
        pytest.param("hvb.AAAAAQ", MASK, id="Vault batch token"),
        pytest.param("s.a1B2c3D4e5F6g7H8i9J0k1L2", MASK, id="OpenBao service token"),
        pytest.param(f"jwt {JWT}!", f"jwt {MASK}!", id="JWT"),
        pytest.param(f"a {PEM} b", f"a {MASK} b", id="PEM"),
        pytest.param(repr(PEM), f"'{MASK}'", id="PEM on one line, as repr writes it"),
        pytest.param(PEM[:40], MASK, id="PEM cut off"),
        pytest.param("Authorization: SSWS 00aBc-_xyz", f"Authorization: SSWS {MASK}", id="Okta API token"),
        pytest.param("{'authorization': 'bearer abc'}", f"{{'authorization': 'bearer {MASK}'}}", id="bearer in a dict"),
        pytest.param("Basic dXNlcjpwYXNz", f"Basic {MASK}", id="basic"),
        pytest.param("DPoP abc.def", f"DPoP {MASK}", id="DPoP-bound token"),
        pytest.param("glsa_HOruNAb7SOiCdshU", MASK, id="Grafana service account token"),
        pytest.param("glc_eyJvIjoi=", MASK, id="Grafana Cloud token"),
        pytest.param("https://me:pw@host/p", f"https://{MASK}@host/p", id="user and password in a URL"),
        pytest.param("/t?client_secret=ab&x=1", f"/t?client_secret={MASK}&x=1", id="a secret in a query"),
        pytest.param('{"access_token":"ab","x":1}', f'{{"access_token":"{MASK}","x":1}}', id="a token in JSON"),
        pytest.param("https://acme.okta.com/api/v1/apps/0oa1/connections", None, id="a URL stays"),
        pytest.param("key 1a2b3c4d5e6f, id 12, label rotator-graf-7-1", None, id="fingerprint, id and label stay"),
        pytest.param("users.list failed: 503", None, id="words with dots stay"),
        pytest.param("line one\n\tline two", None, id="lines and tabs stay"),
        pytest.param("a\x1b[31mb\x00\u2028c", "a\ufffd[31mb\ufffd\ufffdc", id="control characters go"),
        pytest.param("x" * 30_000, "x" * 20_000 + "… (cut)", id="an endless text is cut"),
    ],
)
def test_scrub(text: str, cleaned: str | None) -> None:
    assert scrub(text) == (text if cleaned is None else cleaned)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        pytest.param("key", "abc", False, id="key"),
        pytest.param("secret_id", "abc", False, id="AppRole's secret_id"),
        pytest.param("client_assertion", "abc", False, id="client assertion"),
        pytest.param("Set-Cookie", "abc", False, id="cookie"),
        pytest.param("private-key", "abc", False, id="private key"),
        pytest.param("key_id", "12", True, id="key_id"),
        pytest.param("fingerprint", "1a2b", True, id="fingerprint"),
        pytest.param("connection", "graf", True, id="connection"),
        pytest.param("token_expires_at", "2026", True, id="a time about a token"),
        pytest.param("token_ttl", 3600, True, id="a number"),
        pytest.param("secret_path", "kv/rotator", True, id="a path"),
    ],
)
def test_names(name: str, value: object, kept: bool) -> None:
    assert clean({name: value}) == {name: value if kept else MASK}


def test_values_of_any_kind_become_plain(out: io.StringIO) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError(CANARY)

    endless: list[object] = []
    endless.append(endless)
    structlog.get_logger("x").info("m", broken=Broken(), endless=endless, at=T0, mixed={1: {2}}, nan=float("nan"))
    line = json.loads(out.getvalue())
    assert (line["broken"], line["at"], line["mixed"]) == ("[Broken]", str(T0), {"1": [2]})
    assert CANARY not in out.getvalue()
