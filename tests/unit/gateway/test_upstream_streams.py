"""A connection to a worker that streams: what its receiver is told, and when."""

import asyncio
from typing import Any, cast

import pytest

from sluice_gateway import upstream
from sluice_gateway.timers import TimerWheel
from sluice_gateway.upstream import Connection, Pool
from sluice_gateway.worker_answer import UpstreamAnswer

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Transport:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def is_closing(self) -> bool:
        return "abort" in self.calls

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


class Receiver:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def answered(self, answer: UpstreamAnswer) -> None:
        self.told.append(answer.body)

    def broke(self, cause: str) -> None:
        self.told.append(cause)

    def began(self, answer: UpstreamAnswer) -> None:
        assert answer.body == b""
        self.told.append("began")

    def part(self, data: bytes) -> None:
        self.told.append(data)

    def ended(self) -> None:
        self.told.append("ended")


class Plain:
    """Does not want a stream."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    answered, broke = Receiver.answered, Receiver.broke


@pytest.fixture
async def wheel() -> TimerWheel:
    return TimerWheel(asyncio.get_running_loop())


def connected(wheel: TimerWheel, receiver: Any) -> tuple[Connection, Transport]:
    connection, transport = Connection(Pool("127.0.0.1", 1, wheel)), Transport()
    connection.send(receiver, b"request", b"")
    connection.connection_made(cast(Any, transport))
    return connection, transport


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_it_is_handed_over_as_it_comes(wheel: TimerWheel) -> None:
    receiver = Receiver()
    connection, transport = connected(wheel, receiver)
    connection.data_received(HEAD)
    assert receiver.told == ["began"]
    connection.data_received(chunk(b"one") + chunk(b"two") + b"5\r\nth")
    connection.data_received(b"ree\r\n0\r\n\r\n")
    assert receiver.told == ["began", b"onetwoth", b"ree", "ended"]
    assert repr(connection).endswith("idle>") and "abort" not in transport.calls


async def test_a_trailer_is_no_part_of_the_head(wheel: TimerWheel) -> None:
    heard: list[UpstreamAnswer] = []
    receiver = Plain()
    receiver.answered = heard.append  # type: ignore[method-assign]
    connection, _ = connected(wheel, receiver)
    connection.data_received(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-sluice-answer-digest: one\r\n\r\n"
        b"2\r\n{}\r\n0\r\nx-sluice-answer-digest: two\r\n\r\n"
    )
    assert [(answer.digest, answer.body) for answer in heard] == [("one", b"{}")]


@pytest.mark.parametrize("border", [5, 40, len(HEAD) - 1])
async def test_a_stream_may_take_as_long_as_it_takes(wheel: TimerWheel, border: int) -> None:
    connection, _ = connected(wheel, Receiver())
    connection.data_received(HEAD[:border])
    assert repr(wheel) == "<TimerWheel 1 pending>"
    connection.data_received(HEAD[border:])
    connection.data_received(chunk(b"one"))
    assert repr(wheel) == "<TimerWheel 0 pending>"


async def test_the_worker_waits_while_it_is_paused(wheel: TimerWheel) -> None:
    receiver = Receiver()
    connection, transport = connected(wheel, receiver)
    connection.data_received(HEAD)
    connection.pause()
    connection.pause()
    assert transport.calls.count("pause_reading") == 1
    connection.data_received(b"0\r\n\r\n")  # Was read already.
    assert receiver.told == ["began", "ended"]
    assert transport.calls.count("resume_reading") == 1, "for the next request on it"
    connection.resume()
    assert transport.calls.count("resume_reading") == 1


async def test_what_breaks_is_told_once(wheel: TimerWheel) -> None:
    for data, cause in ((b"zz\r\n", "garbage"), (b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "garbage")):
        receiver = Receiver()
        connection, transport = connected(wheel, receiver)
        connection.data_received(HEAD)
        connection.data_received(data)
        connection.connection_lost(None)
        assert receiver.told == ["began", cause]
        assert "abort" in transport.calls
    receiver = Receiver()
    connection, _ = connected(wheel, receiver)
    connection.data_received(HEAD + chunk(b"one"))
    connection.connection_lost(ConnectionResetError())
    assert receiver.told == ["began", b"one", "reset"]


async def test_an_abort_in_the_middle_is_the_end(wheel: TimerWheel) -> None:
    class Leaver(Receiver):
        def part(self, data: bytes) -> None:
            super().part(data)
            connection.abort()

    receiver = Leaver()
    connection, transport = connected(wheel, receiver)
    connection.data_received(HEAD + chunk(b"one") + b"0\r\n\r\n")
    assert receiver.told == ["began", b"one"]
    assert "abort" in transport.calls


async def test_who_wants_no_stream_gets_it_whole(wheel: TimerWheel) -> None:
    receiver = Plain()
    connection, _ = connected(wheel, receiver)
    connection.data_received(HEAD + chunk(b"one"))
    assert receiver.told == []
    connection.data_received(chunk(b"two") + b"0\r\n\r\n")
    assert receiver.told == [b"onetwo"]


async def test_another_status_comes_whole(wheel: TimerWheel) -> None:
    receiver = Receiver()
    connection, _ = connected(wheel, receiver)
    connection.data_received(HEAD.replace(b"200 OK", b"429 Busy") + chunk(b"{}") + b"0\r\n\r\n")
    assert receiver.told == [b"{}"]


@pytest.mark.parametrize("kind", [Receiver, Plain])
async def test_what_comes_of_an_answer_is_bounded_however_it_is_framed(
    wheel: TimerWheel, monkeypatch: pytest.MonkeyPatch, kind: type[Receiver]
) -> None:
    monkeypatch.setattr(upstream, "MAX_BYTES", 1000)
    receiver = kind()
    connection, transport = connected(wheel, receiver)
    connection.data_received(HEAD)
    while "abort" not in transport.calls:
        assert len(receiver.told) < 100
        connection.data_received(chunk(b"x" * 90))
    assert receiver.told[-1] == "garbage"
    taken = b"".join(part for part in receiver.told if isinstance(part, bytes))
    assert len(taken) == (810 if kind is Receiver else 0)


async def test_a_worker_that_only_says_wait_is_not_heard_for_ever(wheel: TimerWheel) -> None:
    receiver = Receiver()
    connection, transport = connected(wheel, receiver)
    for _ in range(10_000):
        if receiver.told:
            break
        connection.data_received(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert receiver.told == ["garbage"] and "abort" in transport.calls
