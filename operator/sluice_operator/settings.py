"""What one operator process is told: options, environment, defaults; checked once, then frozen.

``--help`` and ``docs/operator.md`` show the table of options. ``__main__`` reads them; nothing else
looks at the environment, but the Kubernetes client for the way to its API server.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sluice_api import names
from sluice_api.settings import Option, choice, read_options, switch, text, whole


@dataclass(frozen=True, slots=True)
class Settings:
    """One operator process.

    Attributes:
        namespace: of the operator and the gateways.
        pod_name: this replica's identity; the same after a restart of its container.
        gateway_url: what stands in ``status.url``.
        gateway_labels: of the gateways' pods.
        token_file: the token for gateways' demand; None where gateways ask for none.
        workers: services reconciled side by side.
        writes_per_second: towards the API server, in the long run.
    """

    namespace: str
    pod_name: str
    gateway_url: str
    gateway_labels: Mapping[str, str]
    worker_image: str
    worker_image_gpu: str
    pull_policy: str
    pull_secrets: tuple[str, ...]
    metrics_api: bool
    upgrade_workers: bool
    write_scale: bool
    token_file: Path | None
    host: str
    port: int
    metrics_api_port: int
    workers: int
    writes_per_second: int
    log_format: str


def _labels(value: str) -> dict[str, str]:
    pairs = [part.strip().partition("=") for part in value.split(",") if part.strip()]
    if not pairs or not all(name and sign for name, sign, _ in pairs):
        raise ValueError("labels such as app.kubernetes.io/name=sluice,tier=front")
    return {name: label for name, _, label in pairs}


def _listed(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _own(
    field: str,
    default: str | None,
    read: Callable[[str], Any],
    meaning: str,
    *,
    optional: bool = False,
) -> Option:
    flag = "--" + field.replace("_", "-")
    return Option(field, flag, f"SLUICE_OPERATOR_{field.upper()}", default, read, meaning, optional)


_port = whole(0, 65535)

OPTIONS: Final = (
    _own("namespace", None, text, "namespace of operator and gateways"),
    _own("pod_name", None, text, "name of this pod; the lease's holder"),
    _own("gateway_url", None, text, "where applications reach the gateway"),
    _own(
        "gateway_labels",
        f"{names.APP_NAME}=sluice,{names.COMPONENT}=gateway",
        _labels,
        "labels of the gateways' pods, which alone may reach workers",
    ),
    _own("worker_image", None, text, "image of CPU workers"),
    _own("worker_image_gpu", None, text, "image of GPU workers"),
    _own(
        "pull_policy",
        "IfNotPresent",
        choice("Always", "IfNotPresent", "Never"),
        "imagePullPolicy of workers",
    ),
    _own("pull_secrets", "", _listed, "names of the workers' imagePullSecrets, by commas"),
    _own("metrics_api", "true", switch, "serve desired replicas to HorizontalPodAutoscalers"),
    _own(
        "upgrade_workers",
        "false",
        switch,
        "move running services to the current worker image and pod settings",
    ),
    _own("write_scale", "true", switch, "set replicas at once, without waiting for the HPA"),
    _own(
        "token_file",
        None,
        Path,
        "token with which gateways let their demand be read",
        optional=True,
    ),
    _own("host", "0.0.0.0", text, "address of health, metrics and the metrics API"),  # noqa: S104
    _own("port", str(names.ADMIN_PORT), _port, "port of health and metrics; 0: any free one"),
    _own("metrics_api_port", str(names.METRICS_API_PORT), _port, "port of the metrics API; 0: any"),
    _own("workers", "8", whole(1, 64), "services that are reconciled side by side"),
    _own("writes_per_second", "300", whole(1, 10_000), "writes to the API server, in the long run"),
    Option(
        "log_format", "--log", names.ENV_LOG, "text", choice("text", "json"), "text or json lines"
    ),
)


def read(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from flags, then environment, then defaults. Raises SettingsError."""
    values = read_options(
        "sluice-operator",
        "Runs InferenceServices on Kubernetes: watches, plans, applies, scales.",
        OPTIONS,
        arguments,
        environment,
    )
    return Settings(**values)
