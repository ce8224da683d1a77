"""Puts the product's images into the node of a test cluster, building what changed before.

Tests of tests/cluster call it, and so does ``python -m tests.support.images --cluster FOLDER``.
"""

import subprocess
import time
from pathlib import Path

from tests.support.cluster.access import Access
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.foreign import ForeignCluster

from .builder import Builder, Say, build_with_docker, say_to_stderr
from .layout import Layout
from .recipes import RECIPES

LIST_SECONDS = 30.0


def load(cluster: Access, *names: str, say: Say = say_to_stderr) -> list[str]:
    """Build the named images and put them into the node; returns what pods call the new ones.

    Only layers travel that the node lacks, so that the second time costs a second. Raises
    BuildFailed, and RuntimeError if the node refuses one.

    Args:
        say: told before each image that takes its time.
    """
    if isinstance(cluster, ForeignCluster):
        made = [recipe.reference for recipe in build_with_docker(names)]
        say(f"loading {', '.join(made)} into the nodes")
        cluster.load_from_docker(*made)
        return made
    assert isinstance(cluster, Cluster)
    builder = Builder(say=say)
    # Nobody else builds, and so replaces what is in the layout, until the node has them.
    with builder.built(names), builder.scratch() as folder:
        return [
            RECIPES[n].reference for n in names if _put(builder.layout, n, folder, cluster, say)
        ]


def _put(layout: Layout, name: str, folder: Path, cluster: Cluster, say: Say) -> bool:
    """Whether the node lacked the image. One after the other: the worker's takes gigabytes."""
    reference = RECIPES[name].reference
    began = time.monotonic()
    archive = _archive(layout, name, folder, _blobs(cluster))
    if cluster.has(archive):
        return False
    say(f"loading {reference} into the node, {archive.stat().st_size / 2**20:.0f} MiB …")
    try:
        cluster.load(archive)
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        # A layer that the node had is gone: the kubelet removes unused images on a full disk.
        archive.unlink()
        cluster.load(_archive(layout, name, folder, set()))
    archive.unlink()
    say(f"loaded {reference} in {time.monotonic() - began:.0f} s")
    return True


def _archive(layout: Layout, name: str, folder: Path, known: set[str]) -> Path:
    archive = folder / f"{name}.tar"
    layout.write_archive(RECIPES[name].reference, archive, known)
    return archive


def _blobs(cluster: Cluster) -> set[str]:
    """The digests of what the node's containerd has."""
    listing = subprocess.run(
        ["ctr", "-a", str(cluster.site.containerd_socket), "-n", "k8s.io", "content", "ls", "-q"],
        capture_output=True,
        text=True,
        timeout=LIST_SECONDS,
        check=True,
    )
    return set(listing.stdout.split())
