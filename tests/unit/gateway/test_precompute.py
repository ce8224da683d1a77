"""Which precomputed request is asked for when, and what becomes of those that fail."""

import asyncio
import time
from typing import Any, cast

import msgspec
import pytest

from sluice_api import wire
from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from sluice_gateway.keys import TenantScope
from sluice_gateway.precompute import (
    MOST_DIVISIONS,
    MOST_TOLD,
    RENEW_AT,
    RETRY_SECONDS,
    Precompute,
)
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


class Listing(Fake):
    """A service with one entry, which lists inputs, and with another one."""

    def __init__(self, count: int) -> None:
        super().__init__(1)
        texts = [str(number) for number in range(count)]
        listing = wire.Precomputed(task=Task.EMBEDDINGS, body={"input": texts, "truncate": False})
        self.precompute.insert(0, listing)


async def answer_all(dispatcher: Dispatcher, bad: set[str], error: ApiError) -> list[list[str]]:
    """Answer until nothing more is asked for; the texts of each request."""
    asked: list[list[str]] = []
    while len(asked) < len(dispatcher.requests):
        request = dispatcher.requests[len(asked)]
        given = msgspec.json.decode(request.body)["input"]
        asked.append(given if isinstance(given, list) else [given])
        refused = bad & set(asked[-1])
        await dispatcher.answer(error_answer(error, request) if refused else OK)
    return asked


TOO_LONG = ApiError("input_too_long", "input[1]: too long.", param="input[1]")


@pytest.mark.parametrize("bad", [{"3"}, {"0", "7"}, set(map(str, range(8))), set[str]()])
async def test_of_a_list_only_what_is_refused_itself_is_not_answered(
    bad: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    service = Listing(8)
    precompute, dispatcher = made(service)
    look(precompute, service)
    asked = await answer_all(dispatcher, bad, TOO_LONG)
    told = [record.__dict__["field"] for record in caplog.records]
    if "0" in bad:  # The other entry, which is refused itself.
        assert told.pop(0) == "spec.cache.precompute[1]"
    places = [f"spec.cache.precompute[0].body.input[{text}]" for text in sorted(bad)]
    assert sorted(told) == places
    left = 8 - len(bad) + ("0" not in bad)
    assert service.precomputed == {"done": left, "pending": 0, "failed": 9 - left}
    assert asked[:2] == [list("01234567"), ["0"]], "other entries wait for no halves"
    assert len(asked) - 1 <= 2 * 8 - 1
    answered = sorted(text for texts in asked for text in texts if not bad & set(texts))
    assert answered == sorted([*(set("01234567") - bad), *({"0"} - bad)]), "each once"
    assert all(b'"truncate":false' in r.body for r in dispatcher.requests if b"[" in r.body)
    look(precompute, service)
    assert len(dispatcher.requests) == len(asked), "what is refused is not asked for again"


async def test_parts_are_renewed_each_for_itself_and_begin_anew_with_the_revision(
    monkeypatch: Any,
) -> None:
    service = Listing(2)
    precompute, dispatcher = made(service)
    began = time.monotonic()
    look(precompute, service)
    await answer_all(dispatcher, {"1"}, TOO_LONG)
    dispatcher.requests.clear()
    monkeypatch.setattr(time, "monotonic", lambda: began + RENEW_AT * 1000 + 5)
    look(precompute, service)
    assert await answer_all(dispatcher, {"1"}, TOO_LONG) == [["0"], ["0"]]
    assert all(request.head.directives.no_cache for request in dispatcher.requests)
    dispatcher.requests.clear()
    service.rebind("sha256:2")
    look(precompute, service)
    assert await answer_all(dispatcher, set(), TOO_LONG) == [["0", "1"], ["0"]]
    assert service.precomputed == {"done": 3, "pending": 0, "failed": 0}


@pytest.mark.parametrize(
    "error",
    [
        ApiError("invalid_field", "truncate: got 3.", param="truncate"),
        ApiError("unknown_field", "input_kind: not known.", param="input_kind"),
        ApiError("upstream_failed", "No."),
        ApiError("overloaded", "input: no.", param="input"),
    ],
)
async def test_what_fails_for_no_input_is_not_divided(error: ApiError) -> None:
    service = Listing(4)
    precompute, dispatcher = made(service)
    look(precompute, service)
    asked = await answer_all(dispatcher, {"1"}, error)
    assert asked == [list("0123"), ["0"]]
    assert service.precomputed == {"done": 1, "pending": 0, "failed": 4}


@pytest.mark.parametrize(
    ("task", "body"),
    [
        (Task.EMBEDDINGS, {"input": [1, 2, 3]}),
        (Task.CHAT, {"messages": [{"role": "user", "content": text} for text in "ab"]}),
        (Task.EMBEDDINGS, {"input": ["a", 1]}),
    ],
)
async def test_what_is_one_input_is_asked_for_as_it_is(task: Task, body: dict[str, Any]) -> None:
    service = Fake(0)
    service.precompute = [wire.Precomputed(task=task, body=body)]
    precompute, dispatcher = made(service)
    look(precompute, service)
    await dispatcher.answer(error_answer(TOO_LONG, dispatcher.requests[0]))
    assert len(dispatcher.requests) == 1
    assert service.precomputed == {"done": 0, "pending": 0, "failed": 1}


async def test_a_long_list_that_is_refused_altogether_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Listing(64)
    precompute, dispatcher = made(service)
    caplog.set_level("INFO")
    look(precompute, service)
    await answer_all(dispatcher, set(map(str, range(1, 64))), TOO_LONG)
    assert service.precomputed == {"done": 2, "pending": 0, "failed": 63}
    assert [record.message for record in caplog.records] == [
        *["precomputing failed"] * MOST_TOLD,
        "precomputed",
    ]
    assert caplog.records[-1].__dict__["failed"] == 63


async def test_how_often_a_list_is_divided_is_bounded() -> None:
    service = Listing(2048)
    precompute, dispatcher = made(service)
    look(precompute, service)
    asked = await answer_all(dispatcher, set(map(str, range(1, 2048))), TOO_LONG)
    assert len(asked) == 1 + 2 * MOST_DIVISIONS + 1
    # "0" alone is not found before the bound.
    assert service.precomputed == {"done": 1, "pending": 0, "failed": 2048}


async def test_thirty_refused_inputs_of_the_longest_list_are_found() -> None:
    service = Listing(2048)
    precompute, dispatcher = made(service)
    look(precompute, service)
    await answer_all(dispatcher, set(map(str, range(1, 2048, 69))), TOO_LONG)
    assert service.precomputed == {"done": 2048 + 1 - 30, "pending": 0, "failed": 30}


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
