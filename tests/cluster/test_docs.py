"""The pages about clusters do what they say: every command, in order, on a real one.

The platform is installed with the images of the tests and reached through a relay; otherwise the
blocks run as they stand. What they cannot do to a cluster that other tests share runs elsewhere.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice_api import names
from tests.support import chart
from tests.support.published import Published, fixed, stub
from tests.support.release import Release

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCK_SECONDS = 330
REGISTRY = "--set image.registry=registry.example.com/ai"

ELSEWHERE = {
    "kubectl create namespace sluice-system": "the fixture `platform` makes it",
}
"""Commands that would be in the way of others here, with where they run."""


def blocks(page: str, *languages: str) -> list[pytest.param]:  # type: ignore[valid-type]
    text = (ROOT / page).read_text()
    return [
        pytest.param(match[1], match[2], id=f"{page}:{text.count(chr(10), 0, match.start()) + 1}")
        for match in BLOCK.finditer(text)
        if match[1] in languages
    ]


@pytest.fixture(scope="module")
def published(platform: Release, worker_image: None) -> Iterator[Release]:
    """The platform, and after the last block no model any more."""
    yield platform
    platform.cluster.kubectl("delete", "inf", "minilm", "--ignore-not-found", "-n", "default")


@pytest.mark.minutes
@pytest.mark.parametrize(("language", "block"), blocks("docs/platform-team.md", "sh"))
def test_the_page_for_the_platform_team(
    language: str, block: str, platform: Release, tmp_path: Path
) -> None:
    run(language, block, platform, tmp_path)


@pytest.mark.minutes
@pytest.mark.parametrize(("language", "block"), blocks("docs/ml-engineer.md", "sh"))
def test_the_page_for_the_ml_engineer(
    language: str, block: str, published: Release, tmp_path: Path
) -> None:
    run(language, block, published, tmp_path)


@pytest.mark.minutes
@pytest.mark.parametrize(("language", "block"), blocks("docs/application.md", "sh", "python"))
def test_the_page_for_applications(
    language: str, block: str, published: Release, tmp_path: Path
) -> None:
    cluster = published.cluster
    cluster.kubectl("apply", "-n", "default", "-f", str(ROOT / "manifests/examples/minilm.yaml"))
    cluster.kubectl(
        *("wait", "-n", "default", "inf/minilm", "--for=condition=Ready", "--timeout=120s"),
        seconds=130,
    )
    run(language, block, published, tmp_path)


def test_edits_of_the_ml_engineer_through_the_command_line(
    platform: Release, restricted: str, tmp_path: Path
) -> None:
    """What the page sends through `sluice`, for a service of the stub engine."""
    page = (ROOT / "docs/ml-engineer.md").read_text()
    (explaining,) = (one[2] for one in BLOCK.finditer(page) if "sluice explain" in one[2])
    (promoting,) = (one[2] for one in BLOCK.finditer(page) if "sluice promote" in one[2])
    (restarting,) = re.findall(r"`(kubectl get [^`]*sluice\s+restart - [^`]*)`", page)
    cluster = platform.cluster
    environment = cluster.environment | {"KUBECONFIG": str(tmp_path / "kubeconfig")}
    shutil.copy(cluster.kubeconfig, environment["KUBECONFIG"])
    here = f"kubectl config set-context --current --namespace={restricted}"
    run("sh", here, platform, tmp_path, environment)

    service = Published(cluster, restricted, "minilm")
    trial = {"canary": {"weight": 10, "model": {"uri": "hf://stub/new-start300"}}}
    service.apply(stub("old-start300", scaling=fixed(1), rollout=trial))
    service.until(lambda: service.condition("CanaryHealthy").get("status") == "True", "a canary")
    service.until_ready(2)
    (canary,) = (one["name"] for one in service.status["revisions"] if one["role"] == "canary")
    assert "canary" in run("sh", explaining, platform, tmp_path, environment)

    run("sh", promoting, platform, tmp_path, environment)
    service.until(lambda: service.revision == canary, "the canary is promoted")
    spec = service.get()["spec"]
    assert spec["model"]["uri"] == "hf://stub/new-start300"
    assert "canary" not in spec.get("rollout", {})

    service.until(lambda: len(service.workers()) == 1, "only its worker is left")
    before = service.workers().keys()
    run("sh", restarting.replace("\n", " "), platform, tmp_path, environment)
    assert names.RESTARTED in service.get()["metadata"]["annotations"]
    service.until(lambda: before.isdisjoint(service.workers()), "another worker")
    service.until_ready(1)
    assert service.revision == canary


def run(
    language: str,
    block: str,
    release: Release,
    folder: Path,
    environment: dict[str, str] | None = None,
) -> str:
    """One block, from the repository's root, with the administrator's kubeconfig; what it said."""
    images = folder / "images.json"
    images.write_text(json.dumps(chart.TEST_IMAGES))
    lines = [line for line in block.splitlines() if line.strip() not in ELSEWHERE]
    text = "\n".join(lines).replace(REGISTRY, f"--values {images}")
    text = text.replace("http://127.0.0.1:8080", release.url)
    command = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    result = subprocess.run(
        [*command[language], text],
        cwd=ROOT,
        env=environment or release.cluster.environment,
        capture_output=True,
        text=True,
        timeout=BLOCK_SECONDS,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert '"error"' not in result.stdout, result.stdout
    return result.stdout
