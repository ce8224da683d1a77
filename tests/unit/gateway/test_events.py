"""A worker's event stream: what of it reaches callers, what is kept, and what is no stream."""

import pytest

from sluice_api.errors import ApiError
from sluice_api.shapes import chat
from sluice_api.shapes.generated import DONE, Choice, Delta, PromptUsage, error_event, item_event
from sluice_gateway.events import MAX_EVENT_BYTES, EventScanner

WRITER = chat.CODEC.writer("m", include_usage=False)
TRICKY = 'a: b\n\n: item {}\n\ndata: [DONE]\n\n"choices":[] {"error": 1}'
"""A text that holds everything that is searched for."""
TEXTS = [
    WRITER.start(0),
    WRITER.delta(Delta(0, TRICKY)),
    WRITER.delta(Delta(0, "", None, (), "stop")),
]
USAGE = WRITER.usage([PromptUsage(3, 4)])
ITEM = chat.CODEC.item([Choice(TRICKY, "stop")], 3, 4)
WHOLE = b"".join([*TEXTS, USAGE, item_event(ITEM), DONE])


def read(data: bytes, *, size: int, keeps_usage: bool = False) -> tuple[EventScanner, bytes]:
    scanner = EventScanner(keeps_usage=keeps_usage)
    passed = [scanner.feed(data[start : start + size]) for start in range(0, len(data), size)]
    return scanner, b"".join(passed)


@pytest.mark.parametrize("size", [1, 2, 3, 50, 10_000])
def test_texts_pass_and_the_gateways_own_lines_do_not(size: int) -> None:
    scanner, passed = read(WHOLE, size=size)
    assert passed == b"".join(TEXTS)
    assert scanner.items == [ITEM]
    assert scanner.complete
    scanner.finish()
    assert repr(scanner) == "<EventScanner complete 0 bytes held>"


@pytest.mark.parametrize("size", [1, 10_000])
def test_usage_passes_where_it_is_wanted(size: int) -> None:
    _, passed = read(WHOLE, size=size, keeps_usage=True)
    assert passed == b"".join([*TEXTS, USAGE])


def test_events_are_passed_on_whole() -> None:
    scanner = EventScanner(keeps_usage=False)
    assert scanner.feed(TEXTS[0] + TEXTS[1][:9]) == TEXTS[0]
    assert scanner.feed(TEXTS[1][9:-1]) == b""
    assert scanner.feed(TEXTS[1][-1:] + b"data") == TEXTS[1]


@pytest.mark.parametrize("last", [DONE, error_event(ApiError("internal_error", "No."), "id")])
def test_nothing_follows_the_end_however_it_begins(last: bytes) -> None:
    scanner = EventScanner(keeps_usage=False)
    for _ in range(3):
        assert scanner.feed(TEXTS[0]) == TEXTS[0]
    assert scanner.feed(last) == b""
    with pytest.raises(ValueError, match="follows the end"):
        scanner.feed(TEXTS[0])


def test_part_of_an_event_that_begins_like_the_others_is_held() -> None:
    scanner = EventScanner(keeps_usage=False)
    assert scanner.feed(TEXTS[0]) == TEXTS[0]
    assert scanner.feed(TEXTS[0] + TEXTS[0][:-1]) == TEXTS[0]
    assert scanner.feed(b"\n") == TEXTS[0]
    assert scanner.feed(TEXTS[0] * 3) == TEXTS[0] * 3
    assert scanner.feed(TEXTS[0] + item_event(ITEM)) == TEXTS[0]
    assert scanner.feed(TEXTS[0] * 2 + USAGE) == TEXTS[0] * 2
    assert scanner.feed(TEXTS[0] * 2 + TEXTS[0][:-1]) == TEXTS[0] * 2
    assert scanner.feed(b"\n") == TEXTS[0]
    assert scanner.items == [ITEM]


def test_ordinary_events_are_the_very_bytes_that_came() -> None:
    data = WRITER.delta(Delta(0, "one")) + WRITER.delta(Delta(0, "two"))
    assert EventScanner(keeps_usage=False).feed(data) is data


def test_a_workers_own_remarks_stay_here() -> None:
    scanner, passed = read(b": hello\n\n" + TEXTS[0] + b":\n\n", size=1000)
    assert passed == TEXTS[0]
    assert scanner.items == []


def test_an_error_ends_the_stream() -> None:
    event = error_event(ApiError("internal_error", "Broken."), "id")
    scanner, passed = read(TEXTS[0] + event, size=7)
    assert passed == TEXTS[0]
    assert scanner.error is not None and b'"internal_error"' in scanner.error
    with pytest.raises(ValueError, match="follows"):
        scanner.feed(TEXTS[1])


@pytest.mark.parametrize(
    "data",
    [
        DONE + TEXTS[0],
        DONE + DONE,
        b": item not JSON\n\n",
        b": item []\n\n",
        b": item {}\n\n",
        b': item {"choices":[],"tokens":"3"}\n\n',
    ],
)
def test_what_no_worker_of_ours_sends(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"follows|no item"):
        read(data, size=len(data))


@pytest.mark.parametrize("data", [b"", TEXTS[0], DONE + b"data: {", DONE[:-1]])
def test_a_stream_that_ends_early(data: bytes) -> None:
    scanner, _ = read(data, size=1000)
    with pytest.raises(ValueError, match="early"):
        scanner.finish()


def test_an_event_without_end_is_given_up() -> None:
    scanner = EventScanner(keeps_usage=False)
    part = b"x" * (1024 * 1024)
    for _ in range(MAX_EVENT_BYTES // len(part)):
        assert scanner.feed(part) == b""
    with pytest.raises(ValueError, match="too long"):
        scanner.feed(part)
