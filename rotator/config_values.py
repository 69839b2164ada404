"""The small values of a configuration file: durations, references to secrets, URLs, paths, names.

Each type checks one string and says what is wrong without repeating it (I5: a value may hold a secret). Secrets are
references; only `file:` and `env:` can be resolved here, `vault:` is read by the application.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BeforeValidator,
    PlainValidator,
    Strict,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic.fields import Field
from pydantic_core import PydanticCustomError

from rotator.core.secret import Secret
from rotator.errors import Misconfigured

SECRET_FILE_LIMIT: Final = 65536  # bytes; a key or a PEM file is far smaller, a wrong path may be endless


@dataclass(frozen=True, slots=True)
class SecretRef:
    """Where a secret lies. Safe to print and to compare: a plain secret is held masked, and named by its fingerprint."""

    scheme: Literal["file", "env", "vault", "plain"]
    where: str  # absolute path, variable name, `mount/path`, or the fingerprint of a plain secret
    field: str = ""  # of the vault entry
    plain: Secret | None = dataclasses.field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.scheme}:{self.where}" + (f"#{self.field}" if self.field else "")

    @property
    def mount(self) -> str:
        """Of a `vault:` reference: the KV mount, its first part."""
        return self.where.partition("/")[0]

    @property
    def path(self) -> str:
        """Of a `vault:` reference: the path below the mount."""
        return self.where.partition("/")[2]


def resolve_local(ref: SecretRef, *, allow_world_readable: bool = False) -> Secret:
    """The value of a `file:`, `env:` or plain reference, read now (files may be renewed at any time).

    One trailing newline of a file is dropped, nothing else. Raises Misconfigured when it is absent, empty, not text,
    readable by everybody (unless allowed), or a `vault:` reference.
    """
    match ref.scheme:
        case "plain" if ref.plain is not None:
            return ref.plain
        case "env":
            value = os.environ.get(ref.where, "")
            if not value:
                raise _unresolved(ref, "the variable is unset or empty")
            return Secret(value)
        case "file":
            return Secret(_read_secret_file(ref, allow_world_readable=allow_world_readable))
        case _:
            raise _unresolved(ref, "only file: and env: can be read without Vault")


def _read_secret_file(ref: SecretRef, *, allow_world_readable: bool) -> str:
    try:
        with Path(ref.where).open("rb") as file:
            # The mode of the opened file, not of the path: it can't be swapped in between, and links are followed.
            if os.fstat(file.fileno()).st_mode & 0o004 and not allow_world_readable:
                raise _unresolved(
                    ref,
                    "everybody on this machine may read the file",
                    "chmod o-r it, or set allow_world_readable_secrets = true at the top of the configuration",
                )
            data = file.read(SECRET_FILE_LIMIT + 1)
    except OSError as e:
        raise _unresolved(ref, e.strerror or type(e).__name__) from None
    if len(data) > SECRET_FILE_LIMIT:
        raise _unresolved(ref, f"the file is larger than {SECRET_FILE_LIMIT} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _unresolved(ref, "the file is not UTF-8 text") from None  # the cause would hold the bytes
    text = text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
    if not text:
        raise _unresolved(ref, "the file is empty")
    return text


def _unresolved(ref: SecretRef, detail: str, fix: str = "") -> Misconfigured:
    return Misconfigured(f"reading the secret {ref}", system="configuration", detail=detail, fix=fix)


# --- parsers ------------------------------------------------------------------------------------------------------------

_UNITS: Final = {"w": 604800.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION: Final = r"^(\d+(\.\d+)?(ms|[wdhms]))+$"
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[wdhms])")
_NAME: Final = r"^[a-z0-9][a-z0-9._-]{0,63}$"
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VAULT_REF: Final = re.compile(r"(?P<where>[^/#\s]+/[^#\s]*[^/#\s])#(?P<field>[^#\s]+)")
_CRON_FIELD: Final = re.compile(r"[0-9A-Za-z*/,?#-]+")


def wrong(sentence: str) -> PydanticCustomError:
    """A finding about a value. The sentence must not repeat the value."""
    return PydanticCustomError("rotator", sentence)


def parse_duration(value: object) -> float:
    """`"30d"`, `"1h30m"`, `"90s"`, `"250ms"`, `"0s"` as seconds."""
    if not isinstance(value, str) or not re.match(_DURATION, value):
        raise wrong('must be a duration with a unit, such as "30d", "12h", "90s" or "0s"')
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(value))


def _positive(value: float) -> float:
    if value <= 0:
        raise wrong("must be longer than zero")
    return value


def parse_secret(value: object, info: ValidationInfo) -> SecretRef:
    """A reference as written in the file. Relative `file:` paths are taken from the configuration's folder."""
    if isinstance(value, SecretRef):
        return value
    if not isinstance(value, str) or not value:
        raise wrong('must be a reference to a secret: "file:/path", "env:NAME" or "vault:mount/path#field"')
    context = info.context or {}
    scheme, _, rest = value.partition(":")
    match scheme:
        case "file" if rest:
            return SecretRef("file", str(Path(context.get("folder", "")) / rest))
        case "env" if _ENV_NAME.fullmatch(rest):
            return SecretRef("env", rest)
        case "vault" if found := _VAULT_REF.fullmatch(rest):
            return SecretRef("vault", found["where"], found["field"])
        case "file" | "env" | "vault":
            forms = {"file": '"file:/path"', "env": '"env:NAME"', "vault": '"vault:mount/path#field"'}
            raise wrong(f"is no complete reference to a secret; its form is {forms[scheme]}")
        case _ if context.get("plain"):
            secret = Secret(value)
            return SecretRef("plain", secret.fingerprint, plain=secret)
        case _:
            raise wrong(
                "holds a secret in plain text; move it to a file or a variable and refer to it as"
                ' "file:/path", "env:NAME" or "vault:mount/path#field"'
                " (for a laboratory: allow_plain_secrets = true at the top of the file)"
            )


def _local_only(ref: SecretRef) -> SecretRef:
    if ref.scheme == "vault":
        raise wrong("signs in to Vault, so it can't lie in Vault; use a file: or env: reference")
    return ref


def is_loopback(host: str) -> bool:
    """Whether this host name or address never leaves the machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_url(value: str) -> str:
    """An https URL (http only to loopback) without user, query or fragment; a trailing slash is dropped."""
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise wrong("is no valid URL") from None
    if parts.scheme not in {"http", "https"} or not host or re.search(r"\s", value):
        raise wrong('must be a URL such as "https://host/path"')
    if parts.username is not None or parts.password is not None:
        raise wrong("must not hold a user or password")
    if parts.query or parts.fragment or value.endswith(("?", "#")):
        raise wrong("must not have a query or fragment")
    if parts.scheme == "http" and not is_loopback(host):
        raise wrong("must be https: keys would cross the network in plain text (http is for loopback only)")
    return value.rstrip("/")


def _path(value: object, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise wrong("must be the path of a file")
    return Path((info.context or {}).get("folder", "")) / value


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise wrong('must be an IANA time zone such as "Europe/Berlin" or "UTC"') from None
    return value


def _cron(value: str) -> str:
    fields = value.split()
    if len(fields) != 5 or not all(_CRON_FIELD.fullmatch(f) for f in fields):
        raise wrong("must have the five fields of cron: minute, hour, day of month, month, day of week")
    return value


def _time_of_day(value: object) -> time:
    if isinstance(value, time):
        return value
    if not isinstance(value, str) or not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
        raise wrong('must be a time of day such as "22:00"')
    return time.fromisoformat(value)


def _moment(value: object) -> object:
    # TOML has dates and times of its own; strings are taken too, because people quote them.
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime.combine(value, time())
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            pass
    raise wrong("must be a date or a date with time, such as 2026-12-24 or 2026-12-24T18:00:00Z")


def _key_header(value: str) -> str:
    if value.count("{key}") != 1 or value.count("{") != 1 or value.count("}") != 1:
        raise wrong('must hold {key} once and no other braces, such as "Bearer {key}"')
    if not value.isascii() or not value.isprintable() or value != value.strip():
        raise wrong("must be printable ASCII without blanks at its ends: it becomes a header's value")
    return value


def _allowed_characters(value: str) -> str:
    if not value.isascii() or not value.isprintable() or " " in value:
        raise wrong("may only hold printable ASCII characters, no blanks: others never survive in a header")
    return value


# --- types --------------------------------------------------------------------------------------------------------------

_DURATION_SCHEMA: Final[dict[str, Any]] = {"type": "string", "pattern": _DURATION, "examples": ["30d", "12h", "90s"]}
_SECRET_SCHEMA: Final[dict[str, Any]] = {
    "type": "string",
    "minLength": 1,
    "examples": ["file:/run/secrets/key", "env:NAME", "vault:mount/path#field"],
}

Flag = Annotated[bool, Strict()]  # "true" and 1 are mistakes
Count = Annotated[int, Strict(), Field(ge=1)]
Text = Annotated[str, StringConstraints(min_length=1, strict=True)]
Name = Annotated[str, StringConstraints(pattern=_NAME, strict=True)]
Duration = Annotated[float, BeforeValidator(parse_duration), WithJsonSchema(_DURATION_SCHEMA)]
PositiveDuration = Annotated[
    float, BeforeValidator(parse_duration), AfterValidator(_positive), WithJsonSchema(_DURATION_SCHEMA)
]
SecretField = Annotated[SecretRef, PlainValidator(parse_secret), WithJsonSchema(_SECRET_SCHEMA)]
LocalSecretField = Annotated[
    SecretRef, PlainValidator(parse_secret), AfterValidator(_local_only), WithJsonSchema(_SECRET_SCHEMA)
]
Url = Annotated[Text, AfterValidator(check_url), WithJsonSchema({"type": "string", "pattern": "^https?://"})]
FilePath = Annotated[Path, PlainValidator(_path), WithJsonSchema({"type": "string", "minLength": 1})]
Zone = Annotated[Text, AfterValidator(_zone)]
Cron = Annotated[Text, AfterValidator(_cron)]
TimeOfDay = Annotated[time, PlainValidator(_time_of_day), WithJsonSchema({"type": "string", "examples": ["22:00"]})]
Moment = Annotated[datetime, BeforeValidator(_moment), WithJsonSchema({"type": "string", "examples": ["2026-12-24"]})]
KeyHeader = Annotated[Text, AfterValidator(_key_header)]
Characters = Annotated[str, Strict(), AfterValidator(_allowed_characters)]
