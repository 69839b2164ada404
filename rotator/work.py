"""What the effects share: one rotation's session in this process, and the small looks that several effects take.

A session holds what must not be durable (the candidate's plaintext, counts of successes) beside the record as last
saved. It dies with the process or the lease; nothing in it is needed to go on. Invariants: I2, I3, I5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from rotator.core import machine
from rotator.core.machine import LOG, Result
from rotator.core.model import Ask, Binding, Debt, DebtKind, KeyRef, Limits, Phase, Record, Rotation, StrategyName
from rotator.core.reasons import Reason
from rotator.core.secret import Secret
from rotator.core.strategy import Verdict
from rotator.errors import Denied, NotFound, Transient, Unsupported
from rotator.ports import (
    Answer,
    Clock,
    EventKind,
    IdentityProvider,
    IdpConnection,
    IdpEvent,
    KeyInfo,
    KeyStore,
    Minted,
    Probe,
    Slot,
    StoredKey,
    Target,
)

EVENT_MARGIN = timedelta(seconds=5)  # our own push is logged around the IdP's answer
LADDER = (Probe.USERS, Probe.FILTER, Probe.GROUPS)
KNOWN_FINGERPRINTS = 20  # how many of a connection's past keys a hand-off is compared with


@dataclass(frozen=True, slots=True)
class Ports:
    """The outside world of one connection."""

    target: Target
    idp: IdentityProvider
    keys: KeyStore
    clock: Clock


@dataclass(frozen=True, slots=True)
class Detected:
    """What tells that a person has typed a key in (`seen`), or that it went wrong (`bad`)."""

    seen: str | None = None
    at: datetime | None = None
    bad: str | None = None


@dataclass(slots=True)
class Work:
    """One rotation as this process works on it."""

    name: str
    ports: Ports
    binding: Binding  # as configured now
    record: Record
    version: int  # of the state record as last saved
    saved: Record  # as it lies in Vault
    allowed_characters: frozenset[str] = frozenset()  # beyond those that every header can carry
    frozen_until: Callable[[datetime], datetime | None] = lambda _: None
    may_call: Callable[[], bool] = lambda: True  # whether our lease outlasts another outside call
    push_first: bool = False  # retire: push again before the irreversible
    plaintext: Secret | None = None  # the candidate, between mint and end
    old_plaintext: Secret | None = None
    control_done: bool = False
    successes: int = 0
    refusals: int = 0
    waited: bool = False  # since the last turn; somebody may have asked for something
    idp_enabled: bool | None = None

    @property
    def rotation(self) -> Rotation:
        if self.record.rotation is None:
            raise RuntimeError(f"{self.name}: no rotation is open")  # a programmer's error
        return self.record.rotation

    @property
    def limits(self) -> Limits:
        return self.rotation.limits

    def now(self) -> datetime:
        return self.ports.clock.now()

    def later(self, seconds: float) -> datetime:
        return self.now() + timedelta(seconds=seconds)

    def poll(self) -> datetime:
        """When to look again for what a person does."""
        return self.later(self.limits.watch_every)

    def entered(self) -> None:
        """A new phase began: its counts begin anew."""
        self.control_done, self.successes, self.refusals = False, 0, 0

    @property
    def clean(self) -> bool:
        """The present intent's effect was surely not applied yet."""
        return not self.rotation.unclear

    # --- learning ---

    def learn(
        self,
        *,
        repair: bool | None = None,
        features: str | None = None,
        known_ids: tuple[str, ...] | None = None,
        candidate: KeyRef | None = None,
        staged_cas: int | None = None,
        staged_version: int | None = None,
        handoff_version: int | None = None,
        pushed_at: datetime | None = None,
        pushed_epoch: int | None = None,
        pushed_again: bool | None = None,
        last_probe_at: datetime | None = None,
        asserted: bool | None = None,
        promoted: bool | None = None,
    ) -> None:
        """Set facts of the rotation; None leaves one as it is."""
        r = self.rotation
        self.record = replace(
            self.record,
            rotation=replace(
                r,
                repair=r.repair if repair is None else repair,
                features=r.features if features is None else features,
                known_ids=r.known_ids if known_ids is None else known_ids,
                candidate=r.candidate if candidate is None else candidate,
                staged_cas=r.staged_cas if staged_cas is None else staged_cas,
                staged_version=r.staged_version if staged_version is None else staged_version,
                handoff_version=r.handoff_version if handoff_version is None else handoff_version,
                pushed_at=r.pushed_at if pushed_at is None else pushed_at,
                pushed_epoch=r.pushed_epoch if pushed_epoch is None else pushed_epoch,
                pushed_again=r.pushed_again if pushed_again is None else pushed_again,
                last_probe_at=r.last_probe_at if last_probe_at is None else last_probe_at,
                asserted=r.asserted if asserted is None else asserted,
                promoted=r.promoted if promoted is None else promoted,
            ),
        )

    def miss(self, source: str) -> None:
        """Name a proof source that our credentials or the system don't allow; never skipped in silence."""
        r = self.rotation
        if source not in r.missing_proofs:
            self.record = replace(self.record, rotation=replace(r, missing_proofs=(*r.missing_proofs, source)))

    def evidence(self, text: str) -> None:
        r = self.rotation
        if text not in r.evidence:
            self.record = replace(self.record, rotation=replace(r, evidence=(*r.evidence, text)))

    def answered(self) -> str | None:
        """Take a person's `rotator confirm`: their name, or None when they said nothing."""
        r = self.rotation
        if r.asked is not Ask.CONFIRM:
            return None
        self.record = replace(self.record, rotation=replace(r, asked=None, asked_by=""))
        return r.asked_by or "a person"

    def take_candidate(
        self, key: Secret, *, key_id: str | None, label: str | None, expires_at: datetime | None, ours: bool
    ) -> None:
        """Name the candidate in the record, without its value (I2, I5)."""
        ref = KeyRef(
            fingerprint=key.fingerprint,
            key_id=key_id,
            label=label,
            minted_at=self.rotation.candidate.minted_at if self.rotation.candidate else self.now(),
            expires_at=expires_at,
            ours=ours,
        )
        known = tuple(f for f in self.record.known_fingerprints if f != key.fingerprint)
        self.record = replace(self.record, known_fingerprints=(*known, key.fingerprint)[-KNOWN_FINGERPRINTS:])
        self.learn(candidate=ref)

    def count_keys(self, live: int) -> None:
        """How many keys live at the target, as just listed."""
        self.record = replace(self.record, live_keys=live)

    def changed_keys(self, by: int) -> None:
        if self.record.live_keys is not None:
            self.count_keys(max(0, self.record.live_keys + by))

    # --- Vault ---

    def void_staged(self) -> None:
        """A void version first: a deposed holder's staged write then conflicts."""
        newest = self.ports.keys.newest(self.name, Slot.STAGED)
        void = StoredKey(key=None, rotation_id=self.rotation.id)
        self.learn(staged_cas=self.ports.keys.write(self.name, Slot.STAGED, void, newest))

    def stage_mark(self) -> str | None:
        """What the staged version must carry to be this attempt's."""
        return None if self.rotation.binding.strategy is StrategyName.REPLACE_SUPPLIED else self._last_label()

    def _last_label(self) -> str | None:
        return self.rotation.labels[-1] if self.rotation.labels else None

    def staged(self) -> Secret | None:
        """The candidate's plaintext: from memory, else from Vault."""
        r = self.rotation
        if self.plaintext is None and r.staged_version is not None:
            stored = self.ports.keys.read(self.name, Slot.STAGED, r.staged_version)
            if stored is not None and stored.rotation_id == r.id:
                self.plaintext = stored.key
        candidate = r.candidate
        if self.plaintext is None and r.promoted and candidate is not None:  # the staged version may be destroyed
            stored = self.ports.keys.read(self.name, Slot.CURRENT, candidate.version)
            self.plaintext = stored.key if stored is not None else None
        if self.plaintext is not None and candidate is not None and self.plaintext.fingerprint != candidate.fingerprint:
            return None
        return self.plaintext

    def old_ref(self) -> KeyRef | None:
        """The key that the candidate replaces."""
        return self.record.previous if self.rotation.promoted else self.record.current

    def old_key(self) -> Secret | None:
        """The plaintext of the key that the candidate replaces, from Vault by version and fingerprint."""
        ref = self.old_ref()
        if ref is None:
            return None
        if self.old_plaintext is None:
            stored = self.ports.keys.read(self.name, Slot.CURRENT, ref.version)
            if stored is not None and stored.key is not None and stored.key.fingerprint == ref.fingerprint:
                self.old_plaintext = stored.key
        return self.old_plaintext

    # --- target ---

    def mint(self, label: str, value: Secret | None = None) -> Minted:
        self._lease()
        return self.ports.target.mint(label, value)

    def revoke(self, key_id: str) -> None:
        self._lease()
        self.ports.target.revoke(key_id)

    def push(self, key: Secret) -> IdpConnection:
        self._lease()
        return self.ports.idp.push(key)

    def _lease(self) -> None:
        """A step makes several calls, and each may be slow: looked at before every one that changes something (I4)."""
        if not self.may_call():
            detail = "our lease is about to lapse, another instance may go on"
            raise Transient("changing a key", system="vault", detail=detail)

    def ours(self, infos: tuple[KeyInfo, ...]) -> tuple[KeyInfo, ...]:
        """Those listed keys that carry a label of this rotation, or the candidate's id (I3)."""
        r = self.rotation
        ids = {r.candidate.key_id} if r.candidate is not None and r.candidate.ours else set()
        return tuple(i for i in infos if (i.label is not None and i.label in r.labels) or i.key_id in ids - {None})

    def report_leftovers(self, infos: tuple[KeyInfo, ...]) -> None:
        """Keys that carry our label and that no record names: told as debts, never revoked by us (I2, I3)."""
        named = {k.key_id for k in (self.record.current, self.record.previous) if k is not None}
        strays = tuple(i for i in infos if self.sequence_of(i) is not None and i.key_id not in named)
        owed = {d.key.label for d in self.record.debts}
        self.suspect(tuple(i for i in strays if i.label not in owed), named)

    def sequence_of(self, info: KeyInfo) -> int | None:
        return machine.label_sequence(self.rotation.installation, self.name, info.label)

    def info_of(self, ref: KeyRef) -> KeyInfo | None:
        if ref.key_id is None or not self.ports.target.capabilities.lists:
            return None
        return next((i for i in self.ports.target.list_keys() if i.key_id == ref.key_id), None)

    def suspect(self, infos: tuple[KeyInfo, ...], explained: set[str | None]) -> None:
        """Name keys that appeared since the mint, at a target without labels; never revoked by us (I3)."""
        known: set[str | None] = (
            set(self.rotation.known_ids or ()) | explained | {d.key.key_id for d in self.record.debts}
        )
        candidate = self.rotation.candidate
        known |= {candidate.key_id} if candidate is not None else set()
        debts = tuple(
            Debt(
                DebtKind.SUSPECTED,
                KeyRef(key_id=i.key_id, label=i.label),
                self.now(),
                Reason.PLAINTEXT_LOST,
                target=self.rotation.binding.target,
            )
            for i in infos
            if i.key_id not in known
        )
        self.record = replace(self.record, debts=self.record.debts + debts)

    # --- the identity provider ---

    def events(self, since: datetime) -> tuple[IdpEvent, ...]:
        """The IdP's log, or nothing and a note that this proof is missing."""
        if self.ports.idp.capabilities.log:
            try:
                return self.ports.idp.events(since)
            except (Denied, NotFound, Unsupported):
                pass
        self.miss(LOG)
        return ()

    def detect(self, ref: KeyRef | None, since: datetime) -> Detected:
        """Has a person typed this key in? By the IdP's log, by the key's last use at the target, or by their word."""
        said = self.answered()
        if said is not None:
            return Detected(seen=f"asserted by {said}")
        events = [e for e in self.events(since) if e.at >= since]  # never what was edited just before
        changed = [e for e in events if e.kind is EventKind.CHANGED]
        if changed:
            bad = [e for e in events if e.kind is EventKind.KEY_BAD and e.at >= changed[-1].at]
            if bad:
                return Detected(bad=f"the identity provider's log: {bad[-1].text}")
            return Detected(seen=f"seen in the identity provider's log: {changed[-1].text}", at=changed[-1].at)
        capabilities, probed = self.ports.target.capabilities, self.rotation.last_probe_at
        if capabilities.last_used and ref is not None and probed is not None:
            info = self.info_of(ref)
            throttle = timedelta(seconds=capabilities.last_used_throttle)
            if info is not None and info.last_used_at is not None and info.last_used_at > probed + throttle:
                return Detected(seen="the target saw the key used, and not by us", at=info.last_used_at)
        return Detected()


# --- what an effect came to --------------------------------------------------------------------------------------------


def ok(w: Work) -> Result:
    return Result(w.record, Verdict.OK)


def more(w: Work, reason: Reason, detail: str, at: datetime) -> Result:
    return Result(w.record, Verdict.MORE, reason, detail, at)


def again(w: Work, reason: Reason, detail: str) -> Result:
    return Result(w.record, Verdict.AGAIN, reason, detail)


def blocked(w: Work, reason: Reason, detail: str) -> Result:
    return Result(w.record, Verdict.BLOCKED, reason, detail)


def refused(w: Work, reason: Reason, detail: str) -> Result:
    return Result(w.record, Verdict.REFUSED, reason, detail)


def hold(w: Work, reason: Reason, detail: str) -> Result:
    return Result(w.record, Verdict.HOLD, reason, detail, w.poll())


def lost(w: Work, detail: str) -> Result:
    return Result(w.record, Verdict.LOST, Reason.PLAINTEXT_LOST, detail)


def foreign(w: Work, reason: Reason, detail: str) -> Result:
    return Result(w.record, Verdict.FOREIGN, reason, detail)


def prove_alive(w: Work, key: Secret, *, settle: float) -> Result:
    """Consecutive successes over the ladder of probes, spread over the success window."""
    limits = w.limits
    ladder = (*LADDER, Probe.WRITE) if limits.write_probe and w.rotation.phase is Phase.PROVE else LADDER
    needed = max(limits.successes, len(ladder) if limits.write_probe else 0)
    while w.successes < needed:
        result = w.ports.target.probe(key, ladder[w.successes % len(ladder)])
        w.learn(last_probe_at=w.now())
        if result.answer is Answer.STATE:
            w.successes = 0
            return again(w, Reason.TARGET_DOWN, f"the target's state, not the key: {result.detail}")
        if result.answer is Answer.REFUSED:
            w.successes = 0
            if (w.now() - w.rotation.phase_since).total_seconds() < settle:
                return again(w, Reason.SETTLING, f"a fresh key may be refused for {settle:g} s: {result.detail}")
            return refused(w, Reason.KEY_REFUSED, f"the target refuses the candidate: {result.detail}")
        w.successes += 1
        spacing = limits.success_window / max(1, needed - 1)
        if w.successes < needed and spacing > 0:
            return more(w, Reason.PROVING, f"{w.successes} of {needed} probes accepted", w.later(spacing))
    w.record = replace(w.record, proved_target_at=w.now())
    return ok(w)


def revoke_labelled(w: Work) -> int:
    """Revoke every live key that carries a label of this rotation or is its candidate; how many there were (I3).

    Where the target has no label field, a key that appeared after the mint is only *suspected*: it becomes a debt
    that a person has to look at.
    """
    infos = w.ports.target.list_keys()
    ours = w.ours(infos)
    for info in ours:
        w.revoke(info.key_id)
    w.count_keys(len(infos) - len(ours))
    if not w.ports.target.capabilities.labels and w.rotation.known_ids is not None:
        w.suspect(infos, set[str | None](i.key_id for i in ours))
    return len(ours)
