"""Tokens: who may read, how long an answer is kept, what holds while nobody can be asked."""

import asyncio
import json
from typing import Any

import pytest

from sluice_api import names
from sluice_api.errors import ApiError
from sluice_gateway.cluster.api import Refused, Unreachable
from sluice_gateway.cluster.readers import MAX_TOKENS, TokenReaders

OPERATOR = "system:serviceaccount:sluice-system:sluice-operator"


class Reviewer:
    """An API server that knows some tokens."""

    def __init__(self) -> None:
        self.known = {"good": OPERATOR, "other": "system:serviceaccount:a:b"}
        self.audiences = [names.DEMAND_AUDIENCE]
        self.asked: list[Any] = []
        self.error: Exception | None = None
        self.now = 100.0
        self.readers = TokenReaders(self, frozenset([OPERATOR]), lambda: self.now)  # type: ignore[arg-type]

    async def post(self, path: str, body: bytes) -> bytes:
        assert path.endswith("/tokenreviews")
        spec = json.loads(body)["spec"]
        self.asked.append(spec)
        if self.error is not None:
            raise self.error
        user = self.known.get(spec["token"])
        status = {"authenticated": user is not None, "audiences": self.audiences}
        return json.dumps({"status": status | {"user": {"username": user or ""}}}).encode()

    async def code(self, header: str | None) -> str:
        try:
            await self.readers.check(header)
        except ApiError as error:
            return error.code
        return "ok"


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("Bearer good", "ok"),
        ("bearer good", "ok"),
        ("Bearer other", "forbidden"),
        ("Bearer bad", "unauthorized"),
        ("Bearer ", "unauthorized"),
        ("Basic good", "unauthorized"),
        ("good", "unauthorized"),
        ("", "unauthorized"),
        (None, "unauthorized"),
    ],
)
async def test_who_may_read(header: str | None, code: str) -> None:
    assert await Reviewer().code(header) == code


async def test_a_token_for_somebody_else_is_no_token() -> None:
    reviewer = Reviewer()
    reviewer.audiences = []  # A server that knows no audiences.
    assert await reviewer.code("Bearer good") == "unauthorized"
    assert reviewer.asked[0]["audiences"] == [names.DEMAND_AUDIENCE]


async def test_an_answer_is_kept_for_a_minute() -> None:
    reviewer = Reviewer()
    results = await asyncio.gather(*(reviewer.code("Bearer good") for _ in range(20)))
    assert set(results) == {"ok"} and len(reviewer.asked) == 1
    del reviewer.known["good"]  # Revoked.
    reviewer.now += 59
    assert await reviewer.code("Bearer good") == "ok"
    reviewer.now += 2
    assert await reviewer.code("Bearer good") == "unauthorized"
    assert await reviewer.code("Bearer good") == "unauthorized"


@pytest.mark.parametrize("error", [Unreachable("refused"), Refused(500, "no etcd")])
async def test_what_was_good_stays_good_a_while_when_nobody_can_be_asked(error: Exception) -> None:
    reviewer = Reviewer()
    assert await reviewer.code("Bearer good") == "ok"
    reviewer.error = error
    reviewer.now += 599
    assert await reviewer.code("Bearer good") == "ok"
    assert await reviewer.code("Bearer never-seen") == "unauthorized"
    reviewer.now += 2
    assert await reviewer.code("Bearer good") == "unauthorized"


async def test_memory_is_bounded_and_names_no_token() -> None:
    reviewer = Reviewer()
    for number in range(MAX_TOKENS + 10):
        reviewer.known[f"t{number}"] = OPERATOR
        assert await reviewer.code(f"Bearer t{number}") == "ok"
    assert repr(reviewer.readers) == f"<TokenReaders 1 allowed, {MAX_TOKENS} tokens known>"
