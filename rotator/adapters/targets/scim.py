"""Test calls at a target's SCIM service with a given key: what proves a key alive, dead, or the target paused.

The calls are those that identity providers make themselves (Okta developer docs, "SCIM API request and response
details": GET /Users?startIndex=1&count=2 when credentials are saved, the userName filter before every create), because
a success elsewhere says little: RFC 7643 §5 wants /ServiceProviderConfig readable without any key.

I5: the key stands in the one header and nowhere else; bodies hold people's data and are never quoted.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from rotator import errors
from rotator.adapters.http import HttpAnswer, HttpClient, Timeouts, status_error
from rotator.core.secret import Secret
from rotator.ports import Answer, Clock, Meter, Probe, ProbeResult

LIST_RESPONSE = "urn:ietf:params:scim:api:messages:2.0:ListResponse"
PATCH_OP = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
USER = "urn:ietf:params:scim:schemas:core:2.0:User"

OPERATIONS = tuple(f"probe_{probe.value}" for probe in Probe)  # the meter's words

_WRONG_PLACE = frozenset({404, 405, 410, 501})
_NO_GROUPS = frozenset({404, 501})  # a target without groups may say so; Okta's own test calls /Groups all the same


def default_meanings() -> dict[int, Answer]:
    """What RFC 7644 §3.12 suggests. authentik answers 403 to a wrong token; HCP Terraform answers 403 to a good one
    while SCIM is paused: there the configuration says {403: STATE}.
    """
    return {401: Answer.REFUSED, 403: Answer.REFUSED}


@dataclass(frozen=True, slots=True)
class ScimSettings:
    """Where a target hosts SCIM and how it takes the key there."""

    url: str  # without a trailing slash; "/Users" is appended
    header: str = "Bearer {key}"  # the Authorization header's whole value
    meanings: Mapping[int, Answer] = field(default_factory=default_meanings)
    canary: str = "rk-canary@invalid.example"  # userName of the write probe's user; the domain must suit the target
    ca_file: str | None = None
    deadline: float = 30.0  # seconds that one call may take in all


def scim_probe(name: str, settings: ScimSettings, clock: Clock, meter: Meter) -> ScimProbe:
    """The probe of target `name`. Misconfigured when the URL, header or CA file can't be used."""
    http = HttpClient(
        settings.url,
        system=f"target:{name}",
        clock=clock,
        meter=meter,
        ca_file=settings.ca_file,
        timeouts=Timeouts(total=settings.deadline),
    )
    return ScimProbe(http, settings.header, settings.meanings, settings.canary)


class ScimProbe:
    """Asks one target what it says to one key."""

    def __init__(self, http: HttpClient, header: str, meanings: Mapping[int, Answer], canary: str) -> None:
        """`header`: the Authorization value with one `{key}`. Statuses missing in `meanings` keep their default."""
        before, found, after = header.partition("{key}")
        if not found or "{" in before + after or not (before + after).isascii() or not (before + after).isprintable():
            raise errors.Misconfigured(
                "preparing to prove keys",
                system=http.system,
                detail="the header form must be printable ASCII with {key} in it once",
                fix='Use "Bearer {key}", "{key}" or "Token token={key}"',
            )
        self._http = http
        self._before, self._after = before, after
        self._meanings = {**default_meanings(), **meanings}
        self._canary = canary

    def __call__(self, key: Secret, probe: Probe) -> ProbeResult:
        """One proof. Transient, RateLimited: it says nothing about the key. Misconfigured: this is no SCIM service."""
        match probe:
            case Probe.USERS:
                return self._users(key)
            case Probe.FILTER:
                return self._filter(key)
            case Probe.GROUPS:
                return self._groups(key)
            case Probe.WRITE:
                return self._write(key)

    def _users(self, key: Secret) -> ProbeResult:
        doing = "reading users with the key"
        answer = self._call(key, "GET", "/Users?startIndex=1&count=2", doing, Probe.USERS)
        return self._meaning(answer) or self._accepted(answer, self._list(answer, doing))

    def _filter(self, key: Secret) -> ProbeResult:
        doing = "searching an unknown user with the key"
        unknown = f"rk-probe-{uuid.uuid4()}@invalid.example"
        answer = self._call(key, "GET", _search(unknown), doing, Probe.FILTER)
        if (refused := self._meaning(answer)) is not None:
            return refused
        if self._list(answer, doing) != 0:
            # An IdP would take any user for the one it is about to create.
            raise self._not_scim(doing, "the search for a user that can't exist found users: the filter is ignored")
        return self._accepted(answer, 0)

    def _groups(self, key: Secret) -> ProbeResult:
        doing = "reading groups with the key"
        answer = self._call(key, "GET", "/Groups?startIndex=1&count=1", doing, Probe.GROUPS, allowed=_NO_GROUPS)
        if (refused := self._meaning(answer)) is not None:
            return refused
        if answer.status in _NO_GROUPS:
            return ProbeResult(Answer.ACCEPTED, f"the target has no groups (HTTP {answer.status})", answer.status)
        return self._accepted(answer, self._list(answer, doing))

    def _write(self, key: Secret) -> ProbeResult:
        """Create, rename and deactivate one user that stays (IdPs deactivate, never delete: Okta developer docs, SCIM
        FAQs; and least-privileged keys may not delete). Doing it again finds the user: so no answer is Ambiguous.
        """
        user = {
            "schemas": [USER],
            "userName": self._canary,
            "name": {"givenName": "Key", "familyName": "Canary"},
            "emails": [{"value": self._canary, "type": "work", "primary": True}],
            "displayName": "Key Canary",
            "active": False,
        }
        doing = "creating a canary user with the key"
        answer = self._call(key, "POST", "/Users", doing, Probe.WRITE, json=user, allowed=frozenset({409}))
        if (refused := self._meaning(answer)) is not None:
            return refused
        if answer.status == 409:  # RFC 7644 §3.3: left over from an earlier probe
            found = self._leftover(key)
            if isinstance(found, ProbeResult):
                return found
            user_id = found
        elif answer.status == 201:
            user_id = self._id(answer.json, doing)
        else:
            raise self._not_scim(doing, f"HTTP {answer.status} where 201 is due")
        path = f"/Users/{quote(user_id, safe='')}"
        for doing, change in (
            ("renaming the canary user with the key", {"displayName": f"Key Canary {uuid.uuid4().hex[:8]}"}),
            ("deactivating the canary user with the key", {"active": False}),
        ):
            user |= change
            answer = self._change(key, path, change, {**user, "id": user_id}, doing)
            if (refused := self._meaning(answer)) is not None:
                return refused
        return ProbeResult(Answer.ACCEPTED, "canary user created, renamed and deactivated", answer.status)

    def _leftover(self, key: Secret) -> str | ProbeResult:
        doing = "looking up the canary user with the key"
        answer = self._call(key, "GET", _search(self._canary), doing, Probe.WRITE)
        if (refused := self._meaning(answer)) is not None:
            return refused
        self._list(answer, doing)
        resources = answer.json.get("Resources") if isinstance(answer.json, dict) else None
        for resource in resources if isinstance(resources, list) else []:
            # RFC 7643 §4.1.1: userName is compared without case
            if isinstance(resource, dict) and str(resource.get("userName")).casefold() == self._canary.casefold():
                return self._id(resource, doing)
        raise self._not_scim(doing, "the user name is taken (HTTP 409) but the search does not find the user")

    def _change(
        self, key: Secret, path: str, change: Mapping[str, Any], whole: Mapping[str, Any], doing: str
    ) -> HttpAnswer:
        """PATCH as Okta's catalogue apps do; PUT as its custom apps do, where the target has no PATCH."""
        patch = {"schemas": [PATCH_OP], "Operations": [{"op": "replace", "value": dict(change)}]}
        unoffered = frozenset({405, 501})
        answer = self._call(key, "PATCH", path, doing, Probe.WRITE, json=patch, allowed=unoffered)
        if answer.status in unoffered:
            answer = self._call(key, "PUT", path, doing, Probe.WRITE, json=whole)
        return answer

    def _call(
        self,
        key: Secret,
        method: str,
        path: str,
        doing: str,
        probe: Probe,
        *,
        json: Any | None = None,
        allowed: frozenset[int] = frozenset(),
    ) -> HttpAnswer:
        headers = {
            "Authorization": self._before + key.reveal() + self._after,
            "Accept": "application/scim+json",
            "User-Agent": "rotator-probe",
        }
        if json is not None:
            headers["Content-Type"] = "application/scim+json"
        return self._http.request(
            method,
            path,
            doing=doing,
            operation=f"probe_{probe.value}",
            changing=False,  # a probe may always be made again
            headers=headers,
            json=json,
            judge=self._judge(doing, allowed),
        )

    def _judge(self, doing: str, allowed: frozenset[int]) -> Callable[[HttpAnswer], errors.PortError | None]:
        def judge(answer: HttpAnswer) -> errors.PortError | None:
            if answer.status in allowed or answer.status in self._meanings:
                return None
            if answer.status in _WRONG_PLACE:
                return self._not_scim(doing, f"HTTP {answer.status}")
            error = status_error(answer, doing=doing, system=self._http.system, changing=False)
            if error is None or isinstance(error, errors.Transient | errors.RateLimited):
                return error
            return self._not_scim(doing, error.detail)

        return judge

    def _meaning(self, answer: HttpAnswer) -> ProbeResult | None:
        """What the target said about the key by status alone; None when the body has to be read."""
        if (meaning := self._meanings.get(answer.status)) is None:
            return None
        return ProbeResult(meaning, f"HTTP {answer.status}", answer.status)

    @staticmethod
    def _accepted(answer: HttpAnswer, total: int) -> ProbeResult:
        return ProbeResult(Answer.ACCEPTED, f"HTTP {answer.status}, {total} in all", answer.status)

    def _list(self, answer: HttpAnswer, doing: str) -> int:
        """totalResults of a proper ListResponse (RFC 7644 §3.4.2); a sign-in page or another API's answer is none."""
        body = answer.json
        schemas = body.get("schemas") if isinstance(body, dict) else None
        total = body.get("totalResults") if isinstance(body, dict) else None
        proper = isinstance(schemas, list) and LIST_RESPONSE in schemas and type(total) is int and total >= 0
        if answer.status != 200 or not proper:
            raise self._not_scim(doing, f"HTTP {answer.status} without a SCIM ListResponse")
        return int(total or 0)

    def _id(self, resource: Any, doing: str) -> str:
        user_id = resource.get("id") if isinstance(resource, dict) else None
        if not isinstance(user_id, str) or user_id in {"", ".", ".."}:
            raise self._not_scim(doing, "the user in the answer has no id")
        return user_id

    def _not_scim(self, doing: str, detail: str) -> errors.Misconfigured:
        return errors.Misconfigured(
            doing,
            system=self._http.system,
            detail=detail,
            fix="Check the target's SCIM base URL: it must be the one that the identity provider uses",
        )


def _search(user_name: str) -> str:
    """%20, not '+': some servers read a query's plus as a plus."""
    escaped = user_name.replace("\\", "\\\\").replace('"', '\\"')
    return "/Users?filter=" + quote(f'userName eq "{escaped}"', safe="")
