"""A worker's refusal in the caller's terms; anything that is not of the catalogue stays inside."""

from typing import Any

import msgspec
import pytest

from sluice_api.call import Call
from sluice_api.errors import ApiError, render
from sluice_api.routes import POST_ROUTES
from sluice_api.shapes import embeddings, small, v2
from sluice_api.tasks import Task
from sluice_gateway.worker_answer import UpstreamAnswer, read_answer
from sluice_gateway.worker_errors import at_caller, refused_input, worker_error


def answered(status: int, body: bytes, **headers: bytes) -> UpstreamAnswer:
    return read_answer(status, {k.replace("_", "-").encode(): v for k, v in headers.items()}, body)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/classify", "/v2/models/m/infer"])
def test_error_survives_the_wire(path: str) -> None:
    error = ApiError("input_too_long", "input[1]: has 9 tokens, at most 8.", param="input[1]")
    rendered = render(error, path=path, request_id="x")
    found = worker_error(answered(rendered.status, rendered.body))
    assert (found.code, found.message, found.param) == (error.code, error.message, error.param)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/classify", "/v2/models/m/infer"])
def test_the_fix_of_another_version_is_not_said_beside_ours(path: str) -> None:
    error = ApiError("input_too_long", "input: has 9 tokens, at most 8.", param="input")
    body = render(error, path=path, request_id="x", with_fix=True).body
    others = body.replace(error.kind.fix.encode(), b"Make it fit, as it was once said.")
    assert others != body
    assert worker_error(answered(400, others)).message == error.message


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"Traceback: secret"),
        (400, b'{"error":{"code":"made_up","message":"secret"}}'),
        (400, b'{"error":{"code":"overloaded","message":"secret"}}'),
        (400, b'{"error":"secret"}'),
        (400, b"[]"),
        (418, b'{"code":"bad_http","detail":{"secret":1}}'),
        (400, b'{"code":["x"],"detail":"secret"}'),
    ],
)
def test_foreign_errors_say_nothing(status: int, body: bytes) -> None:
    found = worker_error(answered(status, body))
    assert found.code == "upstream_failed"
    assert "secret" not in found.message


@pytest.mark.parametrize(
    ("route", "body", "indexes", "param", "meant"),
    [
        ("/v1/classify", b'{"input":["a","b","c"]}', [0, 2], "input[1]", "input[2]"),
        ("/v1/classify", b'{"input":["a","b","c"]}', [2], "input", "input[2]"),
        ("/predict", b'{"text":["a","b"]}', [1], "input", "text[1]"),
        ("/classify", b'{"text":"a"}', [0], "input", "text"),
        ("/v1/classify", b'{"input":["a","b"]}', [1], "parameters.top_k", "parameters.top_k"),
        ("/v1/classify", b'{"input":["a","b"]}', [1], "input[7]", "input[7]"),
        ("/v1/classify", b'{"input":["a","b"]}', [1], "inputs", "inputs"),
    ],
)
def test_field_in_the_callers_terms(
    route: str, body: bytes, indexes: list[int], param: str, meant: str
) -> None:
    call = POST_ROUTES[route].parse(body)
    found = at_caller(ApiError("input_too_long", f"{param}: x.", param=param), call, indexes)
    assert (found.param, found.message) == (meant, f"{meant}: x.")


# Refusals of one input ----------------------------------------------------------------------------


def call_of(codec: Any, body: dict[str, Any]) -> Call:
    return codec.parse(msgspec.json.encode(body))


def refusal(param: str | None, message: str = "", code: str = "input_too_long") -> ApiError:
    return ApiError(code, message or f"{param}: has 9 tokens.", param=param)


def test_the_refused_one_of_a_list_is_found_and_named_anew() -> None:
    call = call_of(embeddings.CODEC, {"input": ["a", "b", "c", "d"]})
    found = refused_input(refusal("input[1]"), call, [1, 3], whole=False)
    assert found is not None and found[0] == 3
    assert (found[1].param, found[1].message) == ("input", "input: has 9 tokens.")
    again = at_caller(found[1], call_of(embeddings.CODEC, {"input": ["x", "d"]}), [1])
    assert (again.param, again.message) == ("input[1]", "input[1]: has 9 tokens.")


def test_what_was_asked_in_other_words_is_known_in_all() -> None:
    call = call_of(small.CLASSIFY_TEXT, {"text": "a"})
    found = refused_input(refusal("text"), call, [0], whole=True)
    assert found is not None and found[1].param == "input"
    assert at_caller(found[1], call, [0]).param == "text"


def test_a_parameter_is_refused_with_a_lone_input_only() -> None:
    error = refusal("dimensions", "dimensions: got 9.", "invalid_field")
    lone = call_of(embeddings.CODEC, {"input": "a", "dimensions": 9})
    assert refused_input(error, lone, [0], whole=True) == (0, error)
    several = call_of(embeddings.CODEC, {"input": ["a", "b"], "dimensions": 9})
    assert refused_input(error, several, [0, 1], whole=True) is None


@pytest.mark.parametrize(
    "code", ["overloaded", "internal_error", "unauthorized", "body_too_large", "upstream_failed"]
)
def test_what_may_pass_is_no_refusal(code: str) -> None:
    call = call_of(embeddings.CODEC, {"input": "a"})
    assert refused_input(refusal("input", code=code), call, [0], whole=True) is None


def test_a_place_that_was_not_asked_for_is_nobodys() -> None:
    call = call_of(embeddings.CODEC, {"input": ["a", "b"]})
    assert refused_input(refusal("input[7]"), call, [0, 1], whole=True) is None


def asked(route: str, body: str) -> Call:
    call = POST_ROUTES[route].parse(body.encode()) if route in POST_ROUTES else None
    return call or v2.with_task(v2.CODEC.parse(body.encode()), Task.EMBEDDINGS)


TENSOR = '{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":["a"]}]}'


@pytest.mark.parametrize(
    ("route", "body", "said", "told"),
    [
        ("/v1/classify", '{"input":"a"}', "parameters.truncate", " With parameters.truncate: true"),
        ("/classify", '{"text":"a"}', "parameters.truncate", ""),
        ("/predict", '{"text":"a"}', "parameters.truncate", ""),
        ("/v1/embeddings", '{"input":"a"}', "truncate", " With truncate: true"),
        ("/v2", TENSOR, "truncate", " With parameters.truncate: true"),
    ],
)
def test_callers_are_advised_what_their_route_takes(
    route: str, body: str, said: str, told: str
) -> None:
    call = asked(route, body)
    message = f"input: got 9 tokens. With {said}: true its beginning is used."
    error = at_caller(ApiError("input_too_long", message, param="input"), call, [0])
    rest = f"{told} its beginning is used." if told else ""
    assert error.message == f"{call.codec.field}: got 9 tokens.{rest}"


def test_a_parameter_is_named_where_the_caller_has_it() -> None:
    error = ApiError("invalid_field", "dimensions: got 9, has 8.", param="dimensions")
    tensor = at_caller(error, asked("/v2", TENSOR), [0])
    assert (tensor.param, tensor.message) == (
        "parameters.dimensions",
        "parameters.dimensions: got 9, has 8.",
    )
    assert at_caller(error, asked("/v1/embeddings", '{"input":"a"}'), [0]).param == "dimensions"
