"""Provisioning traffic as an identity provider makes it: real SCIM calls with the key that it holds at that instant.

A refused call counts as failed only against the key that the identity provider still holds. When it got another key
while the call was on its way, the call says nothing about the key that it holds, and is made again with that one.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx

USERS_PER_WORKER = 3
USER_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:User"
PATCH_SCHEMA = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
SCIM_JSON = "application/scim+json"
USER_AGENT = "sandbox-traffic"  # so that a target can count these calls apart


class Held(NamedTuple):
    """What the identity provider would use for a call right now."""

    url: str  # SCIM base URL
    key: str
    header: str = "Bearer {key}"


Source = Callable[[], Held | None]  # None: it has no key yet, so it makes no call


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counts since the start. `calls` = succeeded + failed + failed_while_target_down + connection_errors + unexpected."""

    calls: int = 0
    succeeded: int = 0
    failed: int = 0  # 401 or 403 for the key that the identity provider held before and after the call
    failed_while_target_down: int = 0  # whatever went wrong while the target was said to be down
    connection_errors: int = 0
    unexpected: int = 0  # another status, or an answer that is no SCIM
    raced: int = 0  # refused, but the key had been replaced meanwhile: made again, not part of `calls`


class Traffic:
    """Makes calls for each named source, `rate` calls a second over all of them, from `start` to `stop`."""

    def __init__(self, sources: Mapping[str, Source], *, rate: float = 20.0, workers: int = 1) -> None:
        self._sources = dict(sources)
        self._pause = len(sources) * workers / rate
        self._workers = workers
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in sources}
        self._down: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> Self:
        self._stop.clear()
        self._threads = [
            threading.Thread(target=self._work, args=(name, source, worker), name=f"traffic-{name}", daemon=True)
            for name, source in self._sources.items()
            for worker in range(self._workers)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """Ends after the calls that are under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @contextmanager
    def target_down(self, name: str) -> Iterator[None]:
        """Failures of this source are expected inside, also those of calls that only began inside."""
        with self._lock:
            self._down.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._down.discard(name)

    def snapshot(self, name: str | None = None) -> Snapshot:
        """The counts of one source, or of all."""
        with self._lock:
            chosen = self._counts.values() if name is None else [self._counts[name]]
            total: Counter[str] = Counter()
            for counts in chosen:
                total.update(counts)
        results = {field: total[field] for field in Snapshot.__slots__ if field != "calls"}
        return Snapshot(calls=sum(total.values()) - total["raced"], **results)

    # -- one worker ----------------------------------------------------------------------------------------------

    def _work(self, name: str, source: Source, worker: int) -> None:
        with httpx.Client(trust_env=False, timeout=10.0, headers={"User-Agent": USER_AGENT}) as http:
            script = _provisioning(f"{name}-{worker}".lower())
            step = next(script)
            while not self._stop.is_set():
                answer = self._call(name, source, http, step)
                if answer is not None:
                    step = script.send(answer)  # a call that failed is made again, as a provisioning queue does
                self._stop.wait(self._pause)

    def _call(self, name: str, source: Source, http: httpx.Client, step: _Step) -> dict[str, Any] | None:
        """The JSON answer, or None when the call is to be made again."""
        held = source()
        if held is None:
            return None
        while True:
            down = self._is_down(name)
            result, answer = _send(http, held, step)
            if result == "failed":
                now_held = source()
                if now_held is not None and now_held != held:
                    self._count(name, "raced")
                    held = now_held
                    continue
            if result != "succeeded" and (down or self._is_down(name)):
                result = "failed_while_target_down"
            self._count(name, result)
            return answer if result == "succeeded" else None

    def _is_down(self, name: str) -> bool:
        with self._lock:
            return name in self._down

    def _count(self, name: str, result: str) -> None:
        with self._lock:
            self._counts[name][result] += 1


class _Step(NamedTuple):
    method: str
    path: str
    body: dict[str, Any] | None = None
    expected: tuple[int, ...] = (200,)


def _provisioning(who: str) -> Generator[_Step, dict[str, Any], None]:
    """The calls Okta makes for a user, over and over: look up by name, create once, read, update, (de)activate.

    A generator that is sent each call's answer. Okta never deletes: it sets `active` (Okta docs: SCIM reference).
    """
    ids: dict[str, str] = {}
    active = True
    while True:
        for number in range(USERS_PER_WORKER):
            user = f"{who}-{number}@traffic.example"
            found = yield _Step("GET", f'/Users?filter=userName eq "{user}"&startIndex=1&count=100')
            resources = found.get("Resources") or []
            if resources:
                ids[user] = resources[0]["id"]
            else:
                created = yield _Step("POST", "/Users", _user(user, active=active), (201, 409))
                if "id" not in created:
                    continue  # 409: an earlier try worked and only its answer was lost; the next look finds it
                ids[user] = created["id"]
            path = f"/Users/{ids[user]}"
            yield _Step("GET", path)
            yield _Step("PUT", path, _user(user, active=active))
            change = {"op": "replace", "value": {"active": active}}
            yield _Step("PATCH", path, {"schemas": [PATCH_SCHEMA], "Operations": [change]}, (200, 204))
        active = not active


def _user(name: str, *, active: bool) -> dict[str, Any]:
    emails = [{"value": name, "primary": True, "type": "work"}]
    return {"schemas": [USER_SCHEMA], "userName": name, "active": active, "emails": emails, "displayName": name}


def _send(http: httpx.Client, held: Held, step: _Step) -> tuple[str, dict[str, Any] | None]:
    """What became of the call (a field of Snapshot), and its JSON when it succeeded."""
    headers = {b"Authorization": held.header.format(key=held.key).encode(), b"Accept": SCIM_JSON.encode()}
    if step.body is not None:
        headers[b"Content-Type"] = f"{SCIM_JSON}; charset=utf-8".encode()
    try:
        response = http.request(step.method, held.url + step.path, json=step.body, headers=headers)
    except httpx.LocalProtocolError:
        return "failed", None  # the key can't even be sent in a header
    except httpx.HTTPError:
        return "connection_errors", None
    if response.status_code in {401, 403}:
        return "failed", None
    if response.status_code not in step.expected:
        return "unexpected", None
    if response.status_code == 204:
        return "succeeded", {}
    try:
        answer = response.json()
    except ValueError:
        return "unexpected", None
    return ("succeeded", answer) if isinstance(answer, dict) and "schemas" in answer else ("unexpected", None)
