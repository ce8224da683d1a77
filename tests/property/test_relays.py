"""Streams under random chunk borders, joins, pauses and departures: all bytes, or an error."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sluice_api.errors import ApiError
from sluice_api.shapes import completions
from sluice_api.shapes.generated import DONE, Choice, Delta, PromptUsage, item_event
from sluice_gateway.events import EventScanner
from sluice_gateway.relay import KEPT_BYTES, Reader, Relay

ERROR = ApiError("upstream_failed", "The worker failed.")
TEXTS = st.lists(st.text(max_size=20), max_size=12)


@given(TEXTS, st.lists(st.integers(1, 400)), st.booleans(), st.booleans())
def test_borders_of_chunks_change_nothing(
    texts: list[str], cuts: list[int], asked: bool, keeps: bool
) -> None:
    writer = completions.CODEC.writer("m", include_usage=keeps)
    events = [writer.delta(Delta(0, text)) for text in texts]
    events.append(writer.delta(Delta(0, finish_reason="stop")))
    usage = writer.usage([PromptUsage(1, len(texts))])
    item = completions.CODEC.item([Choice("".join(texts), "stop")], 1, len(texts))
    own = [usage, item_event(item)] if asked else []
    data = b"".join([*events, *own, DONE])
    scanner = EventScanner(keeps_usage=keeps)
    passed, start = [], 0
    for cut in [*cuts, len(data)]:
        passed.append(scanner.feed(data[start : start + cut]))
        start += cut
    scanner.finish()
    assert b"".join(passed) == b"".join(events) + (usage if keeps and asked else b"")
    assert scanner.items == ([item] if asked else [])


class _Follower:
    """A listener with a bounded buffer, emptied when the test says so."""

    def __init__(self) -> None:
        self.heard = b""
        self.full = False
        self.waits = False
        self.left = False
        self.end: list[ApiError | str | None] = []
        self.began = 0
        self.reader: Reader | None = None

    def begin(self, data: bytes) -> bool:
        self.began += 1
        return self.send(data)

    def send(self, data: bytes) -> bool:
        assert data
        assert not self.left and not self.end and not self.waits
        self.heard += data
        self.waits = self.full
        return not self.full

    def over(self, error: ApiError | None) -> None:
        assert not self.left
        self.end.append(error)

    def cut_off(self, cause: str) -> None:
        assert not self.left
        self.end.append(cause)


class Streams(RuleBasedStateMachine):
    """Everybody who follows gets exactly what was sent, from the beginning and in order."""

    shared = True

    def __init__(self) -> None:
        super().__init__()
        self.held = False
        self.relay = Relay(shared=self.shared, hold=self._hold, now=0.0)
        self.sent = b""
        self.over: list[ApiError | None] = []
        self.followers: list[_Follower] = []
        self.number = 0

    def _hold(self, on: bool) -> None:
        assert on != self.held
        self.held = on

    def running(self) -> list[_Follower]:
        return [f for f in self.followers if not f.left and not f.end]

    @precondition(lambda self: self.relay.joinable)
    @rule()
    def join(self) -> None:
        follower = _Follower()
        self.followers.append(follower)
        follower.reader = self.relay.join(follower)
        assert follower.heard == self.sent

    @precondition(lambda self: not self.over and not self.held)
    @rule(size=st.sampled_from([1, 100, KEPT_BYTES // 3]))
    def push(self, size: int) -> None:
        self.number += 1
        piece = (b"%d;" % self.number) * (size // 2 + 1)
        self.sent += piece
        self.relay.push(piece, float(self.number))

    @precondition(lambda self: not self.over)
    @rule(error=st.sampled_from([None, ERROR]))
    def end(self, error: ApiError | None) -> None:
        self.over.append(error)
        self.relay.end(error)

    @rule()
    def hurry(self) -> None:
        self.relay.hurry()

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def fill(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.running())).full = True

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        follower = data.draw(st.sampled_from(self.running()))
        follower.full = follower.waits = False
        assert follower.reader is not None
        follower.reader.resume()

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        follower = data.draw(st.sampled_from(self.running()))
        assert follower.reader is not None
        follower.reader.leave()
        follower.left = True

    @invariant()
    def everybody_has_a_beginning_of_what_was_sent(self) -> None:
        for follower in self.followers:
            assert self.sent.startswith(follower.heard)
            assert follower.began == bool(follower.heard)
            assert len(follower.end) <= 1

    @invariant()
    def who_takes_everything_has_everything(self) -> None:
        for follower in self.running():
            assert follower.reader is not None
            if not follower.reader.paused:
                assert follower.heard == self.sent

    @invariant()
    def a_clean_end_is_a_complete_stream(self) -> None:
        for follower in self.followers:
            if follower.end and follower.end != ["slow"]:
                assert follower.end == self.over
                assert follower.heard == self.sent

    @invariant()
    def only_who_lags_behind_others_is_cut_off(self) -> None:
        for follower in self.followers:
            if follower.end == ["slow"]:
                assert len(self.sent) - len(follower.heard) > KEPT_BYTES // 2

    @invariant()
    def the_worker_waits_only_while_all_do(self) -> None:
        if self.held and not self.over:
            readers = [f.reader for f in self.running()]
            assert readers and all(r is not None and r.paused for r in readers)


class Alone(Streams):
    """The same of a stream that nobody else may follow."""

    shared = False

    def __init__(self) -> None:
        super().__init__()
        follower = _Follower()
        self.followers.append(follower)
        follower.reader = self.relay.join(follower)


TestStreams = Streams.TestCase
TestAlone = Alone.TestCase
