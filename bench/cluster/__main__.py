"""``python -m bench.cluster``: the platform on a real Kubernetes, as a table and as JSON."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench import measure
from bench.cluster import scaling

from tests.support.cluster import leftovers
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.options import Options
from tests.support.release import Release

HPA_SYNC_SECONDS = 15
"""Kubernetes' default, untouched: the operator writes at once, and the HPA agrees later."""


@contextmanager
def a_cluster() -> Iterator[Cluster]:
    """One of its own, or the one that SLUICE_TEST_CLUSTER names."""
    if named := os.environ.get("SLUICE_TEST_CLUSTER"):
        joined = Cluster.join(leftovers.state_folder(named))
        try:
            yield joined
        finally:
            joined.close()
        return
    with Cluster.start(Options(hpa_sync_seconds=HPA_SYNC_SECONDS)) as cluster:
        yield cluster


def bench_scaling(cluster: Cluster, release: Release) -> None:
    namespace = f"bench-{secrets.token_hex(3)}"
    cluster.kubectl("create", "namespace", namespace)
    before = os.getloadavg()[0]
    try:
        rows, figures = scaling.measure_all(cluster, release, namespace)
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")
    title = "Scaling on a real Kubernetes; 40 requests a second of one replica"
    measure.table(title, ["", "Sluice", "Knative", "KubeAI", "KEDA"], [r.cells() for r in rows])
    load = [round(before, 1), *(round(part, 1) for part in os.getloadavg())]
    print(f"\n  load of this machine before, and over the last 1, 5 and 15 min: {load}")
    measure.save("cluster_scaling", {"load": load, "figures": figures})


def main() -> None:
    with a_cluster() as cluster:
        release = Release(cluster)
        release.load_images("stub")
        release.make_namespace()
        release.install()
        began = time.monotonic()
        bench_scaling(cluster, release)
        print(f"  scaling took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
