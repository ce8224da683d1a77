"""Scaling on the installed platform: the real HPA, the real metrics API, real pods of the stub.

Load is open-loop with unique inputs, so that a failure or a cache cannot hide.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cluster.cluster import Cluster
from tests.support.paced_load import Answer, Phase, start
from tests.support.published import GATEWAY, Published, stub
from tests.support.release import Release
from tests.support.replica_log import replica_log

pytestmark = pytest.mark.usefixtures("platform")

BEHAVIOUR = "ms100-slots2-start300"  # 20 requests a second of one replica
PATIENCE_SECONDS = 60.0  # the machine may be busy with other things


def scaled(**scaling: Any) -> dict[str, Any]:
    return stub(BEHAVIOUR, scaling={"maxReplicas": 5, "initialReplicas": 0, **scaling})


def published(cluster: Cluster, namespace: str, name: str = "model", **scaling: Any) -> Published:
    """A stub service that has been seen by operator and gateway."""
    service = Published(cluster, namespace, name, seconds=PATIENCE_SECONDS)
    service.apply(scaled(**scaling))
    service.until(lambda: service.condition().get("status") == "True", f"{name} is accepted")
    return service


def hpa(service: Published) -> dict[str, Any]:
    name = f"{service.name}-{service.revision}"
    found: dict[str, Any] = json.loads(service.kubectl("get", "hpa", name, "-o", "json"))
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


def test_from_zero_up_under_load_down_and_to_zero(cluster: Cluster, namespace: str) -> None:
    service = published(cluster, namespace, idleAfter="8s")
    with replica_log(cluster, namespace) as log:
        woken = start(cluster, GATEWAY, [service.model], [Phase(0, 0.1, burst=1)]).finish()
        assert not woken.failed, reasons(woken.failed)
        ordered = log.first("model", woken.began, ordered=1)
        assert ordered is not None
        assert ordered < woken.began + woken.last, "ordered for the request, and answered by it"

        phases = [Phase(5, 4), Phase(50, 15), Phase(5, 50), Phase(0, 0.1)]
        with start(cluster, GATEWAY, [service.model], phases) as load:
            service.until(lambda: log.now("model").ready >= 3, "enough replicas for 50 req/s")
            service.until(
                lambda: hpa_says(service, "ScalingActive").startswith("True"), "HPA works"
            )
            service.until(
                lambda: hpa_reads(service) in ("1", "1000m"), "the HPA reads one a replica from us"
            )
            outcome = load.finish()
        assert not outcome.failed, reasons(outcome.failed)
        assert log.peak("model") <= 5
        assert log.now("model").ordered <= 2, "it fell with the load, not with its end"
        service.until(lambda: log.now("model").ordered == 0, "asleep")
        assert service.status["scaling"]["rule"] == "idle"


def test_workers_have_counted_what_the_client_has(cluster: Cluster, namespace: str) -> None:
    service = published(cluster, namespace, minReplicas=2, initialReplicas=2)
    service.until(lambda: service.status["readyReplicas"] == 2, "two replicas")
    outcome = start(cluster, GATEWAY, [service.model], [Phase(20, 10), Phase(0, 0.1)]).finish()
    assert not outcome.failed, reasons(outcome.failed)
    assert len(outcome.answers) >= 200
    assert service.answered() == len(outcome.answers)


def test_twenty_services_wake_at_one_instant(cluster: Cluster, namespace: str) -> None:
    names = [f"model-{number}" for number in range(20)]
    for name in names:
        Published(cluster, namespace, name).apply(scaled(idleAfter="10m", maxReplicas=1))
    services = [Published(cluster, namespace, name, seconds=PATIENCE_SECONDS) for name in names]
    services[0].until(
        lambda: all(s.condition().get("reason") == "Asleep" for s in services), "all are known"
    )
    with replica_log(cluster, namespace) as log:
        models = [service.model for service in services]
        outcome = start(cluster, GATEWAY, models, [Phase(0, 0.1, burst=1)]).finish()
        assert not outcome.failed, reasons(outcome.failed)
        assert len(outcome.good) == 20
        ordered = [log.first(name, outcome.began, ordered=1) or float("inf") for name in names]
        ready = [log.first(name, outcome.began, ready=1) or float("inf") for name in names]
        assert max(ordered) < sorted(ready)[10], "no order waited for other services to start"


@pytest.fixture
def leader_that_does_not_write(platform: Release) -> Iterator[None]:
    off = {"name": "SLUICE_OPERATOR_WRITE_SCALE", "value": "false"}
    platform.install({"operator": {"extraEnv": [off]}})
    yield
    platform.install()


@pytest.mark.usefixtures("leader_that_does_not_write")
def test_the_hpa_alone_scales(cluster: Cluster, namespace: str) -> None:
    """Otherwise a metrics API that is dead would not be noticed: the leader's writes hide it."""
    service = published(cluster, namespace, minReplicas=1, initialReplicas=1)
    service.until(lambda: service.status["readyReplicas"] == 1, "the floor")
    phases = [Phase(50, 25), Phase(0, 0.1)]
    with (
        replica_log(cluster, namespace) as log,
        start(cluster, GATEWAY, [service.model], phases) as load,
    ):
        service.until(lambda: log.now("model").ordered >= 3, "more replicas")
        load.finish()
        risen = [seen for seen in log.history["model"] if seen.ordered > 1]
        assert {seen.writer for seen in risen} == {"kube-controller-manager"}


def test_signals_for_an_autoscaler_of_ones_own(cluster: Cluster, namespace: str) -> None:
    service = published(cluster, namespace, mode="signal", minReplicas=1, initialReplicas=1)
    service.until(lambda: service.status["readyReplicas"] == 1, "the floor")

    def arrivals() -> float:
        path = (
            f"/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}"
            "/inferenceservices.sluice.dev/model/arrivals_per_second"
        )
        answer = cluster.kubectl("get", "--raw", path, check=False)
        if answer.returncode:
            return 0.0
        value = json.loads(answer.stdout)["items"][0]["value"]
        return float(value[:-1]) / 1000 if value.endswith("m") else float(value)

    phases = [Phase(15, 14), Phase(0, 0.1)]
    with start(cluster, GATEWAY, [service.model], phases) as load:
        service.until(lambda: arrivals() > 12, "the rate is published")
        outcome = load.finish()
    assert outcome.good
    assert "hpa" not in service.kubectl("get", "hpa", "-o", "name")
    assert service.status["scaling"]["desired"] == 1, "nobody but its owner moves it"
