"""Logs: one chain for our events and the libraries' lines, JSON to stderr (console on a terminal).

Keeps I5: redaction is the last step before rendering, and no traceback carries frame locals. Keeps I6: every event of a
rotation is a line. The level says whom it concerns: error, a person must act; warning, look at it; info, the story.
"""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

from rotator.core.model import Outcome
from rotator.observe.redact import redact, scrub
from rotator.ports import EventType, RotationEvent

# Their INFO is one line per request, URLs included
QUIET = ("httpx", "httpcore", "urllib3", "apscheduler", "uvicorn", "hvac", "asyncio")

_LEVELS = {
    EventType.PHASE_FAILED: logging.WARNING,
    EventType.HELD: logging.WARNING,
    EventType.REMINDER: logging.WARNING,
    EventType.LEASE_LOST: logging.WARNING,
}
_END_LEVELS = {Outcome.ROLLED_BACK: logging.WARNING, Outcome.STUCK: logging.ERROR}


def configure(*, level: str = "info", console: bool | None = None, stream: TextIO | None = None) -> None:
    """Set up structlog, stdlib logging, warnings and the hooks for uncaught exceptions, once per process.

    `level`: debug, info, warning or error. `console`: readable lines instead of JSON; None: when `stream` is a terminal.
    `stream` is stderr unless given. Calling again replaces the earlier set-up.
    """
    out = stream or sys.stderr
    readable = out.isatty() if console is None else console
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        # Plain tracebacks: structlog's and rich's own ones print locals, and with them keys
        structlog.processors.format_exc_info,
    ]
    handler = _Handler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, redact, _renderer(readable)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # a second configure() must reach loggers made before it
    )


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger whose events go through the chain that `configure` set up."""
    found: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return found


class LogObserver:
    """Subscribes to RotationEvents: one line each. Never raises."""

    def __init__(self) -> None:
        self._log = structlog.stdlib.get_logger("rotator")

    def on(self, event: RotationEvent) -> None:
        try:
            self._log.log(level_of(event), event.type.value, **fields_of(event))
        except Exception:
            logging.getLogger("rotator").exception("an event could not be logged")


def level_of(event: RotationEvent) -> int:
    if event.type is EventType.ENDED:
        return _END_LEVELS.get(Outcome(event.outcome), logging.INFO)
    return _LEVELS.get(event.type, logging.INFO)


def fields_of(event: RotationEvent) -> dict[str, Any]:
    """The event's fields that say something; the record itself is not logged."""
    fields: dict[str, Any] = {
        "connection": event.connection,
        "rotation": event.rotation_id,
        "target": event.target,
        "idp": event.idp,
        "phase": event.phase,
        "seconds": None if event.seconds is None else round(event.seconds, 3),
        "outcome": event.outcome,
        "trigger": event.trigger,
        "reason": event.reason.value if event.reason else None,
        "text": event.text,
        "at": event.at.isoformat(),  # when it happened; `timestamp` is when it was logged
        "more": dict(event.fields),
    }
    return {name: value for name, value in fields.items() if value not in ("", None, {})}


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, ARG002 - logging's name and argument
        """Logging's own version prints the record's raw arguments to stderr, past the redaction."""
        error = sys.exc_info()[0]
        try:
            self.stream.write(f'{{"level":"error","event":"a log line was lost","why":"{_name(error)}"}}\n')
        except (OSError, ValueError):
            return  # the stream itself is gone; there is nowhere left to say it


def _renderer(readable: bool) -> Processor:
    if readable:
        return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    return structlog.processors.JSONRenderer(ensure_ascii=False)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("rotator").critical("uncaught exception", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is None or issubclass(args.exc_type, SystemExit):
        return
    name = scrub(args.thread.name) if args.thread else "?"
    logging.getLogger("rotator").critical(
        "uncaught exception in thread %s", name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback)
    )


def _name(kind: type[BaseException] | None) -> str:
    return kind.__name__ if kind else "unknown"
