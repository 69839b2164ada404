"""The client that all of the rotator's Vault work goes through: signs in, keeps its token alive, makes one call at a time.

Start here; the siblings, from the outside in: vault_keys and vault_state (the two ports), vault_kv (KV v2 with settled
writes), vault_token and vault_auth (signing in), vault_wire and vault_session (one request), vault_errors (what answers
mean).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rotator.adapters.vault_auth import Auth
from rotator.adapters.vault_errors import SYSTEM
from rotator.adapters.vault_session import VaultSession
from rotator.adapters.vault_token import Lease, Tokens
from rotator.adapters.vault_wire import Answer, Wire
from rotator.core.secret import Secret
from rotator.errors import Denied, Misconfigured, NotFound
from rotator.ports import Clock, Meter

# The meter's words of this client and of all that goes through it.
OPERATIONS = (
    *("login", "lookup", "renew", "capabilities", "read_field"),
    *("read_key", "write_key", "read_version", "destroy_key", "check"),
    *("load_state", "save_state", "require_cas", "list_states", "beat", "list_beats", "read_beat"),
    "settle",
)


@dataclass(frozen=True, slots=True)
class VaultSettings:
    """Where Vault is and who we are there. Times in seconds; `deadline` bounds one call with its sign-in and settling."""

    address: str
    auth: Auth
    namespace: str | None = None
    ca_file: str | None = None
    client_cert: tuple[str, str] | None = None  # certificate and key files
    connect_timeout: float = 3.0
    read_timeout: float = 10.0
    deadline: float = 25.0
    pool_size: int = 36


class VaultClient:
    """Thread-safe. Signs in at the first call; `renew()` belongs into a job that runs every few seconds."""

    def __init__(self, settings: VaultSettings, clock: Clock, meter: Meter) -> None:
        session = VaultSession(
            clock=clock,
            verify=settings.ca_file or True,
            cert=settings.client_cert,
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
            pool_size=settings.pool_size,
        )
        self._wire = Wire(
            address=settings.address,
            namespace=settings.namespace,
            cert=settings.client_cert,
            session=session,
            deadline=settings.deadline,
            clock=clock,
            meter=meter,
        )
        self._tokens = Tokens(settings.auth, self._wire, clock)

    @property
    def token_expires_at(self) -> datetime | None:
        """When our token dies unless renewed; None before the first sign-in, when it never does, or when Vault won't say."""
        return self._tokens.expires_at

    @property
    def skew(self) -> float | None:
        """Seconds by which Vault's clock was ahead of ours at its last answer; None before the first."""
        return self._wire.skew

    def login(self) -> None:
        """Sign in, if that was not done. Denied, Misconfigured or what a call may raise."""
        with self.within():
            self._tokens.current()

    def renew(self) -> None:
        """Renew the token once two thirds of its lease are gone; sign in again where renewing no longer helps.

        Raises what a call may raise; the token stays as it was, and the next call of this method tries again.
        """
        with self.within():
            self._tokens.renew()

    def call(
        self,
        operation: str,
        doing: str,
        send: Callable[[Any], Any],
        *,
        path: str,
        needs: str,
        write: bool = False,
        hide: tuple[Secret, ...] = (),
        optional: bool = False,
    ) -> Answer:
        """One request: `send` gets an hvac client. On 403 signs in again once and repeats.

        `operation` is the meter's word, `path` and `needs` name the policy's rule in an error, `hide` are secrets in the
        request. `optional`: a refusal is no reason to sign in again. Raises rotator.errors, and LostError only for a
        `write` whose outcome is unknown.
        """
        with self.within():
            lease = self._tokens.current()
            outcome = self._wire.send(operation, doing, send, lease.vault, write=write, hide=(*hide, lease.token))
            if isinstance(outcome, Denied) and not optional:
                newer = self._tokens.other_than(lease)
                if newer is not None:
                    lease = newer
                    outcome = self._wire.send(
                        operation, doing, send, lease.vault, write=write, hide=(*hide, lease.token)
                    )
                if isinstance(outcome, Denied):
                    outcome = self._explain_denied(outcome, doing, lease, path, needs)
        if isinstance(outcome, Answer):
            return outcome
        raise outcome

    def within(self) -> AbstractContextManager[None]:
        """All calls of this thread inside share one total deadline (a settled write is one call)."""
        return self._wire.within()

    def read_field(self, path: str, field: str) -> Secret:
        """One field of a KV v2 secret, for a reference `vault:mount/path#field`; `path` is `mount/path`.

        Raises NotFound when the path or the field is absent.
        """
        mount, _, inner = path.strip("/").partition("/")
        doing = f"read the secret {path}#{field}"
        if not inner:
            raise Misconfigured(doing, system=SYSTEM, detail="a path is mount/path")
        answer = self.call(
            "read_field",
            doing,
            lambda vault: vault.secrets.kv.v2.read_secret_version(
                inner, mount_point=mount, raise_on_deleted_version=True
            ),
            path=f"{mount}/data/{inner}",
            needs="read",
        )
        data = answer.body.get("data")
        values = data.get("data") if isinstance(data, dict) else None
        value = values.get(field) if isinstance(values, dict) else None
        if not isinstance(value, str) or not value:
            raise NotFound(doing, system=SYSTEM, detail="the path or the field is not there, or is empty")
        return Secret(value)

    def _explain_denied(self, denied: Denied, doing: str, lease: Lease, path: str, needs: str) -> Denied:
        """Names the rule that is missing, and what the token may do there if Vault lets us ask."""
        asked = self._wire.send(
            "capabilities", "ask what our token may do", lambda vault: vault.sys.get_capabilities([path]), lease.vault
        )
        has = ""
        if isinstance(asked, Answer):
            data = asked.body.get("data")
            listed = data.get("capabilities") if isinstance(data, dict) else None
            if isinstance(listed, list):
                has = f"; our token has {', '.join(map(str, listed))} there"
        return Denied(
            doing,
            system=SYSTEM,
            detail=f"{denied.detail}; needs {needs} on {path}{has}",
            fix=f"Add {needs} on {path} to the policy, or check that the token still lives",
        )
