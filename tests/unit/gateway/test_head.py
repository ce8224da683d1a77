"""Heads: what they mean."""

import pytest

from sluice_api.errors import ApiError
from sluice_gateway.head import (
    MAX_EMPTY_LINES,
    PLAIN,
    Directives,
    Head,
    count_empty_line,
    find_end,
    parse_head,
)
from sluice_gateway.priority import Priority, granted


def head(*lines: bytes, first: bytes = b"POST /v1/embeddings HTTP/1.1") -> Head:
    return parse_head(b"\r\n".join([first, b"host: t", *lines, b"", b""]))


def test_routes() -> None:
    assert head().route is not None
    route = head().route
    assert route is not None and (route.path, route.codec.name) == ("/v1/embeddings", "embeddings")
    assert head(first=b"POST /v1/embeddings?api-version=1 HTTP/1.1").route is route
    assert head(first=b"GET /v1/embeddings HTTP/1.1").route is None
    assert head(first=b"POST /v1/embeddings/ HTTP/1.1").route is None


@pytest.mark.parametrize(
    ("path", "model"),
    [
        (b"/v2/models/m/infer", "m"),
        (b"/v2/models/ns/m/infer", "ns/m"),
        (b"/v2/models/ns%2Fm/infer", "ns/m"),
    ],
)
def test_v2_names(path: bytes, model: str) -> None:
    parsed = head(first=b"POST %b HTTP/1.1" % path)
    assert parsed.model == model
    assert parsed.route is not None and parsed.route.path == "/v2/models/{name}/infer"


def test_v2_without_a_name_is_no_route() -> None:
    assert head(first=b"POST /v2/models//infer HTTP/1.1").route is None


def test_framing() -> None:
    assert head(b"Content-Length: 12").content_length == 12
    assert head(b"Transfer-Encoding: Chunked").chunked
    assert head().keep_alive
    assert not head(b"connection: close").keep_alive
    assert not head(first=b"POST /v1/embeddings HTTP/1.0").keep_alive
    assert not head(b"connection: keep-alive", first=b"POST /v1/embeddings HTTP/1.0").keep_alive
    assert head(b"expect: 100-Continue").expect_continue


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (b"no-store", Directives(no_store=True)),
        (b"No-Cache, max-age=60", Directives(no_cache=True, max_age=60)),
        (b"only-if-cached", Directives(only_if_cached=True)),
        (b'max-age="5"', Directives(max_age=5)),
        (b"max-age=abc", Directives(max_age=0)),
        (b"max-age=99999999999999999999", Directives(max_age=0)),
        (b"private, x=y", PLAIN),
        (b"", PLAIN),
    ],
)
def test_cache_control(value: bytes, meant: Directives) -> None:
    assert head(b"cache-control: " + value).directives == meant


def test_repeated_cache_control_is_joined() -> None:
    parsed = head(b"cache-control: no-store", b"cache-control: max-age=1")
    assert parsed.directives == Directives(no_store=True, max_age=1)


def test_ids_and_trace_are_taken_only_if_well_formed() -> None:
    good = head(b"x-request-id: abc-1", b"traceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")
    assert good.request_id == b"abc-1" and good.traceparent is not None
    bad = head(b"x-request-id: a b", b"traceparent: 00-zz")
    assert bad.request_id is None and bad.traceparent is None
    assert head(b"x-request-id: " + b"a" * 200).request_id is None


def test_deadline() -> None:
    assert head(b"x-sluice-deadline-ms: 1500").deadline_seconds == 1.5
    refusal = head(b"x-sluice-deadline-ms: soon").refusal
    assert refusal is not None and refusal[0] == "invalid_field" and "'soon'" in refusal[1]


@pytest.mark.parametrize(
    "value",
    [b"000000000001" + b"9" * 9, b"0" * 400 + b"1", b"1" * 400, b"000000000001" + b"9" * 5000],
)
def test_a_deadline_of_many_digits_is_refused(value: bytes) -> None:
    refusal = head(b"x-sluice-deadline-ms: " + value).refusal
    assert refusal is not None and refusal[0] == "invalid_field"
    assert "x-sluice-deadline-ms: got '" in refusal[1].lower()


@pytest.mark.parametrize("digits", [21, 300, 5000])
def test_a_length_of_many_digits_is_refused(digits: int) -> None:
    with pytest.raises(ApiError) as refused:
        head(b"content-length: " + b"0" * (digits - 1) + b"5")
    assert refused.value.code == "bad_http"


def test_a_head_that_comes_in_pieces_is_searched_once() -> None:
    raw = b"GET / HTTP/1.1\r\nhost: t\r\n\r\n"
    for size in range(1, len(raw)):
        found = [find_end(raw[: come + size], come) for come in range(0, len(raw), size)]
        assert found == [0] * (len(found) - 1) + [len(raw)], size
    assert find_end(raw + b"x" * 10, len(raw) + 3) == 0  # What was searched is not looked at.
    with pytest.raises(ApiError) as refused:
        find_end(b"GET / HTTP/1.1\n\n", 15)
    assert refused.value.code == "bad_http"


def test_empty_lines_before_a_request_are_few() -> None:
    count = 0
    for _ in range(MAX_EMPTY_LINES):
        count = count_empty_line(count)
    with pytest.raises(ApiError) as refused:
        count_empty_line(count)
    assert refused.value.code == "bad_http"


def test_encoding_is_refused_later_because_its_framing_is_sound() -> None:
    parsed = head(b"content-encoding: gzip", b"content-length: 3")
    assert parsed.refusal is not None and parsed.refusal[0] == "unsupported_media_type"
    assert parsed.content_length == 3


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /v1/embeddings HTTP/1.1\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"POST  /v1/embeddings HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\nauthorization: a\r\nauthorization: b\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_bad_heads(raw: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        parse_head(raw)
    assert refused.value.code == "bad_http"


def test_too_many_headers() -> None:
    with pytest.raises(ApiError) as refused:
        head(*[b"x: y"] * 101)
    assert refused.value.code == "headers_too_large"


def test_priorities() -> None:
    assert head().priority is Priority.NORMAL
    assert head(b"X-Sluice-Priority: Low").priority is Priority.LOW
    assert head(b"x-sluice-priority: high").priority is Priority.HIGH
    refusal = head(b"x-sluice-priority: 9").refusal
    assert refusal is not None and refusal[0] == "invalid_field"


@pytest.mark.parametrize(
    ("asked", "ceiling", "got"),
    [
        (Priority.HIGH, Priority.NORMAL, Priority.NORMAL),
        (Priority.HIGH, Priority.HIGH, Priority.HIGH),
        (Priority.NORMAL, Priority.HIGH, Priority.NORMAL),
        (Priority.NORMAL, Priority.LOW, Priority.LOW),
        (Priority.LOW, Priority.HIGH, Priority.LOW),
    ],
)
def test_nobody_rises_above_the_ceiling(asked: Priority, ceiling: Priority, got: Priority) -> None:
    assert granted(asked, ceiling) is got
