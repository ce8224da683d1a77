"""`make cluster` said twice: what runs is used, and what is installed stays as it is."""

import re
import subprocess
import sys
from pathlib import Path

from tests.support.cluster import leftovers
from tests.support.cluster.cluster import Cluster
from tests.support.release import Release

ROOT = Path(__file__).parents[2]


def verb(name: str, *command: str) -> str:
    """What one of the Makefile's commands says of the cluster ``name``."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.cluster", "--name", name, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def daemons(name: str) -> dict[str, int]:
    cluster = Cluster.join(leftovers.state_folder(name))
    try:
        return cluster.running()
    finally:
        cluster.close()


def test_a_cluster_is_started_once_and_ended() -> None:
    name = "said-twice"
    start = ("start", "--control-plane-only")
    try:
        first = verb(name, *start)
        running = daemons(name)
        assert verb(name, *start) == first
        assert daemons(name) == running
    finally:
        verb(name, "end")
    assert not leftovers.state_folder(name).exists()
    assert "there is no cluster" in verb(name, "end")


def test_the_platform_is_installed_once(
    cluster: Cluster, platform: Release, worker_image: None
) -> None:
    name = cluster.site.name.removeprefix("sluice-cluster-")
    before = [platform.pods(component) for component in ("operator", "gateway", "redis")]
    try:
        said = verb(name, "start") + verb(name, "install")
        assert "are replaced" not in said
        assert re.search(r"The gateway answers at http://127\.0\.0\.1:\d+", said)
        after = [platform.pods(component) for component in ("operator", "gateway", "redis")]
        assert after == before
    finally:
        platform.install()
