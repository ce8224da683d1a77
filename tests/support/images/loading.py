"""Puts the product's images into the node of a test cluster, building what changed before.

Tests of tests/cluster call it, and so does ``python -m tests.support.images --cluster FOLDER``.
"""

import subprocess
from pathlib import Path

from tests.support.cluster.access import Access
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.foreign import ForeignCluster

from .builder import Builder, build_with_docker
from .layout import Layout
from .recipes import RECIPES

LIST_SECONDS = 30.0


def load(cluster: Access, *names: str) -> list[str]:
    """Build the named images and put them into the node; returns what pods call them.

    Only layers travel that the node lacks, so that the second time costs a second. Raises
    BuildFailed, and RuntimeError if the node refuses one.
    """
    if isinstance(cluster, ForeignCluster):
        made = [recipe.reference for recipe in build_with_docker(names)]
        cluster.load_from_docker(*made)
        return made
    assert isinstance(cluster, Cluster)
    builder = Builder()
    # In turns, until the node has them: the worker's archive takes gigabytes of disk.
    with builder.built(names), builder.scratch() as folder:
        cluster.load(*(_archive(builder.layout, name, folder, _blobs(cluster)) for name in names))
    return [RECIPES[name].reference for name in names]


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
