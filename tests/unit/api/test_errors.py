"""The error catalogue and its two wire shapes."""

import json

import pytest

from sluice_api import names
from sluice_api.errors import CATALOGUE, ApiError, render
from sluice_api.wire import Capacity, parse_capacity


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_every_entry_says_what_why_and_what_to_do(code: str) -> None:
    kind = CATALOGUE[code]
    assert 400 <= kind.status < 600
    assert kind.title and kind.cause.endswith(".") and kind.fix.endswith(".")
    # The OpenAI client retries these statuses by itself; the header must be able to stop it.
    if kind.retryable:
        assert kind.status in {408, 409, 429, 502, 503, 504}


def test_v1_speaks_openais_shape() -> None:
    error = ApiError("invalid_field", "input: got 5.", param="input")
    rendered = render(error, path="/v1/embeddings", request_id="r1")
    inner = json.loads(rendered.body)["error"]
    assert inner["param"] == "input"
    assert inner["code"] == "invalid_field"
    assert inner["type"] == "invalid_request_error"
    assert inner["request_id"] == "r1"
    assert inner["message"].startswith("input: got 5.")
    assert dict(rendered.headers)[names.SHOULD_RETRY] == "false"


def test_other_paths_speak_problem_json() -> None:
    rendered = render(
        ApiError("overloaded", "Busy.", retry_after=0.25), path="/classify", request_id="r1"
    )
    headers = dict(rendered.headers)
    assert rendered.status == 429
    assert headers["content-type"] == "application/problem+json"
    assert headers["retry-after"] == "1"
    assert headers[names.RETRY_AFTER_MS] == "250"
    assert headers[names.SHOULD_RETRY] == "true"
    assert json.loads(rendered.body)["code"] == "overloaded"


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_what_is_worth_a_retry_says_when(code: str) -> None:
    headers = dict(render(ApiError(code, "No."), path="/v1/x", request_id="r1").headers)
    told = (headers.get("retry-after"), headers.get(names.RETRY_AFTER_MS))
    assert told == (("1", "1000") if CATALOGUE[code].retryable else (None, None))


def test_v2_says_it_where_its_clients_look() -> None:
    rendered = render(ApiError("model_not_found", "No m."), path="/v2/models/m", request_id="r1")
    told = json.loads(rendered.body)
    assert told["error"] == told["detail"]
    assert told["error"].startswith("No m.")
    assert told["code"] == "model_not_found"


def test_capacity_travels_in_a_header() -> None:
    capacity = Capacity(limit=32, in_flight=3, backlog_seconds=0.12)
    assert parse_capacity(capacity.header()) == capacity


@pytest.mark.parametrize("broken", ["", "1;2", "a;b;c", "0;0;0", "1;-1;0", "1;2;3;4"])
def test_a_broken_capacity_header_is_no_capacity(broken: str) -> None:
    assert parse_capacity(broken) is None
