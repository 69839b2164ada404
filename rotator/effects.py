"""The effects of the phases that go forward: look, then make, then say what came of it.

Every effect may be run twice: after a crash, a takeover or a lost answer it finds what it did. Effects raise only
`rotator.errors`; the engine turns those into verdicts. The way back is in `effects_back.py`.

Invariants: I1 (the old key is not touched before `retire`), I2 (a void staged version and a recorded label come before
the mint), I3 (only keys with a label of this rotation, or with a known id of ours, are revoked), I5.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType

from rotator import effects_back
from rotator.core import debts, keyformat
from rotator.core.machine import FEATURES, LAST_USED, LOG, Result
from rotator.core.model import By, DebtKind, Phase, StrategyName
from rotator.core.reasons import Reason
from rotator.core.secret import Secret
from rotator.core.strategy import LiveKeys
from rotator.errors import Conflict, Denied, Refused, Unsupported
from rotator.ports import Answer, ConnectionStatus, EventKind, Probe, Slot, StoredKey
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


def preflight(w: Work) -> Result:
    """Look at Vault, the IdP and the target; change nothing."""
    w.ports.keys.check(w.name)
    old = w.record.current
    if old is None:
        if w.rotation.why is not Reason.BOOTSTRAP:
            return blocked(w, Reason.KEY_UNKNOWN, "no current key is recorded: adopt one, or set bootstrap = true")
        w.learn(repair=True)
    else:
        stored = w.ports.keys.read(w.name, Slot.CURRENT)
        if stored is None or stored.key is None or stored.key.fingerprint != old.fingerprint:
            return blocked(
                w, Reason.FOREIGN_VERSION, "the current key in Vault is not the one in the state record: adopt it first"
            )
        w.old_plaintext = stored.key
    enabled = _look_at_idp(w)
    if enabled is not None:
        return enabled
    if w.old_plaintext is not None:
        unproved = _prove_old(w, w.old_plaintext)
        if unproved is not None:
            return unproved
    return _look_at_keys(w)


def _look_at_idp(w: Work) -> Result | None:
    idp = w.ports.idp
    if idp.capabilities.reads_connection:
        connection = idp.read()
        if connection.status is ConnectionStatus.DISABLED and not w.limits.enable_disabled:
            return blocked(
                w, Reason.IDP_DISABLED, "the connection is switched off at the identity provider: set enable_disabled"
            )
        w.idp_enabled = connection.status is ConnectionStatus.ENABLED
    if idp.capabilities.features:
        try:
            features = idp.features()
            if "" not in features:  # a connection that is switched off shows none: nothing to compare with
                w.learn(features=digest(features))
        except (Denied, Unsupported):
            w.miss(FEATURES)
    return None


def _prove_old(w: Work, key: Secret) -> Result | None:
    """Drift and repair told apart: the IdP healthy means that it holds another key than Vault does."""
    result = w.ports.target.probe(key, Probe.USERS)
    if result.answer is Answer.ACCEPTED:
        w.record = replace(w.record, proved_target_at=w.now())
        return None
    if result.answer is Answer.STATE:
        return again(w, Reason.TARGET_DOWN, f"the target turns every key away for now: {result.detail}")
    if w.rotation.attempts < 2:
        return again(w, Reason.KEY_REFUSED, "the target refused the current key; asking again before believing it")
    bad = [e for e in w.events(w.now() - timedelta(hours=1)) if e.kind is EventKind.KEY_BAD]
    if bad or w.idp_enabled is False:
        w.learn(repair=True)
        w.evidence(
            "repair: the target refuses the current key and the identity provider complains too; no restore is possible"
        )
        return None
    return refused(
        w,
        Reason.DRIFT,
        "the target refuses the key that Vault calls current, but the identity provider does not complain: it may hold"
        " another key. Find out which, adopt it, or rotate with bootstrap",
    )


def _look_at_keys(w: Work) -> Result:
    capabilities = w.ports.target.capabilities
    if not capabilities.lists:
        return ok(w)
    infos = w.ports.target.list_keys()
    w.count_keys(len(infos))
    if capabilities.labels:
        newest = max((w.sequence_of(i) or 0 for i in infos), default=0)
        if newest >= w.rotation.sequence:
            return foreign(
                w,
                Reason.STATE_OLDER_THAN_WORLD,
                f"the target has a key of ours from rotation {newest}, the state record only knows"
                f" {w.rotation.sequence - 1}: was Vault restored from a backup?",
            )
        w.report_leftovers(infos)
    else:
        w.learn(known_ids=tuple(i.key_id for i in infos))
    return ok(w)


def make_room(w: Work) -> Result:
    """At a target that lets two keys live: free our own debts and surplus; a foreign key at the cap is not touched (I3)."""
    infos = w.ports.target.list_keys()
    cap = 2 if w.ports.target.capabilities.live_keys is LiveKeys.TWO else None
    if cap is None or len(infos) < cap:
        w.learn(known_ids=tuple(i.key_id for i in infos) if w.rotation.known_ids is not None else None)
        return ok(w)
    here = [d for d in w.record.debts if not debts.elsewhere(d, w.binding.target)]
    owed = [d.key for d in here if d.kind is DebtKind.REVOKE and not debts.in_use(w.record, d.key)]
    surplus = [i for i in infos if any(debts.is_key(ref, i.key_id, i.label) for ref in owed)]
    if not surplus:
        return blocked(
            w,
            Reason.CAP_REACHED,
            f"the target has {len(infos)} live keys and allows {cap}; the other is not known to be ours."
            " Revoke it by hand, or adopt it",
        )
    for info in surplus:
        w.revoke(info.key_id)
    return again(w, Reason.CAP_REACHED, f"revoked {len(surplus)} key(s) of ours to make room")


def mint(w: Work) -> Result:
    """The target issues the candidate under the label that the record already holds (I2)."""
    r = w.rotation
    if r.binding.strategy is StrategyName.REPLACE_SUPPLIED:
        return _mint_supplied(w)
    if not w.clean and r.binding.strategy is not StrategyName.REPLACE:
        revoke_labelled(w)  # an earlier try may have been applied; its plaintext is gone for good
        return lost(w, "an earlier mint's answer was lost; its key, if any, is revoked")
    w.void_staged()
    minted = w.mint(r.labels[-1])
    w.plaintext = minted.key
    w.changed_keys(+1)
    w.take_candidate(minted.key, key_id=minted.key_id, label=r.labels[-1], expires_at=minted.expires_at, ours=True)
    return ok(w)


def _mint_supplied(w: Work) -> Result:
    """The value is ours and staged; setting it twice is harmless."""
    value = w.staged()
    if value is None:
        return lost(w, "the staged candidate is gone; nothing was set")
    minted = w.mint(w.rotation.labels[-1], value)
    if w.rotation.candidate is not None:
        w.learn(candidate=replace(w.rotation.candidate, key_id=minted.key_id, expires_at=minted.expires_at))
    return ok(w)


def await_key(w: Work) -> Result:
    """A person leaves the key in the hand-off path with their own Vault rights."""
    stored = w.ports.keys.read(w.name, Slot.HANDOFF)
    where = w.ports.keys.where(w.name, Slot.HANDOFF)
    if stored is None or stored.key is None:
        return more(
            w, Reason.AWAITING_KEY, f"mint a key at the target and leave it in Vault at {where}, field `key`", w.poll()
        )
    mark = stored.key.fingerprint
    if mark in w.record.known_fingerprints or (w.record.current and mark == w.record.current.fingerprint):
        return more(
            w, Reason.KNOWN_KEY, f"the key at {where} ({mark}) was used before: leave a freshly minted one", w.poll()
        )
    flaws = keyformat.lint(stored.key.reveal(), w.allowed_characters)
    if flaws:
        what = "; ".join(str(f) for f in flaws[:3])
        return more(
            w, Reason.KEY_FORMAT, f"the key at {where} can't be right: {what}. Leave it again, exactly", w.poll()
        )
    w.void_staged()
    w.plaintext = stored.key
    w.take_candidate(
        stored.key, key_id=stored.key_id, label=None, expires_at=stored.expires_at, ours=stored.key_id is not None
    )
    w.learn(handoff_version=stored.version)
    w.evidence("key handed over by a person")
    return ok(w)


def stage(w: Work) -> Result:
    """The candidate into Vault's staged path: a path of its own, because a KV v2 write publishes."""
    r = w.rotation
    if r.staged_version is not None and w.staged() is not None:  # written; what came after it failed
        return _staged(w)
    there = None if w.clean else w.ports.keys.read(w.name, Slot.STAGED)
    if there is not None and there.key is not None and there.rotation_id == r.id and there.label == w.stage_mark():
        w.plaintext = there.key
        w.take_candidate(
            there.key,
            key_id=there.key_id,
            label=there.label,
            expires_at=there.expires_at,
            ours=there.key_id is not None or r.binding.mint_by is By.API,
        )
        w.learn(staged_version=there.version)
        return _staged(w)
    if w.plaintext is None and r.binding.strategy is StrategyName.REPLACE_SUPPLIED:
        w.void_staged()
        w.plaintext = Secret(secrets.token_urlsafe(48))
        w.take_candidate(w.plaintext, key_id=None, label=None, expires_at=None, ours=True)
    if w.plaintext is None and r.binding.mint_by is By.PERSON:
        handed = w.ports.keys.read(w.name, Slot.HANDOFF, r.handoff_version)
        w.plaintext = handed.key if handed is not None else None
    candidate = w.rotation.candidate
    if w.plaintext is None or candidate is None or w.plaintext.fingerprint != candidate.fingerprint:
        return _never_stored(w, "the candidate was never stored; minting another")
    stored = StoredKey(
        key=w.plaintext,
        ref_fingerprint=candidate.fingerprint,
        key_id=candidate.key_id,
        rotation_id=r.id,
        label=w.stage_mark(),
        minted_at=candidate.minted_at,
        expires_at=candidate.expires_at,
    )
    try:
        version = w.ports.keys.write(w.name, Slot.STAGED, stored, w.rotation.staged_cas)
    except Conflict:
        return _never_stored(w, "the staged path was voided by another holder; minting another")
    w.learn(staged_version=version)
    return _staged(w)


def _never_stored(w: Work, detail: str) -> Result:
    """What was never stored is used by nobody, and its id says that it is ours: revoked before another is minted (I3)."""
    candidate, target = w.rotation.candidate, w.ports.target
    ours = w.rotation.binding.mint_by is By.API and candidate is not None and candidate.ours
    if ours and candidate is not None and candidate.key_id is not None and target.capabilities.revoke:
        w.revoke(candidate.key_id)
    w.plaintext = None
    return lost(w, detail)


def _staged(w: Work) -> Result:
    """The person's version is not needed any more."""
    if w.rotation.binding.mint_by is By.PERSON:
        effects_back.destroy_handoff(w)
    return ok(w)


def prove(w: Work) -> Result:
    """The target accepts the candidate several times and refuses a corrupted one (the negative control)."""
    key = w.staged()
    if key is None:
        return lost(w, "the staged candidate is gone from Vault")
    flaws = keyformat.lint(key.reveal(), w.allowed_characters)
    if flaws:
        what = "; ".join(str(f) for f in flaws[:3])
        return refused(w, Reason.KEY_FORMAT, f"the candidate can't be sent in a header: {what}")
    if not w.control_done:
        control = w.ports.target.probe(Secret(keyformat.corrupt(key.reveal())), Probe.USERS)
        if control.answer is Answer.ACCEPTED:
            return blocked(w, Reason.ENDPOINT_OPEN, "the target accepted a corrupted key: its answers prove nothing")
        w.control_done = True
    return prove_alive(w, key, settle=max(w.limits.settle, w.ports.target.capabilities.min_settle))


def push(w: Work) -> Result:
    """The IdP gets the candidate. The same candidate may be pushed again: the slot is one."""
    key = w.staged()
    if key is None:
        return lost(w, "the staged candidate is gone from Vault")
    try:
        answer = w.push(key)
    except Refused as error:
        return refused(w, Reason.KEY_REFUSED_BY_IDP, str(error))
    w.learn(pushed_at=answer.at or w.now(), pushed_epoch=w.record.epoch)
    return ok(w)


def await_push(w: Work) -> Result:
    """A person types the candidate into the IdP; a detector, or their word, moves on."""
    help_ = w.ports.idp.hand_off()
    since = w.rotation.push_started_at or w.rotation.phase_since
    found = w.detect(w.rotation.candidate, since)
    if found.bad is not None:
        return refused(w, Reason.KEY_BAD_IN_USE, found.bad)
    if found.seen is None:
        path = w.ports.keys.where(w.name, Slot.STAGED)
        text = f"type the key from Vault at {path} into {help_.field} at {help_.where} as {help_.form}, then `rotator confirm {w.name}`"
        return more(w, Reason.AWAITING_PUSH, text, w.poll())
    w.evidence(found.seen)
    w.learn(asserted=found.at is None)
    w.learn(pushed_at=found.at or w.now(), pushed_epoch=w.record.epoch)
    return ok(w)


def confirm(w: Work) -> Result:
    """The IdP says enabled, is what we pushed to, has the same features as before and complains of nothing."""
    r, idp = w.rotation, w.ports.idp
    if idp.capabilities.reads_connection:
        connection = idp.read()
        if connection.status is not ConnectionStatus.ENABLED:
            return hold(
                w, Reason.CONNECTION_NOT_ENABLED, f"the identity provider says {connection.status} after taking the key"
            )
        if connection.scheme not in {None, "TOKEN"}:
            return hold(w, Reason.CONNECTION_DIFFERS, f"the connection's scheme is {connection.scheme}, not TOKEN")
        wanted, got = r.binding.base_url.rstrip("/"), (connection.base_url or "").rstrip("/")
        if wanted and got and wanted != got:
            return hold(w, Reason.CONNECTION_DIFFERS, "the connection's base URL is not the configured one")
    if idp.capabilities.features and r.features is not None:
        try:
            changed = digest(idp.features()) != r.features
        except (Denied, Unsupported):
            w.miss(FEATURES)
            changed = False
        if changed:
            return hold(
                w,
                Reason.FEATURES_CHANGED,
                "the app's provisioning features differ from before the push: look, then resume",
            )
    complaint = effects_back.key_bad(w, w.events((r.pushed_at or r.phase_since) - EVENT_MARGIN))
    if complaint is not None:
        return complaint
    w.record = replace(w.record, proved_idp_at=w.now())
    _use_seen(w)
    return ok(w)


def _use_seen(w: Work) -> None:
    """The candidate's last use moved and no probe of ours explains it: the IdP uses it."""
    capabilities, r = w.ports.target.capabilities, w.rotation
    if not (capabilities.last_used and capabilities.lists) or r.candidate is None:
        w.miss(LAST_USED)
        return
    info = w.info_of(r.candidate)
    throttle = timedelta(seconds=capabilities.last_used_throttle)
    if info and info.last_used_at and r.last_probe_at and info.last_used_at > r.last_probe_at + throttle:
        w.evidence("the target saw the identity provider use the new key")


def promote(w: Work) -> Result:
    """The candidate becomes current in Vault. The same rotation's version already there means done."""
    r, old = w.rotation, w.record.current
    if r.promoted:  # rolled forward after a promotion: promoted again, it would become its own previous key (I1)
        return ok(w)
    key = w.staged()
    if key is None or r.candidate is None:
        return lost(w, "the staged candidate is gone from Vault")
    stored = StoredKey(
        key=key,
        ref_fingerprint=r.candidate.fingerprint,
        key_id=r.candidate.key_id,
        rotation_id=r.id,
        label=r.candidate.label,
        minted_at=r.candidate.minted_at,
        expires_at=r.candidate.expires_at,
    )
    expected = old.version if old is not None and old.version is not None else w.ports.keys.newest(w.name, Slot.CURRENT)
    try:
        version = w.ports.keys.write(w.name, Slot.CURRENT, stored, expected)
    except Conflict:
        there = w.ports.keys.read(w.name, Slot.CURRENT)
        if there is None or there.rotation_id != r.id:
            return foreign(
                w,
                Reason.FOREIGN_VERSION,
                "somebody else wrote the current key in Vault; the candidate stays staged and both keys stay alive",
            )
        version = there.version
    candidate = replace(r.candidate, version=version)
    w.record = replace(w.record, current=candidate, previous=old)
    w.learn(candidate=candidate, promoted=True)
    return ok(w)


def overlap(w: Work) -> Result:
    """Both keys live: watch the IdP's log, the candidate and the old key's last use until the time is over."""
    r, now = w.rotation, w.now()
    until = r.phase_since + timedelta(seconds=w.limits.overlap)
    if w.limits.overlap <= 0:
        return ok(w)
    complaint = effects_back.watched(w)
    if complaint is not None:
        return complaint
    key = w.staged()
    if key is None:
        return lost(w, "the candidate is gone from Vault")
    result = w.ports.target.probe(key, Probe.USERS)
    w.learn(last_probe_at=w.now())
    if result.answer is Answer.STATE:
        return hold(w, Reason.TARGET_DOWN, f"the target turns keys away for now: {result.detail}")
    if result.answer is Answer.REFUSED:
        w.refusals += 1
        if w.refusals >= 3:
            return refused(w, Reason.KEY_REFUSED, f"the target refuses the new key: {result.detail}")
        return more(
            w, Reason.OVERLAPPING, "the target refused the new key; asking again before believing it", w.later(2)
        )
    w.refusals = 0
    w.record = replace(
        w.record, proved_target_at=now, proved_idp_at=now if LOG not in r.missing_proofs else w.record.proved_idp_at
    )
    if now < until:
        later = min(until, w.later(w.limits.watch_every))
        return more(w, Reason.OVERLAPPING, f"both keys live until {until:%Y-%m-%d %H:%M:%S} UTC", later)
    return ok(w)


def digest(features: Mapping[str, str]) -> str:
    """A short stand-in for the features, for a comparison."""
    return hashlib.sha256(json.dumps(dict(features), sort_keys=True).encode()).hexdigest()[:16]


Effect = Callable[[Work], Result]
EFFECTS: Mapping[Phase, Effect] = MappingProxyType(
    {
        Phase.PREFLIGHT: preflight,
        Phase.MAKE_ROOM: make_room,
        Phase.MINT: mint,
        Phase.AWAIT_KEY: await_key,
        Phase.STAGE: stage,
        Phase.PROVE: prove,
        Phase.PUSH: push,
        Phase.AWAIT_PUSH: await_push,
        Phase.CONFIRM: confirm,
        Phase.PROMOTE: promote,
        Phase.OVERLAP: overlap,
        Phase.RETIRE: effects_back.retire,
        Phase.RESTORE: effects_back.restore,
        Phase.AWAIT_RESTORE: effects_back.await_restore,
        Phase.DISCARD: effects_back.discard,
    }
)
