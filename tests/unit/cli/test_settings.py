"""What ``sluice up`` refuses before it looks at anything."""

from pathlib import Path

import pytest

from sluice_cli.up.errors import UpError
from sluice_cli.up.settings import Settings


def _settings(**changes: object) -> Settings:
    given = {
        "files": (Path("a.yaml"),),
        "host": "127.0.0.1",
        "port": 8080,
        "admin_port": 8081,
        "redis_url": None,
        "state_dir": Path("state"),
    }
    return Settings(**(given | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::"])
def test_a_network_address_needs_the_flag(host: str) -> None:
    with pytest.raises(UpError, match="--allow-anonymous-network"):
        _settings(host=host)
    assert _settings(host=host, allow_anonymous_network=True).host == host


def test_two_ports_must_differ_unless_they_are_free_ones() -> None:
    with pytest.raises(UpError, match="--admin-port: got 8080"):
        _settings(admin_port=8080)
    assert _settings(port=0, admin_port=0).port == 0
