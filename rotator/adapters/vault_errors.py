"""What Vault's answers mean: the table from status and text to `rotator.errors`.

A write that was not clearly refused is *lost*, not failed: only a read-back tells (I4). Text of an answer is quoted only
when none of our secrets stands in it (I5).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import requests

from rotator.adapters.vault_session import LostError
from rotator.core.secret import Secret
from rotator.errors import Conflict, Denied, Misconfigured, PortError, RateLimited, Transient

SYSTEM = "vault"
_QUOTE = 200  # characters of Vault's own words

_CAS_MISMATCH = "check-and-set parameter did not match"
_UPGRADING = "Upgrading from non-versioned"  # a KV version 2 mount in its first moments
_NO_ACTIVE_NODE = "local node not active"  # while a cluster elects: nothing was done (seen on OpenBao's raft)


def explain(
    response: requests.Response, doing: str, *, write: bool, hide: Iterable[Secret], now: datetime
) -> PortError | LostError:
    """The error for an answer that isn't a success. LostError only for a write whose outcome it leaves open."""
    status = response.status_code
    body = _json(response)
    words = _words(body)
    said = f"{status} {_quotable(words, hide)}".strip()

    if 200 <= status < 300:  # something between us and Vault answered, or the headers were cut
        if write:
            return LostError(f"{status} without Vault's answer in it")
        if "html" in response.headers.get("Content-Type", ""):
            return Misconfigured(
                doing,
                system=SYSTEM,
                detail="a web page came back",
                fix="Check address: is a proxy or login page there?",
            )
        return Transient(doing, system=SYSTEM, detail=f"{status} without Vault's answer in it")
    if status == 307:  # a standby that can't forward names the active node; our token goes to `address` only
        return Transient(
            doing,
            system=SYSTEM,
            detail="this node is a standby and sent us elsewhere",
            fix="If this stays, point address at the active node or let the standbys forward",
        )
    if 300 <= status < 400:
        return Misconfigured(
            doing, system=SYSTEM, detail=f"{status} redirect, not followed", fix="Put Vault's final URL into address"
        )
    if status == 400 and _CAS_MISMATCH in words:
        return Conflict(doing, system=SYSTEM, detail="somebody else wrote it")
    if status in (401, 403):
        return Denied(doing, system=SYSTEM, detail=said)
    if status == 404:  # an absent secret is no error (vault_wire); this is an absent mount, or not Vault
        return Misconfigured(doing, system=SYSTEM, detail=said, fix="Check address, namespace and mount")
    if status == 429:
        return RateLimited(doing, system=SYSTEM, detail=said, reset_at=_retry_after(response, now))
    if status == 400 and _UPGRADING in words:
        return Transient(doing, system=SYSTEM, detail=said)
    # 412: this node hasn't caught up with our last write. 472, 473: a replica that takes no requests. Vault docs: api-docs
    if status in (412, 472, 473) or (status == 500 and _NO_ACTIVE_NODE in words):
        return Transient(doing, system=SYSTEM, detail=said)
    if status == 501 or (status == 503 and body is not None):  # Vault's own: not initialised, sealed
        return Transient(doing, system=SYSTEM, detail=said, fix="Initialise or unseal Vault, if it does not come back")
    if status >= 500:  # also "leadership lost while committing log" and a gateway that lost its server: maybe applied
        return LostError(said) if write else Transient(doing, system=SYSTEM, detail=said)
    return Misconfigured(doing, system=SYSTEM, detail=said)


def _json(response: requests.Response) -> dict[str, Any] | None:
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _words(body: dict[str, Any] | None) -> str:
    """Vault's `errors`, on one line."""
    errors = (body or {}).get("errors")
    return " ".join("; ".join(map(str, errors)).split()) if isinstance(errors, list) else ""


def _quotable(words: str, hide: Iterable[Secret]) -> str:
    """The words, short, and none of them when one of our secrets is among them."""
    for secret in hide:
        value = secret.reveal()
        if value and any(form in words for form in (value, json.dumps(value)[1:-1], " ".join(value.split()))):
            return "(its words are not shown: they repeat a secret)"
    return words[:_QUOTE]


def _retry_after(response: requests.Response, now: datetime) -> datetime | None:
    value = response.headers.get("Retry-After", "")
    return now + timedelta(seconds=min(int(value), 86400)) if value.isascii() and value.isdigit() else None
