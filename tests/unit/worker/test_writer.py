"""What the configuration of a sequence-to-sequence model says of what it writes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sluice_api.tasks import Task
from sluice_worker.loader import load
from sluice_worker.models.errors import ModelRejected
from sluice_worker.models.writer import describe_writer, writes
from tests.support.writers import build_tiny_writer

BART = {"model_type": "bart", "is_encoder_decoder": True, "max_position_embeddings": 1024}
GENERATION = {"decoder_start_token_id": 2, "eos_token_id": 2}


def tasks(config: dict[str, Any], wanted: Task | None = None) -> list[Task]:
    return list(describe_writer({**BART, **config}, GENERATION, wanted).tasks)


def test_which_architectures_write() -> None:
    for name in ("BartForConditionalGeneration", "MarianMTModel", "T5ForConditionalGeneration"):
        assert writes(BART, name)
    assert not writes(BART, "BartForSequenceClassification")
    assert not writes({"model_type": "bert"}, "BertModel")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [Task.SUMMARIZATION]),
        ({"model_type": "pegasus"}, [Task.SUMMARIZATION]),
        ({"model_type": "marian"}, [Task.TRANSLATION]),
        ({"model_type": "m2m_100"}, [Task.TRANSLATION]),
        ({"model_type": "mbart"}, [Task.TRANSLATION]),
        ({"model_type": "t5"}, [Task.SUMMARIZATION, Task.TRANSLATION]),
        (
            {"model_type": "t5", "task_specific_params": {"translation_en_to_de": {}}},
            [Task.TRANSLATION],
        ),
        ({"task_specific_params": {"summarization": {}}}, [Task.SUMMARIZATION]),
    ],
)
def test_what_a_model_is_made_for(config: dict[str, Any], expected: list[Task]) -> None:
    assert tasks(config) == expected
    assert tasks(config, Task.TRANSLATION) == [Task.TRANSLATION]


def test_defaults_come_from_generation_config_or_from_an_older_config() -> None:
    old = {**BART, **GENERATION, "num_beams": 4, "max_length": 142}
    assert describe_writer(old, None, None).defaults == {
        "decoder_start_token_id": 2,
        "eos_token_id": 2,
        "num_beams": 4,
        "max_length": 142,
    }
    # What generation_config.json does not say is not taken from config.json, as in transformers.
    assert describe_writer(old, {"num_beams": 2}, None).defaults == {
        "decoder_start_token_id": 2,
        "eos_token_id": 2,
        "num_beams": 2,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beam_groups", 2),
        ("penalty_alpha", 0.6),
        ("guidance_scale", 1.5),
        ("force_words_ids", [[5]]),
        ("exponential_decay_length_penalty", [10, 1.1]),
        ("stop_strings", ["."]),
    ],
)
def test_a_default_that_cannot_be_honoured_rejects_the_model(name: str, value: Any) -> None:
    with pytest.raises(ModelRejected, match=rf"generation_config\.json: {name} is"):
        describe_writer(BART, {**GENERATION, name: value}, None)


def test_a_model_that_cannot_begin_is_rejected() -> None:
    with pytest.raises(ModelRejected, match="decoder_start_token_id"):
        describe_writer(BART, {"eos_token_id": 2}, None)


# the whole folder ---------------------------------------------------------------------------


def digest(folder: Path) -> str:
    return load(f"file://{folder}", device="cpu").answer_digest


def test_the_answer_digest_covers_how_a_model_writes_and_in_which_languages(
    tmp_path: Path,
) -> None:
    folder = build_tiny_writer(tmp_path / "model", "m2m_100")
    before = digest(folder)
    assert digest(shutil.copytree(folder, tmp_path / "same")) == before
    for number, (file, changed) in enumerate(
        {
            "generation_config.json": {"num_beams": 3},
            "special_tokens_map.json": {"additional_special_tokens": ["__en__", "__bo__"]},
            "tokenizer_config.json": {"src_lang": "ka"},
            "config.json": {"task_specific_params": {"translation": {"num_beams": 2}}},
        }.items()
    ):
        other = shutil.copytree(folder, tmp_path / str(number))
        members = json.loads((other / file).read_text())
        (other / file).write_text(json.dumps({**members, **changed}))
        assert digest(other) != before, file
    other = shutil.copytree(folder, tmp_path / "pieces")
    pieces = (other / "sentencepiece.bpe.model").read_bytes()
    (other / "sentencepiece.bpe.model").write_bytes(pieces + b"\x12\x00")
    assert digest(other) != before


def test_a_task_the_model_is_not_made_for_can_be_set(tmp_path: Path) -> None:
    folder = build_tiny_writer(tmp_path, "bart")
    assert list(load(f"file://{folder}", device="cpu").tasks) == [Task.SUMMARIZATION]
    loaded = load(f"file://{folder}", device="cpu", task=Task.TRANSLATION)
    assert list(loaded.tasks) == [Task.TRANSLATION]
    with pytest.raises(ModelRejected, match="classification"):
        load(f"file://{folder}", device="cpu", task=Task.CLASSIFICATION)


def test_a_folder_without_a_usable_tokenizer_is_rejected(tmp_path: Path) -> None:
    folder = build_tiny_writer(tmp_path, "marian")
    (folder / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(ModelRejected, match=r"vocab\.json has no </s>"):
        load(f"file://{folder}", device="cpu")
    (folder / "vocab.json").unlink()
    with pytest.raises(ModelRejected, match=r"neither tokenizer\.json nor SentencePiece"):
        load(f"file://{folder}", device="cpu")
