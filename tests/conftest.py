"""Servers that many tests share: started once per test process, ended by their own pid."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from _pytest.terminal import TerminalReporter

from tests.openbao import OpenBao, running_openbao


@pytest.fixture(scope="session")
def openbao() -> Iterator[OpenBao]:
    """A real OpenBao. Take a mount of your own: `openbao.mount()`."""
    with running_openbao() as bao:
        yield bao


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """The walk of the core says how many cases it judged, over all workers."""
    reports = [r for key in ("passed", "failed") for r in terminalreporter.getreports(key)]
    walked = sum(int(str(value)) for r in reports for name, value in r.user_properties if name == "walked")
    if walked:
        failed = sum(bool(r.failed) for r in reports if any(name == "walked" for name, _ in r.user_properties))
        terminalreporter.write_line(f"core walk: {walked} cases, invariants violated in {failed} of their groups")
