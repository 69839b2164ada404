"""Servers that many tests share: started once per test process, ended by their own pid."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.openbao import OpenBao, running_openbao


@pytest.fixture(scope="session")
def openbao() -> Iterator[OpenBao]:
    """A real OpenBao. Take a mount of your own: `openbao.mount()`."""
    with running_openbao() as bao:
        yield bao
