"""What the head of a worker's answer says, however it is written."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api import names
from sluice_gateway.worker_answer import AnswerForm, form_of, read_answer, spelling_of

HEAD = {
    names.ANSWER_DIGEST: "sha256:1",
    names.CAPACITY: "8;3;0.250",
    names.SERVICE_TIME: "0.125",
    names.RETRY_AFTER_MS: "1500",
    "Content-Length": "2",
}


@pytest.mark.parametrize("written", [str, str.lower, str.upper, str.title])
def test_names_may_be_written_in_any_case(written: type[str]) -> None:
    head = {written(name).encode(): value.encode() for name, value in HEAD.items()}
    spelling = spelling_of(tuple(head))
    answer = read_answer(503, head, b"", spelling)
    assert (answer.digest, answer.limit, answer.service) == ("sha256:1", 8, 0.125)
    assert answer.retry_after == 1.5
    assert head[spelling.content_length] == b"2"


def test_what_is_not_there_is_not_found() -> None:
    head = {b"Content-Length": b"2"}
    spelling = spelling_of(tuple(head))
    answer = read_answer(200, head, b"{}", spelling)
    assert (answer.digest, answer.limit, answer.service) == ("", None, None)
    assert spelling.transfer_encoding not in head


def written(length: int = 2, request_id: str = "a-1", limit: int = 8, more: str = "") -> bytes:
    return (
        "HTTP/1.1 200 OK\r\nServer: w\r\nDate: Thu, 26 Nov 2026 10:00:00 GMT\r\n"
        f"Content-Length: {length}\r\nX-Request-Id: {request_id}\r\n"
        f"{names.CAPACITY}: {limit};3;0.250\r\n{names.SERVICE_TIME}: 0.125\r\n"
        f"{names.ANSWER_DIGEST}: d\r\n{more}\r\n"
    ).encode() + b"{}"


def form() -> AnswerForm:
    found = form_of(written(), "d")
    assert found is not None
    return found


def test_the_next_answer_is_read_by_the_form_of_the_last() -> None:
    known = form()
    for number in range(3):
        data = written(request_id=f"a-{number}", limit=number + 1)
        answer = known.read(data.replace(b"10:00:00", b"10:00:%02d" % number), b"a-%d" % number)
        assert answer is not None
        assert (answer.status, answer.body, answer.limit) == (200, b"{}", number + 1)
        assert (answer.digest, answer.service) == ("d", 0.125)


@pytest.mark.parametrize(
    "data",
    [
        written(request_id="b-1"),
        written(length=3),
        written() + b"x",
        written()[:-1],
        written()[:40],
        written(more="connection: close\r\n"),
        written(more="transfer-encoding: chunked\r\n"),
        written(more="content-length: 2\r\n"),
        written().replace(b"200 OK", b"500 No"),
        written().replace(b"Thu,", b"Thu\nconnection: close"),
        written().replace(b"0.125", b"0.1\r\nconnection: close"),
        written().replace(b": d\r\n", b": other\r\n"),
        written(limit=0),
        written().replace(b";3;0.250", b";3"),
        written().replace(b";3;0.250", b";3;.5"),
        written().replace(b";3;0.250", b";3;1.2.3"),
        written().replace(b";3;0.250", b";-3;0.250"),
        b"",
    ],
)
def test_what_looks_another_way_is_left_to_the_parser(data: bytes) -> None:
    assert form().read(data, b"a-1") is None
    assert form().read(written(), b"a-1") is not None


@pytest.mark.parametrize(
    "data",
    [
        written().replace(b"Content-Length: 2\r\n", b""),
        written(more="Content-Length: 2\r\n"),
        written(more="X-Request-Id: a-1\r\n"),
        written().replace(b"200 OK", b"201 OK"),
        written().replace(b"HTTP/1.1", b"HTTP/1.0"),
        written().replace(b"Length: 2", b"Length: 2\r\n "),
    ],
)
def test_what_has_no_form_is_read_anew_each_time(data: bytes) -> None:
    assert form_of(data, "d") is None


class Parsed:
    def __init__(self, data: bytes) -> None:
        self.body = b""
        self.headers: dict[bytes, bytes] = {}
        self.ends = 0
        self.keeps = False
        self.parser = httptools.HttpResponseParser(self)
        self.parser.feed_data(data)
        self.status = self.parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name] = value

    def on_headers_complete(self) -> None:
        self.keeps = self.parser.should_keep_alive()

    def on_body(self, part: bytes) -> None:
        self.body += part

    def on_message_complete(self) -> None:
        self.ends += 1


@given(st.integers(0, 250), st.integers(0, 4), st.binary(max_size=12))
def test_a_form_reads_nothing_that_the_parser_reads_otherwise(
    place: int, dropped: int, put: bytes
) -> None:
    data = written()
    data = data[:place] + put + data[place + dropped :]
    answer = form().read(data, b"a-1")
    if answer is not None:
        parsed = Parsed(data)
        assert (parsed.status, parsed.body, parsed.ends) == (200, answer.body, 1)
        assert parsed.keeps
        alone = read_answer(200, parsed.headers, b"", spelling_of(tuple(parsed.headers)))
        assert (answer.limit, answer.service) == (alone.limit, alone.service)


@given(st.integers(0, 10**10), st.integers(0, 10**10), st.text("0123456789.;- ", max_size=12))
def test_a_capacity_means_by_its_form_what_it_means_alone(
    limit: int, in_flight: int, backlog: str
) -> None:
    told = f"{limit};{in_flight};{backlog}"
    answer = form().read(written().replace(b"8;3;0.250", told.encode()), b"a-1")
    if answer is not None:
        assert answer.limit == read_answer(200, {names.CAPACITY.encode(): told.encode()}, b"").limit
