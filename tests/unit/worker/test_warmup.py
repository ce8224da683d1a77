"""The warm-up refuses a broken model, seeds the cost model, and settles the lanes."""

import logging
from collections.abc import Sequence

import numpy as np
import pytest

from sluice_worker.engines.base import Array, Unit
from sluice_worker.logs import TextFormatter
from sluice_worker.models.errors import ModelRejected
from sluice_worker.warmup import warm_up
from tests.support.worker_fakes import NOT_A_NUMBER, ToyEngine, unit

CANARY = (unit("a" * 8), unit("b" * 48), unit("c" * 192))


def warm(
    engine: ToyEngine,
    canary: Sequence[Unit] = CANARY,
    threads: int = 1,
    dtype: str = "float32",
) -> object:
    return warm_up(engine, canary, dtype=dtype, threads=threads, set_threads=lambda count: None)


def test_a_sound_model_is_measured_with_every_length() -> None:
    engine = ToyEngine()
    warmth = warm_up(engine, CANARY, dtype="float32", threads=1, set_threads=lambda count: None)
    assert warmth.threads == 1
    assert warmth.cost.observations == 3
    computed = sum(len(text) for batch in engine.batches for text in batch)
    assert computed < 3 * sum(unit.tokens for unit in CANARY)


def test_costs_are_learnt_on_one_thread_and_all_are_set_afterwards() -> None:
    counts: list[int] = []
    warmth = warm_up(ToyEngine(), CANARY, dtype="float32", threads=2, set_threads=counts.append)
    assert counts[0] == 2
    assert counts[-1] == 2
    assert counts.count(1) >= 2
    assert warmth.wide.gain.value > 0


def test_numbers_that_are_not_finite_are_rejected() -> None:
    with pytest.raises(ModelRejected, match="not finite"):
        warm(ToyEngine(), (unit(NOT_A_NUMBER), unit("bb")))


def test_answers_that_change_are_rejected() -> None:
    class Moody(ToyEngine):
        def run(self, units: Sequence[Unit]) -> list[Array]:
            return [array + np.float32(len(self.batches)) for array in super().run(units)]

    with pytest.raises(ModelRejected, match="differently each time"):
        warm(Moody())


class Rounding(ToyEngine):
    """Answers that are a little larger each time, by three thousandths of the largest."""

    def run(self, units: Sequence[Unit]) -> list[Array]:
        arrays = super().run(units)
        return [array * np.float32(1 + 3e-3 * len(self.batches)) for array in arrays]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_may_round_as_they_do(dtype: str) -> None:
    warm(Rounding(), dtype=dtype)


def test_what_is_exact_may_not() -> None:
    with pytest.raises(ModelRejected, match="differently each time"):
        warm(Rounding())


def test_what_was_measured_is_told_in_figures(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sluice_worker"):
        warm(ToyEngine())
    (line,) = [TextFormatter().format(record) for record in caplog.records]
    assert " batch_ms=" in line
    assert "<" not in line


def test_a_canary_of_one_unit_does() -> None:
    warm(ToyEngine(), (unit("only"),))


def test_where_steps_are_shared_a_batch_is_measured_too() -> None:
    class Steps(ToyEngine):
        stepwise = True

    engine = Steps()
    warmth = warm_up(engine, CANARY, dtype="float32", threads=1, set_threads=lambda count: None)
    assert warmth.cost.observations == 5
    assert max(len(batch) for batch in engine.batches) == 8


def test_step_by_step_only_the_first_step_must_be_the_same() -> None:
    class Drifting(ToyEngine):
        stepwise = True

        def run(self, units: Sequence[Unit]) -> list[Array]:
            rows = [(array[0], len(self.batches)) for array in super().run(units)]
            return [np.array(row, np.float32) for row in rows]

    warm(Drifting())

    class Moody(ToyEngine):
        stepwise = True

        def run(self, units: Sequence[Unit]) -> list[Array]:
            return [array + np.float32(len(self.batches)) for array in super().run(units)]

    with pytest.raises(ModelRejected, match="differently each time"):
        warm(Moody())
