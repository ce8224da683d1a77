"""The installed platform runs with exactly the rights the chart gives it, and needs no other."""

import pytest

from tests.support.cluster.cluster import Cluster
from tests.support.published import Published, ask, fixed, stub
from tests.support.release import RESTRICTED, Release
from tests.support.rights import Right, lacking, may

OPERATOR, GATEWAY = ACCOUNTS = (
    "system:serviceaccount:sluice-system:sluice-operator",
    "system:serviceaccount:sluice-system:sluice-gateway",
)


def rights(cluster: Cluster, account: str, namespace: str) -> str:
    """A table: resources, their names, verbs."""
    return cluster.kubectl("auth", "can-i", "--list", "--as", account, "-n", namespace).stdout


@pytest.mark.parametrize("account", ACCOUNTS)
def test_there_is_no_wildcard(platform: Release, cluster: Cluster, account: str) -> None:
    for namespace in (platform.namespace, "default", "kube-system"):
        # Addresses without a resource, such as /healthz/*, are everybody's.
        lines = [
            line
            for line in rights(cluster, account, namespace).splitlines()
            if not line.startswith(" ")
        ]
        assert len(lines) > 3
        assert [line for line in lines if "*" in line] == []


@pytest.mark.parametrize("account", ACCOUNTS)
@pytest.mark.parametrize("verb", ["list", "watch", "create", "delete"])
def test_secrets_are_nobodys(platform: Release, cluster: Cluster, account: str, verb: str) -> None:
    for namespace in (platform.namespace, "default"):
        assert not may(cluster, account, verb, "secrets", "-n", namespace)
    assert not may(cluster, account, verb, "secrets", "--all-namespaces")


def test_one_secret_is_the_operators(platform: Release, cluster: Cluster) -> None:
    own = ("secrets/sluice-metrics-api-tls", "-n", platform.namespace)
    assert may(cluster, OPERATOR, "get", *own)
    assert may(cluster, OPERATOR, "patch", *own)
    assert not may(cluster, OPERATOR, "update", *own)
    other = ("secrets/sluice-cache", "-n", platform.namespace)
    for account in ACCOUNTS:
        assert not may(cluster, account, "get", *other)
    for verb in ("create", "delete"):
        assert not may(cluster, GATEWAY, verb, "deployments.apps", "--all-namespaces")
    for verb, part in (("create", "exec"), ("get", "log")):
        what = (verb, "pods", f"--subresource={part}", "--all-namespaces")
        assert not may(cluster, OPERATOR, *what)
    tokens = ("create", "serviceaccounts", "--subresource=token", "--all-namespaces")
    assert not may(cluster, OPERATOR, *tokens)


def test_the_life_of_a_service_meets_no_refusal(
    platform: Release, cluster: Cluster, restricted: str
) -> None:
    # Both namespaces take only pods of the `restricted` profile, by enforcement.
    labels = cluster.kubectl(
        "get", "namespaces", platform.namespace, restricted, "--show-labels", "--no-headers"
    ).stdout.splitlines()
    assert all(RESTRICTED in line for line in labels)

    service = Published(cluster, restricted)
    service.apply(stub("first-ms20-slots8-start300", scaling=fixed(1)))
    service.until_ready(1)
    first = service.revision
    service.apply(stub("second-ms20-slots8-start300", scaling=fixed(2)))
    service.until(lambda: service.revision != first, "another revision answers")
    service.until_ready(2)
    answer = ask(f"{platform.url}/v1/embeddings", {"model": service.model, "input": "a"})
    assert answer.status == 200
    service.kubectl("delete", "inf", service.name)
    service.until_gone()

    for component in ("operator", "gateway"):
        said = platform.logs(component)
        assert said
        assert lacking(cluster, said) == set()


def test_a_refusal_counts_as_long_as_the_right_is_lacking(cluster: Cluster, namespace: str) -> None:
    """In the API server's own words; the test above would see nothing if these changed."""
    account = f"system:serviceaccount:{namespace}:default"
    scaling = ("scale", "deployment/one", "--replicas=2", "-n", namespace, "--as", account)
    told = cluster.kubectl(*scaling, check=False).stderr
    get = Right(account, "get", "deployments", "apps", "one", namespace=namespace)
    assert lacking(cluster, told) == {get}
    listing = cluster.kubectl("get", "nodes", "--as", account, check=False).stderr
    assert lacking(cluster, listing) == {Right(account, "list", "nodes")}

    cluster.kubectl(
        "create", "role", "reader", "--verb=get", "--resource=deployments", "-n", namespace
    )
    cluster.kubectl(
        *("create", "rolebinding", "reader", "--role=reader", "-n", namespace),
        f"--serviceaccount={namespace}:default",
    )
    cluster.until(lambda: lacking(cluster, told) == set(), "the right is in force")
