"""How much a tenant may use: token buckets that are taken from at once and settled afterwards.

``dispatch`` takes from a tenant's buckets, which never waits for anything. Each gateway of ``n``
holds its n-th part of a tenant's bucket, filled at the n-th part of the rate; ``shared_limits``
tells Redis what was taken and is told how much all gateways have left, of which each may then use
up to its part. Without Redis the parts are all there is. What that adds up to is proven in
``tests/property/test_limits.py`` and said in ``docs/decisions/0021``. Times are monotonic seconds.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from sluice_api.errors import ApiError
from sluice_api.key_file import LIMIT_KINDS, Limits
from sluice_api.rates import Rate

SETTLE_LAG_SECONDS: Final = 0.05
"""What it takes at most, as a rule, until a token that Redis has is here."""
LONGEST_WAIT_SECONDS: Final = 3600.0

_LOW: Final = 0.5
"""Share of what it may hold below which a bucket asks for more."""
_EXACT: Final = 1e-9


class Sharing:
    """What all buckets of a process know in common.

    Attributes:
        gateways: among how many the limits are shared.
        is_up: Redis has told the common level lately.
        touched: buckets that something was taken from since they were settled last.
        hurry: called when a bucket needs to be settled soon.
    """

    __slots__ = ("gateways", "hurry", "is_up", "touched")

    def __init__(self, gateways: int, hurry: Callable[[], None] | None = None) -> None:
        self.gateways = gateways
        self.is_up = False
        self.touched: dict[Bucket, None] = {}
        self.hurry = hurry

    def __repr__(self) -> str:
        how = "by Redis" if self.is_up else "by parts"
        return f"<Sharing {how} among {self.gateways}, {len(self.touched)} touched>"


class Bucket:
    """This gateway's part of one limit of one tenant.

    It may be overdrawn by one request: one that is larger than the part is let in when the part is
    full, and what is missing is a debt.
    """

    __slots__ = (
        "_at",
        "_hungry",
        "_known",
        "_known_at",
        "_level",
        "_low",
        "_missed",
        "_pace",
        "_part",
        "_sent",
        "_sharing",
        "_shown",
        "_shown_left",
        "_spent",
        "next_settling",
        "rate",
    )

    def __init__(self, rate: Rate, sharing: Sharing, now: float) -> None:
        self.rate = rate
        self._sharing = sharing
        self._part = self._low = self._pace = 0.0
        self._level = 0.0
        self._at = now
        self._spent = 0.0
        self._sent = 0.0
        self._missed = False
        self.resize()
        self._level = self._part
        self._known = float(rate.burst)  # Until Redis tells better.
        self._known_at = now
        self._hungry = False
        self._shown = b""
        self._shown_left = -1  # What the lines that were shown last say.
        self.next_settling = now

    def __repr__(self) -> str:
        return f"<Bucket {self.rate} {self._level:.1f} of {self._part:.1f} here>"

    def resize(self) -> None:
        """The number of gateways has changed, and with it what each may hold."""
        part = max(1.0, self.rate.burst / self._sharing.gateways)
        if self._missed:
            self._level += part - self._part  # What is missing is still to be told, all of it.
        self._part = part
        self._low = self._part * _LOW
        self._pace = self.rate.per_second / self._sharing.gateways

    def change(self, rate: Rate, now: float) -> None:
        """Another limit holds from now on: no fresh burst, what is left stays what is left."""
        self._refill(now)
        level = self._level
        self.rate = rate
        self._shown_left = -1
        self.resize()
        self._level = min(level, self._part)

    @property
    def is_hungry(self) -> bool:
        """It has too little, or refused: what Redis has is wanted soon."""
        return self._hungry

    def take(self, count: int, now: float) -> float:
        """Take ``count``. Returns 0, or the seconds after which asking again is worth it."""
        level = self._level
        if now > self._at:  # As _refill and spend do, without the calls: each request comes here.
            level += (now - self._at) * self._pace
            if level > self._part:
                level = self._part
            self._at = now
        if level < count and level < count - _EXACT and level < self._part - _EXACT:
            self._level = level
            self._starve()
            return self._wait(count, now)
        level = self._level = level - count
        if not self._spent:
            self._sharing.touched[self] = None
        self._spent += count
        if level < self._low:
            self._starve()
        return 0.0

    def check(self, now: float) -> float:
        """0 while anything is left, else the seconds after which there is."""
        self._refill(now)
        if self._level < 1 - _EXACT:
            self._starve()
            return self._wait(1, now)
        return 0.0

    def spend(self, count: float) -> None:
        """Take what has been used already, below zero if need be."""
        level = self._level = self._level - count
        self._spent += count
        self._sharing.touched[self] = None
        if level < self._low:
            self._starve()

    def left(self, now: float) -> int:
        """How many may still come, as far as is known here."""
        left = math.floor((self._common(now) if self._sharing.is_up else self._level) + _EXACT)
        burst = self.rate.burst
        return 0 if left < 0 else left if left < burst else burst

    def lines(self, kind: bytes, now: float) -> bytes:
        """What is left, as OpenAI's API has it, and its clients read it."""
        left = self.left(now)
        if left != self._shown_left:
            rate = self.rate
            self._shown_left = left
            self._shown = _written(kind, left, rate.burst, rate.per_second)
        return self._shown

    # With Redis -----------------------------------------------------------------------------------

    def settle(self, now: float) -> float:
        """How many to tell Redis of; followed by :meth:`told` or :meth:`not_told`.

        After a time without Redis no more than what is missing here: everything older has been made
        up for by the rate, there as here.
        """
        self._refill(now)
        self._sent, self._spent = self._spent, 0.0
        if self._missed:
            self._sent = min(self._sent, max(0.0, self._part - self._level))
        return self._sent

    def told(self, common: float, now: float) -> None:
        """All gateways together have ``common`` left, maybe less than nothing."""
        self._sent = 0.0
        self._missed = False
        self._hungry = False
        self._known, self._known_at = common, now
        # All there is, up to the part: what others may use without asking is bounded all the same.
        share = min(common, self._part) if common > 0 else common / self._sharing.gateways
        # What was taken while Redis was asked is not yet in what it told.
        self._level = share - self._spent
        self._at = now
        wait = max(0.0, (1 - common) / self.rate.per_second) if self._level < 1 else 0.0
        self.next_settling = now + min(wait, 1.0)

    def not_told(self) -> None:
        """Redis did not take it: it is told the next time."""
        self._spent += self._sent
        self._sent = 0.0
        self._missed = True

    # ----------------------------------------------------------------------------------------------

    def _refill(self, now: float) -> None:
        passed = now - self._at
        if passed > 0:
            self._at = now
            filled = self._level + passed * self._pace
            self._level = filled if filled < self._part else self._part

    def _starve(self) -> None:
        """Ask to be settled soon."""
        if not self._hungry:
            self._hungry = True
            self._sharing.touched[self] = None
            if self._sharing.hurry is not None:
                self._sharing.hurry()

    def _common(self, now: float) -> float:
        """What all gateways have left, as far as is known here."""
        grown = self._known + (now - self._known_at) * self.rate.per_second
        return min(grown, self.rate.burst) - self._spent - self._sent

    def _wait(self, count: int, now: float) -> float:
        rate = self.rate.per_second
        if self._sharing.is_up:
            missing = max(0.0, count - self._common(now))
            return min(missing / rate + SETTLE_LAG_SECONDS, LONGEST_WAIT_SECONDS)
        alone = (min(count, self._part) - self._level) / self._pace
        return min(max(alone, SETTLE_LAG_SECONDS), LONGEST_WAIT_SECONDS)


class TenantLimits:
    """The buckets of one tenant.

    Args:
        tenant: for messages.
        new_bucket: makes one.
    """

    __slots__ = ("_buckets", "_tenant", "inputs", "limits", "requests", "tokens")

    def __init__(
        self, tenant: str, limits: Limits, new_bucket: Callable[[str, Rate], Bucket]
    ) -> None:
        self.limits = limits
        self._tenant = tenant
        self._buckets: dict[str, Bucket] = {}
        for kind in LIMIT_KINDS:
            rate: Rate | None = getattr(limits, kind)
            if rate is not None:
                self._buckets[kind] = new_bucket(kind, rate)
        self.requests = self._buckets.get("requests")
        self.inputs = self._buckets.get("inputs")
        self.tokens = self._buckets.get("tokens")

    def __repr__(self) -> str:
        return f"<TenantLimits {self._tenant} {self._buckets}>"

    def bucket(self, kind: str) -> Bucket | None:
        """What one kind of limit is counted in, if there is such a limit."""
        return self._buckets.get(kind)

    def buckets(self) -> list[Bucket]:
        return list(self._buckets.values())

    def take_request(self, now: float) -> bytes:
        """Count one request. Returns header lines for its answer. Raises ApiError."""
        bucket = self.requests
        if bucket is None:
            return b""
        if wait := bucket.take(1, now):
            raise self._refusal("requests", bucket, wait, now)
        return bucket.lines(b"requests", now)

    def take_inputs(self, count: int, now: float) -> None:
        """Count ``count`` texts that are to be computed. Raises ApiError."""
        bucket = self.inputs
        if bucket is not None:
            if count > bucket.rate.burst:
                raise ApiError(
                    "too_many_inputs",
                    f"Got {count} inputs; {self._tenant!r} may have {bucket.rate.burst} computed"
                    " at once.",
                )
            if wait := bucket.take(count, now):
                raise self._refusal("inputs", bucket, wait, now)
        bucket = self.tokens
        if bucket is not None and bucket._level < 1 and (wait := bucket.check(now)):
            raise self._refusal("tokens", bucket, wait, now)

    def use_tokens(self, count: int) -> None:
        """Count ``count`` tokens that a worker computed; the next request may have to wait."""
        if self.tokens is not None:
            self.tokens.spend(count)

    def _refusal(self, kind: str, bucket: Bucket, wait: float, now: float) -> ApiError:
        lines = bucket.lines(kind.encode(), now).decode().split("\r\n")[:-1]
        return ApiError(
            "rate_limited",
            f"{self._tenant!r} has used its {kind}: {bucket.rate}.",
            retry_after=wait,
            headers=[(name, value) for name, _, value in (line.partition(": ") for line in lines)],
        )


@lru_cache(maxsize=1024)
def _written(kind: bytes, left: int, burst: int, per_second: float) -> bytes:
    """Most callers use little of a limit, and are told the same figures again and again."""
    return (
        b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n"
        % (kind, burst, kind, left, kind, _short((burst - left) / per_second))
    )


def _short(seconds: float) -> bytes:
    """A time as Go writes it, as these headers have it: ``12ms``, ``1s``, ``6m0s``."""
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    whole = math.ceil(seconds)
    if whole < 60:
        return b"%ds" % whole
    hours, rest = divmod(whole, 3600)
    return (b"%dh" % hours if hours else b"") + b"%dm%ds" % divmod(rest, 60)
