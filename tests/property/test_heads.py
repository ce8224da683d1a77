"""A head that shares most of its lines with others is read as it would be alone."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api.errors import ApiError
from sluice_gateway.head import KNOWN_BYTES, parse_head

LINES = [
    b"host: t",
    b"Host: other",
    b"Content-Length: 5",
    b"content-length:7",
    b"Content-Length: 007",
    b"Content-Length : 5",
    b"Content-Length: 5 ",
    b"Content-Length: +5",
    b"Content-Length: 5, 5",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip",
    b"X-Request-Id: abc",
    b"x-request-id: other",
    b"X-Request-Id: not harmless",
    b"x-request-id: \xe4",
    b"x-request-id\t: a",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"traceparent: 00-short-01",
    b" folded",
    b"\tfolded: 5",
    b"Cache-Control: no-store",
    b"Connection: close",
    b"Connection: content-length",
    b"Expect: 100-continue",
    b"x: a\nContent-Length: 5",
    b"x: a\rContent-Length: 5",
    b"x: \x00",
]
FIRST = [
    b"POST /v1/embeddings HTTP/1.1",
    b"POST /v1/embeddings HTTP/1.0",
    b"GET /v1/models HTTP/1.1",
    b"POST /v1/embeddings\r\nContent-Length: 5 HTTP/1.1",
    b"POST  /v1/embeddings HTTP/1.1",
]
LONG = b"x-long: " + b"n" * KNOWN_BYTES
"""With this line more, nothing that was read before is made use of."""


def read(first: bytes, lines: list[bytes]) -> Any:
    """What the head is, or the code of what is wrong with it."""
    try:
        return parse_head(b"\r\n".join([first, *lines, b"", b""]))
    except ApiError as error:
        return error.code


def same(first: bytes, lines: list[bytes]) -> bool:
    """Whether it is read as it would be alone, also the second time."""
    alone = read(first, [LONG, *lines])
    return read(first, lines) == alone and read(first, lines) == alone


@pytest.mark.parametrize("one", LINES)
def test_any_two_lines_mean_what_they_mean_alone(one: bytes) -> None:
    for other in LINES:
        assert same(FIRST[0], [b"host: t", one, other]), other


@given(st.sampled_from(FIRST), st.lists(st.sampled_from(LINES), max_size=8))
def test_any_lines_mean_what_they_mean_alone(first: bytes, lines: list[bytes]) -> None:
    assert same(first, lines)


def test_as_many_headers_as_may_come() -> None:
    for more, meant in ((98, "parsed"), (99, "headers_too_large")):
        lines = [b"host: t", b"x-request-id: a", *(b"a: b" for _ in range(more))]
        found = read(b"POST /v1/embeddings HTTP/1.1", lines)
        assert (found if isinstance(found, str) else "parsed") == meant
