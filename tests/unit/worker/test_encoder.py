"""Packed = padded = transformers, for every architecture, whatever the batch mates."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sluice_worker.engines.base import Array, Unit, unit_of
from sluice_worker.engines.encoder import PackedEngine, PaddedEngine, buckets
from sluice_worker.engines.selection import difference
from sluice_worker.loaded import LoadedModel
from sluice_worker.loader import load
from tests.support import models

TOLERANCE = 1e-5
TEXTS = models.random_texts(24, seed=7)
LABELS = ("red", "green", "blue")
PACKED = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "modernbert")
PADDED = ("mpnet", "deberta-v2", "convbert")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    root = tmp_path_factory.mktemp("architectures")
    return {
        (architecture, head): models.build_tiny(
            root / f"{architecture}-{head}", architecture, labels=LABELS if head else ()
        )
        for architecture in (*PACKED, *PADDED, "albert")
        for head in (False, True)
    }


def ours(folder: Path) -> LoadedModel:
    return load(f"file://{folder}", device="cpu")


def tokenized(folder: Path, texts: list[str]) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [
        tokenizer(text, return_tensors="pt", truncation=True, return_token_type_ids=False)
        for text in texts
    ]


@torch.inference_mode()
def theirs(folder: Path, *, head: bool, texts: list[str]) -> tuple[list[Unit], list[Array]]:
    """The same texts through transformers alone, one by one: (units, answers)."""
    units, answers = [], []
    kind = transformers.AutoModelForSequenceClassification if head else transformers.AutoModel
    model = kind.from_pretrained(folder).eval()
    for encoded in tokenized(folder, texts):
        output = model(**encoded)
        if head:
            answers.append(output.logits[0].numpy())
        else:
            mean = output.last_hidden_state[0].mean(dim=0)
            answers.append((mean / mean.norm()).numpy())
        units.append(unit_of(tuple(encoded["input_ids"][0].tolist()), None))
    return units, answers


@pytest.mark.parametrize("head", [False, True], ids=["vectors", "logits"])
@pytest.mark.parametrize("architecture", [*PACKED, *PADDED, "albert"])
def test_answers_equal_transformers(
    folders: dict[tuple[str, bool], Path], architecture: str, head: bool
) -> None:
    folder = folders[architecture, head]
    units, reference = theirs(folder, head=head, texts=TEXTS)
    assert len({unit.tokens for unit in units}) > 8, "the texts must differ in length"
    assert np.ptp(np.stack(reference), axis=0).max() > 0.01, "the answers must differ"
    engine = ours(folder).engine
    assert difference(engine.run(units), reference) <= TOLERANCE


@pytest.mark.parametrize("architecture", PACKED)
@pytest.mark.parametrize("head", [False, True], ids=["vectors", "logits"])
def test_these_architectures_run_packed(
    folders: dict[tuple[str, bool], Path], architecture: str, head: bool
) -> None:
    assert isinstance(ours(folders[architecture, head]).engine, PackedEngine)


HEADS = ("token", "span", "mask")
"""What is read from more rows than one of a text."""


@pytest.fixture(scope="module")
def headed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    root = tmp_path_factory.mktemp("heads")
    return {
        (architecture, head): models.build_tiny(
            root / f"{architecture}-{head}",
            architecture,
            head=head,
            labels=LABELS if head == "token" else (),
        )
        for architecture in (*PACKED, *PADDED, "albert")
        for head in HEADS
    }


@torch.inference_mode()
def their_rows(folder: Path, head: str, texts: list[str]) -> tuple[list[Unit], list[Array]]:
    """Units, and the rows that transformers computes of each: of its tokens or its masks."""
    units, answers = [], []
    model = getattr(transformers, models.HEADS[head]).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for number, text in enumerate(texts):
        ids = tokenizer(text, truncation=True)["input_ids"]
        if head == "mask":  # One or several, also side by side.
            for place in range(1, 2 + number % 3):
                ids[min(place, len(ids) - 2)] = tokenizer.mask_token_id
        output = model(input_ids=torch.tensor([ids]))
        if head == "span":
            rows = torch.stack([output.start_logits[0], output.end_logits[0]], dim=-1)
        else:
            rows = output.logits[0]
        if head == "mask":
            rows = rows[torch.tensor(ids) == tokenizer.mask_token_id]
        units.append(unit_of(tuple(ids), None))
        answers.append(rows.numpy())
    return units, answers


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("architecture", [*PACKED, *PADDED, "albert"])
def test_rows_equal_transformers(
    headed: dict[tuple[str, str], Path], architecture: str, head: str
) -> None:
    folder = headed[architecture, head]
    units, reference = their_rows(folder, head, TEXTS)
    engine = ours(folder).engine
    answers = engine.run(units)
    assert [rows.shape for rows in answers] == [rows.shape for rows in reference]
    assert difference(answers, reference) <= TOLERANCE
    alone = [engine.run([unit])[0] for unit in units]
    assert difference(alone, reference) <= TOLERANCE
    assert isinstance(engine, PaddedEngine if architecture in PADDED else PackedEngine)


def test_an_output_of_its_own_behind_the_mask(tmp_path: Path) -> None:
    folder = models.build_tiny(tmp_path, "bert", head="mask", tie_word_embeddings=False)
    units, reference = their_rows(folder, "mask", TEXTS[:6])
    assert difference(ours(folder).engine.run(units), reference) <= TOLERANCE


@pytest.mark.parametrize("architecture", PADDED)
def test_relative_positions_fall_back_to_padding(
    folders: dict[tuple[str, bool], Path], architecture: str
) -> None:
    assert isinstance(ours(folders[architecture, False]).engine, PaddedEngine)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "deberta-v2", "convbert"])
def test_batch_mates_change_nothing(
    folders: dict[tuple[str, bool], Path], architecture: str
) -> None:
    folder = folders[architecture, True]
    engine = ours(folder).engine
    units, _ = theirs(folder, head=True, texts=TEXTS)
    alone = [engine.run([unit])[0] for unit in units]
    chooser = random.Random(3)
    for _ in range(5):
        chosen = chooser.sample(range(len(units)), chooser.randint(2, len(units)))
        together = engine.run([units[index] for index in chosen])
        assert difference(together, [alone[index] for index in chosen]) <= TOLERANCE


@pytest.mark.parametrize("architecture", ["bert", "electra", "albert"])
def test_token_types_are_honoured(folders: dict[tuple[str, bool], Path], architecture: str) -> None:
    folder = folders[architecture, True]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    plain = unit_of((2, 40, 41, 3, 50, 51, 52, 3), None)
    typed = unit_of(plain.ids, (0, 0, 0, 0, 1, 1, 1, 1))
    with torch.inference_mode():
        reference = [
            model(
                input_ids=torch.tensor([unit.ids]),
                token_type_ids=torch.tensor([unit.type_ids or [0] * unit.tokens]),
            )
            .logits[0]
            .numpy()
            for unit in (plain, typed)
        ]
    assert np.abs(reference[0] - reference[1]).max() > 0.01
    assert difference(ours(folder).engine.run([plain, typed]), reference) <= TOLERANCE
    assert plain.key != typed.key


def test_modernbert_pools_over_all_tokens_padded(tmp_path: Path) -> None:
    """A head that looks beyond the first token is noticed, not mistaken."""
    folder = models.build_tiny(tmp_path, "modernbert", labels=LABELS)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.classifier_pooling = "mean"
    config.save_pretrained(folder)
    units, reference = theirs(folder, head=True, texts=TEXTS)
    engine = ours(folder).engine
    assert isinstance(engine, PaddedEngine)
    assert difference(engine.run(units), reference) <= TOLERANCE


def test_a_decoder_classifies_without_a_padding_token(tmp_path: Path) -> None:
    """DialogRPT and its kin: transformers takes only one text at a time of such a model."""
    models.save_byte_tokenizer(tmp_path)
    config = transformers.GPT2Config(
        vocab_size=models.VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=128
    )
    assert config.pad_token_id is None
    model = transformers.GPT2ForSequenceClassification(config)
    models.scramble(model)
    model.save_pretrained(tmp_path)
    units, reference = theirs(tmp_path, head=True, texts=TEXTS[:6])
    engine = ours(tmp_path).engine
    assert difference(engine.run([*units, *units]), [*reference, *reference]) <= TOLERANCE
    assert engine.computed_tokens([10, 11, 10]) == 31


def test_answers_come_in_the_order_asked(folders: dict[tuple[str, bool], Path]) -> None:
    engine = ours(folders["bert", False]).engine
    units, _ = theirs(folders["bert", False], head=False, texts=TEXTS)
    forward, backward = engine.run(units), engine.run(units[::-1])
    assert difference(forward, backward[::-1]) <= TOLERANCE
    assert engine.computed_tokens([5, 9, 5]) == 19


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_two_lanes_may_run_at_once(
    folders: dict[tuple[str, bool], Path], architecture: str
) -> None:
    engine = ours(folders[architecture, False]).engine
    units, reference = theirs(folders[architecture, False], head=False, texts=TEXTS)
    parts = [slice(start, start + 6) for start in range(0, len(units), 6)] * 8
    with ThreadPoolExecutor(2) as lanes:
        answers = list(lanes.map(lambda part: engine.run(units[part]), parts))
    for part, answer in zip(parts, answers, strict=True):
        assert difference(answer, reference[part]) <= TOLERANCE


def test_buckets_hold_every_text_once_and_little_padding() -> None:
    chooser = random.Random(1)
    for _ in range(50):
        lengths = [chooser.randint(1, 200) for _ in range(chooser.randint(1, 40))]
        found = buckets(lengths)
        assert sorted(index for bucket in found for index in bucket) == list(range(len(lengths)))
        for bucket in found:
            real = sum(lengths[index] for index in bucket)
            padded = len(bucket) * max(lengths[index] for index in bucket)
            assert padded - real <= max(32, real / 8)


def test_a_model_that_padding_changes_gets_none(folders: dict[tuple[str, bool], Path]) -> None:
    """ConvBERT's convolutions reach into the padding; transformers itself answers differently."""
    assert ours(folders["convbert", False]).engine.computed_tokens([10, 12, 10]) == 32


def test_padded_engine_counts_its_padding(folders: dict[tuple[str, bool], Path]) -> None:
    engine = ours(folders["deberta-v2", False]).engine
    assert engine.computed_tokens([10, 12]) == 24
    assert engine.computed_tokens([4, 100]) == 104


def test_an_end_written_into_a_text_fails_nobody_beside_it(tmp_path: Path) -> None:
    folder = models.build_tiny(tmp_path, "bart", labels=LABELS)
    model = ours(folder)
    assert isinstance(model.engine, PaddedEngine)
    # BART's head wants as many ends in every text of a batch; alike in length, these share one.
    plain, ended = (unit_of((2, 9, 8, inner, 7, 3), None) for inner in (6, 3))
    alone = [model.engine.run([unit])[0] for unit in (plain, ended)]
    assert difference(model.engine.run([plain, ended]), alone) <= TOLERANCE
    assert difference([alone[0]], [alone[1]]) > TOLERANCE
