"""`make cluster` said twice: what runs is used, and what is installed stays as it is."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.cluster import leftovers
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.options import decode, encode
from tests.support.release import Release

ROOT = Path(__file__).parents[2]


def verb(name: str, *command: str) -> str:
    """What one of the Makefile's commands says of the cluster ``name``."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.cluster", "--name", name, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def refusal(name: str, *command: str) -> str:
    """What one of the Makefile's commands says that it does not carry out."""
    with pytest.raises(AssertionError) as refused:
        verb(name, *command)
    return str(refused.value)


def daemons(name: str) -> dict[str, int]:
    cluster = Cluster.join(leftovers.state_folder(name))
    try:
        return cluster.running()
    finally:
        cluster.close()


@contextmanager
def lent(name: str, checkout: Path) -> Iterator[None]:
    """The cluster as if another checkout had started it."""
    description = leftovers.state_folder(name) / "cluster.json"
    before = description.read_text()
    options, site = decode(before)
    description.write_text(encode(options, replace(site, checkout=checkout)))
    try:
        yield
    finally:
        description.write_text(before)


def test_a_cluster_is_started_once_and_ended(tmp_path: Path) -> None:
    name = "said-twice"
    start = ("start", "--control-plane-only")
    try:
        first = verb(name, *start)
        running = daemons(name)
        assert verb(name, *start) == first
        assert daemons(name) == running
        with lent(name, tmp_path):
            for command in (start, ("exec", "true"), ("end",)):
                assert f"belongs to the checkout {tmp_path}" in refusal(name, *command)
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
