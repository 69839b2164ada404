"""What must not leave in a log line is masked here, last before rendering (I5).

The first defence is that secrets are `Secret`s and adapters put none into errors. This is the second, for what slips in
from outside: a library's message, a server's answer, a person's note. Masking too much is fine; too little is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

MASK = "[redacted]"
_DEPTH = 6  # deeper values are cut off; nothing we log is that deep
_LONGEST = 20_000  # characters of one string; an endless answer must not fill the log

_SECRET_NAME = re.compile(
    r"(?i)^key$|^pass$|^pem$|^auth$|passw(or)?d|passphrase|secret|token|authorization|cookie|assertion|credential"
    r"|api[-_]?key|private[-_]?key|signing[-_]?key|bearer|dpop"
)
# "token_expires_at", "secret_path": about a secret, not one. `secret_id` is AppRole's password, so `_id` is not here.
_HARMLESS_NAME = re.compile(r"(?i)(_at|_seconds|_ttl|_path|_count|_fingerprint|_method)$")

_PATTERNS = re.compile(
    r"""
      \bhv[sbr]\.[\w-]+                                   # Vault's service, batch and recovery tokens
    | \b[sbr]\.[A-Za-z0-9]{24,}                           # OpenBao's, and Vault's before 1.10
    | \beyJ[\w-]{5,}\.[\w-]+(?:\.[\w-]*)*                 # JWT, signed (3 parts) or encrypted (5)
    | -----BEGIN\ [A-Z0-9\ ]+-----.*?(?:-----END\ [A-Z0-9\ ]+-----|\Z)
    | \bgls?[ac]_[\w=+/-]+                                # Grafana: service account and cloud tokens
    | \b(?:gh[opsur]|github_pat|xox[a-z]|glpat|dapi)[_-]?[\w-]{16,}
    | (?<=://)[^/\s@]+(?=@)                               # user and password in a URL
    """,
    re.VERBOSE | re.DOTALL,
)
_SCHEMES = re.compile(r"(?i)\b(SSWS|Bearer|Basic|DPoP)(\s+|%20)(?:\\?['\"])?[^\s'\",;\\]+")
_PARAMETERS = re.compile(
    r"(?i)\b([\w-]*(?:token|secret|passw(?:or)?d|api[_-]?key|assertion)(?:_id)?)(['\"]?\s*[=:]\s*['\"]?)[^\s'\",;&}\]]+"
)
# A server's answer must not draw on our terminal or begin a line of its own there
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def scrub(text: str) -> str:
    """The text with everything masked that looks like a credential, and without control characters."""
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "… (cut)"
    text = _PATTERNS.sub(MASK, text)
    text = _SCHEMES.sub(rf"\1 {MASK}", text)
    text = _PARAMETERS.sub(rf"\1\2{MASK}", text)
    return _CONTROL.sub("\ufffd", text)


def clean(value: Any, name: str = "", depth: int = 0) -> Any:
    """The value as plain JSON types, masked. A name on the denylist masks any text below it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if name and _SECRET_NAME.search(name) and not _HARMLESS_NAME.search(name):
        return MASK
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{len(value)} bytes]"
    if depth >= _DEPTH:
        return "…"
    if isinstance(value, Mapping):
        return {scrub(str(key)): clean(below, str(key), depth + 1) for key, below in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [clean(below, "", depth + 1) for below in value]
    try:
        return scrub(str(value))  # a Secret masks itself here
    except Exception:  # noqa: BLE001 - a broken __str__ must not lose the log line
        return f"[{type(value).__name__}]"


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    """structlog processor; nothing but the renderer comes after it."""
    cleaned = {key: clean(value, key) for key, value in event.items()}
    if isinstance(cleaned.get("event"), str):
        # The console prints it as it is; one event stays one line
        cleaned["event"] = cleaned["event"].replace("\n", " ⏎ ")
    return cleaned
