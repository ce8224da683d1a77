"""What the head of a worker's answer says, however it is written."""

import pytest

from sluice_api import names
from sluice_gateway.worker_answer import UpstreamAnswer, spelling_of

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
    answer = UpstreamAnswer(503, head, b"", spelling)
    assert (answer.digest, answer.limit, answer.service) == ("sha256:1", 8, 0.125)
    assert answer.retry_after == 1.5
    assert head[spelling.content_length] == b"2"


def test_what_is_not_there_is_not_found() -> None:
    head = {b"Content-Length": b"2"}
    spelling = spelling_of(tuple(head))
    answer = UpstreamAnswer(200, head, b"{}", spelling)
    assert (answer.digest, answer.limit, answer.service) == ("", None, None)
    assert spelling.transfer_encoding not in head
