"""The gateway reads what ``sluice up`` tells it."""

from pathlib import Path

import pytest

from sluice_cli.up.gateway import gateway_arguments
from sluice_cli.up.settings import Auth, Settings
from sluice_cli.up.state import StateFolder
from sluice_gateway import settings as gateway_settings


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_options_win_over_the_environment_they_came_from(tmp_path: Path, host: str) -> None:
    given = Settings(
        files=(tmp_path,),
        host=host,
        port=0,
        admin_port=0,
        redis_url=None,
        state_dir=tmp_path,
        allow_anonymous_network=host == "0.0.0.0",
    )
    with StateFolder(tmp_path) as state:
        read = gateway_settings.read(gateway_arguments(given, state), {"SLUICE_HOST": "10.1.1.1"})
        assert read.host == host
        assert read.discovery == f"static:{state.table_path}"
        assert read.cache_secret == state.secret_path
        assert read.auth == "none"


def test_keys_reach_the_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = Settings(
        files=(tmp_path,),
        host="0.0.0.0",
        port=0,
        admin_port=0,
        redis_url=None,
        state_dir=tmp_path,
        auth=Auth.KEYS,
        keys_file=Path("keys.yaml"),
    )
    with StateFolder(tmp_path) as state:
        read = gateway_settings.read(gateway_arguments(given, state), {})
    assert (read.auth, read.keys_file) == ("keys", tmp_path / "keys.yaml")
    assert not read.allow_anonymous_network
