"""The part of the System Log's filter language that clients use: eq ne co sw ew pr gt ge lt le, and or not, brackets.

As at Okta there are no [ ], and `published` can't be filtered on (Okta docs: system-log-query).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Predicate = Callable[[Mapping[str, Any]], bool]

_TOKEN = re.compile(r'\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<mark>[()])|(?P<word>[A-Za-z0-9_.+-]+))')
_OPERATORS: Mapping[str, Callable[[str, str], bool]] = {
    "eq": lambda found, wanted: found == wanted,
    "co": lambda found, wanted: wanted in found,
    "sw": lambda found, wanted: found.startswith(wanted),
    "ew": lambda found, wanted: found.endswith(wanted),
    "gt": lambda found, wanted: found > wanted,
    "ge": lambda found, wanted: found >= wanted,
    "lt": lambda found, wanted: found < wanted,
    "le": lambda found, wanted: found <= wanted,
}


class BadFilterError(ValueError):
    """The filter can't be read; the message says where."""


def parse(text: str) -> Predicate:
    """The filter as a predicate on events. BadFilterError when it is not in the subset."""
    tokens = _Tokens(text)
    predicate = _either(tokens)
    if tokens.peek() is not None:
        raise BadFilterError(f"unexpected {tokens.peek()}")
    return predicate


class _Tokens:
    def __init__(self, text: str) -> None:
        self._tokens = list(_split(text))
        self._next = 0

    def peek(self) -> str | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def take(self) -> str:
        token = self.peek()
        if token is None:
            raise BadFilterError("it ends too early")
        self._next += 1
        return token

    def take_if(self, word: str) -> bool:
        if (self.peek() or "").lower() != word:
            return False
        self._next += 1
        return True


def _split(text: str) -> Iterator[str]:
    at = 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise BadFilterError(f"unexpected character at {at}")
        yield match.group().strip()
        at = match.end()


def _either(tokens: _Tokens) -> Predicate:
    parts = [_both(tokens)]
    while tokens.take_if("or"):
        parts.append(_both(tokens))
    return lambda event: any(part(event) for part in parts)


def _both(tokens: _Tokens) -> Predicate:
    parts = [_single(tokens)]
    while tokens.take_if("and"):
        parts.append(_single(tokens))
    return lambda event: all(part(event) for part in parts)


def _single(tokens: _Tokens) -> Predicate:
    if tokens.take_if("not"):
        inner = _single(tokens)
        return lambda event: not inner(event)
    if tokens.take_if("("):
        inner = _either(tokens)
        if not tokens.take_if(")"):
            raise BadFilterError("a bracket is not closed")
        return inner
    return _comparison(tokens)


def _comparison(tokens: _Tokens) -> Predicate:
    attribute = tokens.take()
    if not attribute[0].isalpha():
        raise BadFilterError(f"{attribute} is not an attribute")
    if attribute.lower() == "published":
        raise BadFilterError("published can't be filtered on; use since and until")
    path = attribute.split(".")
    operator = tokens.take().lower()
    if operator == "pr":
        return lambda event: any(True for _ in _values(event, path))
    if operator == "ne":
        unwanted = _literal(tokens.take())
        return lambda event: all(value != unwanted for value in _values(event, path))
    if operator not in _OPERATORS:
        raise BadFilterError(f"{operator} is not an operator")
    compare, wanted = _OPERATORS[operator], _literal(tokens.take())
    return lambda event: any(compare(value, wanted) for value in _values(event, path))


def _literal(token: str) -> str:
    if token.startswith('"'):
        return re.sub(r"\\(.)", r"\1", token[1:-1])
    if token in "()":
        raise BadFilterError("a value is missing")
    return token.lower() if token.lower() in ("true", "false", "null") else token


def _values(value: Any, path: list[str]) -> Iterator[str]:
    """Every value at the path; a list on the way means any of its members."""
    if isinstance(value, list):
        for member in value:
            yield from _values(member, path)
    elif path:
        if isinstance(value, Mapping) and path[0] in value:
            yield from _values(value[path[0]], path[1:])
    elif isinstance(value, bool):
        yield str(value).lower()
    elif value is not None and not isinstance(value, Mapping):
        yield str(value)
