"""Settings: options over environment over defaults, and refusals that say what to change."""

from pathlib import Path

import pytest

from sluice_api import names
from sluice_api.key_file import Limits
from sluice_api.rates import parse_rate
from sluice_api.settings import MEBIBYTE, SettingsError
from sluice_gateway.settings import BODY_PACE, OPTIONS, Settings, is_loopback, read

STATIC = ["--discovery", "static:x.yaml"]
KEYS = [*STATIC, "--auth", "keys", "--keys-file", "k"]


def test_defaults() -> None:
    settings = read(STATIC, {})
    assert settings == Settings("static:x.yaml")
    assert settings.limits.body_bytes == names.MAX_BODY_BYTES
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert (settings.admin_host, settings.admin_port) == ("127.0.0.1", 8081)


def test_command_line_wins_over_environment() -> None:
    own = {"PORT": "1", "ADMIN_PORT": "2", "ACCESS_LOG": "true"}
    environment = {f"SLUICE_GATEWAY_{name}": value for name, value in own.items()}
    settings = read([*STATIC, "--port", "3"], environment)
    assert (settings.port, settings.admin_port, settings.access_log) == (3, 2, True)
    assert read([*STATIC, "--no-access-log"], environment).access_log is False


def test_units() -> None:
    options = ["--max-body-mib", "2", "--cache-mib", "3", "--head-timeout", "1500ms"]
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
        (STATIC, {"SLUICE_GATEWAY_PORT": "x"}, "SLUICE_GATEWAY_PORT.*whole number"),
        (STATIC, {"SLUICE_GATEWAY_ACCESS_LOG": "maybe"}, "ACCESS_LOG.*one of true, false"),
        (STATIC, {"SLUICE_GATEWAY_LOG_LEVEL": "loud"}, "LOG_LEVEL.*one of debug"),
        (STATIC, {"SLUICE_GATEWAY_DRAIN_GRACE": "5"}, "a duration such as 500ms"),
        ([*STATIC, "--drain-grace", "-1"], {}, "--drain-grace"),
        ([*STATIC, "--drain-delay", "nan"], {}, "--drain-delay"),
        ([*STATIC, "--prot", "1"], {}, "--prot.*--help"),
        ([*STATIC, "--max-body-mib", "0"], {}, "--max-body-mib"),
        ([*STATIC, "--head-timeout", "0s"], {}, "--head-timeout"),
        ([*STATIC, "--cors-origins", "app.example.com"], {}, "--cors-origins.*such as https://"),
        ([*STATIC, "--cors-origins", "https://a.example/x"], {}, "--cors-origins"),
        ([*STATIC, "--cors-origins", "*,https://a.example"], {}, "either"),
        ([*STATIC, "--cors-credentials"], {}, "--cors-origins.*got none"),
        ([*STATIC, "--cors-credentials", "--cors-origins", "*"], {}, r"by name; got \*"),
        ([*STATIC, "--max-connections", "0"], {}, "--max-connections"),
        ([*STATIC, "--host", "0.0.0.0"], {}, "--allow-anonymous-network"),
        ([*STATIC, "--admin-host", "::"], {}, "--allow-anonymous-network"),
        ([*STATIC, "--auth", "oidc"], {}, "--auth: got 'oidc', needs one of none, keys"),
        ([*STATIC, "--auth", "keys"], {}, "--keys-file: required with --auth keys"),
        ([*STATIC, "--keys-file", "k"], {}, "--keys-file: has no effect with --auth none"),
        ([*KEYS, "--admin-host", "::"], {}, "--allow-anonymous-network"),
        ([*STATIC, "--limit-requests", "many"], {}, "--limit-requests.*a rate such as 20/s"),
        (STATIC, {"SLUICE_GATEWAY_LIMIT_INPUTS": "100/s:1"}, "LIMIT_INPUTS.*a burst of 10"),
        ([*STATIC, "--limit-gateways", "0"], {}, "--limit-gateways"),
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


def test_with_keys_the_network_needs_no_leave_but_the_admin_port_asks_nobody() -> None:
    assert read([*KEYS, "--host", "0.0.0.0"], {}).keys_file == Path("k")
    cluster = ["--discovery", "kubernetes", *KEYS[2:], "--host", "0.0.0.0", "--admin-host", "::"]
    assert read(cluster, {}).admin_host == "::", "there it asks for a token"


def test_limits() -> None:
    assert read(STATIC, {}).tenant_limits == Limits()
    options = ["--limit-requests", "20/s:100", "--limit-inputs", "600/m", "--limit-tokens", "9/h"]
    found = read([*STATIC, *options], {}).tenant_limits
    assert found == Limits(parse_rate("20/s:100"), parse_rate("600/m"), parse_rate("9/h"))


def test_the_workers_variables_are_not_the_gateways() -> None:
    environment = {"SLUICE_DRAIN_GRACE": "7s", "SLUICE_PORT": "9", "SLUICE_REDIS_URL": "redis://r"}
    settings = read(STATIC, environment)
    assert (settings.drain_grace, settings.port) == (30, 8080)
    assert settings.redis_url == "redis://r"  # What they share has one name.


def test_the_documentation_lists_every_setting_with_its_default() -> None:
    page = (Path(__file__).parents[3] / "docs" / "gateway.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `--")]
    expected = [
        f"| `{option.flag}` "
        f"| {f'`{option.variable}`' if option.variable else '–'} "
        f"| {f'`{option.default}`' if option.default else '–'} | {option.help} |"
        for option in OPTIONS
    ]
    assert rows == expected


def test_a_body_has_ten_seconds_and_what_it_brings() -> None:
    limits = read(STATIC, {}).limits
    assert not limits.body_is_late(10.0, 0) and limits.body_is_late(10.1, 600)
    assert not limits.body_is_late(20.0, 10 * BODY_PACE), "slow, not idle"
    assert limits.body_is_late(20.1, 10 * BODY_PACE)
