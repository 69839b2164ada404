"""KV version 2 below one prefix: reads, and check-and-set writes whose lost answers are settled.

Keeps I4. Every write carries an attempt id in its data. When its answer is lost, or a conflict might be with ourselves,
the version it would have made is read back: ours, somebody else's, or not there (then the same write is sent once more,
which check-and-set makes harmless). What stays unknown is Ambiguous.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rotator.adapters.vault import VaultClient
from rotator.adapters.vault_errors import SYSTEM
from rotator.adapters.vault_session import LostError
from rotator.adapters.vault_wire import Answer
from rotator.core.secret import Secret
from rotator.errors import Ambiguous, Conflict, Misconfigured, PortError

ATTEMPT = "attempt"  # the field of every version's data that names the write that made it


@dataclass(frozen=True, slots=True)
class Version:
    """One version; `data` is None where it was deleted or destroyed (its number goes on counting)."""

    number: int
    data: Mapping[str, Any] | None


class _Landed(Enum):
    OURS = "ours"
    FOREIGN = "foreign"
    NOWHERE = "nowhere"
    UNKNOWN = "unknown"  # that version is deleted, destroyed or pruned


class KeyValue:
    """The secrets below `mount/prefix`. Paths are relative to the prefix. Thread-safe.

    `operation` is the meter's word for a call, `doing` its words for a person.
    """

    def __init__(self, client: VaultClient, mount: str, prefix: str) -> None:
        self._client = client
        self.mount = mount.strip("/")
        self.prefix = prefix.strip("/")

    def path(self, folder: str, name: str) -> str:
        """`prefix/folder/name`; Misconfigured for a name that would leave its folder."""
        if not name or name in (".", "..") or "/" in name or name != name.strip() or not name.isprintable():
            raise Misconfigured(
                f"find {folder}/ in Vault", system=SYSTEM, detail=f"{name!r} can't be a name there", fix="Rename it"
            )
        return "/".join(part for part in (self.prefix, folder, name) if part)

    def read(self, operation: str, doing: str, path: str, version: int | None = None) -> Version | None:
        """One request: the given or newest version; None when it never was, or was pruned."""
        answer = self._client.call(
            operation,
            doing,
            lambda vault: vault.secrets.kv.v2.read_secret_version(
                path, version=version, mount_point=self.mount, raise_on_deleted_version=True
            ),
            path=f"{self.mount}/data/{path}",
            needs="read",
        )
        data = answer.body.get("data")
        if answer.status == 404 and not isinstance(data, dict):
            return None
        number = _at(data, "metadata", "version")
        content = _at(data, "data")
        if not isinstance(number, int) or not (isinstance(content, dict) or content is None):
            raise self._not_kv2(doing)
        return Version(number, content)

    def write(
        self, operation: str, doing: str, path: str, data: Mapping[str, Any], *, cas: int, hide: tuple[Secret, ...] = ()
    ) -> int:
        """CHANGES. The new version; one request unless something goes wrong. Conflict, or Ambiguous, as the ports say."""
        attempt = secrets.token_hex(8)
        content = {**data, ATTEMPT: attempt}

        def send(vault: Any) -> Any:
            return vault.secrets.kv.v2.create_or_update_secret(path, content, cas=cas, mount_point=self.mount)

        lost = ""
        with self._client.within():
            for _ in range(2):
                try:
                    answer = self._client.call(
                        operation,
                        doing,
                        send,
                        path=f"{self.mount}/data/{path}",
                        needs="create and update",
                        write=True,
                        hide=hide,
                    )
                except LostError as error:
                    lost = error.detail
                except Conflict:
                    landed = self._landed(doing, path, cas, attempt)
                    if landed is _Landed.OURS:  # an earlier sending of it arrived after all
                        return cas + 1
                    if lost and landed is not _Landed.FOREIGN:
                        # deleted meanwhile, or a standby behind the node that refused us
                        raise Ambiguous(doing, system=SYSTEM, detail=f"{lost}, and its version can't be read") from None
                    raise
                except PortError as error:
                    if not lost:
                        raise
                    raise Ambiguous(doing, system=SYSTEM, detail=f"{lost}, then {error.detail}") from None
                else:
                    number = _at(answer.body, "data", "version")
                    if not isinstance(number, int):
                        raise self._not_kv2(doing)
                    return number
                landed = self._landed(doing, path, cas, attempt)
                if landed is _Landed.OURS:
                    return cas + 1
                if landed is _Landed.FOREIGN:
                    raise Conflict(doing, system=SYSTEM, detail="somebody else wrote it")
                if landed is _Landed.UNKNOWN:
                    break
        raise Ambiguous(doing, system=SYSTEM, detail=lost)

    def _landed(self, doing: str, path: str, cas: int, attempt: str) -> _Landed:
        """Where our write went, by what lies in the version it would have made. Ambiguous when that can't be read."""
        try:
            there = self.read("settle", doing, path)
            if there is not None and there.number > cas + 1:  # somebody wrote after it
                there = self.read("settle", doing, path, cas + 1) or Version(cas + 1, None)
        except PortError as error:
            raise Ambiguous(doing, system=SYSTEM, detail=f"its read-back failed: {error.detail}") from None
        if there is None or there.number <= cas:
            return _Landed.NOWHERE
        if there.data is None:
            return _Landed.UNKNOWN
        return _Landed.OURS if there.data.get(ATTEMPT) == attempt else _Landed.FOREIGN

    def destroy(self, operation: str, doing: str, path: str, versions: tuple[int, ...]) -> None:
        """CHANGES. Destroys these versions; those already gone, or never there, are no error."""
        self._repeatable(
            operation,
            doing,
            lambda vault: vault.secrets.kv.v2.destroy_secret_versions(path, list(versions), mount_point=self.mount),
            path=f"{self.mount}/destroy/{path}",
        )

    def require_cas(self, doing: str, path: str) -> None:
        """CHANGES. From now on Vault refuses writes to `path` that carry no version."""
        self._repeatable(
            "require_cas",
            doing,
            lambda vault: vault.secrets.kv.v2.update_metadata(path, mount_point=self.mount, cas_required=True),
            path=f"{self.mount}/metadata/{path}",
            optional=True,
        )

    def _repeatable(
        self, operation: str, doing: str, send: Callable[[Any], Any], *, path: str, optional: bool = False
    ) -> None:
        """A change that may be made twice: sent once more when its answer is lost."""
        lost = ""
        with self._client.within():
            for _ in range(2):
                try:
                    answer = self._client.call(
                        operation, doing, send, path=path, needs="create and update", write=True, optional=optional
                    )
                except LostError as error:
                    lost = error.detail
                else:
                    if answer.status == 404:
                        raise self._not_kv2(doing)
                    return
        raise Ambiguous(doing, system=SYSTEM, detail=lost)

    def metadata(self, operation: str, doing: str, path: str) -> Mapping[str, Any] | None:
        """One request: version numbers and limits of a secret, without its values; None when it never was."""
        answer = self._client.call(
            operation,
            doing,
            lambda vault: vault.secrets.kv.v2.read_secret_metadata(path, mount_point=self.mount),
            path=f"{self.mount}/metadata/{path}",
            needs="read",
        )
        return self._data(answer, doing)

    def config(self, operation: str, doing: str) -> Mapping[str, Any] | None:
        """One request: the mount's own limits. Denied raises at once: this right is an optional one."""
        answer = self._client.call(
            operation,
            doing,
            lambda vault: vault.secrets.kv.v2.read_configuration(mount_point=self.mount),
            path=f"{self.mount}/config",
            needs="read",
            optional=True,
        )
        return self._data(answer, doing)

    def names(self, operation: str, doing: str, folder: str) -> tuple[str, ...]:
        """One request: the secrets directly in a folder, sorted."""
        inner = "/".join(part for part in (self.prefix, folder) if part)
        answer = self._client.call(
            operation,
            doing,
            lambda vault: vault.secrets.kv.v2.list_secrets(inner, mount_point=self.mount),
            path=f"{self.mount}/metadata/{inner}/",
            needs="list",
        )
        data = self._data(answer, doing)
        keys = data.get("keys") if data is not None else []
        if not isinstance(keys, list):
            raise self._not_kv2(doing)
        return tuple(sorted(str(key) for key in keys if not str(key).endswith("/")))

    def _data(self, answer: Answer, doing: str) -> Mapping[str, Any] | None:
        if answer.status == 404:
            return None
        data = answer.body.get("data")
        if not isinstance(data, dict):
            raise self._not_kv2(doing)
        return data

    def _not_kv2(self, doing: str) -> Misconfigured:
        return Misconfigured(
            doing,
            system=SYSTEM,
            detail=f"{self.mount}/ does not answer as a KV version 2 mount",
            fix="Point [vault] mount at a KV mount of version 2",
        )


def _at(value: object, *keys: str) -> object:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
