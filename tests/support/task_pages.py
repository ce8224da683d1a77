"""The pages in ``docs/tasks`` as tests see them: their commands, and the answers that they show.

Each page is run by the test of its task that serves the model (:data:`RUN_BY`), and what is on it
is held against what the server answers.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from sluice_api.service_files import load_files

ROOT = Path(__file__).parents[2]
RUN_BY: Final = {
    "test_encoder_tasks": (
        "token-classification",
        "question-answering",
        "fill-mask",
        "rerank",
        "relation-extraction",
    ),
    "test_platform": ("classification", "zero-shot", "embeddings"),
    "test_task_docs": ("chat", "text-generation"),
    "test_writing": ("translation", "summarization", "written-relations"),
}
"""Test module → the pages that it runs."""

TASKS: Final = {"written-relations": "relation-extraction"}
"""Page → task, where they are not called alike."""

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SECTION = re.compile(r"^## (.+)\n", re.MULTILINE)
_TIMES = ("created",)
"""Numbers that tell the time."""


class TaskPage:
    """One page.

    Attributes:
        sections: heading → text, of the second level.
        manifest: the example manifest that it serves.
        folder: where its example model is made; None where the model is a package.
        shown: the manifests on the page.
        commands: the other commands, each of which asks a server.
        answers: the answers that it shows, one for each command: JSON, or text.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.task = TASKS.get(name, name)
        text = (ROOT / "docs" / "tasks" / f"{name}.md").read_text()
        parts = _SECTION.split(text)
        self.sections = dict(zip(parts[1::2], parts[2::2], strict=True))
        blocks = _BLOCK.findall(text)
        shell = [block for language, block in blocks if language == "sh"]
        made = re.fullmatch(
            rf"(?:sluice example-model {name} (\S+)\n)?sluice up (manifests/\S+)\n", shell[0]
        )
        assert made is not None, f"{name}: the first block makes the model and serves it"
        self.folder, self.manifest = made[1], ROOT / made[2]
        self.shown = [yaml.safe_load(block) for language, block in blocks if language == "yaml"]
        self.commands = shell[1:]
        self.answers: list[Any] = []
        for language, block in blocks:
            if language == "json" and '"model"' in block:
                self.answers.append(json.loads(block))
            elif language == "text":
                self.answers.append(block)

    def __repr__(self) -> str:
        return f"<TaskPage {self.name}>"

    def service(self, model: Path | None = None) -> dict[str, Any]:
        """The manifest of the example, always awake, with ``model`` in the place of the folder."""
        [example] = load_files([self.manifest])
        assert example.metadata.name == self.answer["model"]
        manifest: dict[str, Any] = yaml.safe_load(self.manifest.read_text())
        manifest["spec"]["scaling"] = {"minReplicas": 1, "maxReplicas": 1}
        if model is not None:
            assert example.spec.model.task == self.task
            put(manifest, self.folder or "", model)
        return manifest

    @property
    def answer(self) -> Any:
        """The first of them."""
        return self.answers[0]

    def check(self, url: str, *, near: float = 0.2, slack: int = 0) -> None:
        """Run the commands against ``url``, each of which answers what the page shows.

        Args:
            near: how far numbers that training decides may be from those on the page.
            slack: the same for whole numbers, such as counts of tokens.
        """
        assert len(self.commands) == len(self.answers), f"{self.name}: an answer for each command"
        for command, shown in zip(self.commands, self.answers, strict=True):
            said = answered(command, url)
            real = said if isinstance(shown, str) else json.loads(said)
            wrong = [*differences(shown, real, near, slack)]
            assert not wrong, f"docs/tasks/{self.name}.md\n{command}\n{wrong}\n{said}"
        asked = request_of(self.manifest)
        if asked is not None:
            assert json.loads(answered(asked, url))["model"] == self.answer["model"]


def request_of(manifest: Path) -> str | None:
    """The request that the comment of an example manifest has people make; None without one."""
    lines = [line[1:] for line in manifest.read_text().splitlines() if line.startswith("#   ")]
    _, found, request = "\n".join(lines).partition("curl ")
    return f"curl -sf {request}" if found else None


def answered(command: str, url: str) -> str:
    """What a command prints that is to ask ``url`` instead of the address that it names."""
    command = command.replace("http://127.0.0.1:8080", url)
    command = command.replace("localhost:8080", url.removeprefix("http://"))
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def put(manifest: dict[str, Any], folder: str, model: Path) -> None:
    """Have a manifest serve ``model`` instead of the ``folder`` that people make."""
    assert manifest["spec"]["model"]["uri"] == f"file://{folder}"
    manifest["spec"]["model"]["uri"] = f"file://{model}"


def differences(
    shown: Any, real: Any, near: float, slack: int = 0, place: str = ""
) -> Iterator[str]:
    """Where an answer is not what a page shows.

    In what is shown, ``…`` stands for anything, in a text for any part of it, at the end of a list
    for any further elements, and as a member's name for any further members.
    """
    match shown, real:
        case "…", _:
            pass
        case dict(), dict():
            named = {name for name in shown if name != "…"}
            if named - real.keys() or ("…" not in shown and real.keys() - named):
                yield f"{place}: {sorted(named)} are not {sorted(real)}"
                return
            for name in named - {*_TIMES}:
                yield from differences(shown[name], real[name], near, slack, f"{place}.{name}")
        case list(), list():
            more = shown[-1:] == ["…"]
            kept = shown[:-1] if more else shown
            if len(real) < len(kept) or (len(real) > len(kept) and not more):
                yield f"{place}: {len(kept)} elements are not {len(real)}"
                return
            for index, element in enumerate(kept):
                yield from differences(element, real[index], near, slack, f"{place}[{index}]")
        case str(), str():
            if not re.fullmatch(".*".join(map(re.escape, shown.split("…"))), real, re.DOTALL):
                yield f"{place}: {shown!r} is not {real!r}"
        case float(), float():
            if abs(shown - real) > near:
                yield f"{place}: {shown} is not {real}"
        case int(), int() if slack and not isinstance(shown, bool):
            if abs(shown - real) > slack:
                yield f"{place}: {shown} is not {real}"
        case _:
            if shown != real or type(shown) is not type(real):
                yield f"{place}: {shown!r} is not {real!r}"
