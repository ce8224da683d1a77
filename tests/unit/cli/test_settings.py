"""What ``sluice up`` refuses before it looks at anything."""

from pathlib import Path

import pytest

from sluice_cli.up.errors import UpError
from sluice_cli.up.settings import Auth, Settings
from sluice_gateway.redis_address import parse_address


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


def test_keys_make_the_flag_unnecessary_and_need_their_file(tmp_path: Path) -> None:
    with pytest.raises(UpError, match="--keys: required with --auth keys"):
        _settings(auth=Auth.KEYS)
    found = _settings(host="0.0.0.0", auth=Auth.KEYS, keys_file=tmp_path / "keys.yaml")
    assert not found.allow_anonymous_network


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "rediss://user:secret@redis:6380/1?ssl_cert_reqs=none",
        "redis://[::1]",
        "unix:///run/redis.sock?db=2",
    ],
)
def test_addresses_of_redis_that_the_gateway_reads_too(url: str) -> None:
    parse_address(url)
    assert _settings(redis_url=url).redis_url == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://user:secret@redis", "got http://, needs redis://, rediss:// or unix://"),
        ("user:secret@redis:6379", "without a scheme, needs redis://"),
        ("redis:6379", "without a scheme, needs redis://"),
        ("redis://:secret@redis:port", "port cannot be read"),
        ("redis://:secret@redis:70000", "port cannot be read"),
        ("unix://", "the path of the socket"),
    ],
)
def test_an_address_that_is_none_is_refused_without_its_password(url: str, words: str) -> None:
    with pytest.raises(UpError, match=f"^--redis-url: .*{words}") as refused:
        _settings(redis_url=url)
    assert "secret" not in str(refused.value)


def test_two_ports_must_differ_unless_they_are_free_ones() -> None:
    with pytest.raises(UpError, match="--admin-port: got 8080"):
        _settings(admin_port=8080)
    assert _settings(port=0, admin_port=0).port == 0
