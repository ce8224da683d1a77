"""Texts to ids as transformers does it; limits that speak; one copy a thread."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import transformers

from sluice_api.errors import ApiError
from sluice_worker.models.errors import ModelRejected
from sluice_worker.models.manifest import Manifest
from sluice_worker.models.tokenizer import CHARACTERS_PER_TOKEN, Tokenizer, load_tokenizer
from tests.support import models

TEXTS = models.random_texts(40, seed=11, longest=40)
PREMISE = "my parcel has not arrived and the tracking number shows an error"


@pytest.fixture(scope="module", params=["bert", "roberta"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    models.save_tokenizer(
        folder, [text for text, _ in models.tickets()[0]], roberta=request.param == "roberta"
    )
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def ours(folder: Path, max_tokens: int = 128, **options: Any) -> Tokenizer:
    content = (folder / "tokenizer.json").read_text()
    return Tokenizer(content, max_tokens=max_tokens, vocabulary=models.VOCABULARY, **options)


def test_texts_equal_transformers(folder: Path, theirs: Any) -> None:
    tokenizer = ours(folder)
    for text in (*TEXTS, "", "ünïcödé 漢字 🙂", "a\x00b"):
        assert (
            list(tokenizer.encode(text, where="input", truncate=False).ids)
            == theirs(text).input_ids
        )


@pytest.mark.parametrize("limit", [12, 16, 128])
def test_truncation_equals_transformers_and_is_marked(
    folder: Path, theirs: Any, limit: int
) -> None:
    tokenizer = ours(folder, limit)
    for text in TEXTS:
        encoded = tokenizer.encode(text, where="input", truncate=True)
        expected = theirs(text, truncation=True, max_length=limit).input_ids
        assert list(encoded.ids) == expected
        assert encoded.truncated == (len(theirs(text).input_ids) > limit)


def test_pairs_equal_transformers_and_only_the_text_is_cut(folder: Path, theirs: Any) -> None:
    tokenizer = ours(folder, 20)
    hypotheses = ["this is about shipping", "billing"]
    pairs = tokenizer.encode_pairs(PREMISE, hypotheses, where="input", truncate=True)
    for hypothesis, pair in zip(hypotheses, pairs, strict=True):
        expected = theirs(PREMISE, hypothesis, truncation="only_first", max_length=20)
        assert list(pair.ids) == expected.input_ids
        types = expected.get("token_type_ids", [0] * len(pair.ids))
        assert list(pair.type_ids or (0,) * len(pair.ids)) == types
        assert pair.truncated


def test_too_long_names_input_tokens_and_limit(folder: Path, theirs: Any) -> None:
    tokens = len(theirs(PREMISE).input_ids)
    with pytest.raises(ApiError) as caught:
        ours(folder, 8).encode(PREMISE, where="input[3]", truncate=False)
    assert caught.value.code == "input_too_long"
    assert caught.value.param == "input[3]"
    assert f"input[3]: got {tokens} tokens, the model takes at most 8" in caught.value.message
    assert caught.value.message.endswith("takes at most 8.")
    with pytest.raises(ApiError) as caught:
        ours(folder, 8).encode(PREMISE, where="input", instead=" Or else.")
    assert caught.value.message.endswith("takes at most 8. Or else.")


def test_a_text_of_exactly_the_limit_passes(folder: Path, theirs: Any) -> None:
    tokens = len(theirs(PREMISE).input_ids)
    assert not ours(folder, tokens).encode(PREMISE, where="input", truncate=False).truncated
    with pytest.raises(ApiError):
        ours(folder, tokens - 1).encode(PREMISE, where="input", truncate=False)


def test_huge_texts_are_refused_before_they_are_tokenized(folder: Path) -> None:
    tokenizer = ours(folder, 8)
    huge = "a" * (8 * CHARACTERS_PER_TOKEN + 1)
    with pytest.raises(ApiError, match="characters") as caught:
        tokenizer.encode(huge, where="input", truncate=False)
    assert caught.value.code == "input_too_long"
    assert tokenizer.encode(huge, where="input", truncate=True).truncated


def test_a_label_longer_than_the_model_is_the_labels_fault(folder: Path) -> None:
    with pytest.raises(ApiError) as caught:
        ours(folder, 12).encode_pairs("short", [PREMISE], where="input", truncate=True)
    assert caught.value.param == "parameters.labels"


def test_token_ids_are_taken_as_they_are(folder: Path) -> None:
    tokenizer = ours(folder, 4)
    assert tokenizer.accept([2, 9, 3], where="input", truncate=False).ids == (2, 9, 3)
    cut = tokenizer.accept([2, 9, 9, 9, 3], where="input", truncate=True)
    assert cut.truncated
    assert len(cut.ids) == 4
    with pytest.raises(ApiError, match="5 tokens"):
        tokenizer.accept([2, 9, 9, 9, 3], where="input", truncate=False)
    with pytest.raises(ApiError, match=f"token id {models.VOCABULARY} at position 1"):
        tokenizer.accept([2, models.VOCABULARY], where="input", truncate=False)


def test_lower_case_is_an_option(folder: Path) -> None:
    lowered = ours(folder, lower_case=True).encode("THE APP", where="input", truncate=False)
    assert lowered == ours(folder).encode("the app", where="input", truncate=False)


def test_a_prompt_stands_before_every_text(folder: Path) -> None:
    prompted, plain = ours(folder, prompt="the river "), ours(folder)
    whole = plain.encode("the river runs", where="input")
    assert prompted.encode("runs", where="input") == whole
    tokens = len(plain.encode("runs", where="").ids)
    with pytest.raises(ApiError, match=f"takes at most {tokens}"):
        ours(folder, tokens, prompt="the river ").encode("runs", where="input")


def test_many_threads_share_one(folder: Path, theirs: Any) -> None:
    tokenizer = ours(folder, 16)

    def encode(text: str) -> list[int]:
        tokenizer.encode_pairs(text, ["billing"], where="input", truncate=True)
        return list(tokenizer.encode(text, where="input", truncate=True).ids)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(encode, TEXTS * 10))
    assert found == [theirs(t, truncation=True, max_length=16).input_ids for t in TEXTS] * 10


def test_why_a_tokenizer_cannot_be_converted_is_said_in_whole_sentences(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.model").write_text("no SentencePiece")
    manifest = Manifest(tmp_path, {"tokenizer.model": "0"}, ())
    description: Any = None  # Nothing of it is asked before there is a tokenizer.
    with pytest.raises(ModelRejected, match=r"failed: .+[^.\s]\. Save a fast one: "):
        load_tokenizer(manifest, description)


def test_token_types_can_be_switched_off(folder: Path) -> None:
    for tokenizer in (ours(folder), ours(folder, token_types=False)):
        [pair] = tokenizer.encode_pairs("the app", ["billing"], where="input", truncate=False)
        assert pair.ids
    assert pair.type_ids is None
