"""Puts the product's images into the node of a test cluster, building what changed before.

The session fixture ``images`` of tests/cluster calls it, and so does ``python -m
tests.support.images --cluster NAME``.
"""

import subprocess
import tempfile
from pathlib import Path

from tests.support.cluster.access import Access
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.foreign import ForeignCluster

from .builder import Builder, build_with_docker
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
    builder.build(names)
    references = [RECIPES[name].reference for name in names]
    for reference in references:
        with tempfile.TemporaryDirectory(dir=builder.folder) as folder:
            archive = Path(folder, "image.tar")
            builder.layout.write_archive(reference, archive, _blobs(cluster))
            cluster.load(archive)
    return references


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
