"""``python -m bench.cluster [scaling] [services]``: on a real Kubernetes, as tables and as JSON."""

import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench import measure
from bench.cluster import operator_scale, scaling

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


def run_scaling() -> None:
    with a_cluster() as cluster:
        release = Release(cluster)
        release.load_images("stub")
        release.make_namespace()
        release.install()
        bench_scaling(cluster, release)


BENCHES = {"scaling": run_scaling, "services": lambda: operator_scale.main([])}


def main() -> None:
    asked = sys.argv[1:] or list(BENCHES)
    for name in asked:
        if name not in BENCHES:
            raise SystemExit(f"no benchmark {name!r}; there are: {', '.join(BENCHES)}")
    for name in asked:
        began = time.monotonic()
        BENCHES[name]()
        print(f"  {name} took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
