"""The commands by which a person gives a key: adopt, stage. Keys come from stdin or a prompt, never from an argument (I5)."""

from __future__ import annotations

import getpass
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rotator import app as composition
from rotator.cli_rows import print_rows, row, who
from rotator.cli_session import Exit, Settings, fail, open_connection, session
from rotator.core import debts, keyformat, ledger
from rotator.core.model import KeyRef, Record
from rotator.core.secret import Secret
from rotator.errors import PortError
from rotator.ports import Answer, Probe, Slot, StoredKey


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
            debts=record.debts + debts.left_behind(record, ref, now),
        )
        data = {"fingerprint": key.fingerprint, "key_id": key_id or ""}
        adopted = ledger.append(adopted, now, "adopted", record.rotation.id if record.rotation else "", who(), data)
        app.state.save(adopted, version)
        app.engine.write_ledger(adopted.ledger_pending)
        text = f"adopted {key.fingerprint}" + (
            "" if key_id else "; without a key id it can't be revoked by API: a later rotation leaves that to a person"
        )
        return print_rows(settings, [row(name, Exit.DONE, text=text)])


def stage_key(settings: Settings, name: str, *, vault_token_file: Path | None, key_id: str | None) -> int:
    """The hand-off path, written with the person's own token: their rights, their name in Vault's audit log."""
    from rotator.adapters.vault import VaultClient
    from rotator.adapters.vault_auth import TokenAuth
    from rotator.adapters.vault_keys import VaultKeyStore

    with session(settings) as app:
        open_connection(app, name, settings)
        token = _own_token(vault_token_file, settings)
        key = _read_key(f"The new key for {name}: ")
        flaws = keyformat.lint(key.reveal(), app.connection(name).allowed_characters)
        if flaws:
            fail(Exit.REFUSED, f"stage {name}: nothing was written: " + "; ".join(str(f) for f in flaws), settings)
        with suppress(PortError):  # a person may have no credentials but their own; the rotation looks too
            loaded = app.state.load(name)
            if loaded is not None and key.fingerprint in loaded[0].known_fingerprints:
                fail(
                    Exit.REFUSED,
                    f"stage {name}: this key ({key.fingerprint}) was used before: mint a new one",
                    settings,
                )
        own = replace(composition.vault_settings(app.config), auth=TokenAuth(lambda: token))
        vault = app.config.vault
        keys = VaultKeyStore(VaultClient(own, app.clock, app.meter), vault.mount, vault.prefix)
        stored = StoredKey(key=key, ref_fingerprint=key.fingerprint, key_id=key_id, minted_at=app.clock.now())
        keys.write(name, Slot.HANDOFF, stored, keys.newest(name, Slot.HANDOFF))
        where = keys.where(name, Slot.HANDOFF)
        return print_rows(
            settings,
            [row(name, Exit.DONE, text=f"key {key.fingerprint} lies at {where}; the rotation takes it from there")],
        )


def _own_token(file: Path | None, settings: Settings) -> Secret:
    if file is not None:
        try:
            return Secret(file.read_text().strip())
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            fail(Exit.USAGE, f"your Vault token can't be read from {file}: {why}", settings)
    if not sys.stdin.isatty():
        fail(Exit.USAGE, "give your Vault token with --vault-token-file when the key comes on stdin", settings)
    return Secret(getpass.getpass("Your Vault token: ").strip())


def _read_key(prompt: str) -> Secret:
    """One key, exactly: only the line end that a shell adds is taken off."""
    if sys.stdin.isatty():
        return Secret(getpass.getpass(prompt))
    text = sys.stdin.buffer.read().decode(errors="surrogateescape")  # the key's format refuses what is no text
    return Secret(text.removesuffix("\n"))
