"""Relations that a model writes: found on held-out sentences, offset-exact, also in long texts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from sluice_worker.examples import written_relations
from sluice_worker.loaded import LoadedModel
from sluice_worker.loader import load
from sluice_worker.models.errors import ModelRejected
from tests.support.model_calls import ask, asking
from tests.support.trained import Models, writing_relations_score
from tests.support.writers import build_tiny_writer

ROUTE = "/v1/relations"
Named = tuple[str, str, str]


@pytest.fixture(scope="module")
def folder(trained_models: Models) -> Path:
    return trained_models.relation_writer


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(f"file://{folder}", device="cpu")


def named(entry: dict[str, Any]) -> set[Named]:
    entities = [entity["text"] for entity in entry["entities"]]
    return {(entities[r["head"]], r["label"], entities[r["tail"]]) for r in entry["relations"]}


def test_held_out_sentences_state_their_relations(model: LoadedModel) -> None:
    assert list(model.tasks) == [Task.RELATION_EXTRACTION]
    assert writing_relations_score(asking(model)) >= 0.85


def test_the_control_with_shuffled_triplets_fails_that_bar(shuffled_models: Models) -> None:
    control = load(f"file://{shuffled_models.relation_writer}", device="cpu")
    assert writing_relations_score(asking(control)) < 0.4


def test_entities_stand_where_the_answer_says(model: LoadedModel) -> None:
    text = "Anna Berg , who was born in  Oslo , works for Corvus ."
    [entry] = ask(model, ROUTE, {"input": text})["data"]
    for entity in entry["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
    starts = [entity["start"] for entity in entry["entities"]]
    assert starts == sorted(starts)
    scores = [relation["score"] for relation in entry["relations"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0.0 < score <= 1.0 for score in scores)


def test_a_long_text_is_read_in_windows_and_offsets_are_those_of_the_whole(
    folder: Path,
) -> None:
    facts = written_relations.data()[0][1:40:6]
    text = "\n".join(sentence for sentence, _ in facts)
    short = load(f"file://{folder}", device="cpu", max_input_tokens=20)
    [entry] = ask(short, ROUTE, {"input": text})["data"]
    assert entry["chunks"] == len(facts)
    for entity in entry["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
    assert len(entry["relations"]) == len(
        {(r["head"], r["tail"], r["label"]) for r in entry["relations"]}
    )
    found = named(entry)
    hits = sum(set(written_relations.facts(triplets)) <= found for _, triplets in facts)
    assert hits >= len(facts) - 1


def test_a_text_that_is_cut_at_the_models_maximum_says_so(folder: Path, tmp_path: Path) -> None:
    facts = written_relations.data()[1]
    body = {"input": facts[0][0]}
    for most, forced, reason in ((48, None, "stop"), (5, None, "length"), (5, 2, "length")):
        cut = tmp_path / f"{most}-{forced}"
        shutil.copytree(folder, cut)
        file = cut / "generation_config.json"
        given = json.loads(file.read_text())
        file.write_text(json.dumps({**given, "max_length": most, "forced_eos_token_id": forced}))
        [entry] = ask(load(f"file://{cut}", device="cpu"), ROUTE, body)["data"]
        assert entry["finish_reason"] == reason


def test_the_threshold_leaves_out_what_is_less_probable(model: LoadedModel) -> None:
    text = written_relations.data()[1][1][0]
    [entry] = ask(model, ROUTE, {"input": text, "parameters": {"threshold": 1.0}})["data"]
    assert entry["relations"] == []
    assert entry["entities"] == []


def test_given_entities_are_refused(model: LoadedModel) -> None:
    body = {"input": {"text": "Anna", "entities": [{"start": 0, "end": 4}]}}
    with pytest.raises(ApiError) as caught:
        ask(model, ROUTE, body)
    assert caught.value.param == "input.entities"
    with pytest.raises(ApiError, match="asked directly") as caught:
        ask(model, ROUTE, {"input": "Anna", "parameters": {"entities_from": "ner"}})
    assert caught.value.param == "parameters.entities_from"


def test_the_markers_alone_tell_the_task(tmp_path: Path) -> None:
    plain = build_tiny_writer(tmp_path / "plain", "bart")
    assert list(load(f"file://{plain}", device="cpu").tasks) == [Task.SUMMARIZATION]
    with pytest.raises(ModelRejected, match="<triplet>"):
        load(f"file://{plain}", device="cpu", task=Task.RELATION_EXTRACTION)
    marked = build_tiny_writer(
        tmp_path / "marked", "mbart", markers=("<triplet>", "<per>", "<loc>")
    )
    assert list(load(f"file://{marked}", device="cpu").tasks) == [Task.RELATION_EXTRACTION]
