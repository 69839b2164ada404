"""Problems of a configuration: all of them at once, each with file, line, key path and a sentence.

No sentence repeats a value of the file (I5): pydantic's own words are replaced where they would.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from rotator.config_lines import Lines, Path
from rotator.config_models import json_schema

TAGS = ("kind", "method", "by")  # keys that choose between kinds of one table


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong at a key path; the line is found later."""

    path: Path
    sentence: str


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where. `line` is 0 where the file itself can't be read."""

    file: str
    line: int
    key: str
    sentence: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place} {self.key}: {self.sentence}" if self.key else f"{place}: {self.sentence}"


class ConfigError(Exception):
    """The configuration can't be used; `problems` holds everything that was found, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def locate(findings: Iterable[Finding], file: FilePath, text: str) -> ConfigError:
    """The findings as an error, each with its line."""
    lines = Lines(text)
    problems = {Problem(str(file), lines.of(f.path), key_path(f.path), f.sentence): None for f in findings}
    return ConfigError(sorted(problems, key=lambda problem: problem.line))


def key_path(path: Path) -> str:
    """`connection[2].key.header`, as TOML would write it."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else '"' + part.replace('"', '\\"') + '"'
            text += f".{name}" if text else name
    return text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean "…"?`, or what there is, or nothing."""
    names = sorted(known)
    if close := difflib.get_close_matches(word, names, n=1):
        return f' Did you mean "{close[0]}"?'
    return f" Known: {', '.join(names)}." if 0 < len(names) <= 12 else ""


# --- pydantic's errors --------------------------------------------------------------------------------------------------


def findings_of(error: ValidationError, data: object, prefix: Path) -> list[Finding]:
    """pydantic's findings about `data`, which stands at `prefix` in the file."""
    found: dict[Finding, None] = {}
    for row in error.errors(include_url=False, include_input=False):
        context = row.get("ctx", {})
        path, table = _without_tags(row["loc"], data)
        path = (*prefix, *path)
        if row["type"] in {"union_tag_invalid", "union_tag_not_found"}:  # pydantic points at the table around the tag
            path = (*path, context["discriminator"].strip("'"))
        if row["type"] == "too_short" and found and next(reversed(found)).path[: len(path)] == path:
            continue  # a list whose only item is wrong is not short
        found[Finding(path, _sentence(row["type"], row["msg"], context, path, table))] = None
    return list(found)


def _without_tags(loc: tuple[str | int, ...], data: object) -> tuple[Path, Mapping[str, Any]]:
    """The path in the file, and the table that holds its last key.

    pydantic's own path also has the chosen `kind` or `method`, and "[key]" after a bad name.
    """
    path: list[str | int] = []
    node: Any = data
    table: Mapping[str, Any] = {}
    tags_left = True  # each table has one tag at most
    for part in loc:
        if isinstance(node, Mapping):
            if tags_left and isinstance(part, str) and part in [node.get(tag) for tag in TAGS]:
                tags_left = False
                continue
            table, node = node, node.get(part)
        elif isinstance(node, Sequence) and not isinstance(node, str) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            continue  # below a value there are no keys: a branch of pydantic's own
        path.append(part)
        tags_left = True
    return tuple(path), table


_KINDS = {
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "float_type": "must be a number",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "missing": "is required",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "holds characters that are not allowed here",
}


def _sentence(kind: str, message: str, context: Mapping[str, Any], path: Path, tags: Mapping[str, Any]) -> str:
    match kind:
        case "rotator":
            return message
        case "extra_forbidden":
            return "is unknown." + did_you_mean(str(path[-1]), known_keys(path[:-1], tags))
        case "literal_error":
            return f"must be {context['expected']}"
        case "union_tag_invalid":
            return f"must be one of {context['expected_tags']}"
        case "union_tag_not_found":
            return _KINDS["missing"]
        case "string_pattern_mismatch":
            return f"{_KINDS[kind]} (allowed: {context['pattern']})"
        case "greater_than_equal":
            return f"must be {context['ge']} or more"
        case "less_than_equal":
            return f"must be {context['le']} or less"
        case "too_short":
            return "must not be empty"
        case _:
            return _KINDS.get(kind, message[:1].lower() + message[1:])


# --- which keys there are -----------------------------------------------------------------------------------------------


def known_keys(path: Path, tags: Mapping[str, Any] = MappingProxyType({})) -> set[str]:
    """The keys that a table at this path may have: of the kind that `tags` says, or over all its kinds."""
    schema = json_schema()
    nodes = _options(schema, schema)
    for part in path:
        below = []
        for node in nodes:
            step = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
            for any_name in ("patternProperties", "additionalProperties"):
                if step is None and isinstance(more := node.get(any_name), Mapping):
                    step = next(iter(more.values())) if any_name == "patternProperties" else more
            if isinstance(step, Mapping):
                below += _options(step, schema)
        nodes = below
    own = [node for node in nodes if all(_constant(node, tag) in {None, str(tags.get(tag))} for tag in TAGS)]
    return {key for node in own or nodes for key in node.get("properties", {})}


def _constant(node: Mapping[str, Any], tag: str) -> str | None:
    constant: str | None = node.get("properties", {}).get(tag, {}).get("const")
    return constant


def _options(node: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tables that a schema node may be: references followed, alternatives spread out."""
    if "$ref" in node:
        return _options(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    spread = [*node.get("oneOf", ()), *node.get("anyOf", ()), *node.get("allOf", ())]
    return [option for alternative in spread for option in _options(alternative, schema)] if spread else [node]
