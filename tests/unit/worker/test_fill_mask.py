"""Fill-mask: equal to the pipeline for one mask or several, and a model that knows its capitals."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers

from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from sluice_worker.loaded import LoadedModel
from sluice_worker.loader import load
from sluice_worker.models.errors import ModelRejected
from tests.support import models, trained
from tests.support.model_calls import ask, asking

ROUTE = "/v1/fill-mask"
TEMPLATES = ["the app {m}", "{m} crashes", "my {m} has {m} arrived {m}", "the {m} {m} is late"]


def filled(model: LoadedModel, texts: Any, **parameters: Any) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = ask(model, ROUTE, {"input": texts, "parameters": parameters})[
        "data"
    ]
    return answer


@pytest.fixture(scope="module", params=["bert", "roberta", "byte-level", "electra", "deberta-v2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    byte_level = request.param == "byte-level"
    models.build_tiny(folder, "roberta" if byte_level else request.param, head="mask")
    if byte_level:
        models.save_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(f"file://{folder}", device="cpu")


@pytest.mark.parametrize(
    "parameters", [{}, {"top_k": 3}, {"targets": ["app", "is", "the"]}], ids=str
)
def test_candidates_equal_the_pipeline(
    folder: Path, model: LoadedModel, parameters: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = transformers.pipeline("fill-mask", model=str(folder), device="cpu")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        mask = tokenizer.mask_token
        if "targets" in parameters:  # Such as its vocabulary has.
            vocabulary = sorted(tokenizer.get_vocab())
            parameters = {"targets": [vocabulary[40], vocabulary[90], vocabulary[140]]}
        texts = [template.format(m=mask) for template in TEMPLATES]
        expected = [pipeline(text, **parameters) for text in texts]
    for text, answer, theirs in zip(
        texts, filled(model, texts, **parameters), expected, strict=True
    ):
        lists = theirs if isinstance(theirs[0], list) else [theirs]
        assert len(answer["masks"]) == text.count(mask)
        for ours, other in zip(answer["masks"], lists, strict=True):
            assert [c["token"] for c in ours] == [c["token"] for c in other]
            assert [c["text"] for c in ours] == [c["token_str"] for c in other]
            for one, two in zip(ours, other, strict=True):
                assert one["score"] == pytest.approx(two["score"], abs=1e-6)


@pytest.fixture(scope="module")
def learnt(trained_models: trained.Models) -> LoadedModel:
    return load(f"file://{trained_models.masked}", device="cpu")


def test_capitals_are_known_in_sentences_held_out(learnt: LoadedModel) -> None:
    assert trained.filling_score(asking(learnt)) >= 0.9


def test_the_control_with_other_capitals_fails_that_bar(shuffled_models: trained.Models) -> None:
    control = load(f"file://{shuffled_models.masked}", device="cpu")
    assert trained.filling_score(asking(control)) < 0.5


def test_targets_are_the_only_choice(learnt: LoadedModel) -> None:
    text = "the capital of france is [MASK] ."
    [answer] = filled(learnt, text, targets=["oslo", "rome"], top_k=5)
    assert {candidate["text"] for candidate in answer["masks"][0]} == {"oslo", "rome"}
    [free] = filled(learnt, text, top_k=400)
    scores = {candidate["text"]: candidate["score"] for candidate in free["masks"][0]}
    for candidate in answer["masks"][0]:
        assert candidate["score"] == pytest.approx(scores[candidate["text"]], abs=1e-6)


def test_what_was_loaded(learnt: LoadedModel) -> None:
    assert list(learnt.tasks) == [Task.FILL_MASK]
    assert learnt.engine.name == "packed"


def test_the_same_weights_embed_where_that_is_their_task(trained_models: trained.Models) -> None:
    embedder = load(f"file://{trained_models.masked}", task=Task.EMBEDDINGS, device="cpu")
    assert next(iter(embedder.tasks)) == Task.EMBEDDINGS


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    folder = models.build_tiny(tmp_path, "bert", head="mask")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("[MASK]", "[HOLE]"))
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"mask_token"', '"other_token"'))
    with pytest.raises(ModelRejected, match=r"mask token.*tokenizer_config.json"):
        load(f"file://{folder}", device="cpu")
    assert load(f"file://{folder}", task=Task.EMBEDDINGS, device="cpu").dimensions == models.HIDDEN


@pytest.mark.parametrize(
    ("text", "parameters", "param", "message"),
    [
        ("no hole", {}, "input", r"\[MASK\]"),
        ("[MASK] " + "is the capital " * 99, {}, "input", "tokens"),
        ("is the capital " * 99 + "[MASK]", {"truncate": True}, "input", "part that is left"),
        ("[MASK]", {"targets": ["unheard-of"]}, "parameters.targets", '"unheard-of"'),
        ("[MASK]", {"targets": []}, "parameters.targets", "list"),
        ("[MASK]", {"top_k": 0}, "parameters.top_k", "0"),
        ("[MASK]", {"labels": ["a"]}, "parameters.labels", "not known"),
        ("", {}, "input", "empty"),
        (7, {}, "input", "7"),
    ],
)
def test_errors_name_field_value_and_fix(
    learnt: LoadedModel, text: Any, parameters: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        filled(learnt, text, **parameters)
    assert caught.value.param == param


def test_masks_of_one_request_are_bounded(
    learnt: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice_worker.tasks.fill_mask.MAX_SCORES", 1000)
    with pytest.raises(ApiError, match="at most") as caught:
        filled(learnt, ["[MASK] is [MASK]"] * 30)
    assert caught.value.code == "too_many_inputs"


def test_truncation_is_said(learnt: LoadedModel) -> None:
    [answer] = filled(learnt, "[MASK] " + "is the capital " * 99, truncate=True)
    assert answer["truncated"] is True
    assert answer["tokens"] == learnt.max_input_tokens
