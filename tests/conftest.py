"""Fixtures of the whole session; which tests run one after the other under several processes."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.trained import Models

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def trained_models(tmp_path_factory: pytest.TempPathFactory) -> "Models":
    """The example models; each is trained in seconds when a test first asks for it."""
    from tests.support.trained import Models

    return Models(tmp_path_factory.mktemp("trained"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A file's tests stay together, and so do all that share the session's cluster."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        shared = (
            "cluster" in getattr(item, "fixturenames", ()) and HERE / "cluster" in item.path.parents
        )
        group = "cluster" if shared else str(item.path.relative_to(HERE))
        item.add_marker(pytest.mark.xdist_group(group))
