"""The metrics API over real TLS: who may ask, what is answered, how it changes its certificate."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from sluice_api import names
from sluice_operator import certificates
from sluice_operator.metrics import MetricsApiInstruments
from sluice_operator.metrics_api import front_proxy
from sluice_operator.metrics_api.server import MetricsApi
from sluice_operator.scaling.demand import Traffic
from sluice_operator.state import Key, Object
from tests.support.front_proxies import Authority, client_context, config_map
from tests.support.resources import document

ROOT = f"/apis/{names.METRICS_GROUP}"
OF_MODELS = f"{ROOT}/v1beta2/namespaces/default/inferenceservices.sluice.dev"
NAMES = certificates.host_names("sluice-metrics-api", "sluice-system")
JSON = dict[str, Any]


def service(name: str, **desired: int) -> JSON:
    resource = document(metadata__name=name)
    resource["metadata"] |= {"namespace": "default", "labels": {"team": name[0]}}
    resource["status"] = {
        "revisions": [{"name": r, "desiredReplicas": n} for r, n in desired.items()]
    }
    return resource


class Served:
    """A metrics API on a free port, and the API server's client."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority()
        self.folder = folder
        self.services = {"minilm": service("minilm", aaaa=3, bbbb=1), "other": service("other")}
        self.signals: dict[str, list[tuple[str, Traffic | None]]] = {}
        self.synced = True
        self.identity = certificates.make(NAMES, datetime.now(UTC))
        self.api = MetricsApi(
            resource=self._resource,
            keys=lambda: [Key("default", name) for name in self.services],
            signals=lambda key: self.signals.get(key.name, []),
            synced=lambda: self.synced,
            instruments=MetricsApiInstruments(CollectorRegistry()),
        )
        self.port = 0
        self.certificate: Path | None = None

    def _resource(self, key: Key) -> Object | None:
        return self.services.get(key.name) if key.namespace == "default" else None

    def proxy(self, *allowed: str) -> front_proxy.FrontProxy:
        return front_proxy.read(config_map(self.authority, *(allowed or ("front-proxy-client",))))

    async def start(self) -> None:
        self.port = await self.api.listen("127.0.0.1", 0)
        await self.api.configure(self.identity, self.proxy())
        self.certificate = self.authority.client("front-proxy-client", self.folder)

    async def ask(
        self, path: str, *, user: str | None = "system:kube-aggregator", **more: Any
    ) -> tuple[int, Any]:
        certificate = more.pop("certificate", self.certificate)
        method = more.pop("method", "GET")
        context = client_context(self.identity.bundle, certificate)
        headers = ({"X-Remote-User": user} if user else {}) | more.pop("headers", {})
        connector = aiohttp.TCPConnector(ssl=context)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(
                method, f"https://127.0.0.1:{self.port}{path}", headers=headers, **more
            ) as answer,
        ):
            assert answer.content_type in ("application/json", "text/plain")
            return answer.status, await answer.json(content_type=None) if (
                answer.content_type == "application/json"
            ) else await answer.text()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    served = Served(tmp_path)
    await served.start()
    yield served
    await served.api.close()


async def test_discovery_is_what_the_aggregator_wants(served: Served) -> None:
    code, groups = await served.ask(
        "/apis",
        headers={"Accept": "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"},
    )
    assert (code, groups["kind"]) == (200, "APIGroupList"), "plain, so that it falls back"
    code, group = await served.ask(ROOT)
    assert group["preferredVersion"]["version"] == "v1beta2"
    for version in ("v1beta2", "v1beta1"):
        code, listed = await served.ask(f"{ROOT}/{version}")
        assert code == 200
        assert listed["groupVersion"] == f"{names.METRICS_GROUP}/{version}"
        assert listed["resources"][0] == {
            "name": "inferenceservices.sluice.dev/desired_replicas",
            "singularName": "",
            "namespaced": True,
            "kind": "MetricValueList",
            "verbs": ["get"],
        }
    for path in ("/openapi/v2", "/openapi/v3"):
        code, described = await served.ask(path)
        assert (code, described["paths"]) == (200, {})


async def test_a_revision_has_its_number(served: Served) -> None:
    code, values = await served.ask(
        f"{OF_MODELS}/minilm/desired_replicas",
        params={"metricLabelSelector": f"{names.REVISION_LABEL}=aaaa"},
    )
    assert code == 200
    (item,) = values["items"]
    assert item["value"] == "3"
    assert item["describedObject"] == {
        "kind": "InferenceService",
        "namespace": "default",
        "name": "minilm",
        "apiVersion": "sluice.dev/v1alpha1",
    }
    selector = {"matchLabels": {names.REVISION_LABEL: "aaaa"}}
    assert item["metric"] == {"name": "desired_replicas", "selector": selector}
    assert item["timestamp"].endswith("Z")


async def test_the_older_version_says_it_its_way(served: Served) -> None:
    path = f"{OF_MODELS}/minilm/desired_replicas".replace("v1beta2", "v1beta1")
    code, values = await served.ask(path)
    (item,) = values["items"]
    assert (code, item["metricName"], item["value"]) == (200, "desired_replicas", "4")
    assert "metric" not in item


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (f"{OF_MODELS}/unknown/desired_replicas", "default/unknown has no value"),
        (f"{OF_MODELS}/other/desired_replicas", "default/other has no value"),
        (f"{OF_MODELS}/minilm/latency", "there is no metric"),
        (f"{OF_MODELS}/minilm/desired_replicas?metricLabelSelector=a%3Db", "has no value"),
        (f"{OF_MODELS.replace('default', 'else')}/minilm/desired_replicas", "has no value"),
        (f"{OF_MODELS.replace('inferenceservices.sluice.dev', 'pods')}/x/y", "no metric pods/y"),
    ],
)
async def test_what_is_not_there_is_a_status(served: Served, path: str, said: str) -> None:
    code, status = await served.ask(path)
    assert (code, status["kind"], status["reason"]) == (404, "Status", "NotFound")
    assert said in status["message"]


async def test_a_selector_that_cannot_be_read_is_told(served: Served) -> None:
    path = f"{OF_MODELS}/minilm/desired_replicas?metricLabelSelector=a%3D%3D%3Db"
    code, status = await served.ask(path)
    assert (code, status["reason"]) == (400, "BadRequest")
    assert "metricLabelSelector" in status["message"]


async def test_several_at_once(served: Served) -> None:
    served.services["second"] = service("second", cccc=7)
    code, values = await served.ask(f"{OF_MODELS}/*/desired_replicas")
    assert code == 200
    assert [item["value"] for item in values["items"]] == ["4", "7"]
    code, values = await served.ask(f"{OF_MODELS}/*/desired_replicas?labelSelector=team%3Ds")
    assert [item["describedObject"]["name"] for item in values["items"]] == ["second"]


async def test_signals_for_an_autoscaler_of_ones_own(served: Served) -> None:
    traffic = Traffic(gateways=1, arrivals_10s=12.3456, in_flight=5, held=2)
    served.signals["minilm"] = [("aaaa", traffic)]
    code, values = await served.ask(f"{OF_MODELS}/minilm/arrivals_per_second")
    assert (code, values["items"][0]["value"]) == (200, "12346m")
    assert values["items"][0]["windowSeconds"] == 10
    code, values = await served.ask(f"{OF_MODELS}/minilm/in_flight_requests")
    assert (values["items"][0]["value"], "windowSeconds" in values["items"][0]) == ("5", False)
    served.signals["minilm"] = [("aaaa", traffic), ("bbbb", None)]
    assert (await served.ask(f"{OF_MODELS}/minilm/held_requests"))[0] == 404, "half is no sum"


async def test_nothing_is_invented_before_the_cache_is_full(served: Served) -> None:
    served.synced = False
    code, status = await served.ask(f"{OF_MODELS}/minilm/desired_replicas")
    assert (code, status["reason"]) == (503, "ServiceUnavailable")
    assert (await served.ask(f"{ROOT}/v1beta2"))[0] == 200, "discovery never fails"


async def test_only_the_api_server_may_ask(served: Served, tmp_path: Path) -> None:
    path = f"{OF_MODELS}/minilm/desired_replicas"
    assert (await served.ask(path))[0] == 200
    assert (await served.ask(path, certificate=None))[0] == 401
    assert (await served.ask(path, user=None))[0] == 401
    other = served.authority.client("somebody-else", tmp_path)
    assert (await served.ask(path, certificate=other))[0] == 401
    assert (await served.ask(f"{ROOT}/v1beta2", certificate=None))[0] == 401
    assert (await served.ask("/readyz", certificate=None))[0] == 200
    stranger = Authority().client("front-proxy-client", tmp_path)
    with pytest.raises(aiohttp.ClientError):
        await served.ask(path, certificate=stranger)


async def test_only_reading_is_possible(served: Served) -> None:
    path = f"{OF_MODELS}/minilm/desired_replicas"
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        code, status = await served.ask(path, method=method, data=b"x" * 100_000)
        assert (code, status["kind"]) == (405, "Status")


async def test_certificate_and_authority_change_while_it_serves(served: Served) -> None:
    path = f"{OF_MODELS}/minilm/desired_replicas"
    context = client_context(served.identity.bundle, served.certificate)
    old_authority, old_certificate = served.authority, served.certificate
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        url, headers = f"https://127.0.0.1:{served.port}{path}", {"X-Remote-User": "x"}
        async with session.get(url, headers=headers) as answer:
            assert answer.status == 200
        served.identity = certificates.make(NAMES, datetime.now(UTC), served.identity)
        served.authority = Authority()
        await served.api.configure(served.identity, served.proxy())
        served.certificate = served.authority.client("front-proxy-client", served.folder)
        assert (await served.ask(path))[0] == 200
        with pytest.raises(aiohttp.ClientError):
            await served.ask(path, certificate=old_certificate)
    assert old_authority is not served.authority


async def test_many_at_once_are_all_answered(served: Served) -> None:
    async with asyncio.timeout(60):
        answers = await asyncio.gather(
            *(served.ask(f"{OF_MODELS}/minilm/desired_replicas") for _ in range(50))
        )
    assert [code for code, _ in answers] == [200] * 50


def test_the_front_proxy_is_read_closed() -> None:
    authority = Authority()
    good = config_map(authority, "front-proxy-client")
    proxy = front_proxy.read(good)
    subject = {"subject": ((("commonName", "front-proxy-client"),),)}
    assert proxy.user(subject, {"x-remote-user": "jane"}) == "jane"
    assert proxy.user({"subject": ()}, {"x-remote-user": "jane"}) is None
    assert front_proxy.read(config_map(authority)).user(subject, {"x-remote-user": "j"}) == "j"
    for name, value in (
        ("requestheader-client-ca-file", ""),
        ("requestheader-client-ca-file", "nonsense"),
        ("requestheader-allowed-names", "front-proxy-client"),
        ("requestheader-username-headers", "{"),
    ):
        with pytest.raises(front_proxy.NotConfigured):
            front_proxy.read({"data": good["data"] | {name: value}})
