"""Requests that name a key: who computes, who waits, what is kept and for how long."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from sluice_api import names
from sluice_api.errors import ApiError
from sluice_gateway.auth import Rights, Tenant
from sluice_gateway.head import parse_head
from sluice_gateway.idempotency import MAX_ANSWER_BYTES, Repeats, Running
from sluice_gateway.keys import TenantScope
from sluice_gateway.relay import KEPT_BYTES
from sluice_gateway.request import Answer, Request
from sluice_gateway.timers import Slot, Timer

RIGHTS = Rights(frozenset(), None)


def tenant(name: str, rights: Rights = RIGHTS) -> Tenant:
    return Tenant(name, "default", b"", TenantScope.of(name), rights=rights)


ME, OTHER = tenant("me"), tenant("other")
STREAM = Answer(200, b"text/event-stream", b"x: y\r\n", b"data: 1\n\n")


class Caller:
    """One sender: what it was told, and whether it takes more."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.parts: list[bytes] = []
        self.ended = False
        self.broken: bytes | None = None
        self.takes = True

    def answer(self, answer: Answer) -> None:
        self.answers.append(answer)

    def begin(self, answer: Answer) -> bool:
        assert not self.answers
        self.answers.append(answer)
        return self.send(answer.body)

    def send(self, data: bytes) -> bool:
        self.parts.append(data)
        return self.takes

    def end(self) -> None:
        self.ended = True

    def break_off(self, data: bytes) -> None:
        self.broken = data

    @property
    def text(self) -> bytes:
        return b"".join(self.parts)


class Exchange:
    """What the main path does with the one request that goes on."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.cancelled = 0
        self.resumed = 0
        self.failed: list[ApiError] = []
        self.at_once: Answer | None = None
        self.streams = False

    def handle(self, request: Request) -> Running | None:
        self.requests.append(request)
        if self.at_once is not None:
            request.caller.answer(self.at_once)
            return None
        return self

    @property
    def caller(self) -> Any:
        return self.requests[-1].caller

    def cancel(self) -> None:
        self.cancelled += 1

    def fail(self, error: ApiError) -> None:
        self.failed.append(error)

    def cut_off(self, cause: str) -> None: ...

    def resume(self) -> None:
        self.resumed += 1


class Bench:
    """Repeats, what became of each request, and the time."""

    def __init__(self, limit_bytes: int = 1_000_000) -> None:
        self.outcomes: list[str] = []
        self.exchange = Exchange()
        self.version = 0
        self.timers: list[tuple[float, Timer]] = []
        self.repeats = Repeats(
            60.0, limit_bytes, self.outcomes.append, self.at, lambda: self.version
        )
        self.now = 0.0
        self.lines = b""

    def send(
        self,
        body: bytes = b"{}",
        key: bytes = b"k",
        who: Tenant = ME,
        path: bytes = b"/predict",
        deadline_ms: int | None = None,
        caller: Caller | None = None,
    ) -> tuple[Caller, Any]:
        caller = caller or Caller()
        lines = b"host: t\r\nidempotency-key: %b\r\n" % key
        if deadline_ms is not None:
            lines += b"%b: %d\r\n" % (names.DEADLINE_MS.encode(), deadline_ms)
        head = parse_head(b"POST %b HTTP/1.1\r\n%b\r\n" % (path, lines))
        request = Request(head, body, cast(Any, caller), b"id", self.now)
        request.limit_lines = self.lines
        return caller, self.repeats.handle(request, who, self.now, self.exchange.handle)

    def at(self, moment: float, callback: Callable[[], None]) -> Timer:
        slot: Slot = {}
        timer = Timer(callback, slot)
        slot[timer] = None
        self.timers.append((moment, timer))
        return timer

    def pass_to(self, now: float) -> None:
        self.now = now
        for moment, timer in self.timers:
            if moment <= now and timer in timer.slot:
                timer.cancel()
                timer.fire()


def expired() -> Answer:
    return Answer(504, b"application/json", b"", b"", ApiError("deadline_exceeded", "Over."))


def answer(body: bytes = b"yes", status: int = 200) -> Answer:
    return Answer(status, b"application/json", b"a: b\r\n", body)


class Choosy(Caller):
    """Cannot be given what it is answered with."""

    def __init__(self, error: Exception, times: int = 1) -> None:
        super().__init__()
        self.error = error
        self.times = times

    def answer(self, answer: Answer) -> None:
        self.times -= 1
        if self.times >= 0:
            raise self.error
        super().answer(answer)


@pytest.mark.parametrize(
    ("error", "times", "status"),
    [
        (ApiError("upstream_failed", "No tensors."), 1, 502),
        (OverflowError("int too big"), 1, 500),
        (OverflowError("int too big"), 2, None),
    ],
)
def test_who_cannot_be_given_the_answer_keeps_it_from_nobody(
    error: Exception, times: int, status: int | None
) -> None:
    bench = Bench()
    choosy = Choosy(error, times)
    bench.send(caller=choosy)
    second, _ = bench.send()
    bench.exchange.caller.answer(answer())
    assert [each.status for each in choosy.answers] == ([] if status is None else [status])
    assert choosy.broken == (b"" if status is None else None)
    assert [each.body for each in second.answers] == [b"yes"]


def test_all_who_wait_get_the_one_answer_and_later_ones_a_copy() -> None:
    bench = Bench()
    first, _ = bench.send()
    second, seat = bench.send()
    assert seat is not None and len(bench.exchange.requests) == 1
    bench.exchange.caller.answer(answer())
    assert first.answers == second.answers and first.answers[0].body == b"yes"
    third, nothing = bench.send()
    assert nothing is None and third.answers[0].body == b"yes"
    assert third.answers[0].headers == b"a: b\r\nidempotent-replayed: true\r\n"
    assert bench.outcomes == ["first", "joined", "replayed"]


def test_an_answer_at_once_leaves_nothing_to_cancel() -> None:
    bench = Bench()
    bench.exchange.at_once = answer()
    first, pending = bench.send()
    assert pending is None and first.answers[0].body == b"yes"
    assert bench.send()[0].answers[0].body == b"yes" and len(bench.exchange.requests) == 1


@pytest.mark.parametrize("while_running", [False, True])
def test_what_was_thrown_away_is_not_replayed(while_running: bool) -> None:
    bench = Bench()
    bench.send()
    bench.version += while_running
    bench.exchange.caller.answer(answer())
    bench.version += not while_running
    again, _ = bench.send()
    bench.exchange.caller.answer(answer(b"anew"))
    assert again.answers[0].body == b"anew"
    assert bench.outcomes == ["first", "first"]


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("other", [{"body": b"[]"}, {"path": b"/classify"}])
def test_a_key_stands_for_one_request(done: bool, other: dict[str, Any]) -> None:
    bench = Bench()
    bench.send()
    if done:
        bench.exchange.caller.answer(answer())
    with pytest.raises(ApiError) as refused:
        bench.send(**other)
    assert (refused.value.code, refused.value.status) == ("idempotency_key_reused", 422)
    assert bench.outcomes == ["first", "refused"]


def test_keys_belong_to_a_tenant() -> None:
    bench = Bench()
    bench.exchange.at_once = answer(b"mine")
    bench.send()
    bench.exchange.at_once = answer(b"theirs")
    assert bench.send(who=OTHER)[0].answers[0].body == b"theirs"
    assert bench.send()[0].answers[0].body == b"mine"


def test_keys_of_a_tenant_that_may_call_less_find_no_more() -> None:
    bench = Bench()
    bench.exchange.at_once = answer(b"secret")
    bench.send()
    bench.exchange.at_once = answer(status=404)
    less = tenant("me", Rights(frozenset(), frozenset()))
    assert bench.send(who=less)[0].answers[0].status == 404


@pytest.mark.parametrize("streamed", [False, True])
def test_each_is_told_what_is_left_of_its_own_limits(streamed: bool) -> None:
    bench = Bench()
    callers = []
    for number in range(2):
        bench.lines = b"left: %d\r\n" % number
        callers.append(bench.send()[0])
    assert bench.exchange.requests[0].limit_lines == b""
    if streamed:
        bench.exchange.caller.begin(STREAM)
        bench.exchange.caller.end()
    else:
        bench.exchange.caller.answer(answer())
    bench.lines = b"left: 2\r\n"
    callers.append(bench.send()[0])
    for number, caller in enumerate(callers):
        assert caller.answers[0].headers.endswith(b"left: %d\r\n" % number)
        assert caller.answers[0].headers.count(b"left") == 1


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_failures_are_told_to_all_and_not_kept(status: int) -> None:
    bench = Bench()
    callers = [bench.send()[0] for _ in range(3)]
    bench.exchange.caller.answer(answer(status=status))
    assert {caller.answers[0].status for caller in callers} == {status}
    bench.send()
    assert bench.outcomes[-1] == "first"


def test_answers_are_kept_for_a_time() -> None:
    bench = Bench()
    bench.exchange.at_once = answer()
    bench.send()
    kept = bench.repeats._kept[ME.scope, RIGHTS, b"k"]
    bench.now = kept.expires - 1
    bench.send()
    bench.now = kept.expires
    bench.send()
    assert bench.outcomes == ["first", "replayed", "first"]


def test_the_oldest_answers_make_room() -> None:
    bench = Bench(limit_bytes=10_000)
    for number in range(50):
        bench.exchange.at_once = answer(b"x" * 1000)
        bench.send(key=b"k%d" % number)
        assert bench.repeats._bytes <= 10_000
    assert bench.repeats._bytes == sum(kept.size for kept in bench.repeats._kept.values())
    bench.send(key=b"k49")
    bench.send(key=b"k0")
    assert bench.outcomes[-2:] == ["replayed", "first"]


def test_an_answer_that_is_too_large_is_given_and_not_kept() -> None:
    bench = Bench(limit_bytes=10 * MAX_ANSWER_BYTES)
    bench.exchange.at_once = answer(b"x" * MAX_ANSWER_BYTES)
    assert bench.send()[0].answers
    bench.send()
    assert bench.outcomes == ["first", "first"]


def test_a_plain_answer_is_finished_when_everybody_has_left() -> None:
    bench = Bench()
    _, seat = bench.send()
    seat.cancel()
    assert bench.exchange.cancelled == 0
    bench.exchange.caller.answer(answer())
    assert bench.send()[0].answers[0].body == b"yes"


def test_the_end_of_the_process_is_told_once() -> None:
    bench = Bench()
    (_, one), (_, two) = bench.send(), bench.send()
    error = ApiError("draining", "Over.")
    one.fail(error)
    assert bench.exchange.failed == [error]
    bench.exchange.caller.answer(answer(status=503))
    two.fail(error)
    assert bench.exchange.failed == [error]


# Deadlines ----------------------------------------------------------------------------------------


def test_who_joins_waits_no_longer_than_it_wanted_to() -> None:
    bench = Bench()
    (first, _), (second, _), (third, _) = [
        bench.send(deadline_ms=each) for each in (60_000, 2000, 90_000)
    ]
    bench.pass_to(1.9)
    assert not second.answers
    bench.pass_to(2.0)
    assert [each.status for each in second.answers] == [504]
    assert not first.answers and not third.answers
    bench.exchange.caller.answer(answer())
    assert first.answers[0].body == third.answers[0].body == b"yes" and len(second.answers) == 1
    bench.pass_to(100.0)
    assert len(third.answers) == 1


def test_the_next_goes_on_when_the_first_has_no_more_time() -> None:
    bench = Bench()
    first, _ = bench.send(deadline_ms=1000)
    (second, seat), (third, _) = bench.send(deadline_ms=9000), bench.send()
    bench.exchange.caller.answer(expired())
    assert first.answers[0].status == 504 and not second.answers and not third.answers
    assert len(bench.exchange.requests) == 2, "one of the two computes for both"
    assert bench.exchange.requests[1].head.deadline_seconds == 9.0
    bench.pass_to(9.0)
    assert not second.answers, "its own computation tells it"
    error = ApiError("draining", "Over.")
    seat.fail(error)
    assert bench.exchange.failed == [error]
    bench.exchange.caller.answer(answer())
    assert second.answers[0].body == third.answers[0].body == b"yes"
    assert bench.send()[0].answers[0].body == b"yes"


def test_other_failures_of_the_first_are_everybodys() -> None:
    bench = Bench()
    callers = [bench.send(deadline_ms=1000)[0] for _ in range(2)]
    bench.exchange.caller.answer(answer(status=504))
    assert [caller.answers[0].status for caller in callers] == [504, 504]


def test_a_stream_ends_for_who_has_no_more_time() -> None:
    bench = Bench()
    (first, _), (second, _) = bench.send(), bench.send(deadline_ms=1000)
    stream = bench.exchange.caller
    stream.begin(STREAM)
    bench.pass_to(1.0)
    assert second.broken is not None and b"deadline_exceeded" in second.broken
    stream.send(b"more")
    stream.end()
    assert first.ended and not second.ended and second.text == STREAM.body


# Streams ------------------------------------------------------------------------------------------


def test_a_stream_is_joined_from_its_beginning_and_replayed_whole() -> None:
    bench = Bench()
    first, _ = bench.send()
    stream = bench.exchange.caller
    assert stream.begin(STREAM) and stream.send(b"data: 2\n\n")
    second, _ = bench.send()
    assert second.text == first.text == b"data: 1\n\ndata: 2\n\n"
    assert second.answers[0].headers == STREAM.headers
    stream.send(b"data: 3\n\n")
    stream.end()
    assert first.ended and second.ended and first.text == second.text
    third, _ = bench.send()
    (whole,) = third.answers
    assert whole.body == first.text and whole.content_type == b"text/event-stream"
    assert b"idempotent-replayed: true" in whole.headers


@pytest.mark.parametrize("begun", [False, True])
def test_a_stream_that_nobody_follows_is_stopped_and_forgotten(begun: bool) -> None:
    bench = Bench()
    bench.exchange.streams = True
    (_, one), (_, two) = bench.send(), bench.send()
    if begun:
        bench.exchange.caller.begin(STREAM)
    one.cancel()
    assert bench.exchange.cancelled == 0
    two.cancel()
    assert bench.exchange.cancelled == 1
    bench.send()
    assert bench.outcomes == ["first", "joined", "first"]


def test_a_stream_that_breaks_breaks_for_all_and_is_not_kept() -> None:
    bench = Bench()
    callers = [bench.send()[0] for _ in range(2)]
    bench.exchange.caller.begin(STREAM)
    bench.exchange.caller.break_off(b"data: error\n\n")
    assert [caller.broken for caller in callers] == [b"data: error\n\n"] * 2
    assert not any(caller.ended for caller in callers)
    bench.send()
    assert bench.outcomes[-1] == "first"


def test_a_stream_is_held_up_only_while_all_are_slow() -> None:
    bench = Bench()
    (first, one), (second, two) = bench.send(), bench.send()
    stream = bench.exchange.caller
    stream.begin(STREAM)
    first.takes = False
    assert stream.send(b"a")
    second.takes = False
    assert not stream.send(b"b")
    second.takes = True
    two.resume()
    assert bench.exchange.resumed == 1 and stream.send(b"c")
    first.takes = True
    one.resume()
    assert first.text == second.text == STREAM.body + b"abc"


def test_who_comes_when_the_beginning_is_gone_is_told_to_wait() -> None:
    bench = Bench()
    bench.send()
    stream = bench.exchange.caller
    stream.begin(STREAM)
    for _ in range(3):
        stream.send(b"x" * KEPT_BYTES)
    with pytest.raises(ApiError) as refused:
        bench.send()
    assert (refused.value.code, refused.value.status) == ("idempotency_key_in_use", 409)
    assert refused.value.retry_after
    stream.end()
    assert bench.send()[0].answers, "what is kept whole is replayed"


def test_who_lags_behind_what_is_kept_is_cut_off_alone() -> None:
    bench = Bench()
    (slow, _), (fast, _) = bench.send(), bench.send()
    stream = bench.exchange.caller
    stream.begin(STREAM)
    slow.takes = False
    for _ in range(4):
        stream.send(b"x" * KEPT_BYTES)
    assert slow.broken == b"" and fast.broken is None
    stream.end()
    assert fast.ended and not slow.ended


def test_one_who_takes_nothing_is_cut_off_without_the_others() -> None:
    bench = Bench()
    (slow, one), (fast, _) = bench.send(), bench.send()
    bench.exchange.caller.begin(STREAM)
    one.cut_off("stalled")
    assert slow.broken == b""
    bench.exchange.caller.end()
    assert fast.ended and not slow.ended
