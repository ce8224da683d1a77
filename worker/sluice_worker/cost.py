"""What a batch costs in seconds, learnt from the batches that ran.

The loop asks it how many tokens the next batch may hold and how long the waiting work will take;
refusals, ``Retry-After`` and the backlog metric all come from here. Pure arithmetic, no clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations

_SCALE = 128.0
"""Tokens are counted in units of this, so that the three features have like magnitudes."""

_FORGETTING = 0.98
_STEADINESS = 1e-3
"""What it costs to move a coefficient that the batches hardly tell apart from another: in relative
errors, squared, of a batch of :data:`_SCALE` tokens."""
_SUPPORTS = tuple(chain.from_iterable(combinations(range(3), size) for size in (3, 2, 1)))
"""Which coefficients may be above zero."""

_TRY_OTHER_EVERY = 32

_KNEE_FLOOR_TOKENS = 64
"""Matrix products below this waste the machine, and the straight line cannot see it."""
_BUDGET_CEILING_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Load:
    """The size of a batch: what its time depends on.

    Attributes:
        tokens: tokens computed, padding included.
        squares: sum over the texts of the square of their length: the attention's share.
    """

    tokens: float
    squares: float


def load_of(lengths: list[int], computed_tokens: int) -> Load:
    """The load of one batch of texts of ``lengths``, computed as ``computed_tokens`` in all."""
    real = sum(lengths)
    squares = sum(length * length for length in lengths)
    return Load(computed_tokens, squares * computed_tokens / real if real else 0.0)


class CostModel:
    """``seconds = a + b·tokens + c·squares``, by least squares with forgetting, none negative.

    Errors are weighted relative to the prediction (a small batch counts as much as a big one), and
    one observation counts for at most three times what was predicted (a batch may have been paused
    by a neighbour). What fits is always solved for anew, so no run of odd batches can drive it away
    from what was seen.
    """

    def __init__(self) -> None:
        self.observations = 0
        self._theta = [0.0, 0.0, 0.0]
        self._moments = [[0.0, 0.0, 0.0] for _ in range(3)]
        self._targets = [0.0, 0.0, 0.0]

    def __repr__(self) -> str:
        return (
            f"<CostModel {self.overhead_seconds * 1e3:.2f} ms + "
            f"{self.seconds_per_token * 1e6:.1f} us/token + "
            f"{self.seconds_per_square * 1e9:.2f} ns/token^2, {self.observations} batches>"
        )

    @property
    def overhead_seconds(self) -> float:
        return self._theta[0]

    @property
    def seconds_per_token(self) -> float:
        return self._theta[1] / _SCALE

    @property
    def seconds_per_square(self) -> float:
        return self._theta[2] / (_SCALE * _SCALE)

    def predict(self, load: Load) -> float:
        """Seconds one batch of ``load`` takes on one lane."""
        return sum(t * x for t, x in zip(self._theta, _features(load), strict=True))

    def observe(self, load: Load, seconds: float) -> None:
        """Learn that a batch of ``load`` took ``seconds``."""
        predicted = self.predict(load)
        if self.observations >= 3 and predicted > 0:
            seconds = min(max(seconds, predicted / 3), predicted * 3)
            weight = 1 / predicted
        else:
            weight = 1 / max(seconds, 1e-9)
        x = [value * weight for value in _features(load)]
        for row, own in zip(self._moments, x, strict=True):
            row[:] = [_FORGETTING * m + own * other for m, other in zip(row, x, strict=True)]
        self._targets = [
            _FORGETTING * t + own * seconds * weight
            for t, own in zip(self._targets, x, strict=True)
        ]
        self._fit(_STEADINESS / max(sum(self._theta), seconds, 1e-9) ** 2)
        self.observations += 1

    def _fit(self, steadiness: float) -> None:
        """Minimise the squares, and ``steadiness`` times that of each coefficient's own move.

        The smallest without negative ones is smallest among all for some set of them (Lawson and
        Hanson 1974, ch. 23); of three there are few enough sets to try each.
        """
        for place, row in enumerate(self._moments):
            row[place] += steadiness
        targets = [
            target + steadiness * before
            for target, before in zip(self._targets, self._theta, strict=True)
        ]
        best, self._theta = 0.0, [0.0, 0.0, 0.0]
        for support in _SUPPORTS:
            found = _solved(self._moments, targets, support)
            explained = sum(t * f for t, f in zip(targets, found, strict=True))
            if min(found) >= 0 and explained > best:
                best, self._theta = explained, found
            if len(support) == 3 and best:
                break  # No other can be smaller.
        for place, row in enumerate(self._moments):
            row[place] -= steadiness

    def budget(self, mean_length: float, goal_seconds: float) -> int:
        """Tokens the next batch may hold: the smaller of the knee and what the goal allows.

        The knee is where the overhead is a tenth of the time; a bigger batch only adds waiting.

        Args:
            mean_length: of the texts lately seen, in tokens.
            goal_seconds: how long one batch may take.
        """
        per_token = self.seconds_per_token + self.seconds_per_square * mean_length
        if per_token <= 0:
            return _BUDGET_CEILING_TOKENS
        knee = max(9 * self.overhead_seconds / per_token, _KNEE_FLOOR_TOKENS)
        allowed = (goal_seconds - self.overhead_seconds) / per_token
        return max(1, int(min(knee, allowed, _BUDGET_CEILING_TOKENS)))

    def unit_seconds(self, tokens: int, budget_tokens: int) -> float:
        """What one text adds to the waiting work: its own time and its part of the overhead."""
        share = min(1.0, tokens / budget_tokens)
        return (
            self.overhead_seconds * share
            + self.seconds_per_token * tokens
            + self.seconds_per_square * tokens * tokens
        )


class Average:
    """An exponentially weighted mean; the initial value counts as ``votes`` observations."""

    def __init__(self, initial: float, *, weight: float = 0.02, votes: int = 1) -> None:
        self.value = initial
        self._weight = weight
        self._seen = votes

    def __repr__(self) -> str:
        return f"<Average {self.value:.3g}>"

    def add(self, value: float) -> None:
        """Take one more observation into account."""
        self._seen += 1
        self.value += max(self._weight, 1 / self._seen) * (value - self.value)


class WideGain:
    """How much sooner all threads together finish a batch than one thread does.

    Little where the cores are shared: threads that wait for each other then wait for a neighbour.
    So it is learnt as it goes; now and then a batch runs the other way, to notice a change.

    Args:
        measured: seconds on one thread over seconds on all, as the warm-up found it.
        threads: how many all are; one odd batch cannot claim more than twice that.
    """

    def __init__(self, measured: float, threads: int) -> None:
        # A warm-up is short and easily disturbed: that lanes lose must show in real batches.
        self.gain = Average(min(measured, threads), weight=0.1, votes=10)
        self._most = 2.0 * threads
        self._choices = 0

    def __repr__(self) -> str:
        return f"<WideGain {self.gain.value:.2f}>"

    def pays(self, rivals: int) -> bool:
        """Better on all threads than side by side with as many others as there are lanes?

        Args:
            rivals: lanes there is work for; 1 for a lone batch.
        """
        return self.gain.value > rivals

    def choose(self, rivals: int) -> bool:
        """:meth:`pays`, and every so often the opposite."""
        self._choices += 1
        return self.pays(rivals) != (self._choices % _TRY_OTHER_EVERY == 0)

    def observe(self, narrow_seconds: float, wide_seconds: float) -> None:
        """Learn from a batch that took ``wide_seconds`` and was predicted for one thread."""
        if wide_seconds > 0:
            self.gain.add(min(narrow_seconds / wide_seconds, self._most))


def _solved(
    matrix: Sequence[Sequence[float]], targets: Sequence[float], support: Sequence[int]
) -> list[float]:
    """The solution of ``matrix @ x = targets`` with zeros outside of ``support``.

    By elimination; ``matrix`` is symmetric and positive definite, so no pivot is zero.
    """
    rows = [[*(matrix[row][column] for column in support), targets[row]] for row in support]
    for place, pivot in enumerate(rows):
        for row in rows[place + 1 :]:
            factor = row[place] / pivot[place]
            row[:] = [value - factor * other for value, other in zip(row, pivot, strict=True)]
    found = [0.0] * len(matrix)
    for place in reversed(range(len(rows))):
        *row, target = rows[place]
        known = sum(row[other] * found[support[other]] for other in range(place + 1, len(row)))
        found[support[place]] = (target - known) / row[place]
    return found


def _features(load: Load) -> tuple[float, float, float]:
    return 1.0, load.tokens / _SCALE, load.squares / (_SCALE * _SCALE)
