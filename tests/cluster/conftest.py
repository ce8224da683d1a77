"""The real cluster as a fixture: one a session, and one Kubernetes namespace a test.

Where the machine cannot carry one, the tests are skipped with the command that changes that; where
it can, a cluster that does not come up fails them. What it does is in tests/support/cluster.
"""

import re
import secrets
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from kubernetes import client

from tests.support.cluster.access import Access
from tests.support.cluster.choice import chosen_cluster, own_cluster
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.options import Options
from tests.support.images.loading import load
from tests.support.operator_process import install_crd
from tests.support.release import RESTRICTED, Release


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by it
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the installed platform, or gigabytes of image, by its fixtures."""
    for item in items:
        needed = {"platform", "worker_image"} & set(getattr(item, "fixturenames", ()))
        if needed and item.path.parent == Path(__file__).parent:
            item.add_marker("platform")


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Access]:
    """One for all tests: a `Cluster`, unless the user named another (see choice)."""
    with chosen_cluster(request.config) as chosen:
        yield chosen


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster without a node, for tests that play the operator or run it as processes.

    In the other one the chart's operators would work against them.
    """
    with own_cluster(request.config, Options(control_plane_only=True)) as started:
        install_crd(started)
        yield started


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed shows the pods and events of its namespace and the ends of the logs, and
    what the operator said of it."""
    report = yield
    given = getattr(item, "funcargs", {})
    cluster = given.get("cluster")
    name = given.get("namespace") or getattr(getattr(item, "module", None), "NAMESPACE", "")
    if report.when == "call" and report.failed and isinstance(cluster, Access) and name:
        report.sections.append(("cluster", cluster.describe(name)))
        if isinstance(platform := given.get("platform"), Release):
            report.sections.append(("operator", platform.said_of(name)))
    return report


@pytest.fixture(scope="session")
def platform(cluster: Cluster) -> Release:
    """Operator, gateways and Redis as pods, installed by the chart with its defaults.

    Workers are Sluice's own (ask for `worker_image` too), or, with spec.engine.image
    localhost/sluice-stub:test, the stub engine.
    """
    release = Release(cluster)
    release.load_images("stub")
    release.make_namespace()
    release.install()
    return release


@pytest.fixture(scope="session")
def worker_image(cluster: Cluster) -> None:
    """The real worker's image, with torch and MiniLM, in the node."""
    load(cluster, "worker")


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a new Kubernetes namespace that pods can start in; deleted afterwards."""
    readable = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].strip("-")
    name = f"{readable}-{secrets.token_hex(3)}"
    core = client.CoreV1Api(cluster.api)
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name)))
    cluster.until(
        lambda: core.list_namespaced_service_account(name).items,
        "the namespace's default ServiceAccount",
        # After a restart of the API server its controllers come back with pauses of their own.
        seconds=120,
    )
    yield name
    cluster.repair()
    core.delete_namespace(name)
    cluster.check()


@pytest.fixture
def restricted(cluster: Cluster, namespace: str) -> str:
    """A new namespace that takes only pods of the `restricted` profile; workers must be some."""
    cluster.kubectl("label", "namespace", namespace, RESTRICTED)
    return namespace
