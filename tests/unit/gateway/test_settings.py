"""Settings: options over environment over defaults, and refusals that say what to change."""

import pytest

from sluice_gateway.settings import MEBIBYTE, Settings, SettingsError, is_loopback, read

STATIC = ["--discovery", "static:x.yaml"]


def test_defaults() -> None:
    settings = read(STATIC, {})
    assert settings == Settings("static:x.yaml")
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert (settings.admin_host, settings.admin_port) == ("127.0.0.1", 8081)


def test_command_line_wins_over_environment() -> None:
    environment = {"SLUICE_PORT": "1", "SLUICE_ADMIN_PORT": "2", "SLUICE_ACCESS_LOG": "true"}
    settings = read([*STATIC, "--port", "3"], environment)
    assert (settings.port, settings.admin_port, settings.access_log) == (3, 2, True)
    assert read([*STATIC, "--no-access-log"], environment).access_log is False


def test_units() -> None:
    options = ["--max-body-mib", "2", "--cache-mib", "3", "--head-seconds", "1.5"]
    settings = read([*STATIC, *options], {})
    assert settings.limits.body_bytes == 2 * MEBIBYTE
    assert settings.limits.head_seconds == 1.5
    assert settings.cache_bytes == 3 * MEBIBYTE


@pytest.mark.parametrize(
    ("options", "environment", "told"),
    [
        ([], {}, "--discovery"),
        (["--discovery", "file:x"], {}, "'file:x'"),
        ([*STATIC, "--port", "70000"], {}, "--port"),
        (STATIC, {"SLUICE_PORT": "x"}, "SLUICE_PORT"),
        (STATIC, {"SLUICE_ACCESS_LOG": "maybe"}, "SLUICE_ACCESS_LOG"),
        (STATIC, {"SLUICE_LOG_LEVEL": "loud"}, "SLUICE_LOG_LEVEL"),
        ([*STATIC, "--drain-grace", "-1"], {}, "--drain-grace"),
        ([*STATIC, "--drain-delay", "nan"], {}, "--drain-delay"),
        ([*STATIC, "--max-body-mib", "0"], {}, "--max-body-mib"),
        ([*STATIC, "--head-seconds", "0"], {}, "--head-seconds"),
        ([*STATIC, "--host", "0.0.0.0"], {}, "--allow-anonymous-network"),
        ([*STATIC, "--admin-host", "::"], {}, "--allow-anonymous-network"),
    ],
)
def test_refusals(options: list[str], environment: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        read(options, environment)


def test_network_must_be_allowed() -> None:
    settings = read([*STATIC, "--host", "0.0.0.0", "--allow-anonymous-network"], {})
    assert settings.host == "0.0.0.0"
    assert is_loopback("127.8.8.8") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("10.0.0.1") and not is_loopback("example.com")
