"""What README repeats of the program, made from the program. `python -m tests.docs --write` renews it.

Each piece stands between `<!-- made: NAME -->` and `<!-- /made -->`; tests/test_docs.py compares.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import typer
from typer.testing import CliRunner

from rotator.cli import app
from rotator.observe import names
from rotator.runtime.api_routes import ROUTES

README = Path(__file__).parents[1] / "README.md"
COMMANDS: Mapping[str, object] = vars(typer.main.get_command(app))["commands"]
# Plain text of one width, whatever terminal or CI we run in
TERMINAL = {"COLUMNS": "100", "LINES": "50", "NO_COLOR": "1", "TERM": "dumb"}
_PIECE = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- /made -->)", re.DOTALL)


def help_of(*command: str) -> str:
    """What `rotator COMMAND --help` prints on a terminal of 100 columns."""
    with mock.patch.dict(os.environ, TERMINAL):
        done = CliRunner().invoke(app, [*command, "--help"], prog_name="rotator", catch_exceptions=False)
    lines = [line.rstrip() for line in done.stdout.strip("\n").splitlines()]
    return "\n".join(lines).strip("\n")


def _routes() -> str:
    rows = ["| method | path | role | what it does |", "|---|---|---|---|"]
    rows += [f"| {r.method} | `{r.path}` | {r.role.value if r.role else 'none'} | {r.summary} |" for r in ROUTES]
    return "\n".join(rows)


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```"


PIECES: Mapping[str, Callable[[], str]] = {
    "help": lambda: _fenced(help_of()),
    "commands": lambda: _fenced("\n\n".join(help_of(name) for name in COMMANDS)),
    "routes": _routes,
    "metrics": names.markdown_table,
}


def renewed(text: str) -> str:
    """The text with every piece as the program has it now. KeyError for a piece that nothing makes."""
    return _PIECE.sub(lambda found: f"{found[1]}\n{PIECES[found[2]]()}\n\n{found[3]}", text)


def pieces(text: str) -> list[str]:
    """The names of the pieces in the text."""
    return [found[2] for found in _PIECE.finditer(text)]


if __name__ == "__main__":
    old = README.read_text()
    new = renewed(old)
    if "--write" in sys.argv[1:]:
        README.write_text(new)
    elif new != old:
        sys.exit("README.md is behind the program: python -m tests.docs --write")
