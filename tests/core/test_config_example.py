"""The example configuration, the schema for editors and the program say the same."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from rotator.config import _tables, load
from rotator.config_connections import TIMING_KEYS
from rotator.config_lines import Path as KeyPath
from rotator.config_models import json_schema, schema_text
from rotator.config_problems import _options, known_keys

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config.example.toml"
SCHEMA = ROOT / "rotator" / "config.schema.json"
SETTING = re.compile(r"^# (?=[a-z_]+ = )")


def _commented() -> list[tuple[int, KeyPath, str]]:
    """Line number, table and text of each setting that stands in a comment."""
    found: list[tuple[int, KeyPath, str]] = []
    table: KeyPath = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(EXAMPLE.read_text().splitlines(), 1):
        if header := re.match(r"\[\[(\w+)\]\]", line):
            counts[header[1]] = counts.get(header[1], -1) + 1
            table = (header[1], counts[header[1]])
        elif header := re.match(r"\[([\w.]+)\]", line):
            table = tuple(header[1].split("."))
        elif SETTING.match(line):
            found.append((number, table, SETTING.sub("", line)))
    return found


def _data() -> dict[str, Any]:
    return tomllib.loads(EXAMPLE.read_text())


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


def _keys(data: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Every (table, key) of the data, where the schema knows keys; names and positions are left as they are."""
    if isinstance(data, Mapping):
        known = known_keys(path)
        for key, value in data.items():
            if known:
                yield path, key
            yield from _keys(value, (*path, key))
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _keys(value, (*path, number))


def _general(path: KeyPath) -> KeyPath:
    """Names of the user's choice and positions replaced, so that paths can be compared."""
    path = tuple(0 if isinstance(part, int) else part for part in path)
    return (path[0], "*", *path[2:]) if path[:1] in {("idp",), ("target",)} and len(path) > 1 else path


def _shared(path: KeyPath, key: str) -> tuple[KeyPath, str]:
    """Keys that connections share with [defaults] need to stand in one of the two."""
    below = (*path[2:], key)
    return (("defaults", *path[2:]), key) if path[:1] == ("connection",) and below[0] in TIMING_KEYS else (path, key)


def _all_keys(node: Mapping[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Every (table, key) of the schema."""
    schema = json_schema()
    for option in _options(node, schema):
        for key, value in option.get("properties", {}).items():
            yield path, key
            yield from _all_keys(value, (*path, key))
        for value in option.get("patternProperties", {}).values():
            yield from _all_keys(value, (*path, "*"))
        if isinstance(items := option.get("items"), Mapping):
            yield from _all_keys(items, (*path, 0))


def test_the_example_loads() -> None:
    assert list(load(EXAMPLE).connections) == ["grafana-prod", "terraform-prod", "zscaler-prod"]


@pytest.mark.parametrize(
    ("table", "text"),
    [pytest.param(table, text, id=f"line {number}: {text.partition(' ')[0]}") for number, table, text in _commented()],
)
def test_a_setting_in_a_comment_is_right_too(table: KeyPath, text: str) -> None:
    data = copy.deepcopy(_data())
    _at(data, table).update(tomllib.loads(text))
    _, findings = _tables(data, ROOT)
    assert findings == []


def test_every_key_of_the_program_stands_in_the_example() -> None:
    data = _data()
    shown = {_shared(_general(path), key) for path, key in _keys(data)}
    for _, table, text in _commented():
        shown |= {_shared(_general(path), key) for path, key in _keys(tomllib.loads(text), table)}
    known = {_shared(path, key) for path, key in _all_keys(json_schema())}
    assert len(known) > 150
    assert known - shown == set()


def test_the_schema_file_is_in_step() -> None:
    assert SCHEMA.read_text() == schema_text(), (
        'write it anew: python -c "from rotator.config_models import schema_text as s; print(s(), end=str())"'
        " > rotator/config.schema.json"
    )


def test_the_schema_accepts_the_example_and_refuses_a_typo() -> None:
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    # Editors validate TOML's own dates as strings.
    data = json.loads(json.dumps(_data(), default=str))
    assert [error.message for error in validator.iter_errors(data)] == []
    data["vault"]["adress"] = data["vault"].pop("address")
    assert {tuple(error.path) for error in validator.iter_errors(data)} == {("vault",)}


def test_every_key_and_table_is_described() -> None:
    schema = json_schema()
    bare = [
        f"{name}.{key}"
        for name, table in schema["$defs"].items()
        for key, value in table.get("properties", {}).items()
        if not value.get("description") and "$ref" not in value  # the table's own words then, if they are the same
    ]
    bare += [name for name, table in schema["$defs"].items() if not table.get("description")]
    assert bare == []
