"""What the HTTP API asks of the running program; implements `api.ApiService` over the dispatcher."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import timedelta

from rotator.core.model import Ask, Trigger
from rotator.core.reasons import Reason
from rotator.core.view import ConnectionView
from rotator.errors import Denied, PortError, Unsupported
from rotator.ports import Answer, Clock, ConnectionStatus, EventKind, Probe, Slot
from rotator.runtime.api import AskAnswer, FoundRotation, SubmitAnswer, Submitted, VerifyAnswer
from rotator.runtime.dispatch import Dispatcher
from rotator.work import Ports

LOOK_BACK = timedelta(hours=1)  # how far `verify` reads the identity provider's log


class Service:
    """Thread-safe; `alive` and `ready` answer from memory."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        clock: Clock,
        *,
        tick: float,
        lease_left: Callable[[], float],
        threads: Callable[[], bool],
        render: Callable[[], bytes],
    ) -> None:
        self._dispatcher = dispatcher
        self._clock = clock
        self._tick = tick
        self._lease_left = lease_left
        self._threads = threads
        self._render = render

    def submit(self, connection: str, note: str) -> SubmitAnswer:
        answer = self._dispatcher.submit(connection, Trigger.HTTP, note)
        if answer.rotation_id is None:
            return SubmitAnswer(Submitted.REFUSED, reason=answer.reason, text=answer.text)
        kind = Submitted.ACCEPTED if answer.began else Submitted.RUNNING
        return SubmitAnswer(kind, rotation_id=answer.rotation_id, reason=answer.reason, text=answer.text)

    def ask(self, connection: str, what: Ask) -> AskAnswer:
        refused = self._dispatcher.ask(connection, what, "http")
        r = self._dispatcher.entry(connection).record.rotation
        return AskAnswer(refused is None, rotation_id=r.id if r else "", text=refused or "", reason=None)

    def verify(self, connection: str) -> VerifyAnswer:
        return verify(connection, self._dispatcher.entry(connection).managed.connection.open(), self._clock)

    def list_connections(self) -> Sequence[ConnectionView]:
        return self._dispatcher.views()

    def connection(self, name: str) -> ConnectionView | None:
        try:
            self._dispatcher.refresh(name)
            return self._dispatcher.view(self._dispatcher.entry(name), self._clock.now())
        except KeyError:
            return None

    def rotation(self, rotation_id: str) -> FoundRotation | None:
        for view in self._dispatcher.views():
            for found in (view.record.rotation, view.record.last):
                if found is not None and found.id == rotation_id:
                    return FoundRotation(view.name, found)
        return None

    def alive(self) -> bool:
        return self._threads()

    def ready(self) -> tuple[bool, tuple[str, ...]]:
        problems = []
        if self._lease_left() <= 0:
            problems.append("Vault has not taken our heartbeat for a whole lease: nothing is rotated until it does")
        last = self._dispatcher.last_tick
        if last is None or self._clock.monotonic() - last > 3 * self._tick + 5:
            problems.append("the planner has not looked at the connections lately")
        return not problems, tuple(problems)

    def metrics(self) -> bytes:
        return self._render()


def verify(name: str, ports: Ports, clock: Clock) -> VerifyAnswer:
    """Prove the current key on both sides; change nothing."""
    missing: list[str] = []
    stored = ports.keys.read(name, Slot.CURRENT)
    if stored is None or stored.key is None:
        return VerifyAnswer(
            ok=False, target="unknown", idp="unknown", text=f"{Reason.KEY_UNKNOWN}: no current key in Vault"
        )
    try:
        probe = ports.target.probe(stored.key, Probe.USERS)
        target, why = probe.answer.value, probe.detail
    except PortError as error:
        target, why = _word(error), str(error)
    texts = [] if target == Answer.ACCEPTED else [why]
    idp = ConnectionStatus.UNKNOWN.value
    try:
        idp = ports.idp.read().status.value if ports.idp.capabilities.reads_connection else idp
    except PortError as error:
        idp, texts = _word(error), [*texts, str(error)]
    bad = False
    try:
        told = [e for e in ports.idp.events(clock.now() - LOOK_BACK) if e.kind in {EventKind.KEY_BAD, EventKind.PROVED}]
        bad = bool(told) and told[-1].kind is EventKind.KEY_BAD
    except (Denied, Unsupported):
        missing.append("log")
    except PortError as error:
        missing.append("log")
        texts.append(str(error))
    if bad:
        texts.append("the identity provider's log has a key failure after its last success")
    fine = target == Answer.ACCEPTED and not bad
    fine = fine and (idp == ConnectionStatus.ENABLED or not ports.idp.capabilities.reads_connection)
    return VerifyAnswer(ok=fine, target=target, idp=idp, text="; ".join(t for t in texts if t), missing=tuple(missing))


def _word(error: PortError) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
