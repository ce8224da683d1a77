"""Health: what fails is said, and nothing else decides."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from sluice_operator.health import Health
from sluice_operator.instruments import Instruments


class Patient:
    """A health server whose checks the test answers."""

    def __init__(self) -> None:
        self.live = self.ready = ""
        registry = CollectorRegistry()
        Instruments(registry)
        self.health = Health(
            registry,
            live=[lambda: self.live],
            ready=[lambda: self.ready],
            explain=lambda: [{"service": "team/one", "desired": 2}],
        )

    async def ask(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.health.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.text()


@pytest.fixture
async def patient() -> AsyncIterator[Patient]:
    one = Patient()
    await one.health.start("127.0.0.1", 0)
    yield one
    await one.health.stop()


async def test_well(patient: Patient) -> None:
    assert await patient.ask("/livez") == (200, "ok")
    assert await patient.ask("/readyz") == (200, "ok")


async def test_not_ready_is_not_dead(patient: Patient) -> None:
    patient.ready = "not synced yet"
    assert await patient.ask("/livez") == (200, "ok")
    assert await patient.ask("/readyz") == (503, "not synced yet")


async def test_dead_is_not_ready_either(patient: Patient) -> None:
    patient.live = "a service has waited 301 s"
    assert (await patient.ask("/livez"))[0] == 503
    assert (await patient.ask("/readyz"))[0] == 503


async def test_metrics_and_decisions(patient: Patient) -> None:
    status, text = await patient.ask("/metrics")
    assert status == 200
    assert "sluice_operator_queue_depth" in text
    status, text = await patient.ask("/internal/decisions")
    answer: Any = text
    assert (status, answer) == (200, '[{"service":"team/one","desired":2}]')
    assert (await patient.ask("/other"))[0] == 404
