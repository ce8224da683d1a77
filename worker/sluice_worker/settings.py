"""Everything a worker can be told, read once from flags and environment and checked once.

A flag wins over its variable, the variable over the default. ``__main__`` turns a
:class:`SettingsError` into exit code ``EXIT_BAD_CONFIGURATION``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sluice_api import names
from sluice_api.settings import Option, choice, duration, read_options, text, whole
from sluice_api.tasks import Task

T = TypeVar("T")

_AUTO_LATENCY_GOAL_SECONDS = 0.25
_AUTO_MAX_SIZE = 256


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


def _or_auto(read: Callable[[str], T], auto: T) -> Callable[[str], T]:
    """Let ``auto`` stand for ``auto``, and for everything else what ``read`` makes of it."""
    return lambda value: auto if value == "auto" else read(value)


def _task(value: str) -> Task | None:
    return None if choice("auto", *Task)(value) == "auto" else Task(value)


OPTIONS = (
    Option("model_uri", "--model", names.ENV_MODEL_URI, None, text, "where the weights are"),
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
    Option("dtype", "--dtype", names.ENV_DTYPE, "auto", text, "auto, float32, bfloat16, …"),
    Option("device", "--device", names.ENV_DEVICE, "auto", text, "auto, cpu, cuda"),
    Option(
        "max_input_tokens",
        "--max-input-tokens",
        names.ENV_MAX_INPUT_TOKENS,
        "auto",
        lambda value: None if value == "auto" else whole(1, 10**6)(value),
        "longest input; auto for the model's own limit",
    ),
    Option("revision", "--revision", names.ENV_REVISION, "", str, "digest of the spec"),
    Option(
        "batch_latency_goal_seconds",
        "--batch-latency-goal",
        names.ENV_BATCH_LATENCY_GOAL,
        "auto",
        _or_auto(duration(0.001, 600), _AUTO_LATENCY_GOAL_SECONDS),
        "how long one batch may take",
    ),
    Option(
        "batch_max_size",
        "--batch-max-size",
        names.ENV_BATCH_MAX_SIZE,
        "auto",
        _or_auto(whole(1, 4096), _AUTO_MAX_SIZE),
        "inputs in one batch",
    ),
    Option(
        "max_backlog_seconds",
        "--max-backlog",
        names.ENV_MAX_BACKLOG,
        "5s",
        duration(0.01, 3600),
        "predicted wait beyond which requests are refused",
    ),
    Option("host", "--host", names.ENV_WORKER_HOST, "127.0.0.1", text, "address of both ports"),
    Option(
        "port",
        "--port",
        names.ENV_WORKER_PORT,
        str(names.APP_PORT),
        whole(0, 65535),
        "application port",
    ),
    Option(
        "admin_port",
        "--admin-port",
        names.ENV_WORKER_ADMIN_PORT,
        str(names.ADMIN_PORT),
        whole(0, 65535),
        "port of probes and metrics",
    ),
    Option("fd", "--fd", None, None, whole(3, 2**20), "inherited listening socket", optional=True),
    Option(
        "admin_fd",
        "--admin-fd",
        None,
        None,
        whole(3, 2**20),
        "the same for the admin port",
        optional=True,
    ),
    Option(
        "max_body_bytes",
        "--max-body-bytes",
        names.ENV_WORKER_MAX_BODY,
        str(names.WORKER_MAX_BODY_BYTES),
        whole(1024, 2**30),
        "largest request body; a little more than the gateway takes",
    ),
    Option(
        "threads",
        "--threads",
        names.ENV_WORKER_THREADS,
        "auto",
        lambda value: None if value == "auto" else whole(1, 1024)(value),
        "threads to compute with; auto for what quota and affinity allow",
    ),
    Option(
        "timeout_seconds",
        "--timeout",
        names.ENV_WORKER_TIMEOUT,
        "30s",
        duration(0.1, 3600),
        "deadline of requests that bring none",
    ),
    Option(
        "drain_grace_seconds",
        "--drain-grace",
        names.ENV_DRAIN_GRACE,
        "2s",
        duration(0, 600),
        "after SIGTERM, how long new requests are still accepted",
    ),
    Option(
        "drain_timeout_seconds",
        "--drain-timeout",
        names.ENV_DRAIN_TIMEOUT,
        "45s",
        duration(0, 3600),
        "how long accepted requests may take after that",
    ),
    Option("log_format", "--log", names.ENV_LOG, "text", choice("text", "json"), "text or json"),
)


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Read and check the settings. Raises :class:`SettingsError`."""
    values = read_options(
        "sluice-worker", "Serve one model over HTTP.", OPTIONS, arguments, environment
    )
    if not values["name"]:
        values["name"] = values["model_uri"].rstrip("/").rpartition("/")[2] or "model"
    return Settings(**values)
