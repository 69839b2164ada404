"""What the Vault tests share: a meter that remembers, and clients for a server."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from rotator.adapters.vault import VaultClient, VaultSettings
from rotator.adapters.vault_auth import TokenAuth
from rotator.core.secret import Secret
from rotator.ports import Clock
from tests.fakes.clock import FakeClock


class Calls:
    """implements ports.Meter: every call as (operation, result)."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def call(self, system: str, operation: str, result: str, seconds: float) -> None:
        assert system == "vault"
        self.seen.append((operation, result))

    def rate_limit(self, idp: str, bucket: str, remaining: float) -> None:
        raise AssertionError("Vault has no buckets")

    def since(self, mark: int) -> list[tuple[str, str]]:
        return self.seen[mark:]


def client(
    address: str, token: str, *, meter: Calls | None = None, clock: Clock | None = None, **settings: Any
) -> VaultClient:
    """A client with a token, and a clock that stands still."""
    auth = TokenAuth(lambda: Secret(token))
    return VaultClient(
        replace(VaultSettings(address, auth), **settings), clock or FakeClock(), meter if meter is not None else Calls()
    )


class SteadyClock:
    """implements ports.Clock with the machine's own time, where real sockets have to time out."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float) -> bool:
        raise AssertionError("no adapter waits")
