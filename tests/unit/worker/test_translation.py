"""Translation: a toy language learnt, forced languages, and nothing of a long text lost."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import processors

from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from sluice_worker.examples import translation
from sluice_worker.loaded import LoadedModel
from sluice_worker.loader import load
from sluice_worker.models.manifest import verify
from sluice_worker.models.sources.registry import fetch
from sluice_worker.models.text_tokenizer import Frame, TextTokenizer, load_text_tokenizer
from tests.support.model_calls import ask, asking
from tests.support.trained import Models, translating_score
from tests.support.writers import END, build_tiny_writer

ROUTE = "/v1/translate"


def tokenizer_of(folder: Path) -> TextTokenizer:
    manifest = verify(fetch(f"file://{folder}", None, lambda *_: None), None)
    return load_text_tokenizer(manifest, 10_000)


@pytest.fixture(scope="module")
def folder(trained_models: Models) -> Path:
    return trained_models.translator


@pytest.fixture(scope="module")
def translator(folder: Path) -> LoadedModel:
    return load(f"file://{folder}", device="cpu")


def refused(model: LoadedModel, **parameters: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        ask(model, ROUTE, {"input": "the dog", "parameters": parameters})
    return caught.value


def test_held_out_sentences_are_translated_into_the_language_asked_for(
    translator: LoadedModel,
) -> None:
    assert list(translator.tasks) == [Task.TRANSLATION]
    for language in translation.TOYS:
        assert translating_score(asking(translator), language) >= 0.9


def test_the_control_with_shuffled_translations_fails_that_bar(shuffled_models: Models) -> None:
    control = load(f"file://{shuffled_models.translator}", device="cpu")
    assert translating_score(asking(control), "bo") < 0.3


def test_what_an_answer_says(translator: LoadedModel) -> None:
    body = {"input": "the dog sees the house .", "parameters": {"target": "ka"}}
    answer = ask(translator, ROUTE, body)
    [entry] = answer["data"]
    assert entry == {
        "index": 0,
        "text": "ti dzag xed ti saxl ra.",
        "finish_reason": "stop",
        "source": "en",
        "target": "ka",
        "prompt_tokens": 8,
        "completion_tokens": 8,
        "tokens": 16,
    }
    usage = {"prompt_tokens": 8, "completion_tokens": 8, "total_tokens": 16}
    assert answer["usage"] == usage


def test_a_long_text_is_translated_sentence_by_sentence_in_its_own_layout(
    translator: LoadedModel,
) -> None:
    learnt, _ = translation.data()
    text = "\n  ".join(learnt[:3]) + "\n\n" + "\n".join(learnt[3:20]) + "\n"
    [entry] = ask(translator, ROUTE, {"input": text, "parameters": {"target": "bo"}})["data"]
    toy = {sentence: translation.translated(sentence, "bo") for sentence in learnt}
    expected = "\n  ".join(toy[s] for s in learnt[:3]) + "\n\n"
    expected += "\n".join(toy[s] for s in learnt[3:20]) + "\n"
    assert entry["text"] == expected
    assert entry["chunks"] == 20
    assert entry["prompt_tokens"] > translator.max_input_tokens


def test_a_sentence_too_long_for_the_model_is_read_in_pieces(translator: LoadedModel) -> None:
    text = " ".join(["the dog sees the house"] * 40)
    [entry] = ask(translator, ROUTE, {"input": text, "parameters": {"target": "bo"}})["data"]
    assert entry["chunks"] >= 4
    assert entry["prompt_tokens"] >= 5 * 40


def test_white_space_alone_stays_what_it_is(translator: LoadedModel) -> None:
    [entry] = ask(translator, ROUTE, {"input": " \n ", "parameters": {"target": "bo"}})["data"]
    assert entry["text"] == " \n "
    assert entry["tokens"] == 0


def test_languages_the_model_does_not_know_are_refused_with_those_it_does(
    translator: LoadedModel,
) -> None:
    error = refused(translator, target="fr")
    assert (error.code, error.param) == ("invalid_field", "parameters.target")
    assert error.message == "parameters.target: got 'fr', this model knows bo, en, ka."
    error = refused(translator, target="en")
    assert "there is nothing to translate" in error.message
    assert error.param == "parameters.target"
    error = refused(translator, target="bo", source="xx")
    assert (error.code, error.param) == ("invalid_field", "parameters.source")
    error = refused(translator)
    assert (error.code, error.param) == ("missing_field", "parameters.target")
    assert "bo, en, ka" in error.message


def test_parameters_that_cannot_be_honoured_are_refused(translator: LoadedModel) -> None:
    error = refused(translator, target="bo", max_tokens=1000)
    assert error.param == "parameters.max_tokens"
    assert "at most 64" in error.message
    error = refused(translator, target="bo", length_penalty=2.0)
    assert error.param == "parameters.length_penalty"
    error = refused(translator, target="bo", num_beams=4, temperature=0.7)
    assert error.param == "parameters.num_beams"
    error = refused(translator, target="bo", truncate=True)
    assert (error.code, error.param) == ("unknown_field", "parameters.truncate")


def test_max_tokens_cuts_and_says_so(translator: LoadedModel) -> None:
    parameters = {"target": "bo", "max_tokens": 3}
    [entry] = ask(translator, ROUTE, {"input": "the dog sees a boat .", "parameters": parameters})[
        "data"
    ]
    assert entry["finish_reason"] == "length"
    assert entry["completion_tokens"] == 3


def test_chance_follows_the_seed(translator: LoadedModel) -> None:
    def drawn(seed: int) -> str:
        parameters = {"target": "bo", "temperature": 2.0, "seed": seed}
        body = {"input": "the dog sees a boat .", "parameters": parameters}
        return str(ask(translator, ROUTE, body)["data"][0]["text"])

    texts = [drawn(seed) for seed in range(12)]
    assert texts == [drawn(seed) for seed in range(12)]
    assert len(set(texts)) > 1


@pytest.mark.parametrize("beams", [1, 4])
def test_answers_equal_generate_with_the_languages_forced(folder: Path, beams: int) -> None:
    translator = load(f"file://{folder}", device="cpu")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = tokenizer_of(folder)
    text = "my sister paints the old moon ."
    for language in translation.TOYS:
        ids = [tokenizer.languages["en"], *tokenizer.ids(text), END]
        tokens = model.generate(
            torch.tensor([ids]), forced_bos_token_id=tokenizer.languages[language], num_beams=beams
        )
        parameters = {"target": language, "num_beams": beams}
        [entry] = ask(translator, ROUTE, {"input": text, "parameters": parameters})["data"]
        assert entry["text"] == tokenizer.text(tokens[0].tolist())
        assert entry["prompt_tokens"] == len(ids)


# how models say what language they write ------------------------------------------------------


def test_mbart_has_the_source_in_front_and_is_told_the_target_first(tmp_path: Path) -> None:
    folder = build_tiny_writer(tmp_path, "mbart")
    loaded = load(f"file://{folder}", device="cpu")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = tokenizer_of(folder)
    text = "my parcel is late"
    codes = tokenizer.languages
    tokens = model.generate(
        torch.tensor([[codes["bo_XX"], *tokenizer.ids(text), END]]),
        forced_bos_token_id=codes["ka_XX"],
    )
    body = {"input": text, "parameters": {"source": "bo_XX", "target": "ka"}}
    [entry] = ask(loaded, ROUTE, body)["data"]
    assert entry["text"] == tokenizer.text(tokens[0].tolist())
    assert (entry["source"], entry["target"]) == ("bo_XX", "ka_XX")


def test_older_mbart_starts_with_the_target(tmp_path: Path) -> None:
    folder = build_tiny_writer(tmp_path, "mbart")
    codes = tokenizer_of(folder).languages
    folder = build_tiny_writer(tmp_path / "old", "mbart", decoder_start_token_id=codes["ka_XX"])
    loaded = load(f"file://{folder}", device="cpu")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = tokenizer_of(folder)
    ids = torch.tensor([[codes["en_XX"], *tokenizer.ids("my parcel"), END]])
    for target, start in ((None, "ka_XX"), ("bo_XX", "bo_XX")):
        tokens = model.generate(ids, decoder_start_token_id=codes[start])
        parameters = {"target": target} if target else {}
        [entry] = ask(loaded, ROUTE, {"input": "my parcel", "parameters": parameters})["data"]
        assert entry["text"] == tokenizer.text(tokens[0].tolist())
        assert entry["target"] == start


@pytest.mark.parametrize("legacy", [False, True])
def test_nllb_has_the_source_in_front_whatever_its_older_file_says(
    legacy: bool, tmp_path: Path
) -> None:
    """As transformers has it since 4.30, which does not read this part of the file."""
    folder = build_tiny_writer(tmp_path, "mbart")
    fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    code = fast.token_to_id("en_XX")
    fast.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>", "en_XX"], special_tokens=[("</s>", END), ("en_XX", code)]
    )
    fast.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "NllbTokenizer", "src_lang": None}
    more = {"legacy_behaviour": True} if legacy else {}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **more}))
    frame = tokenizer_of(folder).frame
    assert frame == (Frame((), (END, code)) if legacy else Frame((code,), (END,)))


MARIANS = {"bad_words_ids": [[1]], "num_beams": 4, "renormalize_logits": True}
"""As the published models have it."""


def test_marian_translates_one_pair(tmp_path: Path) -> None:
    folder = build_tiny_writer(tmp_path, "marian", generation=MARIANS)
    loaded = load(f"file://{folder}", device="cpu")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = tokenizer_of(folder)
    tokens = model.generate(torch.tensor([[*tokenizer.ids("my parcel is late"), END]]))
    for parameters in ({}, {"source": "en", "target": "bo"}):
        body = {"input": "my parcel is late", "parameters": parameters}
        [entry] = ask(loaded, ROUTE, body)["data"]
        assert entry["text"] == tokenizer.text(tokens[0].tolist())
    assert refused(loaded, target="fr").message.endswith("this model knows bo.")


def test_t5_is_told_in_words(tmp_path: Path) -> None:
    by_task = {
        "translation_en_to_de": {"prefix": "my update ", "max_length": 9},
        "translation_en_to_fr": {"prefix": "the refund ", "num_beams": 3},
    }
    folder = build_tiny_writer(tmp_path, "t5", task_specific_params=by_task)
    loaded = load(f"file://{folder}", device="cpu")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = tokenizer_of(folder)
    assert list(loaded.tasks) == [Task.TRANSLATION]
    for target, prefix, rules in (
        ("de", "my update ", {"max_length": 9}),
        ("fr", "the refund ", {"num_beams": 3}),
    ):
        ids = [*tokenizer.ids(f"{prefix}hello"), END]
        tokens = model.generate(torch.tensor([ids]), **rules)
        body = {"input": "hello", "parameters": {"target": target}}
        [entry] = ask(loaded, ROUTE, body)["data"]
        assert entry["text"] == tokenizer.text(tokens[0].tolist())
    assert refused(loaded).message.endswith("required, this model knows de, fr.")
    assert refused(loaded, target="it").message.endswith("this model knows de, fr.")
    assert refused(loaded, target="de", source="fr").message.endswith("this model knows en.")


@pytest.mark.parametrize("text", ["the dog . " * 1000, "the dog " * 2**20])
def test_what_is_far_too_long_is_refused_unread(
    translator: LoadedModel, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """To find out by tokenising it would keep all others waiting."""
    ask(translator, ROUTE, {"input": "the dog", "parameters": {"target": "ka"}})
    read: list[str] = []

    def note(tokenizer: TextTokenizer, text: str) -> Any:
        read.append(text)
        raise AssertionError

    monkeypatch.setattr(TextTokenizer, "ids", note)
    monkeypatch.setattr(TextTokenizer, "ends", note)
    body = {"input": text, "parameters": {"target": "ka"}}
    with pytest.raises(ApiError) as caught:
        ask(translator, ROUTE, body)
    assert (caught.value.code, caught.value.param) == ("input_too_long", "input")
    assert not read
