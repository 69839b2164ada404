"""The commands that only look: plan, status, verify, history, check-config."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rotator import app as composition
from rotator.app import App
from rotator.cli_plan import plan
from rotator.cli_session import Exit, Settings, fail, load_config, open_connection, out, session
from rotator.core.view import ConnectionView, State, slack_seconds, state_of, waits_for
from rotator.errors import PortError
from rotator.observe import ledger
from rotator.runtime.service import verify

CODES = {State.STUCK: Exit.STUCK, State.WAITING_FOR_PERSON: Exit.WAITING}


def show_config_check(settings: Settings) -> int:
    config = load_config(settings)
    routes = {name: composition.route_of(config, c) for name, c in config.connections.items()}
    if settings.json:
        rows = {
            name: {"strategy": r.strategy, "mint": r.mint_by, "push": r.push_by, "notes": r.notes}
            for name, r in routes.items()
        }
        out({"ok": True, "connections": rows})
        return Exit.DONE
    print(f"{settings.config}: {len(routes)} connection(s), no mistakes")
    for name, r in routes.items():
        print(f"  {name}: strategy {r.strategy}, minted by {r.mint_by}, pushed by {r.push_by}")
        for note in r.notes:
            print(f"    {note}")
    return Exit.DONE


def show_plan(settings: Settings, name: str) -> int:
    config = load_config(settings)
    if name not in config.connections:
        fail(Exit.USAGE, f"no connection {name!r} in {settings.config}", settings)
    c = config.connections[name]
    route = composition.route_of(config, c)
    made = plan(config, c, route)
    if settings.json:
        out(dataclasses.asdict(made))
        return Exit.DONE
    print(f"{name}: strategy {made.strategy}; point of no return: {made.no_return}")
    for note in made.notes:
        print(f"  {note}")
    for number, step in enumerate(made.steps, start=1):
        print(f"{number:2}. {step.phase}: {step.doing}")
        for call in step.calls:
            print(f"      {call}")
        print(f"      if the process dies here: {step.if_it_dies}")
        print(f"      if it fails: {step.on_failure}")
    return Exit.DONE


def show_status(settings: Settings, name: str | None) -> int:
    with session(settings) as app:
        if name is not None:
            open_connection(app, name, settings)
        managed = app.managed()
        app.dispatcher.configure(managed if name is None else {name: managed[name]})
        app.dispatcher.load()
        app.dispatcher.look()
        views = app.dispatcher.views()
        now = app.clock.now()
        if settings.json:
            out({"connections": [_view(v, now) for v in views]})
        elif name is not None:
            _print_one(app, views[0], now)
        else:
            _print_all(views, now)
        states = {state_of(v, now) for v in views}
        return next((code for state, code in CODES.items() if state in states), Exit.DONE)


def _view(v: ConnectionView, now: datetime) -> dict[str, Any]:
    r, last, current = v.record.rotation, v.record.last, v.record.current
    return {
        "name": v.name,
        "target": v.target,
        "idp": v.idp,
        "state": state_of(v, now).value,
        "held": v.held,
        "key": {
            "fingerprint": current.fingerprint,
            "key_id": current.key_id,
            "minted_at": current.minted_at,
            "expires_at": current.expires_at,
        }
        if current
        else None,
        "next_due": v.next_due,
        "slack_seconds": slack_seconds(v, now),
        "rotation": {
            "id": r.id,
            "phase": r.phase,
            "since": r.phase_since,
            "waiting": r.waiting,
            "until": r.not_before,
            "detail": r.detail,
            "stuck": r.stuck,
            "missing_proofs": r.missing_proofs,
        }
        if r
        else None,
        "last": {
            "id": last.id,
            "outcome": last.outcome,
            "reason": last.reason,
            "ended_at": last.ended_at,
            "evidence": last.evidence,
            "missing_proofs": last.missing_proofs,
        }
        if last
        else None,
        "debts": [
            {
                "kind": x.kind,
                "key_id": x.key.key_id,
                "label": x.key.label,
                "fingerprint": x.key.fingerprint,
                "since": x.since,
            }
            for x in v.record.debts
        ],
    }


def _print_all(views: Sequence[ConnectionView], now: datetime) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("connection", "state", "key age", "next due", "last", "what"):
        table.add_column(column)
    for v in sorted(views, key=lambda v: v.name):
        last = v.record.last
        table.add_row(
            v.name,
            state_of(v, now).value,
            _age(v, now),
            _when(v.next_due, now),
            last.outcome.value if last else "-",
            _what(v),
        )
    Console().print(table)


def _print_one(app: App, v: ConnectionView, now: datetime) -> None:
    current, r, last = v.record.current, v.record.rotation, v.record.last
    print(f"{v.name}: {state_of(v, now)}")
    print(
        f"  key       {current.fingerprint} (id {current.key_id or 'unknown'}), age {_age(v, now)}"
        if current
        else "  key       unknown: adopt one"
    )
    print(f"  next due  {_when(v.next_due, now)}" + (f", held: {v.held}" if v.held else ""))
    if r is not None:
        print(f"  rotation  {r.id}: {r.phase} since {r.phase_since:%Y-%m-%d %H:%M:%S} UTC")
        if r.stuck or r.waiting:
            print(f"            {r.stuck or r.waiting}: {r.failure_detail if r.stuck else r.detail}")
        if r.missing_proofs:
            print(f"            proofs that our credentials don't allow: {', '.join(r.missing_proofs)}")
        if waits_for(v.record) == "push":
            c = app.config.connections[v.name]
            help_ = app.outside.idp(c).hand_off()
            for step in help_.steps:
                print(f"            - {step}")
    if last is not None:
        print(f"  last      {last.outcome} at {last.ended_at:%Y-%m-%d %H:%M:%S} UTC: {last.reason} {last.detail}")
    for debt in v.record.debts:
        print(
            f"  debt      {debt.kind}: key {debt.key.key_id or debt.key.label or debt.key.fingerprint} since {debt.since:%Y-%m-%d %H:%M} UTC"
        )


def _what(v: ConnectionView) -> str:
    r = v.record.rotation
    if r is not None:
        return f"{r.phase}: {r.stuck or r.waiting or 'working'}"
    return f"held: {v.held}" if v.held else (f"{len(v.record.debts)} debt(s)" if v.record.debts else "")


def _age(v: ConnectionView, now: datetime) -> str:
    current = v.record.current
    return _span(now - current.minted_at) if current and current.minted_at else "-"


def _when(at: datetime | None, now: datetime) -> str:
    if at is None:
        return "-"
    return f"in {_span(at - now)}" if at > now else f"{_span(now - at)} ago"


def _span(delta: timedelta) -> str:
    seconds = int(delta.total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{max(0, seconds)}s"


def show_verify(settings: Settings, name: str) -> int:
    with session(settings) as app:
        open_connection(app, name, settings)
        answer = verify(name, app.connection(name).open(), app.clock)
        if settings.json:
            out({"connection": name} | dataclasses.asdict(answer))
        else:
            idp = (
                answer.idp
                if answer.idp != "unknown"
                else "not checked: it has no call that reads this app's connection"
            )
            print(f"{name}: {'ok' if answer.ok else 'NOT ok'}: target {answer.target}, identity provider {idp}")
            if answer.text:
                print(f"  {answer.text}")
            if answer.missing:
                print(f"  proofs that our credentials don't allow: {', '.join(answer.missing)}")
        return Exit.DONE if answer.ok else Exit.UNEXPECTED


def show_history(settings: Settings, name: str | None, files: Sequence[Path]) -> int:
    config = load_config(settings)
    records, note = [], ""
    with session(settings) as app:
        try:
            loaded = [app.state.load(n) for n in ([name] if name else app.state.names())]
            records = [x[0] for x in loaded if x is not None]
        except PortError as error:
            note = f"not checked against the state records: {error}"
    try:
        own = config.rotator.ledger.path
        reading = ledger.read(list(files) or ([own] if own.exists() else []), records)
    except OSError as error:
        fail(Exit.USAGE, f"the ledger can't be read: {error}", settings)
    entries = [e for e in reading.entries if name is None or e.connection == name]
    if settings.json:
        rows = [
            {
                "at": e.at,
                "connection": e.connection,
                "number": e.number,
                "event": e.event,
                "rotation": e.rotation,
                "by": e.by,
            }
            | dict(e.data)
            for e in entries
        ]
        out({"entries": rows, "problems": reading.problems, "note": note})
    else:
        for e in entries:
            facts = " ".join(f"{k}={v}" for k, v in e.data)
            print(f"{e.at:%Y-%m-%d %H:%M:%S} {e.connection} #{e.number} {e.event} {facts} by {e.by}")
        print(note or f"{len(entries)} entries; the chain " + ("is broken:" if reading.problems else "holds"))
        for problem in reading.problems:
            print(f"  {problem}")
    return Exit.UNEXPECTED if reading.problems else Exit.DONE
