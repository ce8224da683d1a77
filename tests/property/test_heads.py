"""A head that shares most of its lines with others is read as it would be alone."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api.errors import ApiError
from sluice_gateway.head import Head, parse_head
from sluice_gateway.known_heads import HeadForm, read_head

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
    b"X-Forwarded-For: 10.0.0.1, 10.0.0.2",
    b"x-forwarded-for:  10.0.0.1",
    b"x-real-ip: a\x01b",
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


def read(how: Callable[[bytes], Head], first: bytes, lines: list[bytes]) -> Any:
    """What the head is, or the code of what is wrong with it."""
    try:
        return how(b"\r\n".join([first, *lines, b"", b""]))
    except ApiError as error:
        return error.code


def same(first: bytes, lines: list[bytes]) -> bool:
    """Whether it is read as it would be alone, also the second time."""
    alone = read(parse_head, first, lines)
    return read(read_head, first, lines) == alone == read(read_head, first, lines)


@pytest.mark.parametrize("one", LINES)
def test_any_two_lines_mean_what_they_mean_alone(one: bytes) -> None:
    for other in LINES:
        assert same(FIRST[0], [b"host: t", one, other]), other


@given(st.sampled_from(FIRST), st.lists(st.sampled_from(LINES), max_size=8))
def test_any_lines_mean_what_they_mean_alone(first: bytes, lines: list[bytes]) -> None:
    assert same(first, lines)


OWN = {
    b"content-length": [
        b"5",
        b"0",
        b"007",
        b"12345678",
        b"5x",
        b"+5",
        b" 5",
        b"5 ",
        b"",
        b"5" * 16,
    ],
    b"x-request-id": [
        b"a",
        b"B-1",
        b"not harmless",
        b"\xe4",
        b"{a}",
        b"",
        b" a",
        b"a\r\n b",
        b"a\nb",
    ],
    b"x-forwarded-for": [
        b"10.0.0.1",
        b"10.0.0.2, 10.0.0.3",
        b"",
        b" a",
        b"a ",
        b"a\x01",
        b"\xe4",
        b"a\nb",
    ],
    b"traceparent": [
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        b"00-short-01",
    ],
}
WRITTEN = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in OWN.items()})


def of(values: dict[bytes, bytes], names: list[bytes], rest: bytes) -> bytes:
    lines = b"".join(b"%b: %b\r\n" % (name, values[name]) for name in names)
    return b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\n%b%b\r\n" % (lines, rest)


@given(
    WRITTEN,
    WRITTEN,
    st.lists(st.sampled_from(list(OWN)), max_size=4),
    st.sampled_from([b"", b"a: b\r\n", b"transfer-encoding: chunked\r\n", b" folded\r\n"]),
    st.booleans(),
)
def test_what_is_like_the_last_head_is_read_as_it_would_be_alone(
    first: dict[bytes, bytes],
    second: dict[bytes, bytes],
    names: list[bytes],
    rest: bytes,
    as_it_was: bool,
) -> None:
    before, after = of(first, names, rest), of(second, names, rest if as_it_was else b"c: d\r\n")
    try:
        form = HeadForm(before, parse_head(before), 10**15)
    except ApiError:
        return
    found = form.read(after + b"what follows")
    if found is not None:
        assert found == parse_head(after)
        assert (form.raw, form.head) == (after, found)
    else:
        assert form.raw == before


@pytest.mark.parametrize("names", [list(OWN), *([name] for name in OWN)])
def test_a_head_that_differs_in_its_own_lines_alone_is_like_the_last(names: list[bytes]) -> None:
    before = of({name: values[0] for name, values in OWN.items()}, names, b"a: b\r\n")
    after = of({name: values[1] for name, values in OWN.items()}, names, b"a: b\r\n")
    form = HeadForm(before, parse_head(before), 10**15)
    for raw in (after, before, after):
        assert form.read(raw) == parse_head(raw)
    assert form.read(after.replace(b"a: b", b"a: c")) is None
    assert form.read(after[:-1]) is None


@pytest.mark.parametrize("name", OWN)
def test_an_own_line_means_what_it_means_alone(name: bytes) -> None:
    for value in OWN[name]:
        before, after = of({name: OWN[name][0]}, [name], b""), of({name: value}, [name], b"")
        found = HeadForm(before, parse_head(before), 10**15).read(after)
        assert found is None or found == parse_head(after), value


def test_where_each_head_is_another_they_are_learnt_ever_more_rarely() -> None:
    def raw(number: int, length: int) -> bytes:
        return of({b"content-length": b"%d" % length}, [b"content-length"], b"a: %d\r\n" % number)

    form = HeadForm(raw(0, 0), parse_head(raw(0, 0)), 10**15)
    learnt = []
    for number in range(1, 16):
        if form.read(raw(number - 1, 5)) is not None:
            learnt.append(number)
        assert form.read(raw(number, 5)) is None
        form.take(raw(number, 5), parse_head(raw(number, 5)))
    assert learnt == [1, 2, 4, 8]


def test_as_many_headers_as_may_come() -> None:
    for more, meant in ((98, "parsed"), (99, "headers_too_large")):
        lines = [b"host: t", b"x-request-id: a", *(b"a: b" for _ in range(more))]
        found = read(read_head, b"POST /v1/embeddings HTTP/1.1", lines)
        assert (found if isinstance(found, str) else "parsed") == meant
