"""State records and heartbeats in Vault: the StateStore port on KV v2, every write a check-and-set (I4).

A deleted or unreadable record is never taken for "none": that would let a second rotation begin over an open one (I3).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from rotator.adapters.vault import VaultClient
from rotator.adapters.vault_errors import SYSTEM
from rotator.adapters.vault_kv import KeyValue
from rotator.core.codec import decode, encode
from rotator.core.model import Record
from rotator.errors import Misconfigured, PortError
from rotator.ports import Heartbeat

_STATE = "state"
_INSTANCES = "instances"


class VaultStateStore:
    """implements ports.StateStore below `mount/prefix`. Thread-safe."""

    def __init__(self, client: VaultClient, mount: str, prefix: str) -> None:
        self._client = client
        self._kv = KeyValue(client, mount, prefix)

    def load(self, connection: str) -> tuple[Record, int] | None:
        doing = f"read the state record of {connection}"
        path = self._kv.path(_STATE, connection)
        found = self._kv.read("load_state", doing, path)
        if found is None:
            return None
        if found.data is None:
            raise Misconfigured(
                doing,
                system=SYSTEM,
                detail=f"version {found.number} was deleted by hand",
                fix=f"bao kv undelete -mount={self._kv.mount} -versions={found.number} {path}; if it was destroyed,"
                f" delete the metadata of {path} to begin without a history",
            )
        try:
            record = decode(_object(found.data.get("record")))
        except ValueError as error:
            raise Misconfigured(doing, system=SYSTEM, detail=str(error)) from None
        if record.connection != connection:
            raise Misconfigured(doing, system=SYSTEM, detail=f"it is the record of {record.connection!r}")
        return record, found.number

    def save(self, record: Record, version: int) -> int:
        doing = f"write the state record of {record.connection}"
        path = self._kv.path(_STATE, record.connection)
        try:
            data = encode(record)
        except ValueError as error:
            raise Misconfigured(doing, system=SYSTEM, detail=str(error)) from None
        written = self._kv.write("save_state", doing, path, {"record": data}, cas=version)
        if version == 0:
            # guards the record against a person's plain write; ours carry the version with or without it, and this one
            # has been made: so no failure here may say otherwise
            with contextlib.suppress(PortError):
                self._kv.require_cas(f"guard the state record of {record.connection}", path)
        return written

    def names(self) -> tuple[str, ...]:
        return self._kv.names("list_states", "list the state records", _STATE)

    def beat(self, heartbeat: Heartbeat) -> int:
        data = {
            "instance": heartbeat.instance,
            "beat": heartbeat.beat,
            "lease": heartbeat.lease,
            "open": list(heartbeat.open),
            "stopped": heartbeat.stopped,
        }
        path = self._kv.path(_INSTANCES, heartbeat.instance)
        return self._kv.write("beat", f"write the heartbeat of {heartbeat.instance}", path, data, cas=heartbeat.version)

    def beats(self) -> tuple[Heartbeat, ...]:
        doing = "read the heartbeats"
        beats = []
        for name in self._kv.names("list_beats", doing, _INSTANCES):
            found = self._kv.read("read_beat", doing, self._kv.path(_INSTANCES, name))
            if found is not None and found.data is not None:
                beats.append(_heartbeat(found.data, found.number, f"read the heartbeat {name}"))
        return tuple(beats)

    def skew(self) -> float | None:
        return self._client.skew


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("record: missing")  # noqa: TRY004  # one error for stored text that can't be right
    return value


def _heartbeat(data: Mapping[str, Any], version: int, doing: str) -> Heartbeat:
    """Fields of a newer rotator are passed over: an instance that we took for silent would be robbed of its rotations."""
    match data:
        case {
            "instance": str(instance),
            "beat": int(beat),
            "lease": int() | float() as lease,
            "open": list(names),
            "stopped": bool(stopped),
        }:
            return Heartbeat(instance, beat, float(lease), tuple(map(str, names)), stopped, version)
    raise Misconfigured(doing, system=SYSTEM, detail="it is no heartbeat", fix="Remove it if no rotator wrote it")
