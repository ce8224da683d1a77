"""Two gateways as pods: replaced, killed, without the API server, without Redis – under load.

The stub engine answers two workers; open-loop load with unique inputs comes from inside the
cluster, on the gateways' Service.
"""

import signal
from collections.abc import Callable, Iterator

import pytest

from sluice_operator.status import UNKNOWN
from tests.support.cluster_load import Load, cluster_load
from tests.support.published import GATEWAY, Published, fixed, stub
from tests.support.release import Release

BEHAVIOUR = "ms20-slots8-start300"
RATE = 15.0


@pytest.fixture
def service(platform: Release, restricted: str) -> Published:
    """Two ready workers."""
    service = Published(platform.cluster, restricted)
    service.apply(stub(BEHAVIOUR, scaling=fixed(2)))
    service.until_ready(2)
    return service


def wait_for(service: Published, load: Load, more: int, what: str) -> None:
    service.cluster.until(load.more(more), f"{more} more answers {what}")


def kubectl(platform: Release, *arguments: str) -> str:
    return platform.cluster.kubectl(*arguments, "-n", platform.namespace).stdout


def test_gateways_are_replaced_without_a_failure(platform: Release, service: Published) -> None:
    before = platform.pods("gateway")
    with cluster_load(service.cluster, GATEWAY, service.model, RATE) as load:
        wait_for(service, load, 20, "of the first gateways")
        kubectl(platform, "rollout", "restart", "deployment/sluice-gateway")
        kubectl(platform, "rollout", "status", "deployment/sluice-gateway", "--timeout=170s")
        wait_for(service, load, 40, "of the new gateways")
    assert load.failures == []
    assert platform.pods("gateway").keys().isdisjoint(before)
    assert UNKNOWN not in [event["reason"] for event in service.warnings()]
    # Nobody was computed twice: a drained gateway finishes what it has.
    assert service.answered(service.revision) == len(load.answers)


def test_the_api_server_is_killed_without_a_failure(platform: Release, service: Published) -> None:
    with cluster_load(service.cluster, GATEWAY, service.model, RATE) as load:
        wait_for(service, load, 20, "before")
        service.cluster.stop("kube-apiserver", signal.SIGKILL)
        wait_for(service, load, 75, "without an API server")
        service.cluster.begin("kube-apiserver")
        service.cluster.until(
            lambda: service.cluster.kubectl("get", "--raw", "/readyz", check=False).returncode == 0,
            "the API server",
        )
        wait_for(service, load, 30, "afterwards")
    assert load.failures == []


def test_redis_goes_and_comes_without_a_failure(platform: Release, service: Published) -> None:
    with cluster_load(service.cluster, GATEWAY, service.model, RATE) as load:
        wait_for(service, load, 20, "before")
        kubectl(platform, "scale", "deployment/sluice-redis", "--replicas=0")
        service.cluster.until(lambda: not platform.pods("redis"), "the end of Redis")
        wait_for(service, load, 45, "without Redis")
        kubectl(platform, "scale", "deployment/sluice-redis", "--replicas=1")
        kubectl(platform, "rollout", "status", "deployment/sluice-redis", "--timeout=170s")
        wait_for(service, load, 30, "afterwards")
    assert load.failures == []


def shown(service: Published) -> tuple[str, str]:
    """Status and reason of Ready."""
    ready = service.condition()
    return ready.get("status", ""), ready.get("reason", "")


def warned(service: Published) -> set[str]:
    """Which services of the namespace have an event about it; it comes after the status."""
    events = service.warnings()
    return {one["involvedObject"]["name"] for one in events if one["reason"] == UNKNOWN}


@pytest.fixture
def restore(platform: Release) -> Iterator[Callable[[], None]]:
    """Have gateways as the chart makes them; done at the end in any case."""
    yield platform.install
    platform.install()


def test_who_is_known_to_no_gateway_is_not_called_ready(
    platform: Release, service: Published, restore: Callable[[], None]
) -> None:
    elsewhere = {"name": "SLUICE_GATEWAY_NAMESPACES", "value": platform.namespace}
    platform.install({"gateway": {"extraEnv": [elsewhere]}})
    service.until(lambda: shown(service) == ("True", UNKNOWN), "it is told, of what was ready")
    new = Published(service.cluster, service.namespace, "new")
    new.apply(stub(BEHAVIOUR, scaling=fixed(1)))
    new.until(lambda: bool(new.workers(ready=True)), "a ready worker")
    new.until(lambda: shown(new) == ("False", UNKNOWN), "it is told, of what is new")
    service.until(lambda: warned(service) == {"model", "new"}, "both have an event")
    restore()
    for each in (service, new):
        each.until(lambda each=each: shown(each) == ("True", "Ready"), "gateways know it")
