"""The commands that drive rotations: rotate, roll back, resume, cancel, confirm; and how one is followed to its end.

They are an instance like a daemon: they claim by check-and-set, hold a lease and lay down what they leave (I4).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

from rotator.app import App
from rotator.cli_rows import print_rows, row, who
from rotator.cli_session import Exit, Settings, code_of, driving, fail, open_connection, session
from rotator.core.model import Ask, Phase, Record, Rotation, Trigger
from rotator.core.reasons import Reason
from rotator.core.view import waits_for
from rotator.errors import PortError
from rotator.telling import DOING, end

POLL = 0.2  # seconds between looks at a rotation that is followed
FAR = 2.0  # seconds between looks at one that another instance drives
LONG = 60.0  # seconds of an overlap that are worth a word


def rotate_now(settings: Settings, names: Sequence[str] | None, *, note: str, wait: bool) -> int:
    with session(settings, drives=True) as app:
        chosen = list(dict.fromkeys(names or app.config.connections))
        for name in chosen:
            open_connection(app, name, settings)
        app.dispatcher.configure(app.managed())
        app.dispatcher.load()
        app.engine.clock_ok = abs(app.state.skew() or 0.0) <= 60
        with driving(app):
            begun = {name: _submit(app, name, note) for name in chosen}
            rows = []
            for name, answer in begun.items():
                if isinstance(answer, dict):
                    rows.append(answer)
                elif wait:
                    rows.append(_followed(app, name, answer))
                else:
                    rows.append(row(name, Exit.DONE, rotation_id=answer, text="begun; a running daemon goes on"))
        return print_rows(settings, rows)


def _submit(app: App, name: str, note: str) -> str | dict[str, Any]:
    """The id of the rotation that runs now, or the row that says why none does."""
    try:
        answer = app.dispatcher.submit(name, Trigger.CLI, note)
    except PortError as error:
        return row(name, Exit.UNEXPECTED, text=str(error))
    if answer.rotation_id is not None:
        return answer.rotation_id
    code = Exit.STUCK if answer.reason is Reason.STUCK else Exit.REFUSED
    return row(name, code, reason=answer.reason.value, text=answer.text)


def ask_and_follow(settings: Settings, name: str, what: str, *, wait: bool) -> int:
    with session(settings, drives=True) as app:
        open_connection(app, name, settings)
        app.dispatcher.configure({name: app.managed()[name]})
        refused = app.engine.ask(name, Ask(what), who())
        if refused is not None:
            fail(Exit.REFUSED, f"{what} {name}: {refused}", settings)
        app.dispatcher.load()  # what was just asked stands in the record now
        r = app.dispatcher.entry(name).record.rotation
        if not wait or r is None:
            return print_rows(settings, [row(name, Exit.DONE, text=f"{what} is written; a running daemon heeds it")])
        with driving(app):
            return print_rows(settings, [_followed(app, name, r.id)])


def _followed(app: App, name: str, rotation_id: str) -> dict[str, Any]:
    """Until the rotation ends, needs a person or we are told to stop. Who drives it, we or another, is all one."""
    app.dispatcher.wake(name)
    look = _Look(app, name)
    said: set[Phase] = set()
    while not app.clock.wait(POLL):
        record = look()
        r = record.rotation
        if r is None or r.id != rotation_id:
            return _over(name, rotation_id, record)
        if r.phase not in said:
            said.add(r.phase)
            _say(name, r)
        if r.asked is not None:
            continue  # not heeded yet
        if r.stuck is not None:
            return row(name, Exit.STUCK, rotation_id=rotation_id, record=record, text=end(record))
        if waits_for(record) and r.waiting is not None:
            return row(name, Exit.WAITING, rotation_id=rotation_id, record=record, text=r.detail)
    text = (
        "no longer followed: the rotation is laid down, and a running daemon goes on with it. Without a daemon,"
        f" `rotator rotate {name}` does"
    )
    return row(name, Exit.WAITING, rotation_id=rotation_id, text=text)


class _Look:
    """One connection's record: as we work on it, else as it lies in Vault, read again every few seconds."""

    def __init__(self, app: App, name: str) -> None:
        self._app, self._name = app, name
        self._read: Record | None = None
        self._at = float("-inf")

    def __call__(self) -> Record:
        ours = self._app.engine.record(self._name)
        if ours is not None:
            self._at = float("-inf")  # once it is no longer ours, the last one read is old
            return ours
        now = self._app.clock.monotonic()
        if now - self._at >= FAR:
            self._at = now
            with suppress(PortError):  # Vault is away: what was seen last holds until it is back
                loaded = self._app.state.load(self._name)
                self._read = loaded[0] if loaded is not None else Record(self._name)
                self._app.dispatcher.wake(self._name)  # whoever drives it may have laid it down
        return self._read or self._app.dispatcher.entry(self._name).record


def _over(name: str, rotation_id: str, record: Record) -> dict[str, Any]:
    """The row of a rotation that is not open any more."""
    if record.last is not None and record.last.id == rotation_id:
        code = code_of(replace(record, rotation=None))
        return row(name, code, rotation_id=rotation_id, record=record, text=end(record))
    text = f"over, and a later one has ended or begun since: see `rotator history {name}`"
    return row(name, Exit.UNEXPECTED, rotation_id=rotation_id, text=text)


def _say(name: str, r: Rotation) -> None:
    """A phase, on a terminal; a long overlap also elsewhere, because the command seems to hang."""
    if r.phase is Phase.OVERLAP and r.limits.overlap > LONG:
        until = r.phase_since + timedelta(seconds=r.limits.overlap)
        print(
            f"{name}: both keys live until {until:%Y-%m-%d %H:%M:%S} UTC. Ctrl-C ends this command only: the rotation is"
            " then laid down, and a running daemon goes on with it",
            file=sys.stderr,
        )
    elif sys.stderr.isatty():
        print(f"  {name}: {DOING[r.phase]}", file=sys.stderr)
