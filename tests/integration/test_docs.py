"""The documentation does what it says: every command runs, every manifest is valid.

The commands run against one real ``sluice up manifests/examples/minilm.yaml``, on the ports of this
test instead of the ones that the pages name; those of the pages about clusters run in
tests/cluster/test_docs.py, and those about tasks beside the tests of these tasks.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.up_process import UpProcess, running_up

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CLUSTER_PAGES = {"docs/application.md", "docs/ml-engineer.md", "docs/platform-team.md"}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

ELSEWHERE = {
    "make run": "starts what the fixture of this module starts",
    "make test": "runs this test",
    "sluice up manifests/examples/minilm.yaml": "is the fixture of this module",
    "sluice up tickets.yaml": "test_up runs models of its own",
    "make cluster": "is the fixture of tests/cluster, kept for a person",
    "make cluster-exec CMD='kubectl apply -f manifests/examples/minilm.yaml'": "needs that cluster",
    "make cluster-down": "ends it",
    "helm upgrade --install sluice charts/sluice --namespace sluice-system --create-namespace"
    " --wait \\": "tests/cluster/test_chart.py",
    "--set image.registry=registry.example.com/ai --set image.tag=0.1.0": "belongs to it",
    "kubectl apply -f manifests/examples/minilm.yaml": "tests/cluster/test_docs.py",
    "kubectl wait inferenceservice/minilm --for=condition=Ready --timeout=5m": "and this",
}
"""Commands that a page shows and that cannot run inside this test, with where they do run."""


def blocks(language: str) -> list[tuple[str, str]]:
    """(page:line, text) of every block of the language."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            if match[1] == language:
                line = text.count("\n", 0, match.start()) + 1
                found.append((f"{page.relative_to(ROOT)}:{line}", match[2]))
    return found


SHELL = [
    (where, text)
    for where, text in blocks("sh")
    if where.split(":")[0] not in CLUSTER_PAGES and not where.startswith("docs/tasks/")
]
YAML = blocks("yaml")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    state = tmp_path_factory.mktemp("docs") / "state"
    with running_up(state, ROOT / "manifests/examples/minilm.yaml") as process:
        process.until_ready()
        yield process


def test_there_is_something_to_run() -> None:
    assert len(SHELL) >= 8
    assert len(YAML) >= 1


@pytest.mark.parametrize(("where", "block"), SHELL, ids=[where for where, _ in SHELL])
def test_every_command_runs(where: str, block: str, up: UpProcess, tmp_path: Path) -> None:
    commands = [
        line for line in block.splitlines() if line.split("  #")[0].strip() not in ELSEWHERE
    ]
    for name, manifest in YAML:
        if name.partition(":")[0] == where.partition(":")[0]:
            # A manifest that the page names after its service, as its commands do.
            service = yaml.safe_load(manifest)["metadata"]["name"]
            (tmp_path / f"{service}.yaml").write_text(manifest)
    (tmp_path / "manifests").symlink_to(ROOT / "manifests")
    script = "\n".join(commands).replace("http://127.0.0.1:8080", up.url)
    script = script.replace("localhost:8080", up.url.removeprefix("http://"))
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, f"{where}\n{result.stdout}\n{result.stderr}"
    # curl -s says nothing about an error status, the body does.
    assert '"error"' not in result.stdout, result.stdout


@pytest.mark.parametrize(("where", "block"), YAML, ids=[where for where, _ in YAML])
def test_every_manifest_is_valid(where: str, block: str, tmp_path: Path) -> None:
    path = tmp_path / "service.yaml"
    path.write_text(block)
    result = subprocess.run(
        [sys.executable, "-m", "sluice_cli", "validate", str(path)],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, f"{where}\n{result.stderr}"


def test_every_link_leads_somewhere() -> None:
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert dead == []
