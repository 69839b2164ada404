"""On which line does a key stand? tomllib gives no positions, so headers and keys are scanned once more.

Only used to report problems, and only on text that tomllib has accepted; so the scan can trust the syntax.
"""

from __future__ import annotations

import re
import tomllib
from typing import Final

Path = tuple[str | int, ...]  # ("connection", 2, "key", "header")

_HEADER: Final = re.compile(r"\[\[?")
_KEY_PART: Final = re.compile(r"""[ \t]*("(?:\\.|[^"\\\n])*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*""")
# What can hide or end a value: strings (the long forms first), comments, brackets, the line's end.
_IN_VALUE: Final = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|\#[^\n]*|[\[\]{}\n]''', re.DOTALL
)


class Lines:
    """The lines of a TOML document's keys. `of(path)` is the line of the key, or of the nearest table around it."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Path, int] = {}
        self._arrays: dict[Path, int] = {}  # length so far of each [[array of tables]]
        self._scan(text)

    def of(self, path: Path) -> int:
        while path:
            if path in self._lines:
                return self._lines[path]
            path = path[:-1]
        return 1

    def _scan(self, text: str) -> None:
        table: Path = ()
        position, line = 0, 1
        while position < len(text):
            character = text[position]
            if character in " \t\r\n":
                line += character == "\n"
                position += 1
            elif character == "#":
                position = _line_end(text, position)
            elif found := _HEADER.match(text, position):
                names, position = _dotted(text, found.end())
                table = self._open(names, array=found.group() == "[[")
                self._note(table, line)
                position = _line_end(text, position)
            else:
                names, position = _dotted(text, position)
                self._note((*table, *names), line)
                end = _value_end(text, position)
                line += text.count("\n", position, end)
                position = end

    def _open(self, names: Path, *, array: bool) -> Path:
        """The path that a header opens; names of arrays of tables on the way mean their newest item."""
        path: Path = ()
        for number, name in enumerate(names, 1):
            path = (*path, name)
            if array and number == len(names):
                self._arrays[path] = self._arrays.get(path, 0) + 1
            if path in self._arrays:
                path = (*path, self._arrays[path] - 1)
        return path

    def _note(self, path: Path, line: int) -> None:
        for length in range(1, len(path) + 1):  # a dotted key also opens the tables before its last dot
            self._lines.setdefault(path[:length], line)


def _dotted(text: str, position: int) -> tuple[Path, int]:
    """The parts of a dotted key, and the position after it."""
    names: list[str] = []
    while found := _KEY_PART.match(text, position):
        part = found[1]
        names.append(next(iter(tomllib.loads(f"{part} = 0"))) if part[0] in "\"'" else part)
        position = found.end()
        if text[position : position + 1] != ".":
            break
        position += 1
    return tuple(names), position


def _value_end(text: str, position: int) -> int:
    """The newline that ends the value, or the end of the text."""
    depth = 0
    while found := _IN_VALUE.search(text, position):
        mark = found.group()
        if mark == "\n" and depth == 0:
            return found.start()
        depth += (mark in "[{") - (mark in "]}")
        position = found.end()
    return len(text)


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end
