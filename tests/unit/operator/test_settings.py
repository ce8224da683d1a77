"""The operator's settings: what the chart sets is read, what is wrong is named."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sluice_api.settings import SettingsError
from sluice_operator.settings import OPTIONS, read

ROOT = Path(__file__).parents[3]
NEEDED = {
    "SLUICE_OPERATOR_NAMESPACE": "sluice-system",
    "SLUICE_OPERATOR_POD_NAME": "operator-a",
    "SLUICE_OPERATOR_GATEWAY_URL": "http://sluice-gateway.sluice-system",
    "SLUICE_OPERATOR_WORKER_IMAGE": "worker:1",
    "SLUICE_OPERATOR_WORKER_IMAGE_GPU": "worker-gpu:1",
}

KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: k, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {token: x}}]
contexts: [{name: c, context: {cluster: k, user: u}}]
current-context: c
"""


def test_the_environment_of_a_pod_is_enough() -> None:
    settings = read([], NEEDED | {"SLUICE_OPERATOR_PULL_SECRETS": "one, two"})
    assert settings.namespace == "sluice-system"
    assert settings.pull_secrets == ("one", "two")
    assert settings.gateway_labels["app.kubernetes.io/component"] == "gateway"
    assert (settings.metrics_api, settings.write_scale, settings.upgrade_workers) == (
        True,
        True,
        False,
    )
    assert (settings.port, settings.metrics_api_port) == (8081, 8443)
    assert settings.token_file is None


@pytest.mark.parametrize("missing", sorted(NEEDED))
def test_what_is_missing_is_named(missing: str) -> None:
    given = {name: value for name, value in NEEDED.items() if name != missing}
    with pytest.raises(SettingsError, match=missing):
        read([], given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLUICE_OPERATOR_GATEWAY_LABELS", "gateway"),
        ("SLUICE_OPERATOR_GATEWAY_LABELS", " "),
        ("SLUICE_OPERATOR_PULL_POLICY", "Sometimes"),
        ("SLUICE_OPERATOR_METRICS_API", "yes"),
        ("SLUICE_OPERATOR_WORKERS", "0"),
        ("SLUICE_LOG", "xml"),
    ],
)
def test_what_is_wrong_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}: got '{value}'"):
        read([], NEEDED | {name: value})


def test_the_documentation_lists_every_setting_with_its_default() -> None:
    page = (ROOT / "docs" / "operator.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `--")]
    assert rows == [
        f"| `{option.flag}` | `{option.variable}` "
        f"| {f'`{option.default}`' if option.default else '–'} | {option.help} |"
        for option in OPTIONS
    ]


def test_the_documentation_names_every_module_of_the_process() -> None:
    page = (ROOT / "docs" / "operator.md").read_text()
    for name in re.findall(r"`(\w+)\.py`", page):
        assert (ROOT / "operator" / "sluice_operator" / f"{name}.py").exists(), name


def test_a_taken_port_is_a_line_and_not_a_traceback(
    tmp_path: Path,
) -> None:
    """In a process of its own: the real one ends with it."""
    config = tmp_path / "kubeconfig"
    config.write_text(KUBECONFIG)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = NEEDED | {"KUBECONFIG": str(config), "PATH": os.environ["PATH"]}
        ended = subprocess.run(
            [sys.executable, "-m", "sluice_operator", "--host=127.0.0.1", f"--port={port}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
        )
    assert ended.returncode == 78
    assert "Traceback" not in ended.stderr
    assert "in use" in ended.stderr


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"KUBECONFIG": "/missing"}, "Invalid kube-config file"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "Service host/port is not set."),
    ],
)
def test_no_way_to_a_cluster_is_a_line_and_not_a_traceback(
    environment: dict[str, str], why: str
) -> None:
    environment = NEEDED | environment | {"PATH": os.environ["PATH"]}
    ended = subprocess.run(
        [sys.executable, "-m", "sluice_operator"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 78
    assert f"no way to an API server: {why}" in ended.stderr
    assert ".." not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("text", ["", "[1, 2", "only text", "current-context: a\ncontexts: 7\n"])
def test_a_file_that_is_no_kubeconfig_is_named(tmp_path: Path, text: str) -> None:
    config = tmp_path / "config"
    config.write_text(text)
    ended = subprocess.run(
        [sys.executable, "-m", "sluice_operator"],
        env=NEEDED | {"KUBECONFIG": str(config), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 78
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"sluice-operator: no way to an API server: {config} is no kubeconfig: ")
