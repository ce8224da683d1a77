"""The cost model: it finds the true costs, follows a change, and stays sane on odd data."""

import random

import pytest

from sluice_worker.cost import Average, CostModel, Load, WideGain, load_of

OVERHEAD, TOKEN, SQUARE = 0.004, 0.0003, 0.000_000_2


def true_seconds(load: Load) -> float:
    return OVERHEAD + TOKEN * load.tokens + SQUARE * load.squares


def taught(batches: int = 200, *, noise: float = 0.05, factor: float = 1.0) -> CostModel:
    model, chance = CostModel(), random.Random(1)
    teach(model, batches, chance, noise=noise, factor=factor)
    return model


def teach(
    model: CostModel,
    batches: int,
    chance: random.Random,
    *,
    noise: float = 0.05,
    factor: float = 1.0,
) -> None:
    for _ in range(batches):
        lengths = [chance.randint(4, 200) for _ in range(chance.randint(1, 6))]
        load = load_of(lengths, sum(lengths))
        model.observe(load, factor * true_seconds(load) * chance.uniform(1 - noise, 1 + noise))


@pytest.mark.parametrize("lengths", [[8], [128], [512], [20] * 8])
def test_predictions_come_close_to_the_truth(lengths: list[int]) -> None:
    load = load_of(lengths, sum(lengths))
    assert taught().predict(load) == pytest.approx(true_seconds(load), rel=0.15)


def test_three_observations_seed_a_usable_model() -> None:
    model = CostModel()
    for length in (8, 64, 256):
        load = load_of([length], length)
        model.observe(load, true_seconds(load))
    load = load_of([24] * 5, 120)
    assert model.predict(load) == pytest.approx(true_seconds(load), rel=0.3)


def test_a_lasting_change_of_speed_is_followed() -> None:
    model, chance = taught(), random.Random(2)
    teach(model, 150, chance, factor=3)
    load = load_of([100], 100)
    assert model.predict(load) == pytest.approx(3 * true_seconds(load), rel=0.2)


def test_one_paused_batch_does_not_overturn_the_fit() -> None:
    model = taught()
    load = load_of([24] * 5, 120)
    before = model.predict(load)
    model.observe(load, 100.0)
    assert model.predict(load) < 2 * before


def test_equal_batches_for_hours_keep_the_model_steady() -> None:
    model = taught()
    usual = load_of([24] * 5, 120)
    for _ in range(20_000):
        model.observe(usual, true_seconds(usual))
    model.observe(load_of([512], 512), 3 * true_seconds(load_of([512], 512)))
    assert model.predict(usual) == pytest.approx(true_seconds(usual), rel=1.0)
    assert model.seconds_per_token >= 0
    assert model.seconds_per_square >= 0


def test_a_neighbour_that_pauses_every_twentieth_step_does_not_drive_the_fit_away() -> None:
    """Steps of a decoder: mostly some tokens with little context, now and then a prompt."""
    for seed in range(10):
        model, chance, rows, context = CostModel(), random.Random(seed), 1, 50
        for _ in range(3000):
            if chance.random() < 0.05:
                rows = chance.choice([1, 1, 1, 2, 5, 10, 32])
            context = 20 if chance.random() < 0.02 else context + 1
            tokens = rows + (chance.choice([60, 200]) if chance.random() < 0.03 else 0)
            load = Load(tokens, tokens * context)
            pause = chance.expovariate(20) if chance.random() < 0.05 else 0.0
            model.observe(load, 0.002 + 0.00002 * tokens + pause)
            # The first steps may all be paused ones, and a rare prompt too.
            assert model.predict(Load(1, 256)) < 0.05, (seed, model)
        assert model.predict(Load(1, 256)) == pytest.approx(0.002, rel=0.6), (seed, model)


def test_coefficients_are_never_negative() -> None:
    model = CostModel()
    for length in (500, 10, 400, 20):  # longer was faster: nonsense, but it happens
        model.observe(load_of([length], length), 1 / length)
    assert min(model.overhead_seconds, model.seconds_per_token, model.seconds_per_square) >= 0
    assert model.predict(load_of([100], 100)) >= 0


def test_the_budget_is_where_the_overhead_is_a_tenth() -> None:
    model = taught(noise=0.0)
    tokens = model.budget(24, goal_seconds=100)
    load = load_of([24] * (tokens // 24), tokens)
    assert OVERHEAD / true_seconds(load) == pytest.approx(0.1, abs=0.02)


def test_the_budget_keeps_a_batch_within_its_goal() -> None:
    model = taught(noise=0.0)
    tokens = model.budget(24, goal_seconds=0.02)
    assert true_seconds(load_of([24] * (tokens // 24), tokens)) <= 0.021
    assert model.budget(24, goal_seconds=0.0001) == 1  # an impossible goal still makes progress


def test_units_of_a_full_batch_cost_what_the_batch_costs() -> None:
    model = taught(noise=0.0)
    units = model.unit_seconds(30, 120) * 4
    assert units == pytest.approx(model.predict(load_of([30] * 4, 120)), rel=0.05)


def test_padding_counts_for_both_terms() -> None:
    load = load_of([10, 30], 60)
    assert load.tokens == 60
    assert load.squares == (100 + 900) * 60 / 40


def test_an_average_gives_its_initial_value_one_vote() -> None:
    average = Average(5.0)
    average.add(1.0)
    assert average.value == 3.0
    for _ in range(500):
        average.add(1.0)
    assert average.value == pytest.approx(1.0, abs=0.01)


def test_wide_batches_end_where_they_do_not_pay_and_come_back_where_they_do() -> None:
    wide = WideGain(1.8, 2)
    assert wide.choose(rivals=1)
    assert not wide.choose(rivals=2)  # two lanes beat one and a half
    for _ in range(30):
        wide.observe(narrow_seconds=0.1, wide_seconds=0.5)
    chosen = [wide.choose(rivals=1) for _ in range(100)]
    assert 1 <= sum(chosen) <= 4  # tried now and then, or a change would go unnoticed
    for _ in range(30):
        wide.observe(narrow_seconds=0.1, wide_seconds=0.04)
    assert wide.pays(rivals=2)
    assert 1 <= [wide.choose(rivals=2) for _ in range(100)].count(False) <= 4


def test_a_disturbed_warm_up_does_not_end_the_lanes() -> None:
    assert not WideGain(15.0, 2).pays(rivals=2)
