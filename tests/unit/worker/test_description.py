"""What a model is made for, from its configuration files alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from sluice_api.tasks import Task
from sluice_worker.engines.pooling import MODES
from sluice_worker.models.description import (
    POOLING_MODES,
    Description,
    Markers,
    describe,
    known_markers,
    position_offset,
)
from sluice_worker.models.errors import BadConfiguration, ModelRejected
from sluice_worker.models.manifest import Manifest

BERT = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512}
MODULES = [
    {"type": "sentence_transformers.models.Transformer", "path": ""},
    {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"},
]


def described(
    folder: Path,
    files: dict[str, Any],
    max_input_tokens: int | None = None,
    task: Task | None = None,
) -> Description:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    manifest = Manifest(folder, sums=dict.fromkeys(files, ""), weights=())
    return describe(manifest, max_input_tokens, task)


def classifier(**config: Any) -> dict[str, Any]:
    return {"config.json": {**BERT, "architectures": ["BertForSequenceClassification"], **config}}


def test_a_bare_encoder_gets_the_unit_mean(tmp_path: Path) -> None:
    found = described(tmp_path, {"config.json": BERT})
    assert found.pooling is not None
    assert (found.pooling.mode, found.pooling.normalize) == ("mean", True)
    assert found.classifier is None


@pytest.mark.parametrize("name", ["BertForPreTraining", "BertModel"])
def test_encoders_under_other_heads_embed(tmp_path: Path, name: str) -> None:
    found = described(tmp_path, {"config.json": {**BERT, "architectures": [name]}})
    assert found.pooling is not None


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("BertForTokenClassification", "token"),
        ("BertForQuestionAnswering", "span"),
        ("XLMForQuestionAnsweringSimple", "span"),
        ("BertForMaskedLM", "mask"),
    ],
)
def test_heads_are_known_by_the_architectures_name(tmp_path: Path, name: str, head: str) -> None:
    found = described(tmp_path, {"config.json": {**BERT, "architectures": [name]}})
    assert found.head == head
    assert found.pooling is None
    assert (found.classifier is not None) == (head == "token")


@pytest.mark.parametrize("task", [Task.EMBEDDINGS, Task.ZERO_SHOT])
def test_a_masked_language_model_embeds_where_that_is_its_task(tmp_path: Path, task: Task) -> None:
    files = {"config.json": {**BERT, "architectures": ["BertForMaskedLM"]}}
    assert described(tmp_path, files, task=task).pooling is not None
    files |= {"modules.json": MODULES, "1_Pooling/config.json": {}}
    assert described(tmp_path, files).pooling is not None


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"mask_token": "<blank>"}},
        {"tokenizer_config.json": {"mask_token": {"content": "<blank>", "lstrip": True}}},
        {"special_tokens_map.json": {"mask_token": "<blank>"}},
    ],
)
def test_the_mask_is_what_the_tokenizer_names(tmp_path: Path, files: dict[str, Any]) -> None:
    config = {**BERT, "architectures": ["BertForMaskedLM"]}
    assert described(tmp_path, {"config.json": config, **files}).mask_token == "<blank>"
    assert described(tmp_path, {"config.json": config}).mask_token is None


def test_entity_markers_are_configured_or_known(tmp_path: Path) -> None:
    given = {"head": ["@ * {label} * ", " @"], "tail": ["# ", " #"]}
    found = described(tmp_path, classifier(entity_markers=given)).markers
    assert found == Markers(("@ * {label} * ", " @"), ("# ", " #"))
    assert described(tmp_path, classifier()).markers is None
    tokens = {"<e1>", "</e1>", "<e2>", "</e2>", "[MASK]"}
    assert known_markers(tokens) == Markers(("<e1> ", " </e1>"), ("<e2> ", " </e2>"))
    assert known_markers(tokens - {"</e2>"}) is None


@pytest.mark.parametrize("given", [True, {"head": ["a", "b"]}, {"head": "a", "tail": ["b", "c"]}])
def test_entity_markers_that_are_none_are_refused(tmp_path: Path, given: Any) -> None:
    with pytest.raises(ModelRejected, match="entity_markers"):
        described(tmp_path, classifier(entity_markers=given))


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["BertForMultipleChoice"]},
        {"architectures": ["T5EncoderDecoderModel"], "is_encoder_decoder": True},
        {"architectures": ["BertModel"], "is_decoder": True},
    ],
)
def test_other_tasks_are_refused_by_name(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(ModelRejected, match=config["architectures"][0]):
        described(tmp_path, {"config.json": {**BERT, **config}})


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({}, "mean"),
    ],
)
def test_sentence_models_say_how_they_pool(
    tmp_path: Path, pooling: dict[str, Any], mode: str
) -> None:
    files = {"config.json": BERT, "modules.json": MODULES, "1_Pooling/config.json": pooling}
    found = described(tmp_path, files).pooling
    assert found is not None
    assert found.mode == mode


def test_sentence_models_say_whether_they_normalize(tmp_path: Path) -> None:
    files = {"config.json": BERT, "modules.json": MODULES[:2], "1_Pooling/config.json": {}}
    found = described(tmp_path, files).pooling
    assert found is not None
    assert not found.normalize


@pytest.mark.parametrize(
    ("modules", "pooling"),
    [
        ([*MODULES[:2], {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}], {}),
        (MODULES[:1], {}),
        (MODULES, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}),
        (MODULES, {"pooling_mode": "no_such_mode"}),
        (MODULES, {"include_prompt": False}),
    ],
)
def test_pooling_that_is_not_served_is_refused(
    tmp_path: Path, modules: Any, pooling: dict[str, Any]
) -> None:
    files = {"config.json": BERT, "modules.json": modules, "1_Pooling/config.json": pooling}
    with pytest.raises(ModelRejected):
        described(tmp_path, files)


def test_a_pooling_that_is_not_there_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=r"1_Pooling/config\.json is missing"):
        described(tmp_path, {"config.json": BERT, "modules.json": MODULES})


def test_the_default_prompt_of_sentence_models_is_known(tmp_path: Path) -> None:
    files = {"config.json": BERT, "modules.json": MODULES, "1_Pooling/config.json": {}}
    settings: dict[str, Any] = {"prompts": {"query": "query: ", "document": ""}}
    name = "config_sentence_transformers.json"
    assert described(tmp_path, {**files, name: settings}).prompt == ""
    settings["default_prompt_name"] = "query"
    assert described(tmp_path, {**files, name: settings}).prompt == "query: "
    settings["default_prompt_name"] = "passage"
    with pytest.raises(ModelRejected, match="'passage', but prompts has query, document"):
        described(tmp_path, {**files, name: settings})


def test_labels_keep_the_models_order(tmp_path: Path) -> None:
    names = {str(place): f"label {place}" for place in (10, 2, 0, 1, *range(3, 10))}
    found = described(tmp_path, classifier(id2label=names)).classifier
    assert found is not None
    assert found.labels == tuple(f"label {place}" for place in range(11))
    assert found.activation == "softmax"
    assert found.entailment is None


@pytest.mark.parametrize(
    ("names", "given"),
    [({"0": "a", "1": "b", "3": "d"}, "0, 1, 3"), ({"1": "a", "2": "b"}, "1, 2"), (["a"], "a")],
)
def test_labels_without_a_place_are_not_guessed(tmp_path: Path, names: Any, given: str) -> None:
    with pytest.raises(ModelRejected, match=f"id2label names {given}; it needs"):
        described(tmp_path, classifier(id2label=names))


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, "softmax"),
        ({"problem_type": "single_label_classification"}, "softmax"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"id2label": {"0": "relevant"}}, "sigmoid"),
        ({"id2label": {"0": "quality"}, "problem_type": "regression"}, "none"),
    ],
)
def test_activation_follows_the_problem(
    tmp_path: Path, config: dict[str, Any], activation: str
) -> None:
    found = described(tmp_path, classifier(**config)).classifier
    assert found is not None
    assert found.activation == activation


@pytest.mark.parametrize(
    ("labels", "entailment", "contradiction"),
    [
        (["contradiction", "neutral", "entailment"], 2, 0),
        (["ENTAILMENT", "NEUTRAL", "CONTRADICTION"], 0, 2),
        (["entailment", "contradiction", "neutral"], 0, 1),
        (["entailment", "not_entailment"], 0, 1),
        (["positive", "negative"], None, None),
    ],
)
def test_inference_models_are_recognised(
    tmp_path: Path, labels: list[str], entailment: int | None, contradiction: int | None
) -> None:
    names = {str(index): label for index, label in enumerate(labels)}
    found = described(tmp_path, classifier(id2label=names)).classifier
    assert found is not None
    assert (found.entailment, found.contradiction) == (entailment, contradiction)


def test_the_tightest_limit_counts(tmp_path: Path) -> None:
    files = {
        "config.json": BERT,
        "sentence_bert_config.json": {"max_seq_length": 256},
        "tokenizer_config.json": {"model_max_length": 384},
    }
    assert described(tmp_path, files).max_tokens == 256
    assert described(tmp_path, files, 500).max_tokens == 500
    files["tokenizer_config.json"] = {"model_max_length": 1000000000000000019884624838656}
    files["sentence_bert_config.json"] = {}
    assert described(tmp_path, files).max_tokens == 512


@pytest.mark.parametrize("wanted", [3, 513, 0, -1])
def test_limits_out_of_range_are_refused(tmp_path: Path, wanted: int) -> None:
    with pytest.raises(BadConfiguration, match="4 to 512"):
        described(tmp_path, {"config.json": BERT}, wanted)


@pytest.mark.parametrize("kin", ["roberta", "esm", "ibert", "lilt", "luke", "roberta-prelayernorm"])
def test_roberta_counts_positions_from_after_its_padding(tmp_path: Path, kin: str) -> None:
    config = {**BERT, "model_type": kin, "max_position_embeddings": 514, "pad_token_id": 1}
    assert position_offset(config) == 2
    assert described(tmp_path, {"config.json": config}).max_tokens == 512
    assert position_offset(BERT) == 0


@pytest.mark.parametrize("content", [[], {}, {"model_type": 3}])
def test_no_model_type_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ModelRejected, match="model_type"):
        described(tmp_path, {"config.json": content})


def test_broken_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelRejected, match="not valid JSON"):
        describe(Manifest(tmp_path, sums={"config.json": ""}, weights=()), None)


def test_every_pooling_mode_is_implemented() -> None:
    assert set(POOLING_MODES) == set(MODES)


@pytest.mark.parametrize(
    ("names", "expected"),
    [(None, True), (["input_ids", "token_type_ids"], True), (["input_ids"], False)],
)
def test_token_types_follow_the_tokenizers_configuration(
    tmp_path: Path, names: list[str] | None, expected: bool
) -> None:
    tokenizer: dict[str, Any] = {} if names is None else {"model_input_names": names}
    files = {"config.json": BERT, "tokenizer_config.json": tokenizer}
    assert described(tmp_path, files).token_types is expected
    tokenizer["tokenizer_class"] = "TokenizersBackend"  # Of transformers 5, which tells no types.
    assert described(tmp_path, files).token_types is (expected and names is not None)
    files["config.json"] = {**BERT, "type_vocab_size": 1}
    assert not described(tmp_path, files).token_types


PHI3 = {
    "model_type": "phi3",
    "architectures": ["Phi3ForCausalLM"],
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "longrope"}},
        {"rope_scaling": {"type": "su"}},
        {"rope_parameters": {"rope_type": "longrope"}},
        {"rope_parameters": {"full_attention": {"rope_type": "longrope"}}},
    ],
)
def test_a_text_ends_where_its_length_would_change_how_others_are_read(
    rope: dict[str, Any], tmp_path: Path
) -> None:
    assert described(tmp_path, {"config.json": {**PHI3, **rope}}).max_tokens == 4096
    with pytest.raises(BadConfiguration, match=r"got 8192, the model allows 4 to 4096.*longrope"):
        described(tmp_path, {"config.json": {**PHI3, **rope}}, 8192)


def test_positions_that_stay_what_they_are_are_all_allowed(tmp_path: Path) -> None:
    for rope in ({}, {"rope_scaling": {"rope_type": "llama3"}}, {"rope_scaling": None}):
        config = {**PHI3, "model_type": "llama", **rope}
        assert described(tmp_path, {"config.json": config}).max_tokens == 131072
