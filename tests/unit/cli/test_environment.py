"""What children inherit from ``sluice up``, and what they do not."""

from pathlib import Path

from sluice_api import names
from sluice_cli.up.environment import GATEWAY_KNOBS, WORKER_KNOBS, environment_of
from sluice_gateway import settings as gateway_settings
from sluice_worker import settings as worker_settings

DECIDED = {
    *("DISCOVERY", "AUTH", "KEYS_FILE", "ALLOW_ANONYMOUS_NETWORK", "CACHE_SECRET"),
    *("HOST", "PORT", "ADMIN_HOST", "ADMIN_PORT"),
    *("DRAIN_DELAY", "DRAIN_GRACE"),  # The parent waits only so long.
}
"""By ``sluice up`` itself."""
OF_CLUSTERS = {"NAMESPACES", "DEMAND_READERS", "SERVICE_ACCOUNT", "LIMIT_GATEWAYS", "ZONE"}


def test_only_named_variables_of_ours_pass_on() -> None:
    ours = {
        "PATH": "/bin",
        "HF_HOME": "/models",
        "SLUICE_HOST": "10.0.0.1",
        "SLUICE_PORT": "9",
        names.ENV_DRAIN_GRACE: "1h",
        names.ENV_TASK: "classification",
        names.ENV_LOG: "json",
    }
    assert environment_of({names.ENV_MODEL_URI: "python://m"}, WORKER_KNOBS, ours) == {
        "PATH": "/bin",
        "HF_HOME": "/models",
        names.ENV_LOG: "json",
        names.ENV_MODEL_URI: "python://m",
    }
    assert environment_of({}, GATEWAY_KNOBS, ours) == {"PATH": "/bin", "HF_HOME": "/models"}


def test_the_plan_wins() -> None:
    ours = {names.ENV_LOG: "json"}
    assert environment_of({names.ENV_LOG: "text"}, WORKER_KNOBS, ours) == {names.ENV_LOG: "text"}


def test_every_name_is_one_that_the_child_reads() -> None:
    assert {option.variable for option in worker_settings.OPTIONS} >= set(WORKER_KNOBS)
    assert {option.variable for option in gateway_settings.OPTIONS} >= set(GATEWAY_KNOBS)


def test_every_setting_of_the_gateway_is_passed_on_or_decided() -> None:
    prefix = "SLUICE_GATEWAY_"
    settings = {
        option.variable.removeprefix(prefix)
        for option in gateway_settings.OPTIONS
        if option.variable and option.variable.startswith(prefix)
    }
    passed = {knob.removeprefix(prefix) for knob in GATEWAY_KNOBS}
    assert passed == settings - DECIDED - OF_CLUSTERS


def test_what_is_passed_on_stands_in_the_docs() -> None:
    page = (Path(__file__).parents[3] / "docs/local-mode.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| [gateway](gateway.md) |")]
    for knob in GATEWAY_KNOBS:
        assert f"`{knob.removeprefix('SLUICE_GATEWAY_')}`" in row, knob
