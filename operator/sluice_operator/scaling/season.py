"""What came at this time of day on the days before: what may be expected today. Pure.

``fleet`` keeps one of these per service. It holds one letter for every ten minutes of the last week
– the busiest minute's arrivals, on a scale of a quarter each – so that a service's week is a
thousand bytes, in memory and in its status alike. Expected is what at least three days of the last
seven reached, no more than the same weekday did, and only so much of it as today has kept up with.
Times are seconds since the epoch, because a day begins for everybody.
"""

import math
from typing import Final

SLOT_SECONDS: Final = 600.0
SLOTS_PER_DAY: Final = 144
DAYS: Final = 7
ENOUGH_DAYS: Final = 3
"""On so many days of the last seven it must have come."""
PUBLISH_SLOTS: Final = 6
"""At most once in so many slots is a week worth writing down."""

_MINUTES: Final = 10  # parts of a slot, of which the busiest counts
_LETTERS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LEAST_RATE: Final = 1 / 60
_PER_DOUBLING: Final = 3
_ENOUGH_REQUESTS: Final = 5.0
"""What a minute must have been expected to bring before its absence says something about today."""
_ALIKE: Final = 0.75
"""A day that brings so much of what was expected is one like the others."""


class Season:
    """The week of one service.

    Args:
        slot_seconds, slots_per_day: another day than the sun's, for simulations.
    """

    def __init__(
        self, slot_seconds: float = SLOT_SECONDS, slots_per_day: int = SLOTS_PER_DAY
    ) -> None:
        self._slot_seconds = slot_seconds
        self._per_day = slots_per_day
        self._levels = bytearray()  # empty until somebody has asked; then by slot modulo the week
        self._begin = -1  # the first slot that was heard
        self._slot = -1  # the open one
        self._asked = -1  # the last one that brought something
        self._minute, self._count, self._rate = -1, 0, 0.0
        self._share = 1.0

    def __repr__(self) -> str:
        days = (self._slot - self._begin) / self._per_day if self._levels else 0.0
        return f"<Season of {days:.1f} days, today {self._share:.0%} of them>"

    @property
    def lead_seconds(self) -> float:
        """How much earlier than a start takes one should look, because slots begin sharply."""
        return self._slot_seconds / _MINUTES

    def observe(self, arrivals: int, at: float) -> None:
        """So many requests came up to ``at``."""
        if not arrivals:
            return
        if self._slot < 0:
            self._begin = self._slot = int(at // self._slot_seconds)
        self._advance(at)
        minute = int(at // self.lead_seconds)
        if minute != self._minute:
            self._close_minute()
            self._minute = minute
        self._count += arrivals
        self._asked = self._slot

    def expected(self, at: float, ahead: float) -> float:
        """Requests a second that may come at any time from ``at`` to ``ahead`` seconds later."""
        self._advance(at)
        if not self._levels:
            return 0.0
        first, last = (int(moment // self._slot_seconds) for moment in (at, at + ahead))
        last = min(last, first + self._per_day - 1)  # a day on, nothing else would be found
        return self._share * max(self._usual(slot) for slot in range(first, last + 1))

    # A week in a line ----------------------------------------------------------------------------

    def is_worth_writing(self, written: str, at: float) -> bool:
        """Whether something has come since ``written``, and an hour has passed at ``at``.

        A service that nobody asks has nothing to add, however long it sleeps.
        """
        self._advance(at)
        if not self._levels:
            return False
        _, slot = _heading(written) or (0, self._begin)
        return self._asked >= slot and self._slot - slot >= PUBLISH_SLOTS

    def text(self) -> str:
        """Everything, but for the open slot, as :meth:`restore` reads it; empty for nothing."""
        if not self._levels:
            return ""
        return f"{self._begin}.{self._slot}.{self._levels.decode()}"

    def restore(self, text: str, at: float) -> None:
        """Begin with what :meth:`text` said in another process, if there is no memory here yet.

        What came between the two nobody knows; it counts as nothing. A text that cannot be read,
        or that is from the future, is none.
        """
        heading, letters = _heading(text), text.rpartition(".")[2]
        if self._levels or heading is None or heading[1] > int(at // self._slot_seconds):
            return
        if len(letters) != self._week or not (letters.isascii() and letters.isalnum()):
            return
        asked, running = self._asked, (self._minute, self._count, self._rate)
        self._levels = bytearray(letters.encode())
        self._begin, self._slot = heading
        self._minute, self._count, self._rate = -1, 0, 0.0
        self._advance(at)
        self._minute, self._count, self._rate = running
        self._asked, self._share = max(asked, heading[1] - 1), 1.0

    # Slots ---------------------------------------------------------------------------------------

    @property
    def _week(self) -> int:
        return DAYS * self._per_day

    def _advance(self, at: float) -> None:
        """Close the slots that are over at ``at``."""
        slot = int(at // self._slot_seconds)
        if self._slot < 0 or slot <= self._slot:
            return
        self._close_minute()
        if not self._levels and self._rate:
            self._levels = bytearray(_LETTERS[0].encode() * self._week)
        for over in range(max(self._slot, slot - self._week), slot) if self._levels else ():
            rate = self._rate if over == self._slot else 0.0
            self._judge(self._usual(over), rate)
            self._levels[over % self._week] = ord(_letter(rate))
        self._slot, self._rate = slot, 0.0

    def _close_minute(self) -> None:
        self._rate = max(self._rate, self._count / self.lead_seconds)
        self._minute, self._count = -1, 0

    def _judge(self, usual: float, rate: float) -> None:
        """Learn how much of what is usual comes today: a holiday is not to be paid for."""
        if usual * self.lead_seconds >= _ENOUGH_REQUESTS:
            self._share = 1.0 if rate >= _ALIKE * usual else rate / usual

    def _usual(self, slot: int) -> float:
        """Requests a second at the same time on the days before; ``slot`` is not over yet."""
        days = [self._levels[(slot - n * self._per_day) % self._week] for n in range(1, DAYS + 1)]
        level = sorted(days)[-ENOUGH_DAYS]
        if self._begin <= slot - self._week:
            level = min(level, days[-1])
        return _rate(chr(level))


def newest(one: str, other: str) -> str:
    """Which of two written weeks of one service goes on to a later time."""
    return max(one, other, key=lambda text: (_heading(text) or (0, -1))[1])


def _heading(text: str) -> tuple[int, int] | None:
    """First slot and open slot of a written week."""
    begin, _, rest = text.partition(".")
    slot, sign, _ = rest.partition(".")
    if not sign or not (begin.isdecimal() and slot.isdecimal()) or len(begin + slot) > 24:
        return None
    return (int(begin), int(slot)) if int(begin) <= int(slot) else None


def _letter(rate: float) -> str:
    if rate < _LEAST_RATE / 2:
        return _LETTERS[0]
    level = 1 + round(_PER_DOUBLING * math.log2(rate / _LEAST_RATE))
    return _LETTERS[min(max(1, level), len(_LETTERS) - 1)]


def _rate(letter: str) -> float:
    level = _LETTERS.index(letter)
    return _LEAST_RATE * 2 ** ((level - 1) / _PER_DOUBLING) if level else 0.0
