"""Our Vault token: got at the first call, renewed at two thirds of its lease, replaced when renewing no longer helps."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from rotator.adapters.vault_auth import Auth, TokenAuth, login
from rotator.adapters.vault_errors import SYSTEM
from rotator.adapters.vault_wire import Answer, Wire
from rotator.core.secret import Secret
from rotator.errors import Denied, Misconfigured
from rotator.ports import Clock

_FRESH = 5.0  # seconds; a token that young was not refused for its age: signing in again would only be repeated


@dataclass(frozen=True, slots=True)
class Lease:
    """A token and how long it lasts; `granted` None means for ever, or unknown."""

    vault: Any  # hvac.Client with this token
    token: Secret
    obtained: float  # monotonic
    granted: float | None
    expires_at: datetime | None
    renewable: bool
    renew_at: float | None  # monotonic


class Tokens:
    """Thread-safe: one lock around signing in and renewing, none around using the token."""

    def __init__(self, auth: Auth, wire: Wire, clock: Clock) -> None:
        self._auth = auth
        self._wire = wire
        self._clock = clock
        self._lock = threading.Lock()
        self._lease: Lease | None = None

    @property
    def expires_at(self) -> datetime | None:
        lease = self._lease
        return lease.expires_at if lease else None

    def current(self) -> Lease:
        """The token to use now; signs in when there is none. Raises rotator.errors."""
        lease = self._lease
        if lease is not None:
            return lease
        with self._lock:
            if self._lease is None:
                self._lease = self._sign_in()
            return self._lease

    def other_than(self, refused: Lease) -> Lease | None:
        """A token other than the refused one, or None when there is none to be had."""
        with self._lock:
            if self._lease is not refused and self._lease is not None:
                return self._lease  # another thread was faster
            now = self._clock.monotonic()
            expired = refused.granted is not None and now - refused.obtained >= refused.granted
            if now - refused.obtained < _FRESH and not expired:
                return None
            lease = self._sign_in()
            if lease.token.same_as(refused.token):
                return None
            self._lease = lease
            return lease

    def renew(self) -> None:
        """Renews when it is time to. Raises rotator.errors; the token then stays as it was."""
        lease = self.current()
        with self._lock:
            if self._lease is lease and lease.renew_at is not None and self._clock.monotonic() >= lease.renew_at:
                self._renew(lease)

    def _sign_in(self) -> Lease:
        auth = self._auth
        if isinstance(auth, TokenAuth):
            return self._take_token(auth.token())
        attempt = login(auth)
        doing = f"sign in by {type(auth).__name__.removesuffix('Auth')}"
        outcome = self._wire.send("login", doing, attempt.send, self._wire.client(None), hide=(attempt.secret,))
        if isinstance(outcome, Denied) or (isinstance(outcome, Misconfigured) and outcome.detail.startswith("400")):
            # a wrong, exhausted or expired secret id and a JWT that doesn't fit are 400, not 403 (seen on OpenBao 2.7)
            fix = "Check the role, its secret id or JWT, and the mount of the auth method"
            outcome = Denied(doing, system=SYSTEM, detail=outcome.detail, fix=fix)
        if not isinstance(outcome, Answer):
            raise outcome
        granted = outcome.body.get("auth")
        token = granted.get("client_token") if isinstance(granted, dict) else None
        if not isinstance(granted, dict) or not isinstance(token, str) or not token:
            raise Misconfigured(doing, system=SYSTEM, detail="the answer holds no token")
        return self._lease_of(Secret(token), granted.get("lease_duration"), renewable=bool(granted.get("renewable")))

    def _take_token(self, token: Secret) -> Lease:
        lease = self._lease_of(token, None, renewable=True)
        doing = "look up our own token"
        outcome = self._wire.send("lookup", doing, lambda vault: vault.auth.token.lookup_self(), lease.vault)
        if isinstance(outcome, Denied):  # no right to, or a dead token: the next call tells
            return replace(lease, renew_at=self._clock.monotonic())
        if not isinstance(outcome, Answer):
            raise outcome
        data = outcome.body.get("data")
        data = data if isinstance(data, dict) else {}
        return self._lease_of(token, data.get("ttl"), renewable=bool(data.get("renewable")))

    def _lease_of(self, token: Secret, seconds: object, *, renewable: bool, vault: Any = None) -> Lease:
        now = self._clock.monotonic()
        granted = float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None
        return Lease(
            vault=vault or self._wire.client(token),
            token=token,
            obtained=now,
            granted=granted,
            expires_at=None if granted is None else self._clock.now() + timedelta(seconds=granted),
            renewable=renewable,
            renew_at=None if granted is None else now + granted * 2 / 3,
        )

    def _renew(self, lease: Lease) -> None:
        if not lease.renewable:
            self._replace(lease)
            return
        outcome = self._wire.send("renew", "renew our token", lambda vault: vault.auth.token.renew_self(), lease.vault)
        if isinstance(outcome, Denied | Misconfigured):
            self._replace(lease)
            return
        if not isinstance(outcome, Answer):
            raise outcome
        granted = outcome.body.get("auth")
        seconds = granted.get("lease_duration") if isinstance(granted, dict) else None
        renewed = self._lease_of(lease.token, seconds, renewable=True, vault=lease.vault)
        self._lease = renewed
        # past its max TTL a renewal succeeds with a shorter lease, and then comes 403 (seen on OpenBao 2.7)
        if lease.granted is not None and renewed.granted is not None and renewed.granted < lease.granted - 1:
            self._replace(renewed)

    def _replace(self, lease: Lease) -> None:
        """Sign in anew; where that gives the same token back, look again later, while it lives."""
        fresh = self._sign_in()
        if fresh.token.same_as(lease.token):
            now = self._clock.monotonic()
            ends = None if lease.granted is None else lease.obtained + lease.granted
            fresh = replace(lease, renew_at=None if ends is None else now + max((ends - now) / 3, 1.0))
        self._lease = fresh
