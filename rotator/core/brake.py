"""The brake: consecutive failures at one IdP or target stop new rotations there, so that one cause spoils few keys.

It is computed from the endings in the state records, so a restart or a second replica comes to the same answer, and
nothing has to be stored or released.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from rotator.core.model import Outcome


class Scope(StrEnum):
    """What a brake stops: every connection at this side."""

    IDP = "idp"
    TARGET = "target"


@dataclass(frozen=True, slots=True)
class Engaged:
    """A brake that is on, until the given time."""

    scope: Scope
    name: str
    until: datetime


class Ending(Protocol):
    """How a rotation ended; `rotator.core.model.Ended` is one."""

    @property
    def ended_at(self) -> datetime: ...
    @property
    def outcome(self) -> Outcome: ...


def engaged(endings: Iterable[Ending], after: int, cooldown: float, now: datetime) -> datetime | None:
    """Until when the brake is on, given the endings at one IdP or one target; None when it is off.

    It engages when the `after` newest endings all failed (rolled back or stuck), for `cooldown` seconds from the
    newest of them. Then rotations start again: the next failure engages it anew, the first success releases it.
    Cancelled rotations changed nothing and count for neither side. With one ending per connection (the record's
    `last`), one connection that fails again and again does not stop the others; its own backoff slows it.
    `after` below 1 means no brake.
    """
    if after < 1:
        return None
    told = (ending for ending in endings if ending.outcome is not Outcome.CANCELLED)
    newest = sorted(told, key=lambda ending: ending.ended_at, reverse=True)[:after]
    if len(newest) < after or any(ending.outcome is Outcome.ROTATED for ending in newest):
        return None
    until = newest[0].ended_at + timedelta(seconds=cooldown)
    return until if until > now else None
