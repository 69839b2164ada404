"""The commands that change something: rotate, adopt, roll back, resume, cancel, stage, confirm.

They are an instance like a daemon: they claim by check-and-set, hold a lease and lay down what they leave (I4). Keys
are read from stdin or a prompt, never from an argument (I5).
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rotator import app as composition
from rotator.app import App
from rotator.cli_session import Exit, Settings, code_of, driving, fail, open_connection, out, session
from rotator.core import keyformat, ledger
from rotator.core.model import Ask, KeyRef, Record, Trigger
from rotator.core.reasons import Reason
from rotator.core.secret import Secret
from rotator.core.view import is_stuck, waits_for
from rotator.ports import Answer, Probe, Slot, StoredKey
from rotator.telling import DOING, end

POLL = 0.2  # seconds between looks at a rotation that is followed
FAR = 2.0  # seconds between looks at one that another instance drives


def rotate_now(settings: Settings, names: Sequence[str] | None, *, note: str, wait: bool) -> int:
    with session(settings, drives=True) as app:
        chosen = list(names or app.config.connections)
        for name in chosen:
            open_connection(app, name, settings)
        app.dispatcher.configure(app.managed())
        app.dispatcher.load()
        app.engine.clock_ok = abs(app.state.skew() or 0.0) <= 60
        results = []
        with driving(app):
            following = []
            for name in chosen:
                answer = app.dispatcher.submit(name, Trigger.CLI, note)
                if answer.rotation_id is None:
                    code = Exit.STUCK if answer.reason is Reason.STUCK else Exit.REFUSED
                    results.append(_row(name, code, reason=answer.reason.value, text=answer.text))
                else:
                    following.append((name, answer.rotation_id))
            for name, rotation_id in following:
                if wait:
                    results.append(_followed(app, name, rotation_id))
                else:
                    results.append(_row(name, Exit.DONE, rotation_id=rotation_id, text="begun; a daemon goes on"))
        return _print(settings, results)


def ask_and_follow(settings: Settings, name: str, what: str, *, wait: bool) -> int:
    with session(settings, drives=True) as app:
        open_connection(app, name, settings)
        app.dispatcher.configure({name: app.managed()[name]})
        app.dispatcher.load()
        r = app.dispatcher.entry(name).record.rotation
        refused = app.engine.ask(name, Ask(what), getpass.getuser())
        if refused is not None:
            fail(Exit.REFUSED, f"{what} {name}: {refused}", settings)
        if not wait or r is None:
            return _print(settings, [_row(name, Exit.DONE, text=f"{what} is written; a running daemon heeds it")])
        with driving(app):
            return _print(settings, [_followed(app, name, r.id, heeded=Ask(what))])


def _followed(app: App, name: str, rotation_id: str, *, heeded: Ask | None = None) -> dict[str, Any]:
    """Drive, or watch another instance drive, until the rotation ends, needs a person or we are told to stop."""
    app.dispatcher.wake(name)
    seen, elapsed = "", 0.0
    while not app.clock.wait(POLL):
        elapsed += POLL
        record = app.engine.record(name)
        if record is None:
            if elapsed < FAR and heeded is None:
                record = app.dispatcher.entry(name).record
            else:
                elapsed = 0.0
                loaded = app.state.load(name)
                record = loaded[0] if loaded is not None else Record(name)
                app.membership.observe()
                app.dispatcher.wake(name)
        r = record.rotation
        if r is not None and r.id == rotation_id and r.phase.value != seen and sys.stderr.isatty():
            seen = r.phase.value
            print(f"  {name}: {DOING[r.phase]}", file=sys.stderr)
        if r is None or r.id != rotation_id:
            if record.last is not None and record.last.id == rotation_id:
                return _row(
                    name,
                    code_of(replace(record, rotation=None)),
                    rotation_id=rotation_id,
                    record=record,
                    text=end(record),
                )
            if app.engine.record(name) is None and record.last is not None and r is None:
                return _row(name, code_of(record), rotation_id=record.last.id, record=record, text=end(record))
            continue
        pending = heeded is not None and r.asked is heeded
        if is_stuck(record) and not pending:
            return _row(name, Exit.STUCK, rotation_id=rotation_id, record=record, text=end(record))
        if waits_for(record) and r.waiting is not None and not pending:
            return _row(name, Exit.WAITING, rotation_id=rotation_id, record=record, text=r.detail)
    text = "stopped following; the rotation is laid down and goes on with a running daemon, or with `rotator resume`"
    return _row(name, Exit.WAITING, rotation_id=rotation_id, text=text)


def adopt_key(settings: Settings, name: str, *, key_id: str | None, from_stdin: bool) -> int:
    """Prove the key first; what the target refuses is not adopted."""
    given = _read_key("The key that is in use: ") if from_stdin else None
    with session(settings) as app:
        open_connection(app, name, settings)
        connection = app.connection(name)
        ports = connection.open()
        ports.keys.check(name)
        stored = ports.keys.read(name, Slot.CURRENT)
        key = given or (stored.key if stored is not None else None)
        if key is None:
            where = ports.keys.where(name, Slot.CURRENT)
            fail(Exit.REFUSED, f"adopt {name}: no key lies in Vault at {where}; give it with --stdin", settings)
        flaws = keyformat.lint(key.reveal(), connection.allowed_characters)
        if flaws:
            fail(Exit.REFUSED, f"adopt {name}: this can't be the key: " + "; ".join(str(f) for f in flaws), settings)
        result = ports.target.probe(key, Probe.USERS)
        if result.answer is not Answer.ACCEPTED:
            fail(
                Exit.REFUSED,
                f"adopt {name}: the target does not accept this key ({result.detail}); nothing was changed",
                settings,
            )
        loaded = app.state.load(name)
        record, version = loaded if loaded is not None else (Record(name), 0)
        if record.rotation is not None and record.rotation.stuck is None:
            fail(
                Exit.REFUSED,
                f"adopt {name}: rotation {record.rotation.id} is open: cancel or roll it back first",
                settings,
            )
        info = None
        if ports.target.capabilities.lists:
            listed = ports.target.list_keys()
            info = next((i for i in listed if i.key_id == key_id), None)
            if key_id is not None and info is None:
                ids = ", ".join(f"{i.key_id} ({i.label or 'no name'})" for i in listed[:20]) or "none"
                fail(Exit.REFUSED, f"adopt {name}: the target lists no key {key_id}; it lists: {ids}", settings)
        now = app.clock.now()
        ref = KeyRef(
            fingerprint=key.fingerprint,
            key_id=key_id,
            label=info.label if info else None,
            minted_at=(info.created_at if info else None) or now,
            expires_at=info.expires_at if info else None,
            ours=key_id is not None,
        )
        at = stored.version if stored is not None and stored.key is not None and stored.key.same_as(key) else None
        if at is None:
            kept = StoredKey(
                key=key,
                ref_fingerprint=key.fingerprint,
                key_id=key_id,
                minted_at=ref.minted_at,
                expires_at=ref.expires_at,
            )
            at = ports.keys.write(name, Slot.CURRENT, kept, ports.keys.newest(name, Slot.CURRENT))
        adopted = replace(
            record,
            current=replace(ref, version=at),
            previous=record.current
            if record.current and record.current.fingerprint != ref.fingerprint
            else record.previous,
            rotation=None,
            holder=None,
            epoch=record.epoch + 1,
            drift_since=None,
            failures=0,
            last_rotated_at=ref.minted_at,
            proved_target_at=now,
            known_fingerprints=(*record.known_fingerprints, key.fingerprint)[-20:],
            debts=record.debts + _left_behind(record, ref, now),
        )
        data = {"fingerprint": key.fingerprint, "key_id": key_id or ""}
        adopted = ledger.append(
            adopted, now, "adopted", record.rotation.id if record.rotation else "", getpass.getuser(), data
        )
        app.state.save(adopted, version)
        app.engine.write_ledger(adopted.ledger_pending)
        text = f"adopted {key.fingerprint}" + (
            "" if key_id else "; without a key id it can't be revoked by API: a later rotation leaves that to a person"
        )
        return _print(settings, [_row(name, Exit.DONE, text=text)])


def _left_behind(record: Record, ref: KeyRef, now: Any) -> tuple[Any, ...]:
    """A stuck rotation that is given up: its candidate and labels stay named as debts (I2)."""
    from rotator.core.model import By, Debt, DebtKind

    r = record.rotation
    if r is None:
        return ()
    kind = DebtKind.REVOKE if r.binding.mint_by is By.API else DebtKind.PERSON
    debts = []
    keep = {ref.fingerprint}
    if r.candidate is not None and r.candidate.fingerprint not in keep:
        debts.append(Debt(kind, r.candidate, now, Reason.GAVE_UP, staged_version=r.staged_version, not_before=now))
    named = {r.candidate.label} if r.candidate is not None else set()
    debts += [
        Debt(kind, KeyRef(label=label, ours=True), now, Reason.GAVE_UP, not_before=now)
        for label in r.labels
        if label not in named
    ]
    return tuple(debts)


def stage_key(settings: Settings, name: str, *, vault_token_file: Path | None, key_id: str | None) -> int:
    """The hand-off path, written with the person's own token: their rights, their name in Vault's audit log."""
    from rotator.adapters.vault import VaultClient
    from rotator.adapters.vault_auth import TokenAuth
    from rotator.adapters.vault_keys import VaultKeyStore

    with session(settings) as app:
        open_connection(app, name, settings)
        token = _own_token(vault_token_file)
        key = _read_key(f"The new key for {name}: ")
        flaws = keyformat.lint(key.reveal(), app.connection(name).allowed_characters)
        if flaws:
            fail(Exit.REFUSED, f"stage {name}: nothing was written: " + "; ".join(str(f) for f in flaws), settings)
        loaded = app.state.load(name)
        if loaded is not None and key.fingerprint in loaded[0].known_fingerprints:
            fail(Exit.REFUSED, f"stage {name}: this key ({key.fingerprint}) was used before: mint a new one", settings)
        own = replace(composition.vault_settings(app.config), auth=TokenAuth(lambda: token))
        vault = app.config.vault
        keys = VaultKeyStore(VaultClient(own, app.clock, app.meter), vault.mount, vault.prefix)
        stored = StoredKey(key=key, ref_fingerprint=key.fingerprint, key_id=key_id, minted_at=app.clock.now())
        keys.write(name, Slot.HANDOFF, stored, keys.newest(name, Slot.HANDOFF))
        where = keys.where(name, Slot.HANDOFF)
        return _print(
            settings,
            [_row(name, Exit.DONE, text=f"key {key.fingerprint} lies at {where}; the rotation takes it from there")],
        )


def _own_token(file: Path | None) -> Secret:
    if file is not None:
        return Secret(file.read_text().strip())
    if not sys.stdin.isatty():
        print("give your Vault token with --vault-token-file when the key comes on stdin", file=sys.stderr)
        raise SystemExit(Exit.USAGE)
    return Secret(getpass.getpass("Your Vault token: ").strip())


def _read_key(prompt: str) -> Secret:
    """One key, exactly: only the line end that a shell adds is taken off."""
    if sys.stdin.isatty():
        return Secret(getpass.getpass(prompt))
    text = os.read(sys.stdin.fileno(), 1 << 16).decode(errors="surrogateescape")
    return Secret(text.removesuffix("\n"))


def _row(
    name: str, code: Exit, *, rotation_id: str = "", record: Record | None = None, reason: str = "", text: str = ""
) -> dict[str, Any]:
    last = record.last if record is not None else None
    return {
        "connection": name,
        "rotation_id": rotation_id,
        "outcome": last.outcome.value if last is not None and last.id == rotation_id else "",
        "reason": reason or (last.reason.value if last is not None and last.id == rotation_id else ""),
        "message": text,
        "code": int(code),
    }


WORST = (Exit.UNEXPECTED, Exit.STUCK, Exit.ROLLED_BACK, Exit.REFUSED, Exit.WAITING, Exit.DONE)


def _print(settings: Settings, rows: list[dict[str, Any]]) -> int:
    """The results, and the gravest code among them."""
    if settings.json:
        out({"results": rows})
    else:
        for row in rows:
            word = row["outcome"] or row["reason"]
            print(f"{row['connection']}: {word + ': ' if word else ''}{row['message']}")
    codes = {row["code"] for row in rows}
    return next((int(code) for code in WORST if code in codes), int(Exit.DONE))
