"""Scaling on the installed platform: the real HPA, the real metrics API, real pods of the stub.

Load is open-loop with unique inputs, so that a failure or a cache cannot hide.
"""

import json
import secrets
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest

from sluice_api import names
from tests.support.cluster.access import PATIENCE_SECONDS
from tests.support.cluster.cluster import Cluster
from tests.support.cluster_load import cluster_load
from tests.support.metrics_replicas import values
from tests.support.paced_load import Answer, Phase, start
from tests.support.published import GATEWAY, Published, fixed, stub
from tests.support.release import Release
from tests.support.replica_log import replica_log

pytestmark = pytest.mark.usefixtures("platform")

BEHAVIOUR = "ms100-slots2-start300"  # 20 requests a second of one replica
STUCK = "start3600000"  # an hour: longer than any test
SLOW = "ms500000-slots4-start300"  # what a test ends itself


def scaled(**scaling: Any) -> dict[str, Any]:
    return stub(BEHAVIOUR, scaling={"maxReplicas": 5, "initialReplicas": 0, **scaling})


def published(cluster: Cluster, namespace: str, name: str = "model", **scaling: Any) -> Published:
    """A stub service that has been seen by operator and gateway."""
    service = Published(cluster, namespace, name, seconds=PATIENCE_SECONDS)
    service.apply(scaled(**scaling))
    service.until(lambda: service.condition().get("status") == "True", f"{name} is accepted")
    return service


def hpa(service: Published) -> dict[str, Any]:
    path = f"/apis/autoscaling/v2/namespaces/{service.namespace}/horizontalpodautoscalers"
    found: dict[str, Any] = service.cluster.read(f"{path}/{service.name}-{service.revision}")
    return found


def hpa_says(service: Published, condition: str) -> str:
    status = hpa(service).get("status") or {}
    for entry in status.get("conditions") or ():
        if entry["type"] == condition:
            return f"{entry['status']}/{entry['reason']}"
    return ""


def hpa_reads(service: Published) -> str | None:
    """The value of our metric that the HPA saw last."""
    for metric in (hpa(service).get("status") or {}).get("currentMetrics") or ():
        current = metric["object"]["current"]
        return str(current.get("averageValue") or current.get("value"))
    return None


def reasons(failed: list[Answer]) -> Counter[str]:
    return Counter(f"{answer.status} {answer.error[:200]}" for answer in failed)


@pytest.mark.minutes
def test_from_zero_up_under_load_down_and_to_zero(cluster: Cluster, namespace: str) -> None:
    service = published(cluster, namespace, idleAfter="8s")
    with replica_log(cluster, namespace) as log:
        woken = start(cluster, GATEWAY, [service.model], [Phase(0, 0.1, burst=1)]).finish()
        assert not woken.failed, reasons(woken.failed)
        ordered = log.first("model", woken.began, ordered=1)
        assert ordered is not None
        assert ordered < woken.began + woken.last, "ordered for the request, and answered by it"

        phases = [Phase(0, 4), Phase(45, 15)]
        with (
            cluster_load(cluster, GATEWAY, service.model, 5) as lasting,
            start(cluster, GATEWAY, [service.model], phases) as load,
        ):
            service.until(lambda: log.now("model").ready >= 3, "enough replicas for 50 req/s")
            service.until(
                lambda: hpa_says(service, "ScalingActive").startswith("True"), "HPA works"
            )
            service.until(
                lambda: hpa_reads(service) in ("1", "1000m"), "the HPA reads one a replica from us"
            )
            outcome = load.finish()
            service.until(lambda: log.now("model").ordered <= 2, "it falls with the load")
        assert not outcome.failed, reasons(outcome.failed)
        assert lasting.failures == []
        assert log.peak("model") <= 5
        service.until(lambda: log.now("model").ordered == 0, "asleep")
        assert service.status["scaling"]["rule"] == "idle"


@pytest.mark.minutes
def test_workers_have_counted_what_the_client_has(cluster: Cluster, namespace: str) -> None:
    service = published(cluster, namespace, minReplicas=2, initialReplicas=2)
    service.until(lambda: service.status["readyReplicas"] == 2, "two replicas")
    outcome = start(cluster, GATEWAY, [service.model], [Phase(20, 10), Phase(0, 0.1)]).finish()
    assert not outcome.failed, reasons(outcome.failed)
    assert len(outcome.answers) >= 200
    assert service.answered() == len(outcome.answers)


def test_a_number_that_somebody_else_has_set_is_set_back(cluster: Cluster, namespace: str) -> None:
    """An awake service stays awake, and no larger than it was, whoever scales its Deployment."""
    service = published(cluster, namespace, idleAfter="10m", initialReplicas=1)
    service.until_ready()
    deployment = f"deployment/{service.name}-{service.revision}"

    def number() -> str:
        return service.kubectl("get", deployment, "-o", "jsonpath={.spec.replicas}")

    def decided() -> tuple[int, str]:
        scaling = service.status["scaling"]
        return scaling["desired"], scaling["summary"]

    for other in ("0", "3"):
        service.kubectl("scale", deployment, f"--replicas={other}")
        service.until(lambda: number() == "1", f"one replica instead of {other}")
        # Ready may be told before those too many are gone.
        service.until(lambda: decided() == (1, "1/1"), "it is as large as it was")


@pytest.mark.minutes
def test_twenty_services_wake_at_one_instant(cluster: Cluster, namespace: str) -> None:
    """Ten of them start and answer, ten never do: no order waits for what others make of theirs."""
    names = [f"model-{number}" for number in range(20)]
    asleep = {"maxReplicas": 1, "initialReplicas": 0, "idleAfter": "10m"}
    services = [Published(cluster, namespace, name, seconds=PATIENCE_SECONDS) for name in names]
    starting, stuck = services[::2], services[1::2]
    for service in services:
        service.apply(stub(BEHAVIOUR if service in starting else STUCK, scaling=asleep))
    services[0].until(
        lambda: all(s.condition().get("reason") == "Asleep" for s in services), "all are known"
    )
    at_once = [Phase(0, 0.1, burst=1)]
    with (
        replica_log(cluster, namespace) as log,
        start(cluster, GATEWAY, [service.model for service in stuck], at_once),
        start(cluster, GATEWAY, [service.model for service in starting], at_once) as asked,
    ):
        outcome = asked.finish()
        assert not outcome.failed, reasons(outcome.failed)
        assert len(outcome.good) == 10
        services[0].until(
            lambda: all(log.now(name).ordered == 1 for name in names), "all twenty are ordered"
        )


@pytest.fixture
def leader_that_does_not_write(platform: Release) -> Iterator[None]:
    off = {"name": "SLUICE_OPERATOR_WRITE_SCALE", "value": "false"}
    platform.install({"operator": {"extraEnv": [off]}})
    yield
    platform.install()


@pytest.mark.usefixtures("leader_that_does_not_write")
def test_the_hpa_alone_scales_up_and_down(cluster: Cluster, namespace: str) -> None:
    """Otherwise a metrics API that is dead would not be noticed: the leader's writes hide it."""
    service = published(cluster, namespace, minReplicas=1, initialReplicas=1)
    service.until(lambda: service.status["readyReplicas"] == 1, "the floor")
    with replica_log(cluster, namespace) as log:
        with cluster_load(cluster, GATEWAY, service.model, 50):
            service.until(lambda: log.now("model").ordered >= 3, "more replicas")
        # What is deleted once nobody has asked for half a minute, nobody but the HPA deletes.
        service.until(lambda: log.now("model").ordered == 1, "the floor again")
        changes = log.history["model"]
    first = next(number for number, seen in enumerate(changes) if seen.ordered > 1)
    assert {seen.writer for seen in changes[first:]} == {"kube-controller-manager"}
    # What it read before its last step was shared by more replicas.
    service.until(lambda: hpa_reads(service) in ("1", "1000m"), "the HPA reads one a replica")
    service.until(lambda: hpa_says(service, "ScalingActive").startswith("True"), "HPA works")


def begin(platform: Release, service: Published) -> HTTPConnection:
    """A request that is sent and not waited for; closing the connection ends it."""
    connection = HTTPConnection(urlsplit(platform.url).netloc, timeout=PATIENCE_SECONDS)
    body = json.dumps({"model": service.model, "input": secrets.token_hex(8)})
    connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
    return connection


def busy(service: Published) -> set[str]:
    """Workers that compute something, as they say themselves."""
    found = set()
    for name, pod in service.workers(ready=True).items():
        url = service.cluster.url(pod["status"]["podIP"], names.ADMIN_PORT)
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
            if json.load(answer)["capacity"]["inFlight"]:
                found.add(name)
    return found


def begin_at(worker: str, platform: Release, service: Published) -> HTTPConnection:
    """A request that one certain worker computes, which every replica of the operator knows.

    The gateways choose the worker, until they choose this one.
    """
    landed: list[HTTPConnection] = []

    def lands() -> bool:
        request = begin(platform, service)
        service.until(lambda: bool(busy(service)), "a worker has it")
        if busy(service) == {worker}:
            landed.append(request)
            return True
        request.close()
        service.until(lambda: not busy(service), "it is given up")
        # Or what the operators say of the next one is still said of this one.
        service.until(lambda: heard(platform, service) == {"0"}, "the operators know that")
        return False

    service.until(lands, f"a request at {worker}")
    service.until(lambda: heard(platform, service) == {"1"}, "the operators know of it")
    return landed[0]


def heard(platform: Release, service: Published) -> set[str]:
    """Requests in flight, as each replica of the operator has them: whichever of them leads."""
    return set(values(platform, signal_path(service, "in_flight_requests")))


def signal_path(service: Published, metric: str) -> str:
    return (
        f"/apis/custom.metrics.k8s.io/v1beta2/namespaces/{service.namespace}"
        f"/inferenceservices.sluice.dev/{service.name}/{metric}"
    )


def signal(service: Published, metric: str) -> float:
    """What the metrics API has of the service now; 0 while it has nothing."""
    try:
        value = str(service.cluster.read(signal_path(service, metric))["items"][0]["value"])
    except RuntimeError:
        return 0.0
    return float(value[:-1]) / 1000 if value.endswith("m") else float(value)


def test_the_idle_replica_goes_and_the_busy_one_stays(platform: Release, restricted: str) -> None:
    """The younger one is busy, which Kubernetes by itself would end first."""
    service = Published(platform.cluster, restricted, seconds=PATIENCE_SECONDS)
    service.apply(stub(SLOW, limits={"timeout": "10m"}, scaling=fixed(1)))
    service.until_ready(1)
    (older,) = service.workers()
    service.apply(stub(SLOW, limits={"timeout": "10m"}, scaling=fixed(2)))
    service.until_ready(2)
    (younger,) = service.workers().keys() - {older}
    with closing(begin_at(younger, platform, service)):
        service.apply(stub(SLOW, limits={"timeout": "10m"}, scaling=fixed(1)))
        service.until(lambda: len(service.workers()) == 1, "one replica goes")
        assert busy(service) == service.workers().keys() == {younger}


@pytest.mark.minutes
def test_signals_for_an_autoscaler_of_ones_own(cluster: Cluster, namespace: str) -> None:
    service = published(cluster, namespace, mode="signal", minReplicas=1, initialReplicas=1)
    service.until(lambda: service.status["readyReplicas"] == 1, "the floor")

    phases = [Phase(15, 14), Phase(0, 0.1)]
    with start(cluster, GATEWAY, [service.model], phases) as load:
        service.until(lambda: signal(service, "arrivals_per_second") > 12, "the rate is published")
        outcome = load.finish()
    assert outcome.good
    assert "hpa" not in service.kubectl("get", "hpa", "-o", "name")
    assert service.status["scaling"]["desired"] == 1, "nobody but its owner moves it"
