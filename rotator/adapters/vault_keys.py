"""Keys in Vault: the KeyStore port on KV v2 (I2: what is written stays readable; I5: the only place a key is revealed to
Vault).

One secret per connection and slot. The data of a version holds the key and what names it; a void version holds no key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rotator.adapters.vault import VaultClient
from rotator.adapters.vault_errors import SYSTEM
from rotator.adapters.vault_kv import KeyValue
from rotator.core.secret import Secret
from rotator.errors import Denied, Misconfigured
from rotator.ports import Slot, StoredKey

_LEAST_VERSIONS = 4  # current, previous, a restored one and one to spare
_ENGINE_DEFAULT = 10  # Vault docs, KV v2: max_versions 0 means 10


class VaultKeyStore:
    """implements ports.KeyStore below `mount/prefix`. Thread-safe."""

    def __init__(self, client: VaultClient, mount: str, prefix: str) -> None:
        self._kv = KeyValue(client, mount, prefix)

    def read(self, connection: str, slot: Slot, version: int | None = None) -> StoredKey | None:
        doing = f"read {self.where(connection, slot)}"
        found = self._kv.read("read_key", doing, self._path(connection, slot), version)
        if found is None or found.data is None:
            return None
        return _from_data(found.data, found.number, doing)

    def write(self, connection: str, slot: Slot, key: StoredKey, cas: int) -> int:
        return self._kv.write(
            "write_key",
            f"write {self.where(connection, slot)}",
            self._path(connection, slot),
            _to_data(key),
            cas=cas,
            hide=() if key.key is None else (key.key,),
        )

    def newest(self, connection: str, slot: Slot) -> int:
        doing = f"read the version of {self.where(connection, slot)}"
        metadata = self._kv.metadata("read_version", doing, self._path(connection, slot))
        return int(metadata["current_version"]) if metadata is not None else 0

    def destroy(self, connection: str, slot: Slot, versions: tuple[int, ...]) -> None:
        if versions:
            doing = f"destroy versions of {self.where(connection, slot)}"
            self._kv.destroy("destroy_key", doing, self._path(connection, slot), versions)

    def check(self, connection: str) -> None:
        where = self.where(connection, Slot.CURRENT)
        doing = f"check how many versions {where} keeps"
        own = self._kv.metadata("check", doing, self._path(connection, Slot.CURRENT)) or {}
        try:
            engine = self._kv.config("check", doing)
        except Denied:
            engine = {}  # judged by the secret's own metadata; the mount may belong to another team
        if engine is None:
            raise Misconfigured(
                doing,
                system=SYSTEM,
                detail=f"{self._kv.mount}/ is no KV version 2 mount",
                fix="Point [vault] mount at one",
            )
        # the larger of the two counts (seen on OpenBao 2.7 and the same in Vault's KV source)
        kept = max(_number(engine.get("max_versions")), _number(own.get("max_versions"))) or _ENGINE_DEFAULT
        if kept < _LEAST_VERSIONS:
            raise Misconfigured(
                doing,
                system=SYSTEM,
                detail=f"only {kept} versions are kept, {_LEAST_VERSIONS} are needed",
                fix=f"bao kv metadata put -mount={self._kv.mount} -max-versions=10 {self._path(connection, Slot.CURRENT)}",
            )
        for whose, limits in (("the secret", own), ("the mount", engine)):
            if _lasts(limits.get("delete_version_after")):
                raise Misconfigured(
                    doing,
                    system=SYSTEM,
                    detail=f"{whose} deletes versions by itself after {limits['delete_version_after']}",
                    fix=f"Set delete_version_after=0s on {whose} ({where if limits is own else self._kv.mount})",
                )

    def where(self, connection: str, slot: Slot) -> str:
        return f"{self._kv.mount}/{self._path(connection, slot)}"

    def _path(self, connection: str, slot: Slot) -> str:
        return self._kv.path(slot.value, connection)


def _to_data(key: StoredKey) -> dict[str, str]:
    fields = {
        "key": None if key.key is None else key.key.reveal(),
        "key_id": key.key_id,
        "fingerprint": key.ref_fingerprint or (None if key.key is None else key.key.fingerprint),
        "rotation_id": key.rotation_id,
        "label": key.label,
        "minted_at": _time_text(key.minted_at),
        "expires_at": _time_text(key.expires_at),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _from_data(data: Mapping[str, Any], version: int, doing: str) -> StoredKey:
    """Reads what we wrote, and what a person wrote by hand: only `key` is needed then."""
    texts: dict[str, str | None] = {}
    for name in ("key", "key_id", "fingerprint", "rotation_id", "label", "minted_at", "expires_at"):
        value = data.get(name)
        if value is not None and not isinstance(value, str):
            raise Misconfigured(doing, system=SYSTEM, detail=f"its field {name} is no text", fix="Write it as text")
        texts[name] = value
    key = None if texts["key"] is None else Secret(texts["key"])
    return StoredKey(
        key=key,
        ref_fingerprint=texts["fingerprint"] or (None if key is None else key.fingerprint),
        key_id=texts["key_id"],
        rotation_id=texts["rotation_id"],
        label=texts["label"],
        minted_at=_time(texts["minted_at"], "minted_at", doing),
        expires_at=_time(texts["expires_at"], "expires_at", doing),
        version=version,
    )


def _time_text(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _time(text: str | None, name: str, doing: str) -> datetime | None:
    if text is None:
        return None
    with contextlib.suppress(ValueError, OverflowError):
        time = datetime.fromisoformat(text)
        if time.tzinfo is not None:
            return time.astimezone(UTC)
    raise Misconfigured(
        doing, system=SYSTEM, detail=f"its field {name} is no time", fix="Write it as 2026-01-31T12:00:00Z"
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _lasts(duration: object) -> bool:
    """Whether Vault's duration text ("0s", "1h0m0s", "-1s" for never) is above zero."""
    text = str(duration or "0s")
    return not text.startswith("-") and any(digit in text for digit in "123456789")
