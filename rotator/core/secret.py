"""A secret value that can't be printed, compared, hashed or pickled by accident (I5).

The only ways out are `reveal()`, which is easy to search for, and `fingerprint`, which is safe to show.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NoReturn

FINGERPRINT_DIGITS = 12


def fingerprint(value: str) -> str:
    """The first 12 hex digits of the value's SHA-256: how a key is named outside Vault (I5)."""
    return hashlib.sha256(value.encode()).hexdigest()[:FINGERPRINT_DIGITS]


class Secret:
    """Holds one string. `reveal()` gives it out; everything else refuses or masks."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself. Call it only where it goes to Vault or onto a TLS connection."""
        return self._value

    @property
    def fingerprint(self) -> str:
        return fingerprint(self._value)

    def same_as(self, other: Secret) -> bool:
        """Constant-time equality."""
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __repr__(self) -> str:
        return "Secret(**********)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        raise TypeError("secrets are compared with same_as(), in constant time")

    __hash__ = None  # type: ignore[assignment]  # a secret in a set or as a dict key is an accident

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret can't be pickled or copied")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a secret can't be pickled or copied")
