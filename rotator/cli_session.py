"""What the commands share: exit codes, the configuration, one process's parts, and how its output is written."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rotator.app import App
    from rotator.config import Config
    from rotator.core.model import Record
    from rotator.ports import RotationEvent


class Exit(IntEnum):
    """Stable exit codes."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2  # usage or configuration
    ROLLED_BACK = 3
    STUCK = 4  # needs a person
    REFUSED = 5  # unsafe, locked, braked
    WAITING = 6  # for a person


@dataclass(frozen=True, slots=True)
class Settings:
    """The options that every command has."""

    config: Path
    json: bool


def fail(code: Exit, message: str, settings: Settings) -> NoReturn:
    """End with a sentence on stderr, and as an object on stdout with --json."""
    if settings.json:
        out({"error": code.name.lower(), "message": message})
    print(message, file=sys.stderr)
    raise typer.Exit(code)


def out(value: Any) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, default=str))


def load_config(settings: Settings) -> Config:
    """The checked configuration, or all its errors and exit code 2."""
    from rotator import app, config

    try:
        return config.load(settings.config, checks=(app.check,))
    except config.ConfigError as error:
        fail(Exit.USAGE, "\n".join(str(p) for p in error.problems), settings)


class Quiet:
    """A meter for short commands: nobody scrapes them."""

    def call(self, system: str, operation: str, result: str, seconds: float) -> None: ...

    def rate_limit(self, idp: str, bucket: str, remaining: float) -> None: ...


class Progress:
    """Tells on a terminal what happens; implements ports.Observer."""

    def __init__(self, show: Callable[[str], None] | None) -> None:
        self._show = show

    def on(self, event: RotationEvent) -> None:
        if self._show is not None:
            text = event.text or event.outcome
            self._show(f"{event.at:%H:%M:%S} {event.connection} {event.phase or event.type}: {text}")


@contextmanager
def session(settings: Settings, *, drives: bool = False) -> Iterator[App]:
    """One process's parts. `drives`: it will hold rotations, under a name of its own beside the daemon's.

    A port's error ends the command with its sentence.
    """
    from rotator import app as composition
    from rotator.errors import PortError
    from rotator.observe import logs

    config = load_config(settings)
    logs.configure(level="warning", console=sys.stderr.isatty())
    show = (lambda line: print(line, file=sys.stderr)) if sys.stderr.isatty() else None
    observer = composition.Observers(Progress(show), logs.LogObserver())
    app = None
    try:
        app = composition.build(config, meter=Quiet(), observer=observer, command=drives)
        yield app
    except PortError as error:
        fail(Exit.UNEXPECTED, str(error), settings)
    finally:
        if app is not None and drives:
            app.membership.beat(app.dispatcher.open_names(), stopped=True)  # the name is free again


@contextmanager
def driving(app: App) -> Iterator[None]:
    """This process is an instance of its own while it drives: it holds a lease, and lays down what it held.

    SIGTERM and Ctrl-C end what waits on the clock; the step that runs is finished. Raises Transient without a lease.
    """
    import signal
    from contextlib import suppress

    from rotator.errors import PortError, Transient

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: app.clock.stop.set())

    def keep_alive() -> None:
        while not ended.wait(app.config.rotator.lease / 4):
            app.membership.beat(app.dispatcher.open_names())
            with suppress(PortError):  # who else lives is judged by what is seen
                app.membership.observe()

    if not app.membership.beat(app.dispatcher.open_names()):
        raise Transient("taking a lease", system="vault", detail=app.membership.problem)
    app.membership.observe()
    beats = threading.Thread(target=keep_alive, name="heartbeat", daemon=True)
    beats.start()
    app.dispatcher.start()
    try:
        yield
    finally:
        app.dispatcher.stop()
        ended.set()
        beats.join()


def open_connection(app: App, name: str, settings: Settings) -> None:
    """Refuse an unknown name, with the ones that are known."""
    if name not in app.config.connections:
        known = ", ".join(sorted(app.config.connections)[:10]) or "none"
        fail(Exit.USAGE, f"no connection {name!r} in {settings.config}; configured: {known}", settings)


def code_of(record: Record) -> Exit:
    """The exit code that a connection's record stands for."""
    from rotator.core.model import Outcome
    from rotator.core.view import is_stuck, waits_for

    if is_stuck(record):
        return Exit.STUCK
    if waits_for(record):
        return Exit.WAITING
    if record.rotation is not None or record.last is None:
        return Exit.DONE
    match record.last.outcome:
        case Outcome.ROTATED:
            return Exit.DONE
        case Outcome.ROLLED_BACK:
            return Exit.ROLLED_BACK
        case Outcome.CANCELLED:
            return Exit.REFUSED
        case Outcome.STUCK:
            return Exit.STUCK
