"""Chunked bodies: any cut of a valid one gives the same bytes; anything odd is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api.errors import ApiError
from sluice_gateway.chunks import ChunkedBody

LIMIT = 10_000


def feed(raw: bytes, cuts: list[int]) -> tuple[ChunkedBody, bytes]:
    """Feed ``raw`` in pieces of the sizes ``cuts``, then of 7, until complete; and what is left."""
    body, position, sizes = ChunkedBody(), 0, iter(cuts)
    while not body.complete and position < len(raw):
        size = next(sizes, 7)
        body.feed(raw[position : position + size], LIMIT)
        position += size
    return body, body.rest + raw[position:]


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    cuts=st.lists(st.integers(1, 12), max_size=60),
    behind=st.binary(max_size=20),
    zeros=st.integers(1, 4),
)
def test_every_cut_gives_the_same(
    chunks: list[bytes], cuts: list[int], behind: bytes, zeros: int
) -> None:
    raw = b"".join(b"%X\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    body, rest = feed(raw + b"0" * zeros + b"\r\n\r\n" + behind, cuts)
    assert body.complete
    assert body.body == b"".join(chunks)
    assert rest == behind


@pytest.mark.parametrize(
    "raw",
    [
        b"zz\r\nabc",
        b"+3\r\nabc",
        b" 3\r\nabc",
        b"3 \r\nabc",
        b"3;a=b\r\nabc",
        b"\r\n\r\n",
        b"3\nabcdefghijklmnop",
        b"3\r\nabcd\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"0\r\nx: y\r\n\r\n",
        b"0_0\r\n\r\n",
        b"123456789\r\n",
        b"12345678901234567890",
    ],
)
@pytest.mark.parametrize("cuts", [[], [1] * 100, [100]])
def test_odd_framing_is_refused(raw: bytes, cuts: list[int]) -> None:
    with pytest.raises(ApiError) as refused:
        feed(raw, cuts)
    assert refused.value.code == "bad_http"


def test_limit_holds_before_the_data_comes() -> None:
    with pytest.raises(ApiError) as refused:
        ChunkedBody().feed(b"%x\r\n" % (LIMIT + 1), LIMIT)
    assert refused.value.code == "body_too_large"
    with pytest.raises(ApiError):
        ChunkedBody().feed(b"5\r\nhello\r\n" * LIMIT, LIMIT)
