"""Which tests run one after the other when several processes share them (``make test``)."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


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
