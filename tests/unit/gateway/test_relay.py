"""One stream to many: who gets what, who is held up by whom, and who is told of the end."""

from sluice_api.errors import ApiError
from sluice_gateway.relay import KEPT_BYTES, Relay

ERROR = ApiError("upstream_failed", "The worker failed.")


class Listener:
    """Writes down what it is told; ``room`` is how many pieces it takes before it is full."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.room = room
        self.heard = b""
        self.began = 0
        self.ended: list[ApiError | str | None] = []

    def begin(self, data: bytes) -> bool:
        self.began += 1
        return self.send(data)

    def send(self, data: bytes) -> bool:
        assert not self.ended
        self.heard += data
        self.room -= 1
        return self.room > 0

    def over(self, error: ApiError | None) -> None:
        self.ended.append(error)

    def cut_off(self, cause: str) -> None:
        self.ended.append(cause)


class Upstream:
    """Whether the worker is made to wait."""

    def __init__(self, *, shared: bool = True) -> None:
        self.held: list[bool] = []
        self.relay = Relay(shared=shared, hold=self.held.append, now=0.0)


def test_who_comes_late_gets_the_beginning_first() -> None:
    relay, early, late = Upstream().relay, Listener(), Listener()
    relay.join(early)
    relay.push(b"a", 1.0)
    relay.push(b"b", 2.0)
    relay.join(late)
    assert (late.heard, late.began) == (b"ab", 1)
    relay.push(b"c", 3.0)
    relay.end()
    assert early.heard == late.heard == b"abc"
    assert early.ended == late.ended == [None]
    assert early.began == 1
    assert (relay.last, relay.pieces) == (3.0, 3)
    assert not relay.joinable


def test_the_error_comes_after_what_was_sent() -> None:
    relay, listener = Upstream().relay, Listener()
    relay.join(listener)
    relay.push(b"a", 1.0)
    relay.end(ERROR)
    assert (listener.heard, listener.ended) == (b"a", [ERROR])


def test_one_alone_holds_the_stream_up_until_it_goes_on() -> None:
    for shared in (True, False):
        upstream = Upstream(shared=shared)
        listener = Listener(room=1)
        reader = upstream.relay.join(listener)
        upstream.relay.push(b"a", 1.0)
        assert upstream.held == [True] and reader.paused
        upstream.relay.push(b"b", 2.0)  # Was on its way already.
        assert listener.heard == b"a"
        listener.room = 10
        reader.resume()
        assert listener.heard == b"ab"
        assert upstream.held == [True, False]


def test_who_leaves_does_not_hold_it_up_any_more() -> None:
    upstream = Upstream()
    upstream.relay.join(Listener(room=1)).leave()
    slow = upstream.relay.join(Listener(room=1))
    upstream.relay.push(b"a", 1.0)
    assert upstream.held == [True]
    slow.leave()
    assert upstream.held == [True, False]


def test_of_several_the_quick_ones_set_the_pace() -> None:
    upstream = Upstream()
    slow, quick = Listener(room=1), Listener()
    upstream.relay.join(slow)
    upstream.relay.join(quick)
    piece = b"x" * 1000
    for number in range(2 * KEPT_BYTES // len(piece)):
        upstream.relay.push(piece, float(number))
    assert upstream.held == []
    assert slow.ended == ["slow"] and len(slow.heard) == len(piece)
    assert quick.ended == [] and len(quick.heard) > KEPT_BYTES
    assert not upstream.relay.joinable, "its beginning is not kept any more"


def test_a_slow_one_catches_up_with_what_is_kept() -> None:
    upstream = Upstream()
    slow, quick = Listener(room=1), Listener()
    reader = upstream.relay.join(slow)
    upstream.relay.join(quick)
    for piece in (b"a", b"b", b"c"):
        upstream.relay.push(piece, 1.0)
    slow.room = 10
    reader.resume()
    assert slow.heard == quick.heard == b"abc"


def test_who_lags_is_told_of_the_end_once_it_has_caught_up() -> None:
    for error in (None, ERROR):
        upstream = Upstream()
        slow, quick = Listener(room=1), Listener()
        reader = upstream.relay.join(slow)
        upstream.relay.join(quick)
        upstream.relay.push(b"a", 1.0)
        upstream.relay.push(b"b", 1.0)
        upstream.relay.end(error)
        assert (slow.ended, quick.ended) == ([], [error])
        slow.room = 10
        reader.resume()
        assert (slow.heard, slow.ended) == (b"ab", [error])


def test_nobody_may_hold_up_what_somebody_waits_for() -> None:
    upstream = Upstream()
    upstream.relay.join(Listener(room=1))
    upstream.relay.push(b"a", 1.0)
    upstream.relay.hurry()
    assert upstream.held == [True, False]
    upstream.relay.push(b"b", 2.0)
    assert upstream.held == [True, False]


def test_what_is_not_shared_is_not_kept() -> None:
    relay, listener = Upstream(shared=False).relay, Listener()
    relay.join(listener)
    for _ in range(100):
        relay.push(b"x" * 10_000, 1.0)
    assert len(listener.heard) == 1_000_000
    assert relay.after(relay.pieces) == [] and not relay.joinable
