"""The typed errors that leave an adapter; nothing else may (a contract test holds every adapter to it).

Adapters translate their library's errors into these and never retry. Only the engine retries, waits, rolls back or
stops. No error carries key material or a body that may hold some (I5): raise `from None` where the cause might.

Each says what was being done (`doing`), with which system (`system`), what came back (`detail`) and, where a person
can do something, what (`fix`). What is true now and what happens next is the engine's to say: it knows the phase.
"""

from __future__ import annotations

from datetime import datetime


class PortError(Exception):
    """What a port may raise. Use the subclasses."""

    def __init__(self, doing: str, *, system: str, detail: str = "", fix: str = "") -> None:
        self.doing = doing
        self.system = system
        self.detail = detail
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.doing} ({self.system})"
        if self.detail:
            text += f": {self.detail}"
        if self.fix:
            text += f". {self.fix}"
        return text


class Transient(PortError):
    """The system is down, slow or refuses for now, and nothing was changed by this call."""

    def __init__(
        self, doing: str, *, system: str, detail: str = "", fix: str = "", retry_after: float | None = None
    ) -> None:
        self.retry_after = retry_after  # seconds from now, when the system named them
        super().__init__(doing, system=system, detail=detail, fix=fix)


class RateLimited(PortError):
    """Turned away by a limit, or held back by our own budget before sending. Nothing was changed."""

    def __init__(
        self, doing: str, *, system: str, detail: str = "", fix: str = "", reset_at: datetime | None = None
    ) -> None:
        self.reset_at = reset_at  # UTC on our clock; already corrected for the server's skew
        super().__init__(doing, system=system, detail=detail, fix=fix)


class Denied(PortError):
    """Our own credential was refused or lacks a right. Says nothing about the rotated key."""


class NotFound(PortError):
    """The thing addressed does not exist (or is hidden from us)."""


class Conflict(PortError):
    """A check-and-set write lost against another writer, or a name or slot is taken."""


class Refused(PortError):
    """The rotated key itself was refused. The only error that speaks about the key."""


class Ambiguous(PortError):
    """Sent, outcome unknown: the change may or may not have been applied."""


class Unsupported(PortError):
    """The system can't do this at all, for this app or in this edition."""


class Misconfigured(PortError):
    """Our request can't be right: wrong URL, wrong shape of answer, a certificate that does not fit."""
