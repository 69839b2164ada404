"""One request to Vault through hvac: its answer or its typed error, and a report to the meter.

Keeps I5: address, token and certificate are given explicitly (hvac would take VAULT_* from the environment), and errors
come back as values, so that they are raised outside the handler that saw hvac's and the request's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import hvac
import requests

from rotator.adapters.vault_errors import SYSTEM, explain
from rotator.adapters.vault_session import LostError, NotSentError, VaultSession
from rotator.core.secret import Secret
from rotator.errors import Misconfigured, PortError, Transient
from rotator.ports import Clock, Meter


@dataclass(frozen=True, slots=True)
class Answer:
    """A success, or a 404 that Vault itself gave (KV v2 tells absent from deleted by its body)."""

    status: int
    body: dict[str, Any]


class Wire:
    """Makes hvac clients and sends through them. Thread-safe."""

    def __init__(
        self,
        *,
        address: str,
        namespace: str | None,
        cert: tuple[str, str] | None,
        session: VaultSession,
        deadline: float,
        clock: Clock,
        meter: Meter,
    ) -> None:
        self._address = address
        self._namespace = namespace
        self._cert = cert
        self._session = session
        self._deadline = deadline
        self._clock = clock
        self._meter = meter

    @property
    def skew(self) -> float | None:
        return self._session.skew

    def within(self) -> AbstractContextManager[None]:
        """All requests of this thread inside share one total deadline."""
        return self._session.within(self._deadline)

    def client(self, token: Secret | None) -> Any:
        """An hvac client that gives every answer back and raises for none."""
        return hvac.Client(
            url=self._address,
            token="" if token is None else token.reveal(),  # None would be read from VAULT_TOKEN or ~/.vault-token
            verify=True,
            cert=self._cert or (),  # None would be read from VAULT_CLIENT_CERT
            session=self._session,
            namespace=self._namespace,
            allow_redirects=False,
            ignore_exceptions=True,
        )

    def send(
        self,
        operation: str,
        doing: str,
        request: Callable[[Any], Any],
        vault: Any,
        *,
        write: bool = False,
        hide: tuple[Secret, ...] = (),
    ) -> Answer | PortError | LostError:
        """One `request(vault)`, reported to the meter as `operation`. Gives the error back instead of raising it.

        LostError only for a `write` whose outcome is unknown. `hide` are the secrets in the request.
        """
        started = self._clock.monotonic()
        outcome: Answer | PortError | LostError
        try:
            got = request(vault)
        except NotSentError as error:
            outcome = (
                Misconfigured(doing, system=SYSTEM, detail=error.detail, fix=error.fix)
                if error.fix
                else Transient(doing, system=SYSTEM, detail=error.detail)
            )
        except LostError as error:
            outcome = LostError(error.detail) if write else Transient(doing, system=SYSTEM, detail=error.detail)
        else:
            outcome = self._understood(got, doing, write=write, hide=hide)
        self._meter.call(SYSTEM, operation, _result(outcome), self._clock.monotonic() - started)
        return outcome

    def _understood(
        self, got: object, doing: str, *, write: bool, hide: tuple[Secret, ...]
    ) -> Answer | PortError | LostError:
        """hvac gives a dict for a 200 with a JSON body, and the bare response for everything else."""
        if isinstance(got, dict):
            return Answer(200, got)
        if not isinstance(got, requests.Response):
            return Misconfigured(doing, system=SYSTEM, detail="the answer is no JSON object", fix="Check address")
        if got.status_code == 204:
            return Answer(204, {})
        if got.status_code == 404:
            try:
                body = got.json()
            except ValueError:
                body = None
            if isinstance(body, dict) and not body.get("errors"):
                return Answer(404, body)
        return explain(got, doing, write=write, hide=hide, now=self._clock.now())


def _result(outcome: Answer | PortError | LostError) -> str:
    if isinstance(outcome, Answer):
        return "ok"
    if isinstance(outcome, LostError):
        return "ambiguous"
    name = type(outcome).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
