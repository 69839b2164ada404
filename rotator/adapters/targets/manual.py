"""A target whose keys only a person can issue and revoke, in its admin console; the rotator proves them.

`await_key` takes a fresh key from the hand-off path; the death of the old one is noticed by a probe.
"""

from __future__ import annotations

from dataclasses import dataclass

from rotator import errors
from rotator.adapters.targets.scim import ScimProbe, ScimSettings, scim_probe
from rotator.core.model import By
from rotator.core.secret import Secret
from rotator.ports import Clock, KeyInfo, LiveKeys, Meter, Minted, Probe, ProbeResult, TargetCapabilities


@dataclass(frozen=True, slots=True)
class ManualSettings:
    name: str
    scim: ScimSettings
    live_keys: LiveKeys = LiveKeys.MANY  # whether issuing another key kills the first one
    min_settle: float = 0.0  # seconds


def manual_target(settings: ManualSettings, clock: Clock, meter: Meter) -> ManualTarget:
    """Misconfigured when the SCIM URL, header or CA file can't be used."""
    return ManualTarget(settings, scim_probe(settings.name, settings.scim, clock, meter))


class ManualTarget:
    """A `ports.Target` that only proves."""

    def __init__(self, settings: ManualSettings, probe: ScimProbe) -> None:
        self._system = f"target:{settings.name}"
        self._probe = probe
        self._capabilities = TargetCapabilities(
            live_keys=settings.live_keys,
            mint=By.PERSON,
            revoke=False,
            lists=False,
            labels=False,
            min_settle=settings.min_settle,
        )

    @property
    def capabilities(self) -> TargetCapabilities:
        return self._capabilities

    def mint(self, label: str, value: Secret | None = None) -> Minted:
        del label, value
        raise self._by_hand("issuing a key", "Leave a key from its admin console in the hand-off path")

    def list_keys(self) -> tuple[KeyInfo, ...]:
        raise self._by_hand("listing keys", "Look in its admin console")

    def revoke(self, key_id: str) -> None:
        del key_id
        raise self._by_hand("revoking a key", "Revoke it in its admin console; the rotator notices")

    def probe(self, key: Secret, probe: Probe) -> ProbeResult:
        return self._probe(key, probe)

    def _by_hand(self, doing: str, fix: str) -> errors.Unsupported:
        return errors.Unsupported(doing, system=self._system, detail="only a person can do this here", fix=fix)
