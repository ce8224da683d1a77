"""Which cluster the tests run on: one of their own, or one that the user names.

SLUICE_TEST_KUBERNETES chooses the release of an own one. SLUICE_TEST_CLUSTER names one that runs
already: of `make cluster`, or a context of the kubeconfig. Without that name no other cluster is
ever touched. With SLUICE_TEST_CLUSTER_REQUIRED, as `make test-cluster` sets it, no test is skipped
because the machine cannot carry a cluster. The fixtures of tests/cluster ask here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from . import leftovers, machine
from .access import Access
from .cluster import Cluster
from .foreign import ForeignCluster
from .options import DEFAULT_RELEASE, Options


@contextmanager
def chosen_cluster(config: pytest.Config) -> Iterator[Access]:
    """The cluster for most tests: the one that is named, or an own one (see `own_cluster`)."""
    if not (named := os.environ.get("SLUICE_TEST_CLUSTER")):
        with own_cluster(config) as started:
            yield started
        return
    joined = _join(named)
    try:
        yield joined
    finally:
        joined.close()


@contextmanager
def own_cluster(config: pytest.Config, options: Options | None = None) -> Iterator[Cluster]:
    """A cluster that only the caller's tests see.

    Skips where the machine cannot carry one, saying what is missing and what helps; with
    SLUICE_TEST_CLUSTER_REQUIRED that fails. Where it can, one that does not come up fails always.
    Raises ClusterError, programs.BuildError, machine.UnfitMachineError.
    """
    try:
        machine.require()
    except machine.UnfitMachineError as error:
        if os.environ.get("SLUICE_TEST_CLUSTER_REQUIRED"):
            raise
        pytest.skip(str(error))
    wanted = replace(options or Options(), release=release())
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():  # a first build takes minutes, and says so
        started = Cluster.start(wanted)
    with started:
        yield started


def release() -> str:
    """The Kubernetes minor version that the tests run on."""
    return os.environ.get("SLUICE_TEST_KUBERNETES", DEFAULT_RELEASE)


def _join(name: str) -> Access:
    state = leftovers.state_folder(name)
    return Cluster.join(state) if state.exists() else ForeignCluster(name)
