"""How much of an IdP's rate limit is left, per bucket, so that a call that would be turned away is never sent.

    budget = RateBudget(idp="acme", system="okta:acme", clock=…, meter=…)
    budget.before("apps", doing="…", urgent=False, who=app_id)   raises RateLimited; else one call is booked
    budget.after("apps", answer)                                 learns from the headers of every answer
    budget.turned_away("apps", answer, doing="…", who=app_id)    -> RateLimited for a 429

Okta counts in fixed windows of a minute that begin at the first call, and names limit, remaining and reset on each
answer (Okta docs: Rate limits). A few calls are kept back from those that are not urgent, so that a rotation that has
pushed, whose IdP may hold an unproved key, is never starved by ones that have not begun (I1).
"""

from __future__ import annotations

import threading
import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from rotator import errors
from rotator.adapters.http import HttpAnswer, retry_after
from rotator.ports import Clock, Meter

WINDOW = 60.0  # seconds
LONGEST_WAIT = 65.0  # a window, and a little for clocks; no header can make us wait longer
CROWDED = 2.0  # first wait after a concurrency 429: requests in flight end within seconds
JITTER = 3.0  # over which those who wait for the same reset spread
RESERVE = 3  # calls kept back for the urgent: a rotation reads, compares features and may push again after its push


@dataclass(slots=True)
class _Bucket:
    limit: int
    remaining: int  # what we may still send, calls in flight already taken off
    ends: datetime  # the window's end on our clock
    in_flight: int = 0


class RateBudget:
    """The budgets of one IdP, shared by all threads and connections."""

    def __init__(self, *, idp: str, system: str, clock: Clock, meter: Meter, reserve: int = RESERVE) -> None:
        self._idp = idp
        self._system = system
        self._clock = clock
        self._meter = meter
        self._reserve = reserve
        self._buckets: dict[str, _Bucket] = {}
        self._crowded_until: datetime | None = None
        self._lock = threading.Lock()

    def before(self, bucket: str, *, doing: str, urgent: bool, who: str = "") -> None:
        """Book one call, or raise RateLimited with the time to come back. Nothing was sent then."""
        now = self._clock.now()
        with self._lock:
            if not urgent and self._crowded_until is not None and now < self._crowded_until:
                raise self._limited(doing, f"{bucket}: too many calls in flight", self._crowded_until, who)
            known = self._buckets.get(bucket)
            if known is None:
                return
            if not now < known.ends <= now + timedelta(seconds=LONGEST_WAIT + 1):  # over, or our clock jumped
                known.remaining = known.limit - known.in_flight
                known.ends = now + timedelta(seconds=WINDOW)
            kept = 0 if urgent else min(self._reserve, known.limit // 3)
            if known.remaining <= kept:
                what = "used up" if known.remaining <= 0 else f"{known.remaining} left, kept for rotations under way"
                raise self._limited(doing, f"{bucket}: of {known.limit} calls a minute {what}", known.ends, who)
            known.remaining -= 1
            known.in_flight += 1

    def after(self, bucket: str, answer: HttpAnswer) -> None:
        """Learn from an answer, good or bad. Answers may arrive in another order than they were counted in."""
        limit, remaining = _number(answer, "x-rate-limit-limit"), _number(answer, "x-rate-limit-remaining")
        if limit is None or remaining is None or limit == 0:  # 0: a concurrency 429 says nothing about the bucket
            return
        ends = answer.received_at + timedelta(seconds=_wait(answer))
        with self._lock:
            known = self._buckets.get(bucket)
            if known is None:
                known = self._buckets[bucket] = _Bucket(limit, remaining, ends)
            else:
                known.in_flight = max(known.in_flight - 1, 0)
                same_window = abs((ends - known.ends).total_seconds()) <= 2.0  # Date and reset are whole seconds
                known.remaining = min(known.remaining, remaining) if same_window else remaining - known.in_flight
                known.limit, known.ends = limit, ends
        self._meter.rate_limit(self._idp, bucket, float(remaining))

    def lost(self, bucket: str) -> None:
        """A booked call ended without an answer: it no longer is in flight, but it may have been counted."""
        with self._lock:
            known = self._buckets.get(bucket)
            if known is not None:
                known.in_flight = max(known.in_flight - 1, 0)

    def turned_away(self, bucket: str, answer: HttpAnswer, *, doing: str, who: str = "") -> errors.RateLimited:
        """What a 429 means; `after` has read it already."""
        if _number(answer, "x-rate-limit-limit") == 0 and _number(answer, "x-rate-limit-remaining") == 0:
            # Okta docs: on a concurrency 429 both are 0 and reset is only a hint
            until = answer.received_at + timedelta(seconds=CROWDED)
            with self._lock:
                self._crowded_until = until
            return self._limited(doing, f"{bucket}: too many calls in flight (HTTP 429)", until, who)
        until = answer.received_at + timedelta(seconds=_wait(answer))
        return self._limited(doing, f"{bucket}: turned away by the rate limit (HTTP 429)", until, who)

    def _limited(self, doing: str, detail: str, until: datetime, who: str) -> errors.RateLimited:
        """Jitter is by connection and window, not random: replicas and restarts agree, connections spread."""
        spread = zlib.crc32(f"{who} {int(until.timestamp()) // 60}".encode()) / 2**32 * JITTER
        return errors.RateLimited(
            doing, system=self._system, detail=detail, reset_at=until + timedelta(seconds=round(spread, 1))
        )


def _wait(answer: HttpAnswer) -> float:
    """Seconds until the window ends, by the server's clock: reset − Date + 1, since both are whole seconds."""
    reset = _number(answer, "x-rate-limit-reset")
    if reset is None:
        told = retry_after(answer)  # Okta sends none; a gateway in front may
        return min(WINDOW if told is None else told + 1.0, LONGEST_WAIT)
    return min(max(reset - (answer.date or answer.received_at).timestamp() + 1.0, 1.0), LONGEST_WAIT)


def _number(answer: HttpAnswer, name: str) -> int | None:
    text = answer.header(name).partition(",")[0].strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else None
