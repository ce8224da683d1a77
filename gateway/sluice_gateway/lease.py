"""Who computes an answer, among all gateways: a lease per key, in Redis.

``claim`` takes leases before it computes, and looks at others' while it waits for their answers. A
lease ends by itself; whoever holds one may end it sooner, say that the computation failed, or see
it lost to somebody else, by a token that nobody else has. Without Redis there are no leases, and
everybody computes.
"""

import itertools
import secrets
from binascii import hexlify
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal

import msgspec

from sluice_api import names
from sluice_api.errors import CATALOGUE, ApiError
from sluice_gateway.envelope import MAX_ENTRY_BYTES
from sluice_gateway.keys import SECRET_BYTES
from sluice_gateway.redis_commands import command, get
from sluice_gateway.redis_link import Failure
from sluice_gateway.redis_store import Store
from sluice_gateway.sealing import OVERHEAD, Sealer

MAX_KEYS: Final = 64
"""Of one computation; longer lists are computed without leases."""
DONE_SECONDS: Final = 0.25
"""How long a lease outlives its computation: until the answer can be read."""
FAILED_SECONDS: Final = 1.0
"""How long a failure is told to those who wait for the answer."""

_PREFIX: Final = names.REDIS_CACHE_PREFIX.encode()
_TOKEN: Final = b"t"
_FAILURE: Final = b"f"
_IF_MINE: Final = b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call("
_END: Final = _IF_MINE + b"'PEXPIRE', KEYS[1], ARGV[2]) end return 0"
_TELL: Final = _IF_MINE + b"'SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end return 0"

State = Literal["held", "gone"] | ApiError


class Leases:
    """The leases of one process.

    Args:
        sealer: seals what is told of failures, so that only gateways can make callers read it.
    """

    def __init__(self, store: Store, sealer: Sealer) -> None:
        self._store = store
        self._sealer = sealer
        self._held: dict[bytes, bytes] = {}
        prefix = secrets.token_hex(8).encode()
        self._tokens = (b"%b%b%x" % (_TOKEN, prefix, number) for number in itertools.count())

    def __repr__(self) -> str:
        return f"<Leases {len(self._held)} held>"

    @property
    def available(self) -> bool:
        """Asking for one has a chance to be answered."""
        return self._store.takes_writes

    def take(
        self, keys: list[bytes], seconds: float, on_taken: Callable[[list[bool | None]], None]
    ) -> None:
        """Lease each of ``keys`` for so long, in one round trip.

        Args:
            on_taken: called once, within the budget of the store and perhaps at once: whether each
                key is leased to the caller; None where nobody knows.
        """
        gathering = _Gathering(len(keys), on_taken)
        for index, key in enumerate(keys):
            if key in self._held:  # By this process, which has asked for it if no more.
                gathering.take(index, False)
                continue
            token, lease = next(self._tokens), _lease(key)
            # From now on, so that who is done before Redis has answered lets go of it all the same:
            # what ends a lease comes there behind what takes it, and does nothing without it.
            self._held[key] = token
            words = command("SET", lease, token, "NX", "PX", max(1, int(seconds * 1000)))
            on_reply = partial(self._took, key, token, partial(gathering.take, index))
            self._store.call(lease, [words], on_reply)

    def look(self, keys: list[bytes], on_states: Callable[[list[State]], None]) -> None:
        """See how it stands about each of ``keys``; called once, like :meth:`take`."""
        gathering = _Gathering(len(keys), on_states)
        for index, key in enumerate(keys):
            on_reply = partial(self._looked, key, partial(gathering.take, index))
            lease = _lease(key)
            self._store.call(lease, [get(lease)], on_reply)

    def done(self, key: bytes) -> None:
        """The answer is on its way to where others look for it."""
        self._end(key, DONE_SECONDS)

    def free(self, key: bytes) -> None:
        """There will be no answer, for a reason that is not the others'."""
        self._end(key, 0)

    def fail(self, key: bytes, error: ApiError | None) -> None:
        """Tell those who wait that there will be no answer; None: as :meth:`free`."""
        if error is None:
            self.free(key)
            return
        token = self._held.pop(key, None)
        if token is None:
            return
        told = msgspec.json.encode((error.code, error.message, error.retry_after))
        lease = _lease(key)
        value = _FAILURE + self._sealer.seal(lease, told)
        words = command("EVAL", _TELL, 1, lease, token, value, int(FAILED_SECONDS * 1000))
        self._store.call(lease, [words], _ignore)

    def _end(self, key: bytes, seconds: float) -> None:
        token = self._held.pop(key, None)
        if token is not None:
            lease = _lease(key)
            words = command("EVAL", _END, 1, lease, token, int(seconds * 1000))
            self._store.call(lease, [words], _ignore)

    def _took(
        self,
        key: bytes,
        token: bytes,
        on_taken: Callable[[bool | None], None],
        replies: list[Any] | Failure,
    ) -> None:
        reply = replies if isinstance(replies, Failure) else replies[0]
        if reply == b"OK":
            on_taken(True)
        else:
            if self._held.get(key) == token:
                del self._held[key]
            on_taken(False if reply is None else None)

    def _looked(
        self, key: bytes, on_state: Callable[[State], None], replies: list[Any] | Failure
    ) -> None:
        reply = replies if isinstance(replies, Failure) else replies[0]
        on_state(self._state(key, reply))

    def _state(self, key: bytes, value: object) -> State:
        """What stands at a lease says; anything that is not understood is no lease."""
        if not isinstance(value, bytes) or len(value) > MAX_ENTRY_BYTES:
            return "gone"
        if value[:1] == _TOKEN:
            return "held"
        if value[:1] != _FAILURE or len(value) <= OVERHEAD:
            return "gone"
        told = self._sealer.open(_lease(key), value[1:])
        return "gone" if told is None else _error(told)


class _Gathering:
    """Several replies, told together."""

    __slots__ = ("_missing", "_on_all", "_values")

    def __init__(self, count: int, on_all: Callable[[list[Any]], None]) -> None:
        self._values: list[Any] = [None] * count
        self._missing = count
        self._on_all = on_all

    def take(self, index: int, value: Any) -> None:
        self._values[index] = value
        self._missing -= 1
        if not self._missing:
            self._on_all(self._values)


def _error(told: bytes) -> State:
    code, message, retry_after = msgspec.json.decode(told)
    return ApiError(code, message, retry_after=retry_after) if code in CATALOGUE else "gone"


def _lease(key: bytes) -> bytes:
    """Its name in Redis: in the same slot of a cluster as the answer itself."""
    return b"{%b%b}:lease" % (_PREFIX, hexlify(key[:SECRET_BYTES]))


def _ignore(replies: list[Any] | Failure) -> None:
    """Nobody waits for it; what went wrong has been counted."""
