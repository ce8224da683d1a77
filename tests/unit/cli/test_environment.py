"""What children inherit from ``sluice up``, and what they do not."""

from sluice_api import names
from sluice_cli.up.environment import GATEWAY_KNOBS, WORKER_KNOBS, environment_of
from sluice_gateway import settings as gateway_settings
from sluice_worker import settings as worker_settings


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
