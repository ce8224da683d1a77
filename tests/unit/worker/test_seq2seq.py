"""The sequence-to-sequence engine writes, token for token, what ``generate`` writes."""

import json
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sluice_api.shapes.generation import LEAST_TEMPERATURE
from sluice_worker import loader
from sluice_worker.engines.base import Array
from sluice_worker.engines.seq2seq.decoding import (
    Decoding,
    GenerationUnit,
    Sampling,
    generation_unit,
    read,
)
from sluice_worker.engines.seq2seq.engine import Seq2SeqEngine
from sluice_worker.engines.seq2seq.reading import PackedReader
from sluice_worker.engines.seq2seq.rules import processors
from sluice_worker.engines.seq2seq.search import search_for
from sluice_worker.models.errors import ModelRejected
from tests.support.writers import END, PAD, build_tiny_writer

ARCHITECTURES = ("t5", "bart", "marian", "m2m_100", "mbart", "pegasus")
PLAIN = Decoding(start=END, ends=(END,), most=20)


def load(folder: Path) -> Any:
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(build_tiny_writer(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(build_tiny_writer(tmp_path_factory.mktemp("bart"), "bart"))


def engine_of(model: Any, **settings: Any) -> Seq2SeqEngine:
    return Seq2SeqEngine(model, torch.device("cpu"), **settings)


def source(chance: random.Random, model: Any) -> tuple[int, ...]:
    length = chance.choice((2, 7, 20, 48))
    return (*(chance.randrange(4, model.config.vocab_size) for _ in range(length)), END)


def generated(model: Any, ids: Sequence[int], decoding: Decoding) -> list[int]:
    """What transformers writes under the same rules, without the start and the padding."""
    beams = decoding.beams > 1
    sampling = decoding.sampling
    config = transformers.GenerationConfig(
        decoder_start_token_id=decoding.start,
        eos_token_id=list(decoding.ends),
        pad_token_id=PAD,
        max_new_tokens=decoding.most,
        min_new_tokens=decoding.least or None,
        num_beams=decoding.beams,
        early_stopping=decoding.early_stopping if beams else None,
        length_penalty=decoding.length_penalty if beams else None,
        repetition_penalty=decoding.repetition_penalty,
        no_repeat_ngram_size=decoding.no_repeat_ngram,
        encoder_repetition_penalty=decoding.encoder_repetition_penalty,
        encoder_no_repeat_ngram_size=decoding.encoder_no_repeat_ngram,
        forced_bos_token_id=decoding.forced_first,
        forced_eos_token_id=decoding.forced_last[0] if decoding.forced_last else None,
        bad_words_ids=[list(words) for words in decoding.never] or None,
        suppress_tokens=list(decoding.suppressed) or None,
        begin_suppress_tokens=list(decoding.suppressed_first) or None,
        renormalize_logits=decoding.renormalized,
        do_sample=sampling is not None,
        **(
            {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
            if sampling
            else {}
        ),
    )
    model.generation_config = config
    if sampling is not None and sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens = model.generate(torch.tensor([ids]))[0].tolist()[1:]
    while tokens and tokens[-1] == PAD:
        tokens.pop()
    return [int(token) for token in tokens]


def random_rules(chance: random.Random, model: Any) -> Decoding:
    return Decoding(
        start=model.config.decoder_start_token_id,
        ends=chance.choice(((END,), (END, *range(60, 75)))),
        most=chance.choice((6, 15, 25)),
        least=chance.choice((0, 0, 5)),
        beams=chance.choice((1, 1, 2, 3, 5)),
        early_stopping=chance.choice((True, False, "never")),
        length_penalty=chance.choice((1.0, 2.0, 0.0, -1.0)),
        repetition_penalty=chance.choice((1.0, 1.0, 1.4)),
        no_repeat_ngram=chance.choice((0, 0, 2, 3)),
        encoder_repetition_penalty=chance.choice((1.0, 1.0, 1.3)),
        encoder_no_repeat_ngram=chance.choice((0, 0, 2)),
        forced_first=chance.choice((None, None, 7)),
        forced_last=chance.choice(((), (END,))),
        never=chance.choice(((), ((PAD,), (5, 6)))),
        suppressed=chance.choice(((), (11, 12))),
        suppressed_first=chance.choice(((), (13, 14))),
        renormalized=chance.choice((False, True)),
    )


def test_greedy_and_beams_equal_generate_alone_and_among_others(model: Any) -> None:
    chance = random.Random(1)
    rules = [random_rules(chance, model) for _ in range(14)]
    units = [generation_unit(source(chance, model), each, 8) for each in rules]
    expected = [generated(model, unit.ids, unit.decoding) for unit in units]
    engine = engine_of(model)
    assert isinstance(engine.reader, PackedReader)
    together = [list(read(array).ids) for array in engine.run(units)]
    assert together == expected
    alone = [list(read(engine.run([unit])[0]).ids) for unit in units[:4]]
    assert alone == expected[:4]
    # They really ended at different steps, so rows left while others went on.
    assert len({len(ids) for ids in expected}) > 2


def test_drawn_tokens_follow_the_seed_and_not_the_neighbours(bart: Any) -> None:
    chance = random.Random(2)
    units = [
        generation_unit(
            source(chance, bart),
            Decoding(END, (END,), 15, sampling=Sampling(1.3, 40, 0.9, seed=seed)),
            8,
        )
        for seed in range(8)
    ]
    expected = [generated(bart, unit.ids, unit.decoding) for unit in units]
    others = [generation_unit(source(chance, bart), PLAIN, 8) for _ in range(4)]
    arrays = engine_of(bart).run([*others, *units])
    assert [list(read(array).ids) for array in arrays[4:]] == expected
    assert len({tuple(ids) for ids in expected}) > 4, "chance had no part in it"


def test_without_a_seed_equal_units_differ(bart: Any) -> None:
    rules = Decoding(END, (), 20, sampling=Sampling(temperature=1.5))
    units = [generation_unit((5, 6, 7, END), rules, 20) for _ in range(4)]
    assert len({unit.key for unit in units}) == 4
    texts = {read(array).ids for array in engine_of(bart).run(units)}
    assert len(texts) > 1


def test_equal_units_are_recognised_as_such() -> None:
    first, second = (generation_unit((5, 6, END), PLAIN, 8) for _ in range(2))
    assert first.key == second.key
    other_rules = generation_unit((5, 6, END), Decoding(END, (END,), 21), 8)
    assert other_rules.key != first.key
    assert generation_unit((5, 7, END), PLAIN, 8).key != first.key


def test_log_probabilities_are_the_models_own(bart: Any) -> None:
    decoding = Decoding(END, (END,), 12, beams=3, repetition_penalty=1.4, forced_first=7)
    ids = (20, 21, 22, 23, END)
    written = read(engine_of(bart).run([generation_unit(ids, decoding, 8)])[0])
    labels = torch.tensor([[END, *written.ids]])
    with torch.inference_mode():
        logits = bart(
            input_ids=torch.tensor([ids]), decoder_input_ids=labels[:, :-1], use_cache=False
        ).logits[0]
    expected = logits.log_softmax(-1).gather(1, labels[0, 1:, None]).squeeze(1)
    assert written.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_more_beams_than_rows_are_written_one_batch_after_the_other(bart: Any) -> None:
    chance = random.Random(3)
    units = [
        generation_unit(source(chance, bart), Decoding(END, (END,), 10, beams=beams), 8)
        for beams in (3, 1, 4, 2, 5, 1)
    ]
    wide = engine_of(bart).run(units)
    narrow = engine_of(bart, rows=4).run(units)
    assert [read(a).ids for a in wide] == [read(a).ids for a in narrow]


class Trickle:
    """A feed from which a text comes every other step, whatever the others are at."""

    def __init__(self, units: Sequence[GenerationUnit]) -> None:
        self._waiting = list(enumerate(units))
        self.results: dict[int, Array] = {}
        self.finished: list[int] = []
        self._calls = 0

    def take(self) -> list[tuple[int, GenerationUnit]]:
        self._calls += 1
        return [self._waiting.pop(0)] if self._waiting and self._calls % 2 else []

    def finish(self, place: int, array: Array) -> None:
        self.results[place] = array
        self.finished.append(place)

    def close(self) -> bool:
        return not self._waiting


def test_texts_that_join_under_way_are_written_as_if_alone(model: Any) -> None:
    chance = random.Random(5)
    rules = [random_rules(chance, model) for _ in range(12)]
    units = [generation_unit(source(chance, model), each, 8) for each in rules]
    expected = [generated(model, unit.ids, unit.decoding) for unit in units]
    engine = engine_of(model)
    assert engine.refills
    feed = Trickle(units)
    engine.serve(feed)
    assert [list(read(feed.results[place]).ids) for place in range(12)] == expected
    # They really overlapped: later ones were done before earlier ones.
    assert feed.finished != sorted(feed.finished)


def test_a_full_batch_lets_others_wait(bart: Any) -> None:
    units = [
        generation_unit((10 + n, 20, END), Decoding(END, (), 6, beams=beams), 6)
        for n, beams in enumerate((2, 2, 3, 1, 6))
    ]
    expected = [generated(bart, unit.ids, unit.decoding) for unit in units]
    counted = Counted(bart)
    feed = Trickle(units)
    engine_of(counted, rows=4).serve(feed)
    assert [list(read(feed.results[place]).ids) for place in range(5)] == expected
    assert max(counted.rows) == 6, "a text with more beams than rows is written alone"
    assert sum(rows == 6 for rows in counted.rows) == 5


class Counted:
    """A model that counts the rows of every decoder step, and calls somebody in the third one."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.rows: list[int] = []
        self.in_third_step: Any = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, **arguments: Any) -> Any:
        self.rows.append(len(arguments["decoder_input_ids"]))
        if len(self.rows) == 3:
            self.in_third_step()
        return self.model(**arguments)


def never_ending(count: int) -> list[GenerationUnit]:
    return [generation_unit((10 + n, 20 + n, END), Decoding(END, (), 12), 12) for n in range(count)]


def run_counted(bart: Any, units: list[GenerationUnit], leaving: Sequence[int]) -> Any:
    counted = Counted(bart)

    def leave() -> None:
        for index in leaving:
            units[index].withdraw()

    counted.in_third_step = leave
    arrays: list[Array] = engine_of(counted).run(units)
    return counted.rows, arrays


def test_a_withdrawn_text_leaves_within_one_step(bart: Any) -> None:
    expected = [read(array).ids for array in engine_of(bart).run(never_ending(4))]
    rows, arrays = run_counted(bart, never_ending(4), leaving=[1, 2])
    assert rows == [4] * 3 + [2] * 9
    assert [read(array).ids for array in arrays] == [expected[0], (), (), expected[3]]


def test_a_batch_that_nobody_waits_for_ends(bart: Any) -> None:
    rows, _ = run_counted(bart, never_ending(3), leaving=[0, 1, 2])
    assert rows == [3, 3, 3]


def test_what_a_unit_counts_for() -> None:
    unit = generation_unit((5, 6, 7), Decoding(END, (END,), 20, beams=4), expected=10)
    assert unit.tokens == 3 + 4 * 10
    assert generation_unit((5,), PLAIN, expected=500).tokens == 1 + 20


def test_the_lowest_temperature_draws_the_most_probable_token_in_half_precision() -> None:
    lowest = Sampling(temperature=LEAST_TEMPERATURE, seed=1)
    decoding = Decoding(start=0, ends=(1,), most=5, repetition_penalty=0.01, sampling=lowest)
    device = torch.device("cpu")
    search = search_for(decoding, processors(decoding, (5, 6), device), device)
    found = search.advance(torch.tensor([[0.0, 2.0, 60.0, 50.0]], dtype=torch.float16))
    assert found is not None
    assert found.tokens.tolist() == [2]


def test_code_that_cannot_be_run_so_is_refused_by_name(tmp_path: Path) -> None:
    """Its decoder wants of its encoder what experts were asked."""
    folder = build_tiny_writer(tmp_path, "t5")
    known = json.loads((folder / "config.json").read_text())
    config = transformers.SwitchTransformersConfig(
        vocab_size=known["vocab_size"],
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        num_experts=2,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        decoder_start_token_id=0,
    )
    transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    with pytest.raises(ModelRejected, match=r"'switch_transformers' .* engine: \w+Error: "):
        loader.load(f"file://{folder}")
