"""A worker's refusal in the caller's terms; anything that is not of the catalogue stays inside."""

import pytest

from sluice_api.errors import ApiError, render
from sluice_api.routes import POST_ROUTES
from sluice_gateway.upstream import UpstreamAnswer
from sluice_gateway.worker_errors import at_caller, worker_error


def answered(status: int, body: bytes, **headers: bytes) -> UpstreamAnswer:
    return UpstreamAnswer(
        status, {k.replace("_", "-").encode(): v for k, v in headers.items()}, body
    )


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
