"""Fixtures that modules of these tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway_fixtures import gateway, options, services, worker

__all__ = ["gateway", "held", "hold", "options", "services", "worker"]


@pytest.fixture(scope="module")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file exists, a held worker writes no text to its end."""
    return tmp_path_factory.mktemp("hold") / "held"


@pytest.fixture
def held(hold: Path) -> Iterator[None]:
    hold.touch()
    yield
    hold.unlink()
