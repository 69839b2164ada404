"""Vault's two ports in memory, held to the same contract suite as the adapters. No faults inside: a test wraps the port."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Generic, TypeVar

from rotator.core.codec import decode, encode
from rotator.core.model import Record
from rotator.errors import Conflict, Misconfigured
from rotator.ports import Heartbeat, Slot, StoredKey

T = TypeVar("T")


@dataclass
class _Secret(Generic[T]):
    """One KV v2 secret: `versions` has the living ones, `newest` counts the dead ones too."""

    versions: dict[int, T] = field(default_factory=dict)
    newest: int = 0

    def write(self, value: T, cas: int, keep: int, doing: str) -> int:
        if cas != self.newest:
            raise Conflict(doing, system="vault", detail="somebody else wrote it")
        self.newest += 1
        self.versions[self.newest] = value
        self.versions.pop(self.newest - keep, None)
        return self.newest


@lru_cache(512)
def _decoded(text: str) -> Record:
    """Records are frozen: the same text may give the same one, and the walk of the core reads each many times."""
    return decode(json.loads(text))


class FakeKeyStore:
    """implements ports.KeyStore. `max_versions` and `delete_version_after` (seconds) are what `check` looks at."""

    def __init__(self, *, max_versions: int = 10, delete_version_after: float = 0) -> None:
        self._lock = threading.Lock()
        self._secrets: dict[tuple[str, Slot], _Secret[StoredKey]] = {}
        self.max_versions = max_versions
        self.delete_version_after = delete_version_after

    def read(self, connection: str, slot: Slot, version: int | None = None) -> StoredKey | None:
        with self._lock:
            secret = self._secret(connection, slot)
            return secret.versions.get(secret.newest if version is None else version)

    def write(self, connection: str, slot: Slot, key: StoredKey, cas: int) -> int:
        named = key.ref_fingerprint or (None if key.key is None else key.key.fingerprint)
        with self._lock:
            stored = replace(key, ref_fingerprint=named, version=cas + 1)
            doing = f"write {self.where(connection, slot)}"
            return self._secret(connection, slot).write(stored, cas, self.max_versions, doing)

    def newest(self, connection: str, slot: Slot) -> int:
        with self._lock:
            return self._secret(connection, slot).newest

    def destroy(self, connection: str, slot: Slot, versions: tuple[int, ...]) -> None:
        with self._lock:
            for version in versions:
                self._secret(connection, slot).versions.pop(version, None)

    def check(self, connection: str) -> None:
        doing = f"check how many versions {self.where(connection, Slot.CURRENT)} keeps"
        if self.max_versions < 4:
            raise Misconfigured(
                doing, system="vault", detail=f"only {self.max_versions} versions are kept, 4 are needed"
            )
        if self.delete_version_after > 0:
            raise Misconfigured(doing, system="vault", detail="versions are deleted by themselves")

    def where(self, connection: str, slot: Slot) -> str:
        return f"secret/rotator/{slot.value}/{connection}"

    def everything(self) -> Mapping[tuple[str, Slot], Mapping[int, StoredKey]]:
        """All living versions, for a test that asserts I2."""
        with self._lock:
            return {place: dict(secret.versions) for place, secret in self._secrets.items()}

    def _secret(self, connection: str, slot: Slot) -> _Secret[StoredKey]:
        return self._secrets.setdefault((connection, slot), _Secret())


class FakeStateStore:
    """implements ports.StateStore. Records pass through JSON, as on their way to Vault. `ahead` is what `skew` says."""

    def __init__(self, *, ahead: float | None = None) -> None:
        self._lock = threading.Lock()
        self._states: dict[str, _Secret[str]] = {}
        self._beats: dict[str, _Secret[Heartbeat]] = {}
        self.ahead = ahead

    def load(self, connection: str) -> tuple[Record, int] | None:
        with self._lock:
            state = self._states.get(connection)
            if state is None:
                return None
            text, version = state.versions[state.newest], state.newest  # of one moment: the number vouches for the text
        return _decoded(text), version

    def save(self, record: Record, version: int) -> int:
        text = json.dumps(encode(record), allow_nan=False)
        with self._lock:
            state = self._states.get(record.connection) or _Secret()
            written = state.write(text, version, 10, f"write the state record of {record.connection}")
            self._states[record.connection] = state
            return written

    def names(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(sorted(self._states))

    def beat(self, heartbeat: Heartbeat) -> int:
        with self._lock:
            beats = self._beats.get(heartbeat.instance) or _Secret()
            stored = replace(heartbeat, version=heartbeat.version + 1)
            written = beats.write(stored, heartbeat.version, 10, f"write the heartbeat of {heartbeat.instance}")
            self._beats[heartbeat.instance] = beats
            return written

    def beats(self) -> tuple[Heartbeat, ...]:
        with self._lock:
            return tuple(beats.versions[beats.newest] for _, beats in sorted(self._beats.items()))

    def skew(self) -> float | None:
        return self.ahead
