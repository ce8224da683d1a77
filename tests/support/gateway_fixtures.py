"""A gateway and its worker for a whole module of tests; `tests/integration/conftest.py` has them.

A module says what is special about its own by fixtures of the names `services` and `options`.
"""

import asyncio
from collections.abc import Iterator

import pytest

from sluice_api import wire
from tests.support.gateway_process import GatewayProcess, service
from tests.support.stub_worker import StubWorker

READY_SECONDS = 30.0


@pytest.fixture(scope="module")
def worker() -> Iterator[StubWorker]:
    with StubWorker() as stub:
        yield stub


@pytest.fixture(scope="module")
def services(worker: StubWorker) -> list[wire.Service]:
    """What the gateway serves; the first of them is ready when a test begins."""
    return [service("emb", [worker.url])]


@pytest.fixture(scope="module")
def options() -> tuple[str, ...]:
    """What else the gateway is told."""
    return ()


@pytest.fixture(scope="module")
def gateway(
    services: list[wire.Service],
    options: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), services, *options) as process:
        asyncio.run(process.ready(services[0].name, seconds=READY_SECONDS))
        yield process
