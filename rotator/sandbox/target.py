"""A target to rotate keys at: a real SCIM server behind real key checks, with a vendor's token API in front.

It listens on loopback with credentials drawn at random, and shares no code with the rotator: what the rotator gets
wrong about a target can't be wrong here in the same way.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, NamedTuple, Self

from rotator.sandbox.target_faults import Fault, Faults
from rotator.sandbox.target_http import Request, Response, TargetServer, json_response
from rotator.sandbox.target_keys import Behaviour, IssuedKey, KeyRing, Outage, fingerprint
from rotator.sandbox.target_scim import ScimFront, shape_of
from rotator.sandbox.target_shapes import AdminApi, Capped, Grafana, Hcp
from rotator.sandbox.target_shapes_other import Auth0, Manual, Roll, SetKey

Shape = Literal["grafana", "hcp", "auth0", "capped", "roll", "set_key", "manual"]

SHAPES: dict[Shape, type[AdminApi]] = {
    "grafana": Grafana,  # many keys, labels unique, lifetime in seconds
    "hcp": Hcp,  # many keys, JSON:API, pages, expiry window, last use
    "auth0": Auth0,  # two keys, no label, scopes, last use
    "capped": Capped,  # two keys with labels
    "roll": Roll,  # one key; the target mints its next value
    "set_key": SetKey,  # one key; the caller supplies its next value
    "manual": Manual,  # no API
}


class Call(NamedTuple):
    """One kind of call, for counting. `who` is "admin", "nobody" or the fingerprint of the key that was sent."""

    who: str
    side: Literal["admin", "scim"]
    method: str
    path: str  # SCIM: below the base path, resource ids as {id}
    status: int  # 0: the connection was reset
    agent: str  # the User-Agent before its first "/": tells the rotator's calls from the identity provider's


class TargetSandbox:
    """`with TargetSandbox("grafana") as target:` runs one; every public member works while it serves."""

    def __init__(self, shape: Shape = "grafana") -> None:
        self.shape: Shape = shape
        self.behaviour = Behaviour(**SHAPES[shape].defaults)
        self.keys = KeyRing(self.behaviour)
        self.api = SHAPES[shape](self.keys, self.behaviour)
        self.scim = ScimFront(self.keys, self.behaviour, self.api.scim_path)
        self.faults = Faults()
        self._server = TargetServer(self._answer)
        self._counts: dict[Call, int] = {}
        self._refused: dict[str, int] = {}
        self._lock = threading.Lock()
        self._up = threading.Event()
        self._up.set()

    # -- running -------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        self._server.start()
        return self

    def stop(self) -> None:
        self._up.set()
        self._server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def scim_url(self) -> str:
        """The SCIM base URL, without a trailing slash."""
        return self.url + self.api.scim_path

    # -- what an administrator configures ------------------------------------------------------------------------

    @property
    def admin_token(self) -> str:
        return self.api.admin_token

    @property
    def ids(self) -> dict[str, str]:
        """The vendor's ids: service_account_id, scim_config_id, connection_id, account_id and token_id, …"""
        return self.api.ids

    @property
    def service_account_id(self) -> int:
        return int(self.api.ids["service_account_id"])

    def path(self, operation: str) -> str:
        """The admin path of "mint", "list", "revoke", "show" or "replace", the key's own id as {key_id}."""
        return next(route.path for route in self.api.routes if route.operation == operation)

    # -- what a person does --------------------------------------------------------------------------------------

    def seed_key(self, label: str | None = None) -> tuple[str, str]:
        """A key that has been there for long: (value, id). Caps and the switches for fresh keys don't apply."""
        return self.api.by_hand(label or "", seeded=True)

    def person_mints(self, label: str | None = None) -> str:
        """A key minted in the console; the switches for fresh keys apply."""
        return self.api.by_hand(label or "", seeded=False)[0]

    def person_revokes(self, key: str) -> None:
        self.keys.revoke(self._issued(key))

    def expire(self, key_id: str) -> None:
        """Let a key's lifetime end now."""
        key = self.keys.get(key_id)
        if key is None:
            raise KeyError(key_id)
        key.expires = datetime.now(UTC)

    # -- the truth -----------------------------------------------------------------------------------------------

    def live_keys(self) -> list[tuple[str, str]]:
        """(id, label) of every key that is issued, not revoked and not expired, oldest first."""
        return [(key.id, key.label) for key in self.keys.live()]

    def accepts(self, key: str) -> bool:
        """Whether a SCIM read with this key would be let through now; from state, without a call."""
        return self.keys.accepts(key)

    def _issued(self, value: str) -> IssuedKey:
        key = self.keys.find(value)
        if key is None:
            raise KeyError(fingerprint(value))
        return key

    # -- counters ------------------------------------------------------------------------------------------------

    @property
    def calls(self) -> dict[Call, int]:
        with self._lock:
            return dict(self._counts)

    def count(self, **fields: object) -> int:
        """How many calls have these values in the fields of `Call`, such as `count(side="scim", agent="rotator")`."""
        wanted = fields.items()
        return sum(count for call, count in self.calls.items() if wanted <= call._asdict().items())

    @property
    def admin_calls(self) -> int:
        return self.count(side="admin")

    @property
    def scim_calls(self) -> int:
        return self.count(side="scim")

    @property
    def refused(self) -> int:
        """SCIM calls whose key was refused (not those of a paused or broken target)."""
        with self._lock:
            return sum(self._refused.values())

    def refused_with(self, key: str) -> int:
        """SCIM calls that were refused while carrying this key."""
        with self._lock:
            return self._refused.get(fingerprint(key), 0)

    def calls_with(self, key: str) -> int:
        """SCIM calls that carried this key."""
        return self.count(side="scim", who=fingerprint(key))

    def reset_counts(self) -> None:
        with self._lock:
            self._counts.clear()
            self._refused.clear()

    # -- misbehaviour --------------------------------------------------------------------------------------------

    def fail(self, operation: str, fault: Fault) -> Fault:
        """Plant a fault on an admin operation ("mint", "list", "revoke", "replace") or on "scim"."""
        if operation == "scim":
            fault.path = "^" + re.escape(self.api.scim_path)
        else:
            route = next(route for route in self.api.routes if route.operation == operation)
            fault.method, fault.path = route.method, f"^{route.pattern}$"
        return self.faults.add(fault)

    def go_down(self, outage: Outage = "503") -> None:
        """Answer 503, reset each connection, accept calls and never answer ("hang"), or stop listening ("refused")."""
        self._up.clear()
        self.behaviour.outage = outage
        if outage == "refused":
            self._server.stop()

    def come_back(self) -> None:
        refused = self.behaviour.outage == "refused"
        self.behaviour.outage = None
        self._up.set()
        if refused:
            self._server.start()

    @contextmanager
    def down(self, outage: Outage = "503") -> Iterator[None]:
        self.go_down(outage)
        try:
            yield
        finally:
            self.come_back()

    # -- serving -------------------------------------------------------------------------------------------------

    def _answer(self, request: Request) -> Response:
        side: Literal["admin", "scim"] = "scim" if self.scim.owns(request.path) else "admin"
        if self.behaviour.latency:
            self._server.stopping.wait(self.behaviour.latency)
        response = self._with_faults(side, request)
        path = request.path
        if side == "scim":
            path = shape_of(path.removeprefix(self.api.scim_path))
        status = 0 if response.reset else response.status
        agent = request.headers.get("user-agent", "").partition("/")[0]
        call = Call(self._who(side, request), side, request.method, path, status, agent)
        with self._lock:
            self._counts[call] = self._counts.get(call, 0) + 1
        return response

    def _with_faults(self, side: str, request: Request) -> Response:
        outage = self.behaviour.outage
        if outage is not None:
            return self._out(outage)
        if self.behaviour.retry_after is not None:
            headers = {"Retry-After": str(self.behaviour.retry_after), "Content-Type": "application/json"}
            return Response(429, b'{"message":"Too many requests"}', headers)
        fault = self.faults.take(request.method, request.path)
        if fault is None:
            return self._act(side, request)
        acted = self._act(side, request) if fault.after else None
        if fault.delay:
            self._server.stopping.wait(fault.delay)
        if fault.hang:
            self._server.stopping.wait()
            return Response(503, reset=True)
        if fault.reset:
            return Response(503, reset=True)
        if fault.status is not None:
            return Response(fault.status, fault.body, fault.headers)
        return acted if acted is not None else self._act(side, request)

    def _out(self, outage: Outage) -> Response:
        if outage == "503":
            return json_response(503, {"message": "Service Unavailable"})
        if outage == "hang":
            self._up.wait()  # until it comes back or stops
        return Response(503, reset=True)

    def _act(self, side: str, request: Request) -> Response:
        if side == "admin":
            return self.api.answer(request)
        response, value, refused = self.scim.answer(request, self.scim_url)
        if refused:
            who = fingerprint(value) if value else "nobody"
            with self._lock:
                self._refused[who] = self._refused.get(who, 0) + 1
        return response

    def _who(self, side: str, request: Request) -> str:
        authorization = request.headers.get("authorization", "")
        if authorization == f"Bearer {self.admin_token}":
            return "admin"
        value = self.scim.sent_key(authorization) if side == "scim" else authorization.removeprefix("Bearer ")
        return fingerprint(value) if value else "nobody"
