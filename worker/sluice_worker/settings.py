"""Everything a worker can be told, read once from flags and environment and checked once.

A flag wins over its variable, the variable over the default. ``__main__`` turns a
:class:`SettingsError` into exit code ``EXIT_BAD_CONFIGURATION``.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sluice_api import names
from sluice_api.quantities import format_duration, parse_duration
from sluice_api.tasks import Task

T = TypeVar("T")

_AUTO_LATENCY_GOAL_SECONDS = 0.25
_AUTO_MAX_SIZE = 256


class SettingsError(ValueError):
    """A setting has a value that is not allowed; the message names it, the value and the fix."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One worker's configuration.

    Attributes:
        model_uri, model_revision: where the weights are, and which.
        name: the service's own name, for requests that name no model.
        task: ``auto`` or one of :class:`Task`.
        revision: digest of the spec this worker was made from.
        max_input_tokens: None for what the model itself allows.
        fd, admin_fd: listening sockets inherited from a supervisor; None to bind host and port.
        max_body_bytes: of one request.
        threads: to compute with; None for what quota and affinity allow.
        timeout_seconds: for requests that come without a deadline.
        drain_grace_seconds: after SIGTERM, how long new requests are still accepted.
        drain_timeout_seconds: how long accepted requests may still take after that.
    """

    model_uri: str
    model_revision: str | None
    name: str
    task: Task | None
    dtype: str
    device: str
    max_input_tokens: int | None
    revision: str
    batch_latency_goal_seconds: float
    batch_max_size: int
    max_backlog_seconds: float
    host: str
    port: int
    admin_port: int
    fd: int | None
    admin_fd: int | None
    max_body_bytes: int
    threads: int | None
    timeout_seconds: float
    drain_grace_seconds: float
    drain_timeout_seconds: float
    log_format: str


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: its field, flag, variable, default as text, and how it is read."""

    field: str
    flag: str
    variable: str | None
    default: str | None
    read: Callable[[str], Any]
    help: str


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("a text that is not empty")
    return value


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", value) or not low <= int(value) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(value)

    return read


def _duration(low: float, high: float) -> Callable[[str], float]:
    def read(value: str) -> float:
        try:
            seconds = parse_duration(value)
        except ValueError:
            raise ValueError("a duration such as 500ms, 90s or 1m30s") from None
        if not low <= seconds <= high:
            raise ValueError(f"a duration from {format_duration(low)} to {format_duration(high)}")
        return seconds

    return read


def _or_auto(read: Callable[[str], T], auto: T) -> Callable[[str], T]:
    """Let ``auto`` stand for ``auto``, and for everything else what ``read`` makes of it."""
    return lambda value: auto if value == "auto" else read(value)


def _choice(*allowed: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return value

    return read


def _task(value: str) -> Task | None:
    return None if _choice("auto", *Task)(value) == "auto" else Task(value)


OPTIONS = (
    Option("model_uri", "--model", names.ENV_MODEL_URI, None, _text, "where the weights are"),
    Option(
        "model_revision",
        "--model-revision",
        names.ENV_MODEL_REVISION,
        "",
        lambda value: value or None,
        "commit, tag or version of the weights",
    ),
    Option("name", "--name", names.ENV_MODEL_NAME, "", str, "name of the service"),
    Option("task", "--task", names.ENV_TASK, "auto", _task, "auto, or a task"),
    Option("dtype", "--dtype", names.ENV_DTYPE, "auto", _text, "auto, float32, bfloat16, …"),
    Option("device", "--device", names.ENV_DEVICE, "auto", _text, "auto, cpu, cuda"),
    Option(
        "max_input_tokens",
        "--max-input-tokens",
        names.ENV_MAX_INPUT_TOKENS,
        "auto",
        lambda value: None if value == "auto" else _whole(1, 10**6)(value),
        "longest input; auto for the model's own limit",
    ),
    Option("revision", "--revision", names.ENV_REVISION, "", str, "digest of the spec"),
    Option(
        "batch_latency_goal_seconds",
        "--batch-latency-goal",
        names.ENV_BATCH_LATENCY_GOAL,
        "auto",
        _or_auto(_duration(0.001, 600), _AUTO_LATENCY_GOAL_SECONDS),
        "how long one batch may take",
    ),
    Option(
        "batch_max_size",
        "--batch-max-size",
        names.ENV_BATCH_MAX_SIZE,
        "auto",
        _or_auto(_whole(1, 4096), _AUTO_MAX_SIZE),
        "inputs in one batch",
    ),
    Option(
        "max_backlog_seconds",
        "--max-backlog",
        names.ENV_MAX_BACKLOG,
        "5s",
        _duration(0.01, 3600),
        "predicted wait beyond which requests are refused",
    ),
    Option("host", "--host", names.ENV_WORKER_HOST, "127.0.0.1", _text, "address of both ports"),
    Option(
        "port",
        "--port",
        names.ENV_WORKER_PORT,
        str(names.APP_PORT),
        _whole(0, 65535),
        "application port",
    ),
    Option(
        "admin_port",
        "--admin-port",
        names.ENV_WORKER_ADMIN_PORT,
        str(names.ADMIN_PORT),
        _whole(0, 65535),
        "port of probes and metrics",
    ),
    Option("fd", "--fd", None, None, _whole(3, 2**20), "inherited listening socket"),
    Option("admin_fd", "--admin-fd", None, None, _whole(3, 2**20), "the same for the admin port"),
    Option(
        "max_body_bytes",
        "--max-body-bytes",
        names.ENV_WORKER_MAX_BODY,
        str(8 * 2**20),
        _whole(1024, 2**30),
        "largest request body",
    ),
    Option(
        "threads",
        "--threads",
        names.ENV_WORKER_THREADS,
        "auto",
        lambda value: None if value == "auto" else _whole(1, 1024)(value),
        "threads to compute with; auto for what quota and affinity allow",
    ),
    Option(
        "timeout_seconds",
        "--timeout",
        names.ENV_WORKER_TIMEOUT,
        "30s",
        _duration(0.1, 3600),
        "deadline of requests that bring none",
    ),
    Option(
        "drain_grace_seconds",
        "--drain-grace",
        names.ENV_DRAIN_GRACE,
        "2s",
        _duration(0, 600),
        "after SIGTERM, how long new requests are still accepted",
    ),
    Option(
        "drain_timeout_seconds",
        "--drain-timeout",
        names.ENV_DRAIN_TIMEOUT,
        "45s",
        _duration(0, 3600),
        "how long accepted requests may take after that",
    ),
    Option("log_format", "--log", names.ENV_LOG, "text", _choice("text", "json"), "text or json"),
)
_OPTIONAL = {"fd", "admin_fd"}


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Read and check the settings. Raises :class:`SettingsError`."""
    parser = argparse.ArgumentParser(
        prog="sluice-worker", description="Serve one model over HTTP.", exit_on_error=False
    )
    for option in OPTIONS:
        variable = f" [{option.variable}]" if option.variable else ""
        default = f" (default {option.default})" if option.default else ""
        parser.add_argument(option.flag, dest=option.field, help=option.help + variable + default)
    try:
        given, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise SettingsError(f"{error}. See sluice-worker --help.") from None
    if unknown:
        raise SettingsError(f"{unknown[0]}: this flag is not known. See sluice-worker --help.")
    values = {option.field: _value(option, given, environment) for option in OPTIONS}
    if not values["name"]:
        values["name"] = values["model_uri"].rstrip("/").rpartition("/")[2] or "model"
    return Settings(**values)


def _value(option: Option, given: argparse.Namespace, environment: Mapping[str, str]) -> Any:
    text: str | None = getattr(given, option.field)
    source = option.flag
    if text is None and option.variable is not None and environment.get(option.variable):
        text, source = environment[option.variable], option.variable
    if text is None:
        text = option.default
    if text is None:
        if option.field in _OPTIONAL:
            return None
        raise SettingsError(f"{option.variable}: required. Set it, or give {option.flag}.")
    try:
        return option.read(text)
    except ValueError as error:
        raise SettingsError(f"{source}: got {text!r}, needs {error}.") from None
