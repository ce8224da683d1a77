"""The pages in ``docs/tasks`` as tests see them: their commands, and the answers that they show."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


class TaskPage:
    """One page.

    Attributes:
        manifest: the example manifest that it serves.
        folder: where its example model is made.
        commands: the other commands, each of which asks a server.
        answers: the answers that it shows.
    """

    def __init__(self, task: str) -> None:
        text = (ROOT / "docs" / "tasks" / f"{task}.md").read_text()
        blocks = _BLOCK.findall(text)
        shell = [block for language, block in blocks if language == "sh"]
        made = re.fullmatch(rf"sluice example-model {task} (\S+)\nsluice up (\S+)\n", shell[0])
        assert made is not None, f"{task}: the first block makes the model and serves it"
        self.folder, self.manifest = made[1], ROOT / made[2]
        self.commands = shell[1:]
        shown = [block for language, block in blocks if language == "json" and '"usage"' in block]
        self.answers: list[Any] = [json.loads(block) for block in shown]

    @property
    def answer(self) -> Any:
        """The first of them."""
        return self.answers[0]

    def run(self, url: str) -> list[Any]:
        """What the commands answer when they ask ``url``."""
        answers = []
        for command in self.commands:
            result = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command.replace("http://127.0.0.1:8080", url)],
                env=os.environ,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
            answers.append(json.loads(result.stdout))
        return answers


def shape(value: Any) -> Any:
    """A value without what training decides: numbers and ids go, texts, names and order stay."""
    match value:
        case dict():
            return {name: shape(member) for name, member in value.items()}
        case list():
            return [shape(member) for member in value]
        case bool() | str() | None:
            return value
        case _:
            return "number"
