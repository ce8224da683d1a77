"""Whatever a body holds, a real gateway answers it, or refuses it from the catalogue."""

import asyncio
import http.client
import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sluice_api.errors import CATALOGUE
from sluice_api.routes import POST_ROUTES, V2_PREFIX, V2_SUFFIX
from sluice_api.shapes import v2
from sluice_api.tasks import Task
from tests.support.gateway_process import GatewayProcess, service
from tests.support.request_bodies import bodies
from tests.support.stub_worker import Behaviour, StubWorker

ROUTES = {**POST_ROUTES, f"{V2_PREFIX}emb{V2_SUFFIX}": v2.CODEC}


class Connection:
    """Keeps one connection, on the edge that is asked for."""

    def __init__(self, port: int, *, fallback: bool) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._fallback = fallback

    def post(self, path: str, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        if self._http.sock is None and self._fallback:
            self._http.request("GET", "/livez")
            assert self._http.getresponse().read()
        self._http.request("POST", path, body, {"content-type": "application/json"})
        response = self._http.getresponse()
        return response, response.read()

    def close(self) -> None:
        self._http.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with StubWorker(Behaviour(tasks=[*Task])) as worker:
        table = [service("emb", [worker.url])]
        with GatewayProcess(tmp_path_factory.mktemp("gateway"), table) as process:
            asyncio.run(process.ready("emb"))
            yield process


@pytest.fixture(params=["fast", "fallback"])
def connection(gateway: GatewayProcess, request: pytest.FixtureRequest) -> Iterator[Connection]:
    made = Connection(gateway.port, fallback=request.param == "fallback")
    yield made
    made.close()


@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(path=st.sampled_from(sorted(ROUTES)), data=st.data())
def test_any_body_is_answered_or_refused(
    connection: Connection, path: str, data: st.DataObject
) -> None:
    body = data.draw(bodies(ROUTES[path]))
    response, answer = connection.post(path, body)
    told = json.loads(answer)
    assert response.headers["x-request-id"]
    if response.status == 200:
        return
    if path.startswith("/v1/"):
        assert response.headers["content-type"] == "application/json"
        told = told["error"]
        assert told["type"] == "invalid_request_error"
    else:
        assert response.headers["content-type"] == "application/problem+json"
        assert told["status"] == response.status
    assert response.status in (400, 404), told
    assert CATALOGUE[told["code"]].status == response.status
    assert told["request_id"] == response.headers["x-request-id"]
    assert response.headers["x-should-retry"] == "false"
