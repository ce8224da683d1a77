"""``Idempotency-Key``: a request that is sent again with the same key gets the answer of the first.

What the cache does for answers that follow from their input, this does for all others: a sampled
text that was lost on its way is not written a second time. ``dispatch`` hands over requests that
name a key. The first of them goes on with a :class:`Repeat` as its caller, which passes the answer
to everybody who has sent the same meanwhile, and keeps it for a while. Each waits by its own
deadline: not longer, and when the first's has passed, the next of them takes its place.

In one process only: a repetition that reaches another replica is computed there.
"""

import hashlib
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Literal, Protocol

from sluice_api import names
from sluice_api.errors import ApiError
from sluice_api.shapes.generated import error_event
from sluice_gateway.auth import Rights, Tenant
from sluice_gateway.keys import TenantScope
from sluice_gateway.relay import Reader, Relay
from sluice_gateway.request import Answer, Request, error_answer, give
from sluice_gateway.timers import Timer

MAX_ANSWER_BYTES: Final = 1024 * 1024
"""A larger answer is given to everybody who waits for it, but not kept."""
_OVERHEAD: Final = 512
"""Bytes that an entry takes beside its answer, about."""
_REPLAYED: Final = f"{names.IDEMPOTENT_REPLAYED}: true\r\n".encode()

Outcome = Literal["first", "joined", "replayed", "refused"]
Id = tuple[TenantScope, Rights, bytes]
"""Rights too: keys of one tenant may differ in what they may call."""


class Pending(Protocol):
    """What an edge may do with a request that is not answered yet."""

    def cancel(self) -> None: ...

    def fail(self, error: ApiError) -> None: ...

    def cut_off(self, cause: str) -> None: ...

    def resume(self) -> None: ...


class Running(Pending, Protocol):
    """The first request with a key, while it is being answered."""

    @property
    def streams(self) -> bool:
        """A stream was asked for."""
        ...


Handle = Callable[[Request], Running | None]
At = Callable[[float, Callable[[], None]], Timer]


class Repeats:
    """What was answered to requests that named a key, and who waits for it.

    Args:
        seconds: how long an answer is kept.
        limit_bytes: of all answers that are kept; the oldest go first.
        counted: told what became of each request.
        at: has something called at a moment of the monotonic clock.
        version: what is kept under another one is not given any more: answers were thrown away.
    """

    def __init__(
        self,
        seconds: float,
        limit_bytes: int,
        counted: Callable[[Outcome], None],
        at: At,
        version: Callable[[], int] = lambda: 0,
    ) -> None:
        self._seconds = seconds
        self._limit_bytes = limit_bytes
        self._counted = counted
        self._at = at
        self._version = version
        self._running: dict[Id, Repeat] = {}
        self._kept: dict[Id, _Kept] = {}  # Oldest first.
        self._bytes = 0

    def __repr__(self) -> str:
        return (
            f"<Repeats {len(self._running)} running, {len(self._kept)} kept, {self._bytes} bytes>"
        )

    def handle(
        self, request: Request, tenant: Tenant, now: float, handle: Handle
    ) -> Pending | None:
        """Have ``request``, which names a key, answered as if it had been sent only once.

        Args:
            tenant: whose key it is.
            now: on the monotonic clock.
            handle: answers the request if it is the first.

        Raises:
            ApiError: ``idempotency_key_reused`` when the key stands for something else;
                ``idempotency_key_in_use`` when its stream cannot be joined any more.
        """
        key = request.head.idempotency_key
        assert key is not None
        self._forget_until(now)
        identity = (tenant.scope, tenant.rights, key)
        kept, running = self._kept.get(identity), self._running.get(identity)
        if kept is not None and kept.version != self._version():
            self._forget(identity)
            kept = None
        known = kept or running
        print_ = _fingerprint(request)
        if known is not None and known.fingerprint != print_:
            self._counted("refused")
            raise ApiError(
                "idempotency_key_reused",
                "This Idempotency-Key came before with another route or body.",
                param="Idempotency-Key",
            )
        if kept is not None:
            self._counted("replayed")
            request.caller.answer(kept.answer.beside(request.limit_lines))
            return None
        seat = Seat(request, handle)
        if running is not None:
            running.join(seat)
            self._counted("joined")
            if (seconds := request.head.deadline_seconds) is not None:
                seat.timer = self._at(request.received + seconds, seat.expire)
            return seat
        self._counted("first")
        return seat if self._lead(identity, print_, seat) else None

    def _lead(self, identity: Id, print_: bytes, seat: "Seat") -> bool:
        """Have the request of ``seat`` answered; False when it is already."""
        version, request = self._version(), seat.request
        repeat = self._running[identity] = Repeat(
            print_,
            lambda ended, answer: self._ended(identity, ended, answer, version),
            partial(self._lead_again, identity, print_),
        )
        seat.leads = True
        repeat.join(seat)
        shared = Request(
            request.head,
            request.body,
            repeat,
            request.id,
            request.received,
            counted=request.counted,
        )
        shared.tenant = request.tenant  # What is left of its limits is told to each for itself.
        pending = seat.handle(shared)
        if not repeat.done:
            repeat.pending = pending
        return not repeat.done

    def _lead_again(self, identity: Id, print_: bytes, seat: "Seat") -> None:
        """The deadline of who went first has passed, which was not that of ``seat``."""
        running = self._running.get(identity)
        if running is None:
            self._lead(identity, print_, seat)
        elif running.fingerprint == print_ and running.joinable:
            running.join(seat)
        else:
            error = ApiError("idempotency_key_in_use", "Another request has the key by now.")
            seat.answer(error_answer(error, seat.request))

    def _ended(self, identity: Id, repeat: "Repeat", answer: Answer | None, version: int) -> None:
        """Keep ``answer``; without one, the next request with the key is a new one."""
        if self._running.get(identity) is repeat:
            del self._running[identity]
        if answer is None:
            return
        size = len(answer.body) + len(answer.headers) + _OVERHEAD
        if size > min(MAX_ANSWER_BYTES, self._limit_bytes):
            return
        self._kept[identity] = _Kept(
            repeat.fingerprint, answer, time.monotonic() + self._seconds, size, version
        )
        self._bytes += size
        while self._bytes > self._limit_bytes:
            self._forget(next(iter(self._kept)))

    def _forget_until(self, now: float) -> None:
        while self._kept:
            identity, oldest = next(iter(self._kept.items()))
            if oldest.expires > now:
                return
            self._forget(identity)

    def _forget(self, identity: Id) -> None:
        self._bytes -= self._kept.pop(identity).size


class _Kept:
    __slots__ = ("answer", "expires", "fingerprint", "size", "version")

    def __init__(
        self, fingerprint: bytes, answer: Answer, expires: float, size: int, version: int
    ) -> None:
        headers = answer.headers + _REPLAYED
        self.answer = Answer(answer.status, answer.content_type, headers, answer.body)
        self.fingerprint = fingerprint
        self.expires = expires
        self.size = size
        self.version = version


class Repeat:
    """One request that is being answered, whoever sends it how often: the caller of its exchange.

    Args:
        on_end: told once of the answer if it may be kept, of None if not.
        again: has the request of a seat answered anew.
    """

    def __init__(
        self,
        fingerprint: bytes,
        on_end: "Callable[[Repeat, Answer | None], None]",
        again: Callable[["Seat"], None],
    ) -> None:
        self._again = again
        self.fingerprint = fingerprint
        self.pending: Running | None = None
        self.done = False
        self.head: Answer | None = None  # of a stream
        self.broken = b""  # what a stream ends with that is not complete
        self._on_end = on_end
        self._seats: list[Seat] = []
        self._relay: Relay | None = None
        self._held = False
        self._parts: list[bytes] = []
        self._size = 0

    def __repr__(self) -> str:
        return f"<Repeat {'done' if self.done else 'running'} {len(self._seats)} seats>"

    @property
    def joinable(self) -> bool:
        """What has been told so far can still be told to one more."""
        return self._relay is None or self._relay.joinable

    def join(self, seat: "Seat") -> None:
        """One more who sent the same. Raises ApiError if it is too late."""
        if not self.joinable:
            raise ApiError(
                "idempotency_key_in_use",
                "The stream of this Idempotency-Key goes on, but its beginning is not kept.",
                retry_after=1.0,
            )
        seat.repeat = self
        self._seats.append(seat)
        if self._relay is not None:
            seat.reader = self._relay.join(seat)

    def leave(self, seat: "Seat") -> None:
        """Somebody is gone. A plain answer is finished: who sent a key is likely to ask again."""
        seat.forget_deadline()
        self.forget(seat)
        if seat.reader is not None:
            seat.reader.leave()
        pending = self.pending
        if not self._seats and not self.done and pending is not None and pending.streams:
            self._end(None)
            pending.cancel()

    def forget(self, seat: "Seat") -> None:
        """One has been told everything."""
        if seat in self._seats:
            self._seats.remove(seat)

    # What the exchange tells its caller -----------------------------------------------------------

    def answer(self, answer: Answer) -> None:
        self._end(answer if answer.status == 200 else None)
        late = answer.error is not None and answer.error.code == "deadline_exceeded"
        seats = tuple(self._seats)
        for seat in seats:
            if seat.leads or not late:
                seat.answer(answer)
        for seat in seats:
            if late and not seat.leads and seat in self._seats:
                self._again(seat)
        self._seats.clear()

    def begin(self, answer: Answer) -> bool:
        self.head = answer
        self._relay = Relay(shared=True, hold=self._hold, now=time.monotonic())
        for seat in tuple(self._seats):
            seat.reader = self._relay.join(seat)
        return self.send(answer.body)

    def send(self, data: bytes) -> bool:
        assert self._relay is not None
        self._size += len(data)
        if self._size <= MAX_ANSWER_BYTES:
            self._parts.append(data)
        else:
            self._parts.clear()
        self._relay.push(data, time.monotonic())
        return not self._held

    def end(self) -> None:
        head = self.head
        assert self._relay is not None
        assert head is not None
        whole = None
        if self._size <= MAX_ANSWER_BYTES:
            whole = Answer(head.status, head.content_type, head.headers, b"".join(self._parts))
        self._end(whole)
        self._relay.end()

    def break_off(self, data: bytes) -> None:
        assert self._relay is not None
        self.broken = data
        self._end(None)
        self._relay.end(ApiError("upstream_failed", "The stream broke."))

    def _end(self, answer: Answer | None) -> None:
        if not self.done:
            self.done = True
            # What is left of it would otherwise be cycles that hold the request.
            self.pending = None
            if self._relay is not None:
                self._relay.detach()
            self._on_end(self, answer)

    def _hold(self, hold: bool) -> None:
        self._held = hold
        if not hold and self.pending is not None:
            self.pending.resume()


class Seat:
    """One sender of a request: what its connection may do, and what its stream is told.

    Attributes:
        repeat: what it waits for; set by :meth:`Repeat.join`.
        leads: its own request is the one that is being answered.
        timer: of its own deadline, where it named one and waits for another's request.
    """

    def __init__(self, request: Request, handle: Handle) -> None:
        self.request = request
        self.handle = handle
        self.caller = request.caller
        self.repeat: Repeat
        self.reader: Reader | None = None
        self.leads = False
        self.timer: Timer | None = None
        self._began = False

    def answer(self, answer: Answer) -> None:
        self.forget_deadline()
        give(self.request, answer.beside(self.request.limit_lines))  # The others get theirs.

    def expire(self) -> None:
        """Its own deadline has passed, whatever that of the request which it waits for is."""
        if self.leads:
            return
        error = ApiError(
            "deadline_exceeded",
            "The deadline of the request has passed while the first one with its Idempotency-Key"
            " was being answered (phase: shared).",
        )
        self.repeat.leave(self)
        if self._began:
            self.caller.break_off(error_event(error, self.request.id.decode("latin-1")))
        else:
            self.answer(error_answer(error, self.request))

    def forget_deadline(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    # From its connection --------------------------------------------------------------------------

    def cancel(self) -> None:
        self.repeat.leave(self)

    def fail(self, error: ApiError) -> None:
        if self.repeat.pending is not None and not self.repeat.done:
            self.repeat.pending.fail(error)

    def resume(self) -> None:
        if self.reader is not None:
            self.reader.resume()

    def cut_off(self, cause: str) -> None:
        self.repeat.leave(self)
        self.caller.break_off(b"")

    # From the stream ------------------------------------------------------------------------------

    def begin(self, data: bytes) -> bool:
        head = self.repeat.head
        assert head is not None
        self._began = True
        headers = head.headers + self.request.limit_lines
        return self.caller.begin(Answer(head.status, head.content_type, headers, data))

    def send(self, data: bytes) -> bool:
        return self.caller.send(data)

    def over(self, error: ApiError | None) -> None:
        self.repeat.forget(self)
        self.reader = None
        self.forget_deadline()
        if error is None:
            self.caller.end()
        else:
            self.caller.break_off(self.repeat.broken)


def _fingerprint(request: Request) -> bytes:
    path = request.head.path.encode()
    return hashlib.sha256(b"%d\0%b%b" % (len(path), path, request.body)).digest()
