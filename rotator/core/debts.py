"""Debts: keys that should be dead and aren't proved so, and when a listed key is one of them. Pure.

Invariants: I2 (what a rotation or an adoption leaves behind stays named), I3 (an id alone is not taken for ours where
the label contradicts it, and what may be in use is left to a person).
"""

from __future__ import annotations

from datetime import datetime

from rotator.core.model import By, Debt, DebtKind, KeyRef, Record
from rotator.core.reasons import Reason


def contradicts(ref: KeyRef, label: str | None) -> bool:
    """Whether a listed key's label says that it is another one: ids are short at some targets, and 7 exists at many."""
    return ref.label is not None and label is not None and label != ref.label


def is_key(ref: KeyRef, key_id: str, label: str | None) -> bool:
    """Whether a listed key is this one, so surely that it may be revoked."""
    return (key_id == ref.key_id or (label is not None and label == ref.label)) and not contradicts(ref, label)


def elsewhere(debt: Debt, target: str) -> bool:
    """Whether it lives at a target that the connection has no more: nothing said here is a proof of its death."""
    return debt.target not in {"", target}


def in_use(record: Record, ref: KeyRef) -> bool:
    """Whether this is the current key: a debt that somebody adopted is no debt any more."""
    now = record.current
    if now is None:
        return False
    if ref.fingerprint is not None and ref.fingerprint == now.fingerprint:
        return True
    return now.key_id is not None and is_key(ref, now.key_id, now.label)


def left_behind(record: Record, adopted: KeyRef, now: datetime) -> tuple[Debt, ...]:
    """What an adoption replaces: the key that was current and the keys of the rotation that it gives up.

    A candidate that was on its way to the identity provider may be in use there: it is a person's to revoke (I3).
    """
    r, debts = record.rotation, list[Debt]()
    mine = {adopted.fingerprint, *(d.key.fingerprint for d in record.debts)}
    at = r.binding.target if r is not None else ""
    if r is not None:
        api = r.binding.mint_by is By.API
        pushed = r.push_started_at is not None
        if r.candidate is not None and r.candidate.fingerprint not in mine:
            kind = DebtKind.REVOKE if api and not pushed else DebtKind.PERSON
            version = None if r.promoted else r.staged_version
            debts.append(Debt(kind, r.candidate, now, Reason.GAVE_UP, at, version, not_before=now))
            mine.add(r.candidate.fingerprint)
        named = {r.candidate.label} if r.candidate is not None else set()
        kind = DebtKind.REVOKE if api else DebtKind.PERSON
        debts += [
            Debt(kind, KeyRef(label=label, ours=True), now, Reason.GAVE_UP, at, not_before=now)
            for label in r.labels
            if label not in named and label != adopted.label
        ]
    for old in (record.current, record.previous if r is not None and r.promoted else None):
        if old is not None and old.fingerprint not in mine:
            debts.append(Debt(DebtKind.PERSON, old, now, Reason.STILL_ALIVE, at, not_before=now))
            mine.add(old.fingerprint)
    return tuple(debts)
