"""What a batch costs in seconds, learnt from the batches that ran.

The loop asks it how many tokens the next batch may hold and how long the waiting work will take;
refusals, ``Retry-After`` and the backlog metric all come from here. Pure arithmetic, no clock.
"""

from dataclasses import dataclass

_SCALE = 128.0
"""Tokens are counted in units of this, so that the three features have like magnitudes."""

_FORGETTING = 0.98
_MAX_UNCERTAINTY = 10.0
"""Bound on the covariance: without it, equal batches for hours make it, and so one odd batch's
weight, grow without end."""

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
    """``seconds = a + b·tokens + c·squares``, by recursive least squares with forgetting.

    Errors are weighted relative to the prediction (a small batch counts as much as a big one), one
    observation may move the fit at most threefold (a batch may have been paused by a neighbour),
    and no coefficient is ever negative.
    """

    def __init__(self) -> None:
        self.observations = 0
        self._theta = [0.0, 0.0, 0.0]
        self._covariance = [[float(row == column) for column in range(3)] for row in range(3)]

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
        projected = [sum(p * v for p, v in zip(row, x, strict=True)) for row in self._covariance]
        scale = _FORGETTING + sum(v * p for v, p in zip(x, projected, strict=True))
        gain = [p / scale for p in projected]
        error = (seconds - predicted) * weight
        self._theta = [max(0.0, t + g * error) for t, g in zip(self._theta, gain, strict=True)]
        shrunk = [
            [self._covariance[row][column] - gain[row] * projected[column] for column in range(3)]
            for row in range(3)
        ]
        trace = shrunk[0][0] + shrunk[1][1] + shrunk[2][2]
        growth = 1 / _FORGETTING if trace / _FORGETTING <= _MAX_UNCERTAINTY else 1.0
        self._covariance = [[value * growth for value in row] for row in shrunk]
        self.observations += 1

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


def _features(load: Load) -> tuple[float, float, float]:
    return 1.0, load.tokens / _SCALE, load.squares / (_SCALE * _SCALE)
