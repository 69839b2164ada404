"""Who may import whom: the layers of the program, enforced on every file by the standard library's `ast`.

The point of the layers: the core stays pure (I/O, clocks and randomness come in as arguments), only adapters talk to
the outside, and the sandbox shares no code with the clients it tests. A file that fits no row fails too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rotator"


@dataclass(frozen=True)
class Row:
    """Files of one layer (patterns relative to rotator/), which layers they may import, and which third parties."""

    files: tuple[str, ...]
    layers: frozenset[str]
    third_party: frozenset[str] = frozenset()


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def row(files: str, layers: str, third_party: str = "") -> Row:
    return Row(tuple(files.split()), names(layers), names(third_party))


EVERYTHING = "core errors ports engine config adapters observe runtime app"
THIRD_PARTIES = (  # what pyproject's `dependencies` install for us to import; urllib3 comes with requests
    "hvac requests urllib3 httpx jwt cryptography pydantic pydantic_core structlog prometheus_client "
    "apscheduler starlette uvicorn typer click rich tzdata"
)
LAYERS = {
    "package": row("__init__.py", ""),
    "core": row("core/*", "core errors"),
    "errors": row("errors.py", "core errors"),
    "ports": row("ports.py", "core errors"),
    # work.py and telling.py are the engine too, cut into files with one job each
    "engine": row("engine*.py effects*.py work.py telling.py", "core errors ports engine"),
    "config": row("config*.py", "core errors config", "pydantic pydantic_core"),
    "adapters": row("adapters/*", "core errors ports adapters", "hvac requests urllib3 httpx jwt cryptography"),
    "observe": row("observe/*", "core errors ports observe", "structlog prometheus_client"),
    "runtime": row(
        "runtime/*", "core errors ports engine runtime", "apscheduler starlette uvicorn pydantic pydantic_core"
    ),
    "app": row("app*.py", EVERYTHING, THIRD_PARTIES),
    "cli": row("cli*.py __main__.py", f"{EVERYTHING} cli sandbox", THIRD_PARTIES),
    "sandbox": row("sandbox/*", "sandbox", "*"),
}

ONLY_THERE = {"httpx": ("adapters/http.py", "sandbox/*"), "hvac": ("adapters/vault*.py", "sandbox/*")}

IMPURE_MODULES = names(
    "asyncio concurrent glob http io logging multiprocessing os pathlib queue random sched secrets select selectors "
    "shutil signal socket sqlite3 ssl subprocess sys tempfile threading time urllib uuid warnings"
)
IMPURE_CALLS = frozenset({"open", "print", "input", "breakpoint", "exec", "eval"})
CLOCK_READS = frozenset({"now", "utcnow", "today"})


@dataclass(frozen=True)
class Import:
    module: str  # absolute, dotted
    line: int
    late: bool  # inside a function


def violations(path: str, source: str) -> list[str]:
    """What the file at `path` (relative to rotator/) does against the rules; each a sentence with its line."""
    layer = layer_of(path)
    if layer is None:
        return [f"{path}: fits no layer; give it a row in tests/test_import_rules.py or move it"]
    tree = ast.parse(source, path)
    found = [problem for item in imports(path, tree) for problem in judge(path, layer, item)]
    if layer == "core":
        found += [f"{path}:{line}: {what} in core, which has no I/O, clock or log" for line, what in impure(tree)]
    return found


def judge(path: str, layer: str, item: Import) -> Iterator[str]:
    top, *rest = item.module.split(".")
    at = f"{path}:{item.line}: {layer}"
    if item.module == "?":
        yield f"{at} imports a module whose name is computed, so that no rule can see it"
    elif item.module == "rotator.__version__" and layer in {"app", "cli"}:
        return  # the package itself has nothing else
    elif top == "rotator":
        other = layer_of_module(rest)
        if other is None or other not in LAYERS[layer].layers:
            yield f"{at} may not import {item.module} ({other or 'no layer'})"
        elif other == "sandbox" and layer == "cli" and not item.late:
            yield f"{at} may import {item.module} only inside the demo command"
    elif top in sys.stdlib_module_names:
        if layer == "core" and top in IMPURE_MODULES:
            yield f"{at} may not import {item.module}: core is pure"
    elif top not in LAYERS[layer].third_party and "*" not in LAYERS[layer].third_party:
        yield f"{at} may not import the third party {item.module}"
    elif top in ONLY_THERE and not any(fnmatchcase(path, pattern) for pattern in ONLY_THERE[top]):
        yield f"{at} may import {top} only in {' '.join(ONLY_THERE[top])}"


def layer_of(path: str) -> str | None:
    return next((name for name, row in LAYERS.items() if any(fnmatchcase(path, file) for file in row.files)), None)


def layer_of_module(parts: list[str]) -> str | None:
    """The layer of `rotator.<parts>`: a package's folder or a module's file."""
    if not parts:
        return "package"
    return layer_of(f"{parts[0]}.py") or layer_of(f"{parts[0]}/__init__.py")


def imports(path: str, tree: ast.Module) -> Iterator[Import]:
    """Every import of the file, absolute; `from rotator import errors` counts as rotator.errors."""
    late = {id(node) for function in ast.walk(tree) if isinstance(function, FUNCTION) for node in ast.walk(function)}
    package = ["rotator", *Path(path).parent.parts]
    for node in ast.walk(tree):
        is_late = id(node) in late
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, is_late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "rotator":
                yield from (Import(f"rotator.{alias.name}", node.lineno, is_late) for alias in node.names)
            else:
                yield Import(module, node.lineno, is_late)
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"}:
            name = node.args[0] if node.args else None
            literal = isinstance(name, ast.Constant) and isinstance(name.value, str)
            yield Import(str(name.value) if literal else "?", node.lineno, is_late)  # type: ignore[union-attr]  # literal says so


FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def impure(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = called(node)
            if isinstance(node.func, ast.Name) and name in IMPURE_CALLS:
                yield node.lineno, f"{name}()"
            if isinstance(node.func, ast.Attribute) and name in CLOCK_READS:
                yield node.lineno, f".{name}()"


def called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES)
def test_every_file_keeps_to_its_layer(path: str) -> None:
    assert violations(path, (PACKAGE / path).read_text()) == []


def test_the_files_are_found() -> None:
    assert {"core/model.py", "ports.py", "errors.py"} <= set(FILES)


@pytest.mark.parametrize(
    ("path", "source", "said"),
    [
        pytest.param("core/x.py", "import rotator.ports", "may not import rotator.ports", id="core looks at a port"),
        pytest.param("core/x.py", "from rotator import ports", "may not import rotator.ports", id="by another spelling"),
        pytest.param("core/x.py", "from .. import ports", "may not import rotator.ports", id="by a relative import"),
        pytest.param("core/x.py", "from ..adapters.http import X", "rotator.adapters.http", id="by a deeper one"),
        pytest.param("core/x.py", "import pydantic", "third party pydantic", id="core uses a library"),
        pytest.param("core/x.py", "import time", "core is pure", id="core reads the monotonic clock"),
        pytest.param("core/x.py", "import logging", "core is pure", id="core logs"),
        pytest.param("core/x.py", "def f(d):\n  return d.now()", "x.py:2: .now()", id="core reads the clock"),
        pytest.param("core/x.py", "open('x')", "open()", id="core opens a file"),
        pytest.param("core/x.py", "def f():\n  import random", "core is pure", id="core is random, late"),
        pytest.param("ports.py", "import rotator.engine", "rotator.engine", id="a port knows the engine"),
        pytest.param("engine.py", "from rotator.adapters import vault", "rotator.adapters", id="the engine picks an adapter"),
        pytest.param("effects_back.py", "import structlog", "third party structlog", id="an effect logs by itself"),
        pytest.param("config.py", "import rotator.ports", "rotator.ports", id="the configuration knows ports"),
        pytest.param("adapters/idp/x.py", "import rotator.config", "rotator.config", id="an adapter reads configuration"),
        pytest.param("adapters/idp/x.py", "import pydantic", "third party", id="an adapter uses pydantic"),
        pytest.param("adapters/idp/x.py", "import httpx", "only in adapters/http.py", id="a second HTTP client"),
        pytest.param("adapters/targets/x.py", "import hvac", "only in adapters/vault*.py", id="Vault behind our back"),
        pytest.param("app.py", "import httpx", "only in adapters/http.py", id="the composition root calls out by itself"),
        pytest.param("observe/x.py", "import rotator.engine", "rotator.engine", id="a subscriber drives the engine"),
        pytest.param("runtime/x.py", "import rotator.adapters", "rotator.adapters", id="the daemon picks an adapter"),
        pytest.param("runtime/x.py", "import rotator.app", "rotator.app", id="the daemon composes itself"),
        pytest.param("app.py", "import rotator.cli", "rotator.cli", id="the composition root calls a command"),
        pytest.param("cli.py", "import rotator.sandbox.world", "only inside the demo", id="every command loads the sandbox"),
        pytest.param("app.py", "def f():\n  import rotator.sandbox", "rotator.sandbox", id="production loads the sandbox"),
        pytest.param("sandbox/x.py", "from rotator.core.secret import Secret", "rotator.core", id="the sandbox shares code"),
        pytest.param("stray.py", "", "fits no layer", id="a file that no row knows"),
        pytest.param("core/x.py", "import rotator.stray", "no layer", id="an import of such a file"),
        pytest.param("engine.py", "import importlib\nimportlib.import_module(n)", "computed", id="a computed import"),
        pytest.param("engine.py", "__import__('rotator.app')", "rotator.app", id="an import by call"),
        pytest.param("ports.py", "if TYPE_CHECKING:\n  import hvac", "third party hvac", id="an import for types only"),
    ],
)  # fmt: skip
def test_a_breach_is_seen(path: str, source: str, said: str) -> None:
    found = violations(path, source)
    assert len(found) == 1, found
    assert said in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        pytest.param("core/x.py", "import hashlib\nfrom zoneinfo import ZoneInfo\nfrom . import model", id="core: pure standard library"),
        pytest.param("adapters/idp/x.py", "from ..http import HttpClient\nimport jwt", id="an adapter and its sibling"),
        pytest.param("adapters/vault_session.py", "import hvac, requests", id="Vault's own file"),
        pytest.param("cli.py", "def demo():\n  from rotator.sandbox.world import World", id="the demo command, late"),
        pytest.param("sandbox/x.py", "import scim2_server\nfrom rotator.sandbox import server", id="the sandbox by itself"),
        pytest.param("app.py", "from rotator import runtime, adapters\nimport rotator.observe.logs", id="the composition root"),
    ],
)  # fmt: skip
def test_what_is_allowed_is_not_called_a_breach(path: str, source: str) -> None:
    assert violations(path, source) == []
