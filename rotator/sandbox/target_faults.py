"""Faults that a test or the demo plants in a sandbox target: the first one whose method and path fit is used up.

A fault strikes before the server acts (the call changes nothing) or after it acted (the change stands and only the
answer is spoiled): the two halves of every lost reply.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Fault:
    """What happens to the calls that it fits."""

    method: str = ".*"  # regular expression, matched in full
    path: str = ".*"  # regular expression, searched for in the path without the query
    times: int | None = 1  # calls still to be struck; None: until cleared
    skip: int = 0  # calls that fit but are let through first
    after: bool = False  # the server acts, and only the answer is replaced
    status: int | None = None  # answer this status; None: leave the answer as it is
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    reset: bool = False  # close the connection with RST instead of an answer
    hang: bool = False  # hold the answer until the fault is cleared or the server stops
    delay: float = 0.0  # seconds added before the answer
    struck: int = 0  # how often it has been used

    def fits(self, method: str, path: str) -> bool:
        return re.fullmatch(self.method, method) is not None and re.search(self.path, path) is not None


class Faults:
    """The planted faults, in order. Safe to use from any thread."""

    def __init__(self) -> None:
        self._planted: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        """Plant a fault; the returned object counts how often it struck."""
        with self._lock:
            self._planted.append(fault)
        return fault

    def take(self, method: str, path: str) -> Fault | None:
        """The fault for this call, used up by one, or None."""
        with self._lock:
            for fault in self._planted:
                if not fault.fits(method, path):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.struck += 1
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self._planted.remove(fault)
                return fault
        return None

    def clear(self) -> None:
        with self._lock:
            self._planted.clear()

    def __len__(self) -> int:
        with self._lock:
            return len(self._planted)
