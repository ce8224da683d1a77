"""Parts of the installed platform die under load, and no caller notices.

Open-loop load with unique inputs comes from inside the cluster, each request is sent once. Gateways
that are replaced, an API server and a Redis that go away: see test_gateway_pods.
"""

from functools import partial
from typing import Any

import pytest

from tests.support.cluster.cluster import Cluster
from tests.support.cluster_load import Load, cluster_load
from tests.support.pod_faults import delete_pod, destroy_pod, kill_container
from tests.support.published import GATEWAY, Published, ask, fixed, is_ready, stub
from tests.support.release import Release

BEHAVIOUR = "ms20-slots8-start300"
RATE = 15.0


@pytest.fixture
def service(platform: Release, cluster: Cluster, restricted: str) -> Published:
    """Two ready workers."""
    service = Published(cluster, restricted)
    service.apply(stub(BEHAVIOUR, scaling=fixed(2)))
    service.until_ready(2)
    return service


def wait_for(service: Published, load: Load, more: int, what: str) -> None:
    service.cluster.until(load.more(more), f"{more} more answers {what}")


def pod(platform: Release, name: str) -> dict[str, Any]:
    path = f"/api/v1/namespaces/{platform.namespace}/pods/{name}"
    found: dict[str, Any] = platform.cluster.read(path)
    return found


def whole(platform: Release, component: str) -> bool:
    """Both replicas run and are ready."""
    names = platform.pods(component)
    return len(names) == 2 and all(is_ready(pod(platform, name)) for name in names)


def leader(platform: Release) -> str:
    """The operator that leads; empty between two of them."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{platform.namespace}/leases/sluice-operator"
    holder = str(platform.cluster.read(path)["spec"].get("holderIdentity") or "")
    return holder if holder in platform.pods("operator") else ""


def restarts(pod: dict[str, Any]) -> int:
    return int(pod["status"]["containerStatuses"][0]["restartCount"])


def restarted(service: Published, times: int) -> bool:
    return sum(map(restarts, service.workers().values())) >= times


def leads_another(platform: Release, before: str) -> bool:
    return leader(platform) not in ("", before)


# Workers ------------------------------------------------------------------------------------------


def test_a_killed_worker_fails_no_request(service: Published) -> None:
    with cluster_load(service.cluster, GATEWAY, service.model, RATE) as load:
        wait_for(service, load, 30, "before")
        for number, worker in enumerate(service.workers().values(), start=1):
            kill_container(service.cluster, worker)
            service.until(partial(restarted, service, number), "it starts again")
            service.until_ready(2)
            wait_for(service, load, 30, "afterwards")
    assert load.failures == []


@pytest.mark.minutes
def test_a_deleted_worker_fails_no_request(service: Published) -> None:
    before = service.workers()
    with cluster_load(service.cluster, GATEWAY, service.model, RATE) as load:
        wait_for(service, load, 30, "before")
        drained, destroyed = before
        delete_pod(service.cluster, service.namespace, drained)
        wait_for(service, load, 50, "while it drains")
        service.until_ready(2)
        destroy_pod(service.cluster, service.namespace, destroyed)
        wait_for(service, load, 50, "after the other's sudden end")
        service.until_ready(2)
        wait_for(service, load, 30, "afterwards")
    assert load.failures == []
    assert service.workers().keys().isdisjoint(before)


# Operators ----------------------------------------------------------------------------------------


def test_one_operator_after_the_other_dies(platform: Release, service: Published) -> None:
    cluster = service.cluster
    with cluster_load(cluster, GATEWAY, service.model, RATE) as load:
        for number in range(2):
            wait_for(service, load, 30, "before")
            led = cluster.until(lambda: leader(platform), "an operator leads")
            destroy_pod(cluster, platform.namespace, led)
            service.until(partial(leads_another, platform, led), "another one leads")
            newcomer = Published(cluster, service.namespace, f"newcomer-{number}")
            newcomer.apply(stub(BEHAVIOUR, scaling=fixed(1)))
            newcomer.until_ready(1)
            service.until(lambda: whole(platform, "operator"), "two operators")
        wait_for(service, load, 30, "afterwards")
    assert load.failures == []


@pytest.mark.minutes
def test_both_operators_die_and_a_sleeping_service_wakes_all_the_same(
    platform: Release, service: Published
) -> None:
    cluster, workers = service.cluster, service.workers()
    sleeper = Published(cluster, service.namespace, "sleeper")
    sleeper.apply(stub(BEHAVIOUR, scaling={"initialReplicas": 0}))
    sleeper.until(lambda: sleeper.condition().get("reason") == "Asleep", "it sleeps")
    newcomer = Published(cluster, service.namespace, "newcomer")
    with cluster_load(cluster, GATEWAY, service.model, RATE) as load:
        wait_for(service, load, 30, "before")
        for name in platform.pods("operator"):
            kill_container(cluster, pod(platform, name))
        newcomer.apply(stub(BEHAVIOUR, scaling=fixed(1)))
        answer = ask(f"{platform.url}/v1/embeddings", {"model": sleeper.model, "input": "wake up"})
        assert answer.status == 200, answer
        newcomer.until_ready(1)
        wait_for(service, load, 30, "afterwards")
    assert load.failures == []
    assert service.workers().keys() == workers.keys()


# Gateways -----------------------------------------------------------------------------------------


@pytest.mark.minutes
def test_a_killed_gateway_fails_only_what_it_had(platform: Release, service: Published) -> None:
    # What a killed process has in hand is lost, and nobody but the caller may send a POST twice. A
    # gateway that is told to end loses nothing, see test_gateway_pods.
    cluster = service.cluster
    first, _ = platform.pods("gateway")
    before = restarts(pod(platform, first))
    with cluster_load(cluster, GATEWAY, service.model, RATE) as load:
        wait_for(service, load, 30, "before")
        kill_container(cluster, pod(platform, first))
        service.until(lambda: restarts(pod(platform, first)) > before, "its container runs again")
        service.until(lambda: whole(platform, "gateway"), "two gateways")
        wait_for(service, load, 30, "while the Service takes it in again")
        settled = max(answer.began for answer in list(load.answers))
        wait_for(service, load, 60, "afterwards")
    refused = [failed for failed in load.failures if "ConnectorError" in failed.why]
    broken = [failed for failed in load.failures if failed not in refused]
    assert [failed for failed in broken if failed.status != 0] == []
    # All of them were in hand at one moment, that of its end.
    if broken:
        died = min(failed.ended for failed in broken)
        assert max(failed.began for failed in broken) <= died, broken
    # Connections are refused until Kubernetes has seen the end; such a request was never sent.
    assert [failed for failed in refused if failed.began > settled] == []
