"""The pages of generating tasks do what they say: each block, against their example manifests.

One real ``sluice up`` serves the manifests of manifests/examples, with the folders that their
comments have people make replaced by the example model of this session.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.task_pages import TaskPage
from tests.support.trained import Models
from tests.support.up_process import UpProcess, running_up, write

PAGES = {task: TaskPage(task) for task in ("chat", "text-generation")}
COMMANDS = [
    pytest.param(command, id=f"{task}-{number}")
    for task, page in PAGES.items()
    for number, command in enumerate(page.commands)
]


@pytest.fixture(scope="module")
def up(trained_models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    folder = tmp_path_factory.mktemp("tasks")
    manifests = []
    for page in PAGES.values():
        manifest = yaml.safe_load(page.manifest.read_text())
        assert manifest["spec"]["model"]["uri"] == f"file://{page.folder}"
        assert manifest["metadata"]["name"] == page.answer["model"]
        manifest["spec"]["model"]["uri"] = f"file://{trained_models.talker}"
        manifests.append(manifest)
    write(folder / "tasks.yaml", *manifests)
    with running_up(folder / "state", folder / "tasks.yaml") as process:
        process.until_ready()
        yield process


def test_there_is_something_to_run() -> None:
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("block", COMMANDS)
def test_every_command_runs(block: str, up: UpProcess, tmp_path: Path) -> None:
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.replace("http://127.0.0.1:8080", up.url)],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert '"error"' not in result.stdout, result.stdout
    assert any(word in result.stdout for word in ("woof", "moo", "tree", "hive", "weather"))
