"""One Okta org: its HTTP client, its sign-in and its rate budget, shared by the providers of all its apps.

`call` is the only way in which the Okta adapter sends anything but token requests: budget first, then the wire, then
the answer's meaning. It never retries, a 401 that fresh credentials may heal excepted (that call was not taken).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from rotator import errors
from rotator.adapters.http import Auth, BaseTransport, HttpAnswer, HttpClient, Timeouts
from rotator.adapters.idp.okta_errors import okta_error
from rotator.adapters.ratelimit import RateBudget
from rotator.ports import Clock, Meter

# Recorded: terraform-provider-okta fixtures took 2.7-3.3 s for POST and activation, so 30 s is no hasty limit.
TIMEOUTS = Timeouts(connect=5.0, read=30.0, write=10.0, pool=5.0, total=40.0)
LARGEST_ANSWER = 8_000_000  # bytes: a page of 1,000 log events with their debug data


class OktaOrg:
    """`name` is the configuration's word for this IdP; `make_auth` gets the client and the budget that it may use."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        make_auth: Callable[[HttpClient, RateBudget], Auth],
        clock: Clock,
        meter: Meter,
        ca_file: str | None = None,
        timeouts: Timeouts = TIMEOUTS,
        transport: BaseTransport | None = None,
    ) -> None:
        """`url` is the org's own, without a path: https://acme.okta.com. Raises Misconfigured."""
        self.name = name
        self.system = f"okta:{name}"
        self.clock = clock
        if urlsplit(url).path.strip("/"):
            raise errors.Misconfigured(
                "preparing to call Okta",
                system=self.system,
                detail="the org's URL has a path",
                fix="Give the org's address alone, like https://acme.okta.com (no /oauth2/default, no /api)",
            )
        self.http = HttpClient(
            url,
            system=self.system,
            clock=clock,
            meter=meter,
            ca_file=ca_file,
            timeouts=timeouts,
            max_body=LARGEST_ANSWER,
            transport=transport,
        )
        self.budget = RateBudget(idp=name, system=self.system, clock=clock, meter=meter)
        self._auth = make_auth(self.http, self.budget)

    def close(self) -> None:
        self.http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        bucket: str,
        doing: str,
        operation: str,
        changing: bool,
        scope: str,
        urgent: bool,
        who: str,
        params: Mapping[str, str] | None = None,
        json: Any | None = None,
        special: Callable[[HttpAnswer], errors.PortError | None] | None = None,
        let: Callable[[HttpAnswer], bool] | None = None,
    ) -> HttpAnswer:
        """One request. `special` reads an answer first (it may see an error in a 200); `let` lets an answer of 400 or
        above pass as a result; `scope` is what the call needs; `who` (the app) spreads waits; `urgent` may use the
        budget's reserve. Raises only rotator.errors.
        """
        heard = False

        def judge(answer: HttpAnswer) -> errors.PortError | None:
            nonlocal heard
            heard = True
            self.budget.after(bucket, answer)
            if answer.status == 429:
                return self.budget.turned_away(bucket, answer, doing=doing, who=who)
            if let is not None and let(answer):
                return None
            found = special(answer) if special is not None else None
            return found or okta_error(answer, doing=doing, system=self.system, changing=changing, scope=scope)

        self.budget.before(bucket, doing=doing, urgent=urgent, who=who)
        try:
            return self.http.request(
                method,
                path,
                doing=doing,
                operation=operation,
                changing=changing,
                params=params,
                json=json,
                auth=self._auth,
                judge=judge,
            )
        finally:
            if not heard:
                self.budget.lost(bucket)
