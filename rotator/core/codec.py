"""Turns the state record into JSON-ready values and back: the only place that knows its stored form.

Keeps I5 by construction (the dataclasses of model.py have no field for key material) and I3 on the way in: what can't be
understood is refused with its path, never skipped. Fields at their default are left out, because there are many records;
`schema` always stands, and `Limits` stands in full, since a rotation ends by the rules it began by, whatever a later
release calls the default.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Hashable, Mapping
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from typing import Any, TypeAlias, cast

from rotator.core.model import SCHEMA, Limits, Record

JSON: TypeAlias = "dict[str, JSON] | list[JSON] | str | int | float | bool | None"

_IN_FULL = (Limits,)


def encode(record: Record) -> dict[str, JSON]:
    """The record as values that `json.dumps` takes. ValueError for a time without zone or a number JSON can't hold."""
    encoded = _encode_dataclass(record, record.connection)
    return {"schema": record.schema, **encoded}


def decode(data: Mapping[str, object]) -> Record:
    """The record that `encode` made `data` from. ValueError, naming the path, for anything it can't understand."""
    schema = data.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise ValueError(f"schema: expected a whole number from 1, found {_shown(schema)}")
    if schema > SCHEMA:
        raise ValueError(
            f"schema: {schema} was written by a newer rotator; this one understands up to {SCHEMA}. Upgrade this instance"
        )
    record = _decode_dataclass(Record, data, "")
    assert isinstance(record, Record)  # noqa: S101  # for the type checker; the class was given one line above
    return record


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    name: str
    type: Any
    default: object  # dataclasses.MISSING when it must stand
    in_full: bool


@cache
def _fields(cls: Hashable) -> tuple[_Field, ...]:
    assert isinstance(cls, type)  # noqa: S101  # for the type checker, which knows no hashable type[Any]
    hints = typing.get_type_hints(cls)
    return tuple(_Field(f.name, hints[f.name], f.default, cls in _IN_FULL) for f in dataclasses.fields(cls))


def _encode_dataclass(value: Any, path: str) -> dict[str, JSON]:
    encoded: dict[str, JSON] = {}
    for field in _fields(cast("Hashable", type(value))):
        item = getattr(value, field.name)
        if field.in_full or field.default is dataclasses.MISSING or item != field.default:
            encoded[field.name] = _encode(item, f"{path}.{field.name}")
    return encoded


def _encode(value: object, path: str) -> JSON:
    if isinstance(value, Enum):  # before str: the enums of the model are strings too
        return str(value.value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path}: {value} is no number that JSON can hold")
        return value
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"{path}: a time without time zone")
        try:
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        except OverflowError:  # the first or last day of the calendar, in another zone
            raise ValueError(f"{path}: a time outside the calendar") from None
    if isinstance(value, tuple):
        return [_encode(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value):
        return _encode_dataclass(value, path)
    raise ValueError(f"{path}: can't store a {type(value).__name__}")


def _decode_dataclass(cls: type[Any], data: object, path: str) -> object:
    if not isinstance(data, Mapping):
        raise ValueError(  # noqa: TRY004  # callers catch one error for stored text that can't be right
            f"{path or 'record'}: expected an object, found {_shown(data)}"
        )
    prefix = f"{path}." if path else ""
    fields = _fields(cast("Hashable", cls))
    unknown = sorted(set(data) - {field.name for field in fields})
    if unknown:
        raise ValueError(f"{prefix}{unknown[0]}: a field this rotator does not know")
    values: dict[str, object] = {}
    for field in fields:
        if field.name in data:
            values[field.name] = _decode(field.type, data[field.name], prefix + field.name)
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"{prefix}{field.name}: missing")
    return cls(**values)


def _decode(kind: Any, data: object, path: str) -> object:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):  # the model has only `X | None`
        if data is None:
            return None
        (kind,) = (arm for arm in typing.get_args(kind) if arm is not types.NoneType)
        origin = typing.get_origin(kind)
    if origin is tuple:
        return _decode_tuple(typing.get_args(kind), data, path)
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)  # noqa: S101  # for the type checker: a field's type, never an instance
        return _decode_dataclass(kind, data, path)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _decode_enum(kind, data, path)
    if kind is datetime:
        return _decode_time(data, path)
    if kind is float and isinstance(data, int | float) and not isinstance(data, bool):
        return float(data)
    if kind in (str, int, bool) and type(data) is kind:  # `type is`: True is no number here
        return data
    raise ValueError(f"{path}: expected {getattr(kind, '__name__', kind)}, found {_shown(data)}")


def _decode_tuple(kinds: tuple[Any, ...], data: object, path: str) -> tuple[object, ...]:
    if not isinstance(data, list):
        raise ValueError(  # noqa: TRY004  # as above
            f"{path}: expected a list, found {_shown(data)}"
        )
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(data)
    if len(kinds) != len(data):
        raise ValueError(f"{path}: expected {len(kinds)} items, found {len(data)}")
    return tuple(_decode(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(kinds, data, strict=True)))


def _decode_enum(kind: type[Enum], data: object, path: str) -> Enum:
    try:
        return kind(data)
    except ValueError:
        raise ValueError(f"{path}: {_shown(data)} is no {kind.__name__} that this rotator knows") from None


def _decode_time(data: object, path: str) -> datetime:
    with contextlib.suppress(ValueError, OverflowError):
        time = datetime.fromisoformat(data) if isinstance(data, str) else None
        if time is not None and time.tzinfo is not None:
            return time.astimezone(UTC)
    raise ValueError(f"{path}: expected a time such as 2026-01-31T12:00:00Z, found {_shown(data)}")


def _shown(data: object) -> str:
    """A value for an error message: short, and only its kind when it is long (a person may have pasted anything)."""
    if data is None or isinstance(data, bool | int | float):
        return repr(data)
    if isinstance(data, str) and len(data) <= 24:
        return repr(data)
    return f"a {type(data).__name__}"
