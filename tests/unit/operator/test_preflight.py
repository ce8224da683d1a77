"""Preflight: waits until there is something to work on, and says what is missing."""

import asyncio
from typing import Any

from sluice_operator import kinds
from sluice_operator.api_errors import NotFound, PermissionDenied, Unavailable
from sluice_operator.kinds import Kind, Watched
from sluice_operator.preflight import Preflight
from tests.support.virtual_time import in_virtual_time

WATCHED = (Watched(kinds.INFERENCE_SERVICE), Watched(kinds.DEPLOYMENT))


class Api:
    """Lists nothing, or fails as told."""

    def __init__(self) -> None:
        self.away = False
        self.failures: dict[str, Exception] = {}

    async def server_version(self) -> tuple[int, int]:
        if self.away:
            raise Unavailable("get", "version", "connection refused")
        return (1, 36)

    async def list_page(self, kind: Kind, *_: Any, **__: Any) -> list[dict[str, Any]]:
        if error := self.failures.get(kind.plural):
            raise error
        return []


@in_virtual_time
async def test_it_passes_when_everything_can_be_listed() -> None:
    preflight = Preflight(Api(), WATCHED)
    assert preflight.problem
    assert await preflight.passed() == (1, 36)
    assert preflight.problem == ""


@in_virtual_time
async def test_it_waits_and_says_why() -> None:
    api = Api()
    api.away = True
    preflight = Preflight(api, WATCHED)
    waiting = asyncio.get_running_loop().create_task(preflight.passed())
    await asyncio.sleep(3)
    assert "connection refused" in preflight.problem
    api.away = False
    api.failures = {
        "inferenceservices": NotFound("list", "inferenceservices", "not found"),
        "deployments": PermissionDenied("list", "deployments", "cannot list"),
    }
    await asyncio.sleep(3)
    assert "install the CRD" in preflight.problem
    assert "may not list deployments" in preflight.problem
    api.failures.clear()
    await asyncio.sleep(3)
    assert waiting.done()
