"""The effects past the clean way's turning points: retire the old key, restore it, discard the candidate, pay debts.

Invariants: I1 (nothing is revoked before the other key is proved alive), I2 (what isn't proved dead becomes a debt),
I3 (only keys known to be ours, by label of this rotation or by id, are revoked).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from rotator.core import debts
from rotator.core.machine import DEBT_RETRY, LOG, Result
from rotator.core.model import By, Debt, DebtKind, KeyRef, Record, StrategyName
from rotator.core.reasons import Reason
from rotator.core.secret import Secret
from rotator.core.strategy import Verdict
from rotator.errors import Conflict, PortError, Refused
from rotator.ports import Answer, ConnectionStatus, EventKind, IdpEvent, Probe, Slot, StoredKey
from rotator.work import (
    EVENT_MARGIN,
    Work,
    again,
    blocked,
    foreign,
    hold,
    lost,
    more,
    ok,
    prove_alive,
    refused,
    revoke_labelled,
)


def retire(w: Work) -> Result:
    """Past the point of no return: the old key is revoked and proved dead, the new one proved alive before and after."""
    r, old, target = w.rotation, w.old_ref(), w.ports.target
    key = w.staged()
    if key is None:
        return lost(w, "the candidate is gone from Vault")
    watched_at = w.record.proved_target_at
    late = watched_at is None or (w.now() - watched_at).total_seconds() > 2 * w.limits.watch_every
    if late and w.clean and w.limits.overlap > 0:  # a freeze, or a target that was down, held what the overlap saw
        complaint = watched(w)
        if complaint is not None and (complaint.verdict is Verdict.HOLD or not r.attempts):
            return complaint
    if w.push_first:
        try:
            answer = w.push(key)
        except Refused as error:
            return refused(w, Reason.KEY_REFUSED_BY_IDP, str(error))
        if answer.status is not ConnectionStatus.ENABLED:
            return again(
                w, Reason.CONNECTION_NOT_ENABLED, f"the identity provider says {answer.status} after taking the key"
            )
        w.learn(pushed_at=answer.at or w.now(), pushed_epoch=w.record.epoch, pushed_again=True)
    alive = prove_alive(w, key, settle=w.limits.settle)  # never revoke the old key while the new one is refused
    if alive.verdict is Verdict.REFUSED and (r.attempts or not w.clean):  # a revoked key may live on for a while (I1)
        return foreign(w, alive.reason, f"{alive.detail}, and the old key may be revoked already: look, then resume")
    if alive.verdict is not Verdict.OK:
        return alive
    w.successes = 0  # another try proves it anew
    destroy_staged(w)  # the key is current in Vault; no second copy outlives the rotation
    if len(r.labels) > 1:
        _revoke_strays(w)
    if old is None:
        return ok(w)
    if r.binding.strategy in {StrategyName.OVERLAP, StrategyName.MAKE_ROOM}:
        in_use = _only_asserted(w) or _still_used(w, old)
        if in_use is not None:
            return in_use
        if not (target.capabilities.revoke and old.ours and old.key_id):
            return blocked(w, Reason.STILL_ALIVE, "revoke the old key by hand at the target; its death is watched for")
        w.revoke(old.key_id)
        if r.attempts == 0:
            w.changed_keys(-1)
    plaintext = w.old_key()
    if plaintext is not None:
        result = target.probe(plaintext, Probe.USERS)
        if result.answer is Answer.ACCEPTED:
            return again(w, Reason.STILL_ALIVE, "the old key is still accepted after its revocation")
        if result.answer is Answer.STATE:
            return again(w, Reason.TARGET_DOWN, f"the old key's death can't be seen: {result.detail}")
    after = target.probe(key, Probe.USERS)
    if after.answer is Answer.REFUSED and r.attempts >= 3:
        return foreign(w, Reason.BOTH_DEAD, f"the target refuses the new key after the old one's end: {after.detail}")
    if after.answer is not Answer.ACCEPTED:
        return again(w, Reason.KEY_REFUSED, f"the new key is not accepted after the old one's end: {after.detail}")
    return ok(w)


def watched(w: Work) -> Result | None:
    """What the identity provider's log has against going on: the key is bad in use, or somebody changed the connection."""
    pushed = w.rotation.pushed_at or w.rotation.phase_since
    events = w.events(pushed - EVENT_MARGIN)
    complaint = key_bad(w, events)
    if complaint is not None:
        return complaint
    changed = [e for e in events if e.kind is EventKind.CHANGED and e.at > pushed + EVENT_MARGIN]
    if not changed:
        return None
    text = f"somebody changed the connection after our push ({changed[-1].text}): look, then resume or rollback"
    return hold(w, Reason.FOREIGN_CHANGE, text)


def key_bad(w: Work, events: tuple[IdpEvent, ...]) -> Result | None:
    """A key-bad event leads back, after the candidate was tested again: an outage of the target is not the key's fault.

    Only what the log says after the push is about the candidate. The push's own entry tells when that was; without one
    it is the IdP's answer, whose `Date` has whole seconds.
    """
    pushed = w.rotation.pushed_at or w.rotation.phase_since
    own = [e.at for e in events if e.kind is EventKind.CHANGED and abs(e.at - pushed) <= EVENT_MARGIN]
    since = own[-1] if own else pushed + timedelta(seconds=1)
    bad = [e for e in events if e.kind is EventKind.KEY_BAD and e.at >= since]
    if not bad:
        return None
    key = w.staged()
    if key is not None:
        result = w.ports.target.probe(key, Probe.USERS)  # Transient when the side is down: the engine holds
        w.learn(last_probe_at=w.now())
        if result.answer is Answer.STATE:
            return hold(w, Reason.TARGET_DOWN, "the identity provider complains, and the target turns every key away")
    return refused(w, Reason.KEY_BAD_IN_USE, f"the identity provider's log: {bad[-1].text}")


def _revoke_strays(w: Work) -> None:
    """Mints whose answer was lost may have been applied late: only this rotation's labels, never the candidate (I3)."""
    r = w.rotation
    keep = r.candidate.key_id if r.candidate is not None else None
    for info in w.ports.target.list_keys() if w.ports.target.capabilities.lists else ():
        own = r.candidate is not None and info.label == r.candidate.label
        if info.label in r.labels and info.key_id != keep and not own:
            w.revoke(info.key_id)


def _only_asserted(w: Work) -> Result | None:
    """A person's word alone does not revoke the old key where the IdP's log could show that they are right (I1, I3)."""
    r = w.rotation
    if not r.asserted:
        return None
    events = w.events(r.push_started_at or r.phase_since)
    if LOG in w.rotation.missing_proofs or any(e.kind in {EventKind.CHANGED, EventKind.PROVED} for e in events):
        w.learn(asserted=False)
        return None
    text = (
        "only a person's word says that the identity provider has the new key: its log shows neither a change of the app"
        " nor a success since. Look there, then resume (the old key is revoked) or rollback"
    )
    return hold(w, Reason.ASSERTED_ONLY, text)


def _still_used(w: Work, old: KeyRef) -> Result | None:
    """A key in use is not revoked (I3): somebody uses the old key after the push, and it is not us."""
    capabilities, pushed = w.ports.target.capabilities, w.rotation.pushed_at
    if not capabilities.last_used or pushed is None or w.limits.overlap <= 0:
        return None
    info = w.info_of(old)
    used = info.last_used_at if info is not None else None
    if used is not None and used > pushed + timedelta(seconds=capabilities.last_used_throttle):
        return hold(
            w, Reason.OLD_KEY_IN_USE, f"the old key was used at {used:%H:%M:%S} UTC, after the push: who uses it?"
        )
    return None


def restore(w: Work) -> Result:
    """The previous key goes back to the IdP. Refused while it is dead: with the candidate alive the way is on."""
    key = w.old_key()
    if key is None:
        return blocked(w, Reason.PREVIOUS_DEAD, "the previous key is not in Vault: there is nothing to restore")
    if w.rotation.binding.strategy is StrategyName.REPLACE_SUPPLIED:
        w.mint(w.rotation.labels[-1] if w.rotation.labels else w.rotation.id, key)
    dead = _previous_dead(w, key)
    if dead is not None:
        return dead
    try:
        w.push(key)
    except Refused as error:
        return again(w, Reason.KEY_REFUSED_BY_IDP, f"the identity provider refuses the previous key: {error}")
    if w.ports.idp.capabilities.reads_connection:
        status = w.ports.idp.read().status
        if status is not ConnectionStatus.ENABLED:
            return again(
                w, Reason.CONNECTION_NOT_ENABLED, f"the identity provider says {status} after taking the key back"
            )
    return _demote(w, key)


def await_restore(w: Work) -> Result:
    """A person types the previous key back into the IdP; a detector, or their word, moves on."""
    key, old = w.old_key(), w.old_ref()
    if key is None or old is None:
        return blocked(w, Reason.PREVIOUS_DEAD, "the previous key is not in Vault: there is nothing to restore")
    dead = _previous_dead(w, key)  # also when a person says that they typed it in: a dead key restores nothing (I1)
    if dead is not None:
        return dead
    found = w.detect(old, w.rotation.phase_since)
    if found.seen is None:
        help_ = w.ports.idp.hand_off()
        where = w.ports.keys.where(w.name, Slot.CURRENT)
        version = f" version {old.version}" if old.version else ""
        return more(
            w,
            Reason.AWAITING_RESTORE,
            f"type the PREVIOUS key back: from Vault at {where}{version} into {help_.field} at {help_.where}"
            f" as {help_.form}, then `rotator confirm {w.name}`",
            w.poll(),
        )
    w.evidence(found.seen)
    return _demote(w, key)


def _previous_dead(w: Work, key: Secret) -> Result | None:
    result = w.ports.target.probe(key, Probe.USERS)
    if result.answer is Answer.ACCEPTED:
        return None
    if result.answer is Answer.STATE:
        return again(w, Reason.TARGET_DOWN, f"the target turns every key away for now: {result.detail}")
    if w.rotation.attempts < 2:
        return again(w, Reason.PREVIOUS_DEAD, "the target refused the previous key; asking again before believing it")
    candidate = w.staged()
    alive = candidate is not None and w.ports.target.probe(candidate, Probe.USERS).answer is Answer.ACCEPTED
    if alive:
        text = "the previous key is dead and the candidate alive: the only way is on"
        return Result(w.record, Verdict.FORWARD, Reason.PREVIOUS_DEAD, text)
    return foreign(
        w, Reason.BOTH_DEAD, "the target refuses the previous key and the candidate: mint one by hand and adopt it"
    )


def _demote(w: Work, key: Secret) -> Result:
    """If the candidate was promoted, the previous key becomes current in Vault again, as a new version."""
    r, old = w.rotation, w.old_ref()
    if not r.promoted or old is None or r.candidate is None:
        return ok(w)
    stored = StoredKey(
        key=key,
        ref_fingerprint=old.fingerprint,
        key_id=old.key_id,
        rotation_id=f"{r.id}-restored",
        label=old.label,
        minted_at=old.minted_at,
        expires_at=old.expires_at,
    )
    try:
        version = w.ports.keys.write(w.name, Slot.CURRENT, stored, r.candidate.version or 0)
    except Conflict:
        there = w.ports.keys.read(w.name, Slot.CURRENT)
        if there is None or there.rotation_id != stored.rotation_id:
            return foreign(w, Reason.FOREIGN_VERSION, "somebody else wrote the current key in Vault: look, then adopt")
        version = there.version
    w.record = replace(w.record, current=replace(old, version=version), previous=r.candidate)
    w.learn(promoted=False)
    return ok(w)


def discard(w: Work) -> Result:
    """The candidate is revoked by id and label and proved dead; its staged versions are destroyed."""
    r, target = w.rotation, w.ports.target
    by_api = r.binding.mint_by is By.API and r.binding.strategy is not StrategyName.REPLACE_SUPPLIED
    if by_api and target.capabilities.lists:
        revoke_labelled(w)
    elif by_api and r.candidate is not None and r.candidate.key_id is not None:
        w.revoke(r.candidate.key_id)
    key = w.staged()
    if key is not None:
        result = target.probe(key, Probe.USERS)
        if result.answer is Answer.ACCEPTED:
            if r.binding.mint_by is By.PERSON:
                return blocked(
                    w, Reason.STILL_ALIVE, "revoke the candidate by hand at the target; its death is watched for"
                )
            return again(w, Reason.STILL_ALIVE, "the candidate is still accepted after its revocation")
        if result.answer is Answer.STATE:
            return again(w, Reason.TARGET_DOWN, f"the candidate's death can't be seen: {result.detail}")
    destroy_staged(w)
    return ok(w)


def destroy_staged(w: Work) -> None:
    """Destroy the staged versions of this rotation; the metadata stays, its version number fences."""
    r = w.rotation
    versions = {r.staged_cas, r.staged_version or 0} - {0}
    if versions:
        w.ports.keys.destroy(w.name, Slot.STAGED, tuple(sorted(versions)))


def destroy_handoff(w: Work) -> None:
    """The person's version is not needed once staged; a newer one that they left meanwhile stays."""
    if w.rotation.handoff_version is not None:
        w.ports.keys.destroy(w.name, Slot.HANDOFF, (w.rotation.handoff_version,))


# --- debts -------------------------------------------------------------------------------------------------------------


def pay_debts(w: Work) -> tuple[Record, tuple[Debt, ...]]:
    """Look at every debt that is due: the record with those still open, and the debts that were paid.

    A debt that has become the current key, because somebody adopted it, is none any more (I3).
    """
    now, still, paid, record = w.now(), list[Debt](), list[Debt](), w.record
    for debt in record.debts:
        if debts.in_use(record, debt.key):
            continue
        if debt.not_before is not None and debt.not_before > now:
            still.append(debt)
            continue
        if debts.elsewhere(debt, w.binding.target):  # until the configuration has its target again
            still.append(replace(debt, not_before=now + timedelta(seconds=DEBT_RETRY)))
            continue
        try:
            dead = _dead(w, debt)
        except PortError:
            dead = False
        if dead:
            paid.append(debt)
            continue
        wait = min(DEBT_RETRY, 30.0 * 2.0 ** min(debt.attempts, 20))
        still.append(replace(debt, attempts=debt.attempts + 1, not_before=now + timedelta(seconds=wait)))
    return replace(record, debts=tuple(still)), tuple(paid)


def _dead(w: Work, debt: Debt) -> bool:
    """Revoke what is ours, then believe its death only from the target: refused, or no longer listed."""
    name, ports, target, ref = w.name, w.ports, w.ports.target, debt.key
    listed = target.list_keys() if target.capabilities.lists else None
    found = [i for i in listed or () if i.key_id == ref.key_id or (ref.label is not None and i.label == ref.label)]
    if debt.kind is DebtKind.REVOKE:
        for info in found:
            if debts.is_key(ref, info.key_id, info.label):
                w.revoke(info.key_id)
        if listed is None and ref.key_id is not None:
            w.revoke(ref.key_id)
    slot, version = (Slot.CURRENT, ref.version) if debt.staged_version is None else (Slot.STAGED, debt.staged_version)
    stored = ports.keys.read(name, slot, version) if version is not None else None
    if stored is not None and stored.key is not None and stored.key.fingerprint == ref.fingerprint:
        dead = target.probe(stored.key, Probe.USERS).answer is Answer.REFUSED
        if dead and slot is Slot.STAGED and version is not None:
            ports.keys.destroy(name, slot, (version,))
        return dead
    if listed is None or (ref.key_id is None and ref.label is None):
        return False  # nothing can tell: it stays a debt
    if found and debt.kind is DebtKind.REVOKE:
        return not [i for i in target.list_keys() if i.key_id in {f.key_id for f in found}]
    return not found
