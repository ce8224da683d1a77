"""Which precomputed request is asked for when, and what becomes of those that fail."""

import asyncio
import time
from typing import Any, cast

import pytest

from sluice_api import wire
from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from sluice_gateway.keys import TenantScope
from sluice_gateway.precompute import RENEW_AT, RETRY_SECONDS, Precompute
from sluice_gateway.request import Answer, Request, error_answer
from sluice_gateway.service import Binding, Service

OK = Answer(200, b"application/json", b"", b"{}")


def from_cache(fresh_for: float) -> Answer:
    """An answer that came from the cache, with so many seconds left to it."""
    return Answer(200, b"application/json", b"", b"{}", fresh_for=fresh_for)


class Fake:
    """A service as far as the lists are concerned."""

    namespace, name = "default", "emb"
    shared_scope = TenantScope.service_wide(namespace, name)

    def __init__(self, count: int = 2) -> None:
        self.precompute = [
            wire.Precomputed(task=Task.EMBEDDINGS, body={"input": str(number)})
            for number in range(count)
        ]
        self.precomputed: dict[str, int] = {}
        self.held = 0
        self.endpoints = Endpoints()
        self.rebind()

    def rebind(self, digest: str = "sha256:1") -> None:
        self.binding = Binding(
            service=cast(Any, self),
            revision="r1",
            answer_digest=digest,
            cache=wire.CacheRules(ttl_seconds=1000.0, sharing="service"),
            public=True,
            tenants=(),
            alone=True,
            header=b"",
        )


class Endpoints:
    def __init__(self) -> None:
        self.ready = [object()]


class Dispatcher:
    """Remembers what it is asked, and answers when the test says so."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def serve(self, request: Request, tenant: object, service: object) -> None:
        assert request.background
        self.requests.append(request)

    async def answer(self, answer: Answer = OK) -> None:
        self.requests[-1].caller.answer(answer)
        await asyncio.sleep(0)  # The next one is asked for from the loop.


def made(service: Fake) -> tuple[Precompute, Dispatcher]:
    dispatcher = Dispatcher()
    tracks = cast(Any, lambda: [service])
    return Precompute(cast(Any, dispatcher), tracks, lambda: b"id"), dispatcher


def look(precompute: Precompute, service: Fake) -> None:
    precompute._look_after(cast(Service, service))


async def test_one_after_the_other() -> None:
    service = Fake()
    precompute, dispatcher = made(service)
    look(precompute, service)
    look(precompute, service)
    assert [request.body for request in dispatcher.requests] == [b'{"input":"0"}']
    assert dispatcher.requests[0].head.path == "/v1/embeddings"
    assert service.precomputed == {"done": 0, "pending": 2, "failed": 0}
    await dispatcher.answer()
    await dispatcher.answer()
    assert len(dispatcher.requests) == 2
    assert service.precomputed == {"done": 2, "pending": 0, "failed": 0}


async def test_only_while_a_worker_is_ready_known_and_nobody_waits() -> None:
    service = Fake()
    precompute, dispatcher = made(service)
    for ready, held, digest in (([], 0, "d"), ([1], 3, "d"), ([1], 0, "")):
        service.endpoints.ready, service.held = cast(Any, ready), held
        service.rebind(digest)
        look(precompute, service)
        assert dispatcher.requests == []
        assert service.precomputed["pending"] == 2
    service.rebind()
    look(precompute, service)
    assert len(dispatcher.requests) == 1


async def test_a_new_revision_begins_anew() -> None:
    service = Fake(1)
    precompute, dispatcher = made(service)
    look(precompute, service)
    service.rebind("sha256:2")
    look(precompute, service)
    assert len(dispatcher.requests) == 2
    dispatcher.requests[0].caller.answer(OK)  # Of the one before.
    assert service.precomputed["pending"] == 1
    await dispatcher.answer()
    assert service.precomputed["done"] == 1


async def test_what_fails_is_tried_again_later(monkeypatch: Any) -> None:
    service = Fake()
    precompute, dispatcher = made(service)
    look(precompute, service)
    failed = error_answer(ApiError("upstream_failed", "No."), dispatcher.requests[0])
    await dispatcher.answer(failed)
    await dispatcher.answer()
    assert service.precomputed == {"done": 1, "pending": 0, "failed": 1}
    look(precompute, service)
    assert len(dispatcher.requests) == 2
    later = time.monotonic() + RETRY_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    look(precompute, service)
    assert dispatcher.requests[-1].body == b'{"input":"0"}'
    assert not dispatcher.requests[-1].head.directives.no_cache
    await dispatcher.answer()
    assert service.precomputed == {"done": 2, "pending": 0, "failed": 0}


async def test_one_that_always_fails_leaves_the_others_warm(monkeypatch: Any) -> None:
    service = Fake(2)
    precompute, dispatcher = made(service)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    asked: dict[bytes, list[float]] = {b'{"input":"0"}': [], b'{"input":"1"}': []}
    began, told = now, 0
    while now < began + 2 * 1000:
        look(precompute, service)
        while told < len(dispatcher.requests):
            request, told = dispatcher.requests[told], told + 1
            asked[request.body].append(now - began)
            bad = error_answer(ApiError("upstream_failed", "No."), request)
            await dispatcher.answer(bad if request.body == b'{"input":"0"}' else OK)
        now += 10.0
    assert asked[b'{"input":"1"}'] == pytest.approx([0.0, 800.0, 1600.0]), "before each expiry"
    assert asked[b'{"input":"0"}'][:3] == pytest.approx([0.0, 30.0, 60.0])
    assert service.precomputed == {"done": 1, "pending": 0, "failed": 1}


async def test_a_renewal_that_failed_is_computed_anew_and_not_read_from_the_cache(
    monkeypatch: Any,
) -> None:
    service = Fake(1)
    precompute, dispatcher = made(service)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    look(precompute, service)
    await dispatcher.answer()
    for pause in (RENEW_AT * 1000, RETRY_SECONDS):
        now += pause
        look(precompute, service)
        assert dispatcher.requests[-1].head.directives.no_cache
        await dispatcher.answer(
            error_answer(ApiError("upstream_failed", "No."), dispatcher.requests[-1])
        )
    assert len(dispatcher.requests) == 3


async def test_what_is_refused_is_asked_again_only_when_the_list_or_the_revision_changes(
    monkeypatch: Any,
) -> None:
    service = Fake(1)
    precompute, dispatcher = made(service)
    look(precompute, service)
    refused = error_answer(ApiError("input_too_long", "Too long."), dispatcher.requests[0])
    await dispatcher.answer(refused)
    later = time.monotonic() + 100_000
    monkeypatch.setattr(time, "monotonic", lambda: later)
    look(precompute, service)
    assert len(dispatcher.requests) == 1
    assert service.precomputed == {"done": 0, "pending": 0, "failed": 1}
    service.rebind("sha256:2")
    look(precompute, service)
    assert len(dispatcher.requests) == 2


async def test_answers_are_renewed_before_they_expire(monkeypatch: Any) -> None:
    service = Fake(1)
    precompute, dispatcher = made(service)
    look(precompute, service)
    await dispatcher.answer()
    began = time.monotonic()
    for seconds, asked in ((RENEW_AT * 1000 - 5, 1), (RENEW_AT * 1000 + 5, 2)):
        monkeypatch.setattr(time, "monotonic", lambda now=began + seconds: now)
        look(precompute, service)
        assert len(dispatcher.requests) == asked
    assert dispatcher.requests[-1].head.directives.no_cache
    assert service.precomputed["done"] == 1, "there is an answer all the while"


@pytest.mark.parametrize(("fresh_for", "due"), [(1000.0, 800.0), (500.0, 300.0), (201.0, 1.0)])
async def test_an_aged_answer_from_the_cache_is_renewed_before_it_expires(
    monkeypatch: Any, fresh_for: float, due: float
) -> None:
    service = Fake(1)
    precompute, dispatcher = made(service)
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began)
    look(precompute, service)
    await dispatcher.answer(from_cache(fresh_for))
    for seconds, asked in ((due - 0.5, 1), (due + 0.5, 2)):
        monkeypatch.setattr(time, "monotonic", lambda now=began + seconds: now)
        look(precompute, service)
        assert len(dispatcher.requests) == asked
    assert dispatcher.requests[-1].head.directives.no_cache


@pytest.mark.parametrize("fresh_for", [150.0, 0.0, -20.0])
async def test_one_that_is_nearly_or_quite_stale_is_renewed_at_once(
    monkeypatch: Any, fresh_for: float
) -> None:
    service = Fake(1)
    precompute, dispatcher = made(service)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    look(precompute, service)
    await dispatcher.answer(from_cache(fresh_for))
    assert [request.head.directives.no_cache for request in dispatcher.requests] == [False, True]
    await dispatcher.answer()
    assert len(dispatcher.requests) == 2, "once"


async def test_a_list_that_is_taken_back_is_forgotten() -> None:
    service = Fake(1)
    precompute, dispatcher = made(service)
    look(precompute, service)
    await dispatcher.answer()
    service.precompute = []
    service.rebind()
    look(precompute, service)
    assert service.precomputed == {}
    assert repr(precompute) == "<Precompute for 0 revisions>"
