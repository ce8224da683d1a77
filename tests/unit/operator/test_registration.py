"""Who answers for custom metrics: ours is completed, another's is never touched."""

import asyncio
import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from prometheus_client import CollectorRegistry

from sluice_api import names
from sluice_operator import certificates
from sluice_operator.api_errors import Conflict, NotFound, PermissionDenied, Unavailable
from sluice_operator.metrics import MetricsApiInstruments
from sluice_operator.metrics_api.registration import GRACE_SECONDS, MAKER_SECONDS, Registration
from sluice_operator.metrics_api.server import MetricsApi
from tests.support.front_proxies import Authority, config_map

NAME = f"v1beta2.{names.METRICS_GROUP}"


class Objects:
    """Objects by kind and name, with the versions of the API server."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], dict[str, Any]] = {}
        self.writes: list[tuple[str, str]] = []
        self.away = False
        self.refused = ""

    def put(self, kind: str, name: str, item: dict[str, Any]) -> None:
        item.setdefault("metadata", {}).update(name=name, resourceVersion="1")
        self.items[kind, name] = item

    async def get(self, kind: Any, namespace: str | None, name: str) -> dict[str, Any]:
        if self.away:
            raise Unavailable("get", kind.plural, "away")
        if kind.name == self.refused == "ConfigMap":
            raise PermissionDenied("get", kind.plural, "forbidden")
        try:
            return self.items[kind.name, name]
        except KeyError:
            raise NotFound("get", kind.plural, name) from None

    async def create(self, kind: Any, wanted: dict[str, Any]) -> dict[str, Any]:
        if kind.name == self.refused:
            raise PermissionDenied("create", kind.plural, "forbidden")
        name = wanted["metadata"]["name"]
        self.put(kind.name, name, dict(wanted))
        self.writes.append((kind.name, name))
        return self.items[kind.name, name]

    async def merge(
        self, kind: Any, namespace: str | None, name: str, change: dict[str, Any]
    ) -> dict[str, Any]:
        item = await self.get(kind, namespace, name)
        if change["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
            raise Conflict("patch", kind.plural, "changed")
        item["metadata"]["resourceVersion"] += "1"
        for part in ("spec", "data"):
            for field, value in change.get(part, {}).items():
                if value is None:
                    item.get(part, {}).pop(field, None)
                else:
                    item.setdefault(part, {})[field] = value
        self.writes.append((kind.name, name))
        return item


class Replica:
    """One replica's registration, on a port of its own."""

    def __init__(self, objects: Objects, *, leading: bool = True) -> None:
        self.now = 0.0
        self.changes = 0
        self.leading = leading
        self.listening = False
        instruments = MetricsApiInstruments(CollectorRegistry())
        self.server = MetricsApi(lambda key: None, list, lambda key: [], lambda: True, instruments)
        self.registration = Registration(
            objects,
            self.server,
            instruments,
            namespace="sluice-system",
            leading=lambda: self.leading,
            changed=self._changed,
            clock=lambda: self.now,
        )

    def _changed(self) -> None:
        self.changes += 1

    async def look(self) -> bool:
        if not self.listening:
            self.listening = bool(await self.server.listen("127.0.0.1", 0))
        return await self.registration.look()


def api_service(
    name: str = "sluice-metrics-api", namespace: str = "sluice-system", available: str = "True"
) -> dict[str, Any]:
    condition = {"type": "Available", "status": available, "message": "no route"}
    return {
        "spec": {"service": {"name": name, "namespace": namespace}},
        "status": {"conditions": [condition]},
    }


@pytest.fixture
def objects() -> Objects:
    objects = Objects()
    objects.put("ConfigMap", "extension-apiserver-authentication", config_map(Authority()))
    objects.put("Secret", "sluice-metrics-api-tls", {})  # as the chart makes it
    objects.put("APIService", NAME, api_service())
    return objects


async def test_the_leader_makes_what_is_missing_once(objects: Objects) -> None:
    replica = Replica(objects)
    assert await replica.look()
    assert replica.server.serving
    assert sorted(objects.writes) == [("APIService", NAME), ("Secret", "sluice-metrics-api-tls")]
    bundle = base64.b64decode(objects.items["APIService", NAME]["spec"]["caBundle"])
    identity = certificates.read(objects.items["Secret", "sluice-metrics-api-tls"])
    assert identity is not None
    assert identity.bundle == bundle
    assert await replica.look()
    assert len(objects.writes) == 2, "nothing is written at rest"
    assert replica.registration.problem() == ""
    await replica.server.close()


async def test_a_replica_that_does_not_lead_waits_and_loads(objects: Objects) -> None:
    follower, leader = Replica(objects, leading=False), Replica(objects)
    assert not await follower.look()
    assert "no certificate yet" in follower.registration.problem()
    await leader.look()
    assert await follower.look()
    assert follower.server.serving
    assert ("Secret", "sluice-metrics-api-tls") in objects.writes
    await asyncio.gather(follower.server.close(), leader.server.close())


async def test_a_leader_that_serves_none_is_not_waited_for(objects: Objects) -> None:
    """The upgrade that switches the API on ends the leader of before when another is ready."""
    follower = Replica(objects, leading=False)
    follower.now = 1.0
    await follower.look()
    assert follower.registration.problem()
    follower.now += MAKER_SECONDS
    await follower.look()
    assert follower.registration.problem() == ""
    follower.leading = True
    assert follower.registration.problem(), "now it is its own to make"
    await follower.look()
    assert (follower.registration.problem(), follower.server.serving) == ("", True)
    await follower.server.close()


@pytest.mark.parametrize("version", ["v1beta1", "v1beta2"])
async def test_anothers_registration_is_never_touched(
    objects: Objects, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"{version}.{names.METRICS_GROUP}"
    objects.put("APIService", name, api_service("prometheus-adapter", "monitoring"))
    replica = Replica(objects)
    await replica.look()
    available, note = replica.registration.standing
    assert not available
    assert f"monitoring/prometheus-adapter (APIService {name})" in note
    both = version == "v1beta1"  # as when the other one came after Sluice
    assert ("metricsApi.enabled=false" in note) == both
    await replica.look()
    assert replica.changes == 1
    warnings = [r.note for r in caplog.records if "standing" in r.message]  # type: ignore[attr-defined]
    assert warnings == [note]
    assert ("APIService", name) not in objects.writes
    assert "caBundle" not in objects.items["APIService", name]["spec"]
    objects.put("APIService", NAME, api_service())
    objects.items.pop(("APIService", name)) if version == "v1beta1" else None
    await replica.look()
    assert replica.registration.standing.available
    await replica.server.close()


async def test_not_registered_at_all(objects: Objects) -> None:
    del objects.items["APIService", NAME]
    replica = Replica(objects)
    await replica.look()
    assert not replica.registration.standing.available
    assert replica.registration.problem() == ""
    await replica.server.close()


async def test_a_short_absence_changes_nothing(objects: Objects) -> None:
    replica = Replica(objects)
    await replica.look()
    objects.items["APIService", NAME] |= {"status": api_service(available="False")["status"]}
    assert not await replica.look()
    assert replica.registration.standing.available
    replica.now += GRACE_SECONDS + 1
    await replica.look()
    assert replica.registration.standing == (
        False,
        "the API server cannot reach our metrics: no route",
    )
    objects.items["APIService", NAME] |= {"status": api_service()["status"]}
    await replica.look()
    assert replica.registration.standing.available
    await replica.server.close()


async def test_no_answer_changes_nothing(objects: Objects) -> None:
    replica = Replica(objects)
    await replica.look()
    objects.away = True
    assert not await replica.look()
    assert replica.registration.standing.available
    assert replica.server.serving
    await replica.server.close()


@pytest.mark.parametrize("refused", ["Secret", "ConfigMap"])
async def test_what_the_chart_made_is_missing(
    objects: Objects, refused: str, caplog: pytest.LogCaptureFixture
) -> None:
    if refused == "Secret":
        del objects.items["Secret", "sluice-metrics-api-tls"]
    objects.refused = refused
    objects.put("APIService", NAME, api_service(available="False"))
    replica = Replica(objects)
    assert not await replica.look()
    assert "forbidden" in replica.registration.problem()
    assert replica.registration.standing.available, "it may pass"
    replica.now += GRACE_SECONDS + 1
    await replica.look()
    available, note = replica.registration.standing
    assert not available
    assert "forbidden" in note and "helm upgrade" in note
    assert replica.registration.problem() == "", "the operator scales without it"
    assert [record.message for record in caplog.records].count("metrics API not looked after") == 1
    objects.refused = ""
    objects.put("Secret", "sluice-metrics-api-tls", {})
    await replica.look()
    assert replica.server.serving
    objects.items["APIService", NAME] |= {"status": api_service()["status"]}
    assert await replica.look()
    assert replica.registration.standing.available
    await replica.server.close()


async def test_a_cluster_without_aggregation(objects: Objects) -> None:
    objects.put("ConfigMap", "extension-apiserver-authentication", {"data": {}})
    replica = Replica(objects)
    await replica.look()
    assert "aggregation layer" in replica.registration.standing.note
    assert replica.registration.problem() == "", "the operator works without it"
    await replica.server.close()


async def test_renewal_is_trusted_before_it_is_served(objects: Objects) -> None:
    replica = Replica(objects)
    await replica.look()
    made = certificates.make(
        certificates.host_names("sluice-metrics-api", "sluice-system"),
        datetime.now(UTC) - certificates.VALIDITY + certificates.RENEW_BEFORE / 2,
    )
    objects.items["Secret", "sluice-metrics-api-tls"]["data"] = certificates.secret_data(made)
    objects.writes.clear()
    assert await replica.look()
    assert objects.writes[0] == ("APIService", NAME)
    assert objects.writes[1] == ("Secret", "sluice-metrics-api-tls")
    bundle = base64.b64decode(objects.items["APIService", NAME]["spec"]["caBundle"])
    assert len(x509.load_pem_x509_certificates(bundle)) == 2
    await replica.server.close()
