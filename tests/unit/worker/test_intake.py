"""A stream whose reader is slower than the engine: what comes meanwhile is told all the same."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import msgspec
import pytest

from sluice_api.errors import ApiError
from sluice_api.routes import POST_ROUTES
from sluice_api.shapes.generated import Delta
from sluice_api.tasks import Task
from sluice_worker.admission import Reserved
from sluice_worker.cost import Average
from sluice_worker.generation import intake
from sluice_worker.generation.defaults import Defaults
from sluice_worker.generation.intake import GenerationIntake, Request

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": True}


@pytest.fixture
def request_() -> Request:
    call = POST_ROUTES["/v1/chat/completions"].parse(msgspec.json.encode(BODY))
    prompt = SimpleNamespace(copies=1, choices=1, ids=[1])
    request = Request(call, cast(Any, SimpleNamespace(prompts=[prompt], sampled=False)))
    request.sequences = [cast(Any, SimpleNamespace(written=2, seconds=0.0))]
    return request


@pytest.fixture
def taking(request_: Request, monkeypatch: pytest.MonkeyPatch) -> GenerationIntake:
    """An intake without an engine: the test tells what comes."""

    async def begin(*given: object) -> Request:
        return request_

    made = object.__new__(GenerationIntake)
    made.requests = 0
    monkeypatch.setattr(GenerationIntake, "_begin", begin)
    monkeypatch.setattr(GenerationIntake, "_end", lambda self, request: None)
    return made


def asked() -> Any:
    told = {"model": "m", "wants_item": False, "request_id": "r", "deadline": time.monotonic() + 60}
    return SimpleNamespace(**told)


async def test_what_comes_while_a_part_is_on_its_way_is_told(
    taking: GenerationIntake, request_: Request
) -> None:
    stream = taking.stream(request_.call, asked(), cast(Any, None))
    request_.hear([Delta(0, text="one")], None)
    first = await anext(stream)
    assert b"one" in first
    request_.hear([Delta(0, text="two", finish_reason="stop")], None)
    rest = b"".join([part async for part in stream])
    assert b"two" in rest and b'"finish_reason":"stop"' in rest and rest.endswith(b"[DONE]\n\n")


async def test_a_failure_while_a_part_is_on_its_way_is_told_at_once(
    taking: GenerationIntake, request_: Request
) -> None:
    stream = taking.stream(request_.call, asked(), cast(Any, None))
    request_.hear([Delta(0, text="one")], None)
    await anext(stream)
    request_.hear([], RuntimeError("broken"))
    assert b"internal_error" in await asyncio.wait_for(anext(stream), 60)
    with pytest.raises(intake.Broken):
        await anext(stream)


def test_every_text_of_a_request_counts_when_it_is_admitted() -> None:
    made = object.__new__(GenerationIntake)
    made.tasks, made._service = (Task.TEXT_GENERATION,), "m"
    made._live, made._on_pool, made._max_backlog_seconds = set(), 0, 60.0
    made._learnt_at = time.monotonic()
    made._chars_per_token, made._written, made.reserved = Average(1.0), Average(64.0), Reserved()
    made._maker = cast(Any, SimpleNamespace(most_tokens=50, defaults=Defaults(frozenset())))
    cost = SimpleNamespace(seconds_per_token=0.01, predict=lambda load: 0.1)
    made.engine = cast(Any, SimpleNamespace(cost=cost, most_running=4))
    made.metrics = cast(Any, SimpleNamespace(refused=MagicMock()))

    def admitted(**members: Any) -> float:
        """What is set aside for a call that has ten seconds."""
        body = msgspec.json.encode({"model": "m", "max_tokens": 8, **members})
        call = POST_ROUTES["/v1/completions"].parse(body)
        with made.admit(call, time.monotonic() + 10):
            return made.reserved.seconds

    assert admitted(prompt="a" * 10) == pytest.approx((0.1 + 0.8) / 4)
    assert admitted(prompt=["a" * 80] * 4) == pytest.approx(4 * 0.5 + 0.8)
    assert admitted(prompt="a" * 10, n=40, temperature=1) == pytest.approx(0.1 + 10 * 0.8)
    assert admitted(prompt="a" * 10, n=64, temperature=0) == pytest.approx((0.1 + 0.8) / 4)
    for members in ({"prompt": ["a"] * 60}, {"prompt": "a", "n": 64, "temperature": 1}):
        with pytest.raises(ApiError) as caught:
            admitted(**members)
        assert caught.value.code == "deadline_exceeded"
    made._learnt_at -= 60.0  # Nothing has been computed for a minute.
    assert admitted(prompt=["a"] * 60) > 10
