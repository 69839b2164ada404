"""`[target.NAME]`: the systems that issue keys, by `kind`.

What a target can do (its capabilities) decides the strategy; what its API looks like is described for kind = "http".
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, PlainValidator, Strict, StringConstraints, WithJsonSchema
from pydantic.fields import Field

from rotator.config_connections import Table, lasting
from rotator.config_values import (
    Count,
    Duration,
    FilePath,
    KeyHeader,
    PositiveDuration,
    SecretField,
    Text,
    Url,
    wrong,
)

# RFC 9110 §5.1: a header's name is a token.
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", strict=True)]
Status = Annotated[str, StringConstraints(pattern=r"^[1-5]\d\d$", strict=True)]
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
LiveKeys = Literal["many", "two", "one"]


def _pointer(value: str) -> str:
    # RFC 6901: empty, or each step begins with a slash; "~" only as ~0 and ~1.
    if not re.fullmatch(r"(/([^~/]|~[01])*)*", value):
        raise wrong('must be a JSON pointer such as "/data/id", or "" for the whole answer')
    return value


def _call_path(value: str) -> str:
    if not re.fullmatch(r"(/[^/?#\s\\]+)+/?", value):
        raise wrong('must begin with "/" and have no query, blanks or empty parts; it is appended to the target\'s url')
    return value


def _scalar(value: object) -> str | bool | int:
    if not isinstance(value, str | bool | int):
        raise wrong("must be a string, a whole number, true or false")
    return value


def _json(value: object) -> object:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise wrong("must be JSON: tables, lists, strings, numbers, true and false; quote dates and times") from None
    return value


Pointer = Annotated[str, AfterValidator(_pointer)]
CallPath = Annotated[Text, AfterValidator(_call_path)]


class TargetBase(Table):
    """What all targets have."""

    scim_url: Url | None = Field(
        default=None, description="SCIM base URL for proofs; a connection's `base_url` goes before it."
    )
    header: KeyHeader = Field(
        default="Bearer {key}", description="How the target wants the key in the Authorization header."
    )
    meanings: dict[Status, Literal["refused", "state"]] = Field(
        default={},
        description='What a status of a proof means: "refused" (the key; usual for 401 and 403) or "state" (the target is'
        " paused, the key may be fine).",
    )
    canary: Text = Field(
        default="rk-canary@invalid.example", description="userName of the user that `write_probe` creates."
    )
    min_settle: Duration = lasting("0s", "How long fresh keys are known to be refused here; `settle` is at least this.")
    ca_file: FilePath | None = Field(default=None, description="CA certificates to trust instead of the system's.")
    brake_after: Count = Field(default=3, description="Failures in a row after which no new rotation starts here.")
    brake_cooldown: PositiveDuration = lasting("30m", "How long the brake holds.")

    @property
    def scim_base(self) -> str | None:
        """Where SCIM is served, unless a connection says otherwise."""
        return self.scim_url


# --- kind = "grafana" ---------------------------------------------------------------------------------------------------


class GrafanaTable(TargetBase):
    """Tokens of a Grafana service account."""

    kind: Literal["grafana"] = Field(description="Which system this is.")
    url: Url = Field(description="Grafana's URL.")
    service_account_id: Count = Field(description="The service account whose tokens are rotated.")
    token: SecretField = Field(description="Reference to a token that may manage this service account's tokens.")
    namespace: Text = Field(
        default="default",
        description='Namespace in the SCIM URL, where `scim_url` is left out; in Cloud "stacks-<stack id>".',
    )
    ttl: PositiveDuration | None = Field(
        default=None, description="Lifetime of minted tokens; without it they never expire."
    )

    @property
    def scim_base(self) -> str:
        # Grafana docs, "Configure SCIM with Okta": the tenant URL.
        return self.scim_url or f"{self.url}/apis/scim.grafana.app/v0alpha1/namespaces/{quote(self.namespace, safe='')}"


# --- kind = "http" ------------------------------------------------------------------------------------------------------


class HttpAuth(Table):
    """One header with a credential of the rotator's own at the admin API."""

    header: HeaderName = Field(default="Authorization", description="Header that carries it.")
    prefix: Annotated[str, Strict()] = Field(
        default="Bearer ", description="Text before the credential, such as its scheme."
    )
    value: SecretField = Field(description="Reference to the credential.")


class ByPage(Table):
    """Numbered pages, as many as the answer says."""

    by: Literal["page"] = Field(description="How the list goes on.")
    parameter: Text = Field(description="Query parameter with the page's number.")
    total: Pointer = Field(description="JSON pointer to the number of pages.")
    size_parameter: Text | None = Field(default=None, description="Query parameter with the page's size.")
    size: Count = Field(default=100, description="Items asked for per page.")


class ByCursor(Table):
    """Each answer names the next page."""

    by: Literal["cursor"] = Field(description="How the list goes on.")
    parameter: Text = Field(description="Query parameter with the cursor.")
    next: Pointer = Field(description="JSON pointer to the next cursor; null, empty or absent ends the list.")


class ByLink(Table):
    """Link headers with rel="next"; followed at the same origin and path only."""

    by: Literal["link"] = Field(description="How the list goes on.")


class Taken(Table):
    """An answer to a mint that means: the label is taken, or no more keys may live."""

    status: Annotated[int, Strict(), Field(ge=400, le=499)] = Field(description="HTTP status.")
    pointer: Pointer | None = Field(
        default=None, description="JSON pointer to a code in the answer; the status alone without it."
    )
    equals: Text | None = Field(default=None, description="What the code must be.")


class Dead(Table):
    """A listed item that is no live key."""

    pointer: Pointer = Field(description="JSON pointer inside the item.")
    equals: Annotated[
        str | bool | int, PlainValidator(_scalar), WithJsonSchema({"type": ["string", "boolean", "integer"]})
    ] = Field(description='The value that means it is dead, such as "revoked" or true.')


class Call(Table):
    """One call of the admin API."""

    method: Method = Field(description="HTTP method.")
    path: CallPath = Field(description="Appended to `url`; {key_id} names the key where one is meant.")
    headers: dict[HeaderName, Text] = Field(default={}, description="Further headers; no secrets.")
    body: Annotated[Any, AfterValidator(_json)] = Field(
        default=None,
        description="JSON body as a TOML value; strings may hold {label} {value} {expires_at} {ttl_seconds} {key_id}.",
    )
    ok: Annotated[tuple[Annotated[int, Strict(), Field(ge=200, le=299)], ...], Field(min_length=1)] = Field(
        default=(200, 201, 202, 204), description="Statuses that mean success."
    )


class MintCall(Call):
    """How a key is issued."""

    method: Method = Field(default="POST", description="HTTP method.")
    key: Pointer | None = Field(
        default=None, description="JSON pointer to the key's value in the answer; absent where the body sends {value}."
    )
    key_id: Pointer | None = Field(default=None, description="JSON pointer to the key's id in the answer.")
    expires_at: Pointer | None = Field(default=None, description="JSON pointer to its expiry.")
    taken: tuple[Taken, ...] = Field(default=(), description="Answers that mean no room; status 409 always does.")


class ListCall(Call):
    """How live keys are listed."""

    method: Method = Field(default="GET", description="HTTP method.")
    items: Pointer = Field(default="", description='JSON pointer to the list; "" when the answer is the list.')
    key_id: Pointer = Field(description="JSON pointer to the id, inside an item.")
    label: Pointer | None = Field(default=None, description="JSON pointer to the label, inside an item.")
    created_at: Pointer | None = Field(
        default=None, description="JSON pointer to the time of creation, inside an item."
    )
    last_used_at: Pointer | None = Field(
        default=None, description="JSON pointer to the time of last use, inside an item."
    )
    expires_at: Pointer | None = Field(default=None, description="JSON pointer to the expiry, inside an item.")
    dead: tuple[Dead, ...] = Field(default=(), description="Items that are no live keys.")
    pages: Annotated[ByPage | ByCursor | ByLink, Field(discriminator="by")] | None = Field(
        default=None, description="How the list goes on; one page without it."
    )


class KeyCall(Call):
    """A call on one key, named by {key_id}."""

    method: Method = Field(default="DELETE", description="HTTP method.")


class HttpTable(TargetBase):
    """Any target with an HTTP API that mints keys."""

    kind: Literal["http"] = Field(description="Which system this is.")
    url: Url = Field(description="Base URL of the admin API.")
    auth: Annotated[tuple[HttpAuth, ...], Field(min_length=1)] = Field(
        description="The rotator's credentials there: a list of tables, one for each header."
    )
    mint: MintCall = Field(description="How a key is issued.")
    list: ListCall | None = Field(default=None, description="How live keys are listed.")
    revoke: KeyCall | None = Field(default=None, description="How one key is revoked.")
    disable: KeyCall | None = Field(
        default=None, description="A call before the revoke, where only inactive keys can be deleted."
    )
    live_keys: LiveKeys = Field(default="many", description="How many keys the target lets live at once.")
    last_used_throttle: Duration = lasting("60s", "By how much the listed time of last use may lag.")
    ttl: PositiveDuration | None = Field(
        default=None, description="Lifetime to ask for: {ttl_seconds} and {expires_at} in the mint's body."
    )

    @property
    def labels(self) -> bool:
        """Whether a listed key tells whose it is."""
        return self.list is not None and self.list.label is not None


# --- kind = "manual" ----------------------------------------------------------------------------------------------------


class ManualTable(TargetBase):
    """A target whose keys only a person can mint and revoke."""

    kind: Literal["manual"] = Field(description="Which system this is.")
    live_keys: LiveKeys = Field(default="many", description="How many keys the target lets live at once.")


Target = GrafanaTable | HttpTable | ManualTable
TargetTable = Annotated[Target, Field(discriminator="kind")]
