"""Who may call the HTTP API, and how often: bearer tokens from a file, roles, a throttle, safe headers (I5).

Tokens are kept as SHA-256 digests only, and compared without telling by time how much of one was right.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import stat
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MIN_TOKEN = 20  # characters; shorter ones can be guessed over the network
_LINE = re.compile(r"(read|operate)[ \t]+(?:sha256:([0-9a-fA-F]{64})|(?!sha256:)([!-~]+))")


class Role(StrEnum):
    READ = "read"
    OPERATE = "operate"  # may do what `read` may, and ask for changes

    def may(self, needed: Role) -> bool:
        return self is Role.OPERATE or needed is Role.READ


class TokenFileError(ValueError):
    """The token file can't be used; names file and line, never what stands there."""


class Tokens:
    """The tokens of a file. Each line: `read TOKEN` or `operate TOKEN`, with `sha256:HEX` in the token's place if the
    file shall not hold it, and may be readable by all; `#` begins a comment. Raises TokenFileError, or OSError when the file can't be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digests = _load(path)

    def reload(self) -> None:
        """Read the file again. What is wrong with it is raised, and the old tokens stay valid."""
        self._digests = _load(self.path)

    def role_of(self, authorization: str | None) -> Role | None:
        """The role of an Authorization header; None when it carries no token of ours."""
        scheme, _, token = (authorization or "").partition(" ")
        presented = hashlib.sha256(token.strip().encode()).digest()
        found = None
        for digest, role in self._digests:  # all of them, so that time does not tell which one matched
            if hmac.compare_digest(digest, presented) and (found is None or role is Role.OPERATE):
                found = role
        return found if scheme.lower() == "bearer" else None


def _load(path: Path) -> tuple[tuple[bytes, Role], ...]:
    mode = path.stat().st_mode
    if mode & stat.S_IWOTH:
        raise TokenFileError(f"{path}: everybody on this host can write the token file; run: chmod o-w {path}")
    digests = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise TokenFileError(
                f"{path}:{number}: expected `read TOKEN` or `operate TOKEN` (or sha256:HEX, 64 digits)"
            )
        role, digest, token = match.groups()
        if token and mode & stat.S_IROTH:
            raise TokenFileError(
                f"{path}:{number}: everybody on this host can read this token; run: chmod o-r {path}, or write sha256:HEX"
            )
        if token and len(token) < MIN_TOKEN:
            raise TokenFileError(f"{path}:{number}: a token must have at least {MIN_TOKEN} characters")
        digests.append((bytes.fromhex(digest) if digest else hashlib.sha256(token.encode()).digest(), Role(role)))
    if not digests:
        raise TokenFileError(f"{path}: the token file holds no token")
    return tuple(digests)


class Throttle:
    """A token bucket per kind: bursts of `per_minute`, refilled evenly. For use from one thread (the event loop)."""

    def __init__(self, per_minute: int, monotonic: Callable[[], float]) -> None:
        self._full = float(per_minute)
        self._rate = per_minute / 60
        self._monotonic = monotonic
        self._buckets: dict[str, tuple[float, float]] = {}  # kind -> what was left, when

    def wait(self, kind: str) -> float:
        """0 when taken, else the seconds after which to try again."""
        now = self._monotonic()
        left, since = self._buckets.get(kind, (self._full, now))
        left = min(self._full, left + (now - since) * self._rate)
        if left < 1:
            return (1 - left) / self._rate
        self._buckets[kind] = (left - 1, now)
        return 0.0


class Shield:
    """ASGI middleware: headers that keep answers out of caches, frames and guesses. No CORS: browsers are not served."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def shielded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["cache-control"] = "no-store"
                headers["x-content-type-options"] = "nosniff"
                headers["content-security-policy"] = "default-src 'none'; frame-ancestors 'none'"
                headers["referrer-policy"] = "no-referrer"
                if scope["scheme"] == "https":
                    headers["strict-transport-security"] = "max-age=31536000"
            await send(message)

        await self._app(scope, receive, shielded)
