"""Who may come in: decided at once from predicted seconds, before any work is done.

The loop measures the wait and calls :func:`judge`; the work of requests that are still being
tokenised is held in :class:`Reserved`, so that a burst cannot slip in unseen.
"""

from typing import Self

from sluice_api.errors import ApiError

MAX_ON_POOL = 1024
"""Requests being tokenised or rendered at once; beyond it newcomers are refused."""
_HALF_LIFE_SECONDS = 10.0
"""Of a prediction that nothing computed since has confirmed."""


def judge(*, wait: float, own: float, left: float, max_backlog: float, quiet: float = 0.0) -> None:
    """Refuse what cannot be answered in time. All in seconds.

    Args:
        wait: predicted until the request would begin.
        own: predicted for the request itself.
        left: until its deadline.
        quiet: since something was last computed. Predictions lose half their weight every ten: a
            machine that was slow for a while would else refuse all, and never learn that it is
            fast again.
    Raises:
        ApiError: ``overloaded`` with the predicted wait, or ``deadline_exceeded`` when even an
            idle worker would need longer than the caller waits.
    """
    own *= 0.5 ** (quiet / _HALF_LIFE_SECONDS)
    if left <= 0 or own > left:
        raise ApiError(
            "deadline_exceeded",
            f"The request needs about {own:.1f} s of computing and has {max(left, 0):.1f} s.",
        )
    if wait > max_backlog or wait + own > left:
        raise overloaded(wait)


def overloaded(wait: float) -> ApiError:
    """The refusal that says how long the work ahead will take."""
    return ApiError(
        "overloaded",
        f"Work for {wait:.2f} s is waiting already.",
        retry_after=max(wait, 0.001),
    )


class Reserved:
    """The summed predicted work of requests that are being tokenised."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __repr__(self) -> str:
        return f"<Reserved {self.seconds:.3f} s>"

    def hold(self, seconds: float) -> "Reservation":
        """Set ``seconds`` of work aside, from now until the reservation is released."""
        self.seconds += seconds
        return Reservation(self, seconds)


class Reservation:
    """One request's part of what is reserved; leaving its context releases it at the latest."""

    __slots__ = ("_reserved", "_seconds")

    def __init__(self, reserved: Reserved, seconds: float) -> None:
        self._reserved = reserved
        self._seconds = seconds

    def __repr__(self) -> str:
        return f"<Reservation {self._seconds:.3f} s>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the work back: it is queued, and counted there, or it will not be done."""
        self._reserved.seconds = max(0.0, self._reserved.seconds - self._seconds)
        self._seconds = 0.0
