"""Helm, built for the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from chart import Helm


@pytest.fixture(scope="session")
def helm(program: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(program("helm"), tmp_path_factory.mktemp("helm"))
