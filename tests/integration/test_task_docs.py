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

from tests.support.trained import Models
from tests.support.up_process import UpProcess, running_up, write

ROOT = Path(__file__).parents[2]
TASKS = ("chat", "text-generation")
STARTS = ("sluice example-model ", "sluice up ")
"""What the fixtures of this module do."""


def blocks(task: str) -> list[str]:
    parts = (ROOT / f"docs/tasks/{task}.md").read_text().split("```sh\n")[1:]
    return [part.partition("\n```")[0] for part in parts]


COMMANDS = [
    pytest.param(block, id=f"{task}-{number}")
    for task in TASKS
    for number, block in enumerate(blocks(task))
    if not block.startswith(STARTS)
]


@pytest.fixture(scope="module")
def up(trained_models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    folder = tmp_path_factory.mktemp("tasks")
    manifests = []
    for task in TASKS:
        manifest = yaml.safe_load((ROOT / f"manifests/examples/{task}.yaml").read_text())
        assert manifest["spec"]["model"]["uri"] == f"file:///tmp/sluice-{task}"
        manifest["spec"]["model"]["uri"] = f"file://{trained_models.talker}"
        manifests.append(manifest)
    write(folder / "tasks.yaml", *manifests)
    with running_up(folder / "state", folder / "tasks.yaml") as process:
        process.until_ready()
        yield process


def test_there_is_something_to_run() -> None:
    assert len(COMMANDS) >= 6
    for task in TASKS:
        starts = blocks(task)[0].splitlines()
        assert starts == [
            f"sluice example-model {task} /tmp/sluice-{task}",
            f"sluice up manifests/examples/{task}.yaml",
        ]


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
