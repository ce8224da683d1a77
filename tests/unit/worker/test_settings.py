"""Settings: who wins, what is checked, and that a refusal names variable, value and what fits."""

from pathlib import Path

import pytest

from sluice_api import names
from sluice_api.settings import SettingsError
from sluice_api.tasks import Task
from sluice_worker.settings import OPTIONS, Settings, read_settings

MODEL = {names.ENV_MODEL_URI: "file:///models/minilm"}


def read(*arguments: str, **environment: str) -> Settings:
    return read_settings(arguments, {**MODEL, **environment})


def test_defaults() -> None:
    settings = read()
    assert settings.name == "minilm"
    assert (settings.host, settings.port, settings.admin_port) == ("127.0.0.1", 8080, 8081)
    assert settings.task is None
    assert settings.max_input_tokens is None
    assert settings.fd is None
    assert settings.batch_latency_goal_seconds == 0.25


def test_a_flag_wins_over_its_variable_and_the_variable_over_the_default() -> None:
    variable = {names.ENV_WORKER_PORT: "1234"}
    assert read(**variable).port == 1234
    assert read("--port", "99", **variable).port == 99


def test_what_the_operator_sends_is_understood() -> None:
    settings = read(
        **{
            names.ENV_MODEL_NAME: "tickets",
            names.ENV_TASK: "zero-shot",
            names.ENV_REVISION: "0123456789",
            names.ENV_MAX_INPUT_TOKENS: "128",
            names.ENV_BATCH_LATENCY_GOAL: "100ms",
            names.ENV_BATCH_MAX_SIZE: "32",
            names.ENV_MAX_BACKLOG: "1m30s",
        }
    )
    assert settings.name == "tickets"
    assert settings.task is Task.ZERO_SHOT
    assert settings.max_input_tokens == 128
    assert settings.batch_latency_goal_seconds == pytest.approx(0.1)
    assert settings.batch_max_size == 32
    assert settings.max_backlog_seconds == 90


@pytest.mark.parametrize("variable", [names.ENV_BATCH_LATENCY_GOAL, names.ENV_MAX_INPUT_TOKENS])
def test_auto_is_a_value(variable: str) -> None:
    assert read(**{variable: "auto"}) == read()


def test_an_empty_variable_counts_as_absent() -> None:
    assert read(**{names.ENV_WORKER_PORT: ""}).port == names.APP_PORT


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        (names.ENV_WORKER_PORT, "70000", "a whole number from 0 to 65535"),
        (names.ENV_WORKER_PORT, "80.5", "a whole number"),
        (names.ENV_TASK, "dance", "one of auto, embeddings, classification, zero-shot"),
        (names.ENV_MAX_BACKLOG, "5", "a duration such as"),
        (names.ENV_MAX_BACKLOG, "5h", "a duration from 10ms to 1h"),
        (names.ENV_LOG, "xml", "one of text, json"),
        (names.ENV_BATCH_MAX_SIZE, "0", "from 1 to 4096"),
    ],
)
def test_a_refusal_names_variable_value_and_what_is_allowed(
    variable: str, value: str, allowed: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        read(**{variable: value})
    message = str(refused.value)
    assert variable in message
    assert repr(value) in message
    assert allowed in message


def test_a_bad_flag_is_named_as_the_flag() -> None:
    with pytest.raises(SettingsError, match="--port: got 'x'"):
        read("--port", "x")


@pytest.mark.parametrize("arguments", [["--prot", "1"], ["--port"], ["stray"]])
def test_unknown_and_incomplete_flags_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SettingsError, match="--help"):
        read(*arguments)


def test_whatever_the_gateway_takes_a_worker_takes_too() -> None:
    settings = read_settings(["--model", "file:///m"], {})
    assert settings.max_body_bytes == names.WORKER_MAX_BODY_BYTES > names.MAX_BODY_BYTES


def test_the_model_is_required() -> None:
    with pytest.raises(SettingsError, match=f"{names.ENV_MODEL_URI}: required.*--model"):
        read_settings([], {})


def test_the_documentation_lists_every_setting_with_its_default() -> None:
    page = (Path(__file__).parents[3] / "docs" / "worker.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `--")]
    expected = [
        f"| `{option.flag}` "
        f"| {f'`{option.variable}`' if option.variable else '–'} "
        f"| {f'`{option.default}`' if option.default else '–'} | {option.help} |"
        for option in OPTIONS
    ]
    assert rows == expected
