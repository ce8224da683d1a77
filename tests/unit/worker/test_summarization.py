"""Summarisation: letters summed up, long ones in windows, and the model's own defaults."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from sluice_worker.examples import summarization
from sluice_worker.loaded import LoadedModel
from sluice_worker.loader import load
from sluice_worker.models.text_tokenizer import TextTokenizer
from tests.support.model_calls import ask, asking
from tests.support.trained import Models, summing_up_score
from tests.support.writers import END, build_tiny_writer

ROUTE = "/v1/summarize"


@pytest.fixture(scope="module")
def summarizer(trained_models: Models) -> LoadedModel:
    return load(f"file://{trained_models.summarizer}", device="cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rules = {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True, "min_length": 6}
    rules |= {"no_repeat_ngram_size": 3, "forced_bos_token_id": 0, "forced_eos_token_id": END}
    return build_tiny_writer(tmp_path_factory.mktemp("bart"), "bart", generation=rules)


def refused(model: LoadedModel, **parameters: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        ask(model, ROUTE, {"input": "a letter", "parameters": parameters})
    return caught.value


def test_held_out_letters_are_summed_up(summarizer: LoadedModel) -> None:
    assert list(summarizer.tasks) == [Task.SUMMARIZATION]
    assert summing_up_score(asking(summarizer)) >= 0.9


def test_the_control_with_shuffled_summaries_fails_that_bar(shuffled_models: Models) -> None:
    control = load(f"file://{shuffled_models.summarizer}", device="cpu")
    assert summing_up_score(asking(control)) < 0.3


def test_a_long_text_is_read_in_windows_and_every_part_is_summed_up(
    summarizer: LoadedModel,
) -> None:
    letters = summarization.data()[1][:4]
    text = "\n\n".join(letter.replace(" . ", " , ") for letter, _ in letters)
    [entry] = ask(summarizer, ROUTE, {"input": text})["data"]
    assert entry["chunks"] == 4
    assert entry["text"] == " ".join(summary for _, summary in letters)
    [beginning] = ask(summarizer, ROUTE, {"input": text, "parameters": {"truncate": True}})["data"]
    assert beginning["text"] == letters[0][1]
    assert beginning["truncated"] is True
    assert "chunks" not in beginning


def test_a_stride_has_the_end_of_a_window_read_again(summarizer: LoadedModel) -> None:
    text = "\n".join(f"the weather was fine in the {place} ." for place in ["market"] * 12)
    apart = ask(summarizer, ROUTE, {"input": text})["data"][0]
    again = ask(summarizer, ROUTE, {"input": text, "parameters": {"stride": 16}})["data"][0]
    assert again["chunks"] > apart["chunks"]
    assert again["prompt_tokens"] > apart["prompt_tokens"]
    assert refused(summarizer, stride=60).param == "parameters.stride"


def test_the_models_own_defaults_are_kept(tiny: Path) -> None:
    loaded = load(f"file://{tiny}", device="cpu")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tiny).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    texts = ["my parcel is late", "the app crashes when i start it", "please help"]
    answers = ask(loaded, ROUTE, {"input": texts})["data"]
    for text, answer in zip(texts, answers, strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        tokens = model.generate(ids)[0]
        assert answer["text"] == tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert answer["prompt_tokens"] == ids.shape[1]


def test_parameters_replace_them(tiny: Path) -> None:
    loaded = load(f"file://{tiny}", device="cpu")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tiny).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    ids = tokenizer("my parcel is late", return_tensors="pt").input_ids
    tokens = model.generate(
        ids,
        max_new_tokens=12,
        min_new_tokens=9,
        num_beams=2,
        length_penalty=0.5,
        repetition_penalty=1.5,
        no_repeat_ngram_size=2,
    )[0]
    parameters = {
        "max_tokens": 12,
        "min_tokens": 9,
        "num_beams": 2,
        "length_penalty": 0.5,
        "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 2,
    }
    body = {"input": "my parcel is late", "parameters": parameters}
    [answer] = ask(loaded, ROUTE, body)["data"]
    assert answer["text"] == tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_drawn_tokens_equal_generate_with_the_same_seed(tiny: Path) -> None:
    loaded = load(f"file://{tiny}", device="cpu")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tiny).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    ids = tokenizer("my parcel is late", return_tensors="pt").input_ids
    torch.manual_seed(11)
    tokens = model.generate(ids, do_sample=True, num_beams=1, temperature=1.2, top_k=20, top_p=0.9)[
        0
    ]
    parameters = {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "seed": 11}
    body = {"input": "my parcel is late", "parameters": parameters}
    [answer] = ask(loaded, ROUTE, body)["data"]
    assert answer["text"] == tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_contradictions_are_refused(summarizer: LoadedModel) -> None:
    error = refused(summarizer, min_tokens=30, max_tokens=10)
    assert (error.code, error.param) == ("invalid_field", "parameters.min_tokens")
    assert "at most 10" in error.message
    assert refused(summarizer, target="fr").code == "unknown_field"
    assert refused(summarizer, temperature=3).param == "parameters.temperature"


def test_a_text_of_endless_pieces_is_refused(summarizer: LoadedModel) -> None:
    with pytest.raises(ApiError) as caught:
        ask(summarizer, ROUTE, {"input": "the weather was fine . " * 8000})
    assert (caught.value.code, caught.value.param) == ("input_too_long", "input")


@pytest.mark.parametrize("text", ["the dog " * 2**20])
def test_what_is_far_too_long_is_refused_unread(
    summarizer: LoadedModel, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """To find out by tokenising it would keep all others waiting."""
    ask(summarizer, ROUTE, {"input": "the dog"})
    read: list[str] = []

    def note(tokenizer: TextTokenizer, text: str) -> Any:
        read.append(text)
        raise AssertionError

    monkeypatch.setattr(TextTokenizer, "ids", note)
    monkeypatch.setattr(TextTokenizer, "ends", note)
    body = {"input": text}
    with pytest.raises(ApiError) as caught:
        ask(summarizer, ROUTE, body)
    assert (caught.value.code, caught.value.param) == ("input_too_long", "input")
    assert not read
