"""The codecs: what a body means, and that an answer survives the cache unchanged."""

import base64
import json
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api import routes
from sluice_api.call import MAX_INPUTS, Call, Codec, Item, place
from sluice_api.errors import ApiError
from sluice_api.shapes import (
    classify,
    embeddings,
    fill_mask,
    listing,
    questions,
    relations,
    rerank,
    small,
    tokens,
    v2,
)
from sluice_api.tasks import Task


def body(**members: Any) -> bytes:
    return json.dumps(members).encode()


def vector(*numbers: float) -> bytes:
    return array("f", numbers).tobytes()


def ranked(*pairs: tuple[str, float, int]) -> list[tuple[str, float, int]]:
    return sorted(pairs, key=lambda pair: -pair[1])


# embeddings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_input", "inputs"),
    [
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["text", [1, 2]], ["text", [1, 2]]),
    ],
)
def test_embeddings_take_every_form_of_input(given_input: Any, inputs: list[Any]) -> None:
    assert embeddings.CODEC.parse(body(input=given_input)).inputs == inputs


@pytest.mark.parametrize(
    ("bad", "code", "param", "shown"),
    [
        ({"input": []}, "invalid_field", "input", "empty list"),
        ({"input": ""}, "invalid_field", "input", "empty input"),
        ({"input": ["a", ""]}, "invalid_field", "input[1]", "empty input"),
        ({"input": [""]}, "invalid_field", "input[0]", "empty input"),
        ({"input": [1, "a"]}, "invalid_field", "input[0]", "the number 1"),
        ({"input": 5}, "invalid_field", "input", "got 5"),
        ({"input": [-1]}, "invalid_field", "input[0]", "got -1"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "too_many_inputs", "input", "got 2049"),
        ({"input": "a", "dimensions": 0}, "invalid_field", "dimensions", "got 0"),
        ({"input": "a", "encoding_format": "hex"}, "invalid_field", "encoding_format", '"hex"'),
        ({"input": "a", "inputs": "b"}, "unknown_field", "inputs", "not known"),
        ({"model": "m"}, "missing_field", "input", "required"),
    ],
)
def test_embeddings_errors_name_field_and_value(
    bad: dict[str, Any], code: str, param: str, shown: str
) -> None:
    with pytest.raises(ApiError) as caught:
        embeddings.CODEC.parse(body(**bad))
    assert (caught.value.code, caught.value.param) == (code, param)
    assert shown in caught.value.message


@pytest.mark.parametrize(
    ("path", "one", "listed"),
    [
        ("/v1/embeddings", {"input": "a"}, {"input": ["a"]}),
        ("/v1/embeddings", {"input": [1, 2]}, {"input": [[1, 2]]}),
        ("/v1/completions", {"prompt": "a"}, {"prompt": ["a"]}),
        ("/v1/classify", {"input": "a"}, {"input": ["a"]}),
        ("/v1/fill-mask", {"input": "a"}, {"input": ["a"]}),
        ("/v1/translate", {"input": "a"}, {"input": ["a"]}),
        ("/predict", {"text": "a"}, {"text": ["a"]}),
        ("/v1/rerank", None, {"query": "a", "documents": ["a"]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, None),
    ],
)
def test_an_error_names_the_place_in_a_list_of_one_too(
    path: str, one: dict[str, Any] | None, listed: dict[str, Any] | None
) -> None:
    codec = routes.POST_ROUTES[path]
    if one is not None:
        assert place(codec.parse(body(**one)), 0) == codec.field
    if listed is not None:
        assert place(codec.parse(body(**listed)), 0) == f"{codec.field}[0]"


@pytest.mark.parametrize(
    "broken", [b"", b"{", b"[]", b"null", b'{"\xff": 1}', b'{"model": 5, oops', b"[" * 9999]
)
def test_a_broken_body_is_a_clear_error(broken: bytes) -> None:
    for codec in [*routes.POST_ROUTES.values(), v2.CODEC]:
        with pytest.raises(ApiError) as caught:
            codec.parse(broken)
        assert caught.value.code == "invalid_json"


def test_embeddings_are_written_as_numbers_or_base64_of_the_same_bits() -> None:
    item = embeddings.item(vector(0.1, -2.5), 3)
    encoded = embeddings.CODEC.parse(body(input="a", encoding_format="base64"))
    answer = json.loads(embeddings.CODEC.render(encoded, "m", [item]))
    assert base64.b64decode(answer["data"][0]["embedding"]) == vector(0.1, -2.5)
    plain = embeddings.CODEC.parse(body(input="a"))
    numbers = json.loads(embeddings.CODEC.render(plain, "m", [item]))["data"][0]["embedding"]
    assert array("f", numbers).tobytes() == vector(0.1, -2.5)
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1),
            st.integers(0, 9999),
            st.booleans(),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_items_survive_the_way_through_an_answer(
    rows: list[tuple[list[float], int, bool]],
) -> None:
    items = [embeddings.item(vector(*v), tokens, truncated=cut) for v, tokens, cut in rows]
    call = embeddings.CODEC.parse(body(input=["x"] * len(items), encoding_format="base64"))
    assert call.passthrough
    assert embeddings.CODEC.extract(call, embeddings.CODEC.render(call, "m", items)) == items


def test_items_of_a_foreign_worker_are_brought_into_canonical_form() -> None:
    call = embeddings.CODEC.parse(body(input="a", encoding_format="base64"))
    foreign = body(data=[{"tokens": 2, "embedding": "AAAA", "object": "embedding", "index": 0}])
    assert embeddings.CODEC.extract(call, foreign) == [
        Item(b'{"embedding":"AAAA","object":"embedding","tokens":2}', 2)
    ]


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{}",
        body(data=[]),
        body(data=[{"index": 1, "tokens": 1}]),
        body(data=[{"index": 0}]),
        body(data=[{"index": 0, "tokens": 1}] * 2),
        body(data=[1]),
    ],
)
def test_a_worker_answer_of_the_wrong_shape_is_refused(broken: bytes) -> None:
    call = embeddings.CODEC.parse(body(input="a", encoding_format="base64"))
    with pytest.raises(ValueError, match=r".+"):
        embeddings.CODEC.extract(call, broken)


# classification ----------------------------------------------------------------------------------


def test_labels_make_it_zero_shot() -> None:
    call = classify.CODEC.parse(body(input="a", parameters={"labels": ["x", "y"]}))
    assert call.task == Task.ZERO_SHOT
    assert call.parameters["labels"] == [["x", None], ["y", None]]
    assert classify.CODEC.parse(body(input="a")).task == Task.CLASSIFICATION


def test_defaults_spelt_out_mean_the_same() -> None:
    short = classify.CODEC.parse(body(input="a", parameters={"labels": ["x"]}))
    long = classify.CODEC.parse(
        body(
            parameters={
                "multi_label": False,
                "truncate": False,
                "hypothesis_template": "This example is {}.",
                "top_k": None,
                "labels": ["x"],
            },
            model="m",
            input="a",
        )
    )
    assert short.canonical_parameters() == long.canonical_parameters()


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"labels": []}, "parameters.labels"),
        ({"labels": ["a", "a"]}, "parameters.labels"),
        ({"labels": [str(n) for n in range(257)]}, "parameters.labels"),
        ({"labels": ["a"], "hypothesis_template": "no place"}, "parameters.hypothesis_template"),
        ({"multi_label": True}, "parameters.multi_label"),
        ({"top_k": 0}, "parameters.top_k"),
        ({"label": ["a"]}, "parameters.label"),
    ],
)
def test_classify_errors_name_the_parameter(parameters: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        classify.CODEC.parse(body(input="a", parameters=parameters))
    assert caught.value.param == param


def test_the_canonical_body_asks_for_the_same_thing() -> None:
    for parameters in (
        {},
        {"top_k": 2},
        {"labels": ["x", "y"], "multi_label": True},
        {"labels": {"x": "about x", "y": "about y"}, "hypothesis_template": "It is {}."},
    ):
        call = classify.CODEC.parse(body(input=["a", "b"], model="m", parameters=parameters))
        again = classify.CODEC.parse(routes.canonical_body(call, ["b"]))
        assert again.inputs == ["b"]
        assert (again.task, again.parameters, again.model) == (call.task, call.parameters, "m")


def test_the_small_apis_are_views_on_classification() -> None:
    one = classify.item(ranked(("ham", 0.1, 0), ("spam", 0.9, 1)), 4)
    call = small.CLASSIFY_TEXT.parse(body(text="buy now"))
    assert json.loads(small.CLASSIFY_TEXT.render(call, "m", [one])) == {
        "text": "buy now",
        "prediction": [0, 1],
        "label": "spam",
        "score": 0.9,
    }
    many = small.PREDICT.parse(body(text=["a", "b"]))
    assert json.loads(small.PREDICT.render(many, "m", [one, one])) == {
        "predictions": [1, 1],
        "labels": ["spam", "spam"],
        "scores": [0.9, 0.9],
    }
    # The same key as the large route, so the two share cache entries.
    assert (
        call.canonical_parameters()
        == classify.CODEC.parse(body(input="buy now")).canonical_parameters()
    )


def test_labels_decided_one_by_one_hold_from_one_half() -> None:
    item = classify.item(ranked(("a", 0.7, 2), ("b", 0.5, 0), ("c", 0.49, 1)), 1, multi_label=True)
    assert small.decided(classify.read_item(item.json)) == [1, 0, 1]


# V2 ----------------------------------------------------------------------------------------------


def v2_body(data: list[Any], **more: Any) -> bytes:
    tensor = {"name": "text", "shape": [len(data)], "datatype": "BYTES", "data": data}
    return body(inputs=[tensor], **more)


def test_v2_takes_the_task_of_the_service() -> None:
    call = v2.CODEC.parse(v2_body(["a"], id="7"))
    assert call.task is None
    routes.check_task(call, [Task.EMBEDDINGS, Task.ZERO_SHOT], "m")
    assert call.task == Task.EMBEDDINGS
    answer = json.loads(v2.CODEC.render(call, "m", [embeddings.item(vector(1, 2), 1)]))
    assert answer == {
        "id": "7",
        "model_name": "m",
        "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}],
    }


def test_v2_writes_labels_and_only_the_outputs_asked_for() -> None:
    item = classify.item(ranked(("ham", 0.25, 0), ("spam", 0.75, 1)), 4)
    call = v2.CODEC.parse(v2_body(["a", "b"], outputs=[{"name": "scores"}]))
    routes.check_task(call, [Task.CLASSIFICATION], "m")
    assert json.loads(v2.CODEC.render(call, "m", [item, item]))["outputs"] == [
        {"name": "scores", "datatype": "FP32", "shape": [2, 2], "data": [0.75, 0.25] * 2}
    ]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"name": "ids"}, "inputs"),
        ({"datatype": "FP32"}, "inputs[0].datatype"),
        ({"shape": [2]}, "inputs[0].shape"),
        ({"data": [1]}, "inputs[0].data[0]"),
        ({"shape": list(range(5000))}, "inputs[0].shape"),
        ({"name": "n" * 5000}, "inputs"),
        ({"datatype": "D" * 5000}, "inputs[0].datatype"),
    ],
)
def test_v2_errors_name_the_tensor(change: dict[str, Any], param: str) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"], **change}
    with pytest.raises(ApiError) as caught:
        v2.CODEC.parse(body(inputs=[tensor]))
    assert caught.value.param == param
    assert len(caught.value.message) < 200


def tensor(name: str, *data: str) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": "BYTES", "data": list(data)}


def outputs(call: Call, *answers: dict[str, Any]) -> dict[str, tuple[str, list[int], list[Any]]]:
    items = [listing.item(answer, 1) for answer in answers]
    told = json.loads(v2.CODEC.render(call, "m", items))["outputs"]
    return {o["name"]: (o["datatype"], o["shape"], o["data"]) for o in told}


def test_v2_ranks_documents() -> None:
    body_ = body(inputs=[tensor("query", "q"), tensor("text", "a", "b")])
    call = v2.CODEC.parse(body_)
    plain = rerank.CODEC.parse(body(query="q", documents=["a", "b"]))
    assert (call.task, call.inputs, call.parameters) == (Task.RERANK, ["a", "b"], plain.parameters)
    told = outputs(call, {"relevance_score": 0.5}, {"relevance_score": 0.75})
    assert told == {"relevance_score": ("FP32", [2], [0.5, 0.75])}


def test_v2_answers_questions() -> None:
    call = v2.CODEC.parse(
        body(
            inputs=[tensor("question", "who?", "when?"), tensor("context", "me", "now")],
            parameters={"no_answer": True},
        )
    )
    pairs = [{"question": "who?", "context": "me"}, {"question": "when?", "context": "now"}]
    plain = questions.CODEC.parse(body(input=pairs, parameters={"no_answer": True}))
    assert (call.inputs, call.parameters) == (plain.inputs, plain.parameters)
    best = {"text": "me", "score": 0.5, "start": 0, "end": 2}
    assert outputs(call, {"answers": [best]}, {"answers": [best]}) == {
        "text": ("BYTES", [2], ["me", "me"]),
        "score": ("FP32", [2], [0.5, 0.5]),
        "start": ("INT64", [2], [0, 0]),
        "end": ("INT64", [2], [2, 2]),
    }


def test_v2_has_a_row_for_each_entity() -> None:
    call = v2.CODEC.parse(v2_body(["a b", "c"], parameters={"aggregation": "first"}))
    routes.check_task(call, [Task.TOKEN_CLASSIFICATION], "m")
    plain = tokens.CODEC.parse(body(input=["a b", "c"], parameters={"aggregation": "first"}))
    assert call.parameters == plain.parameters
    entity = {"label": "X", "score": 0.5, "start": 2, "end": 3, "text": "b"}
    told = outputs(call, {"entities": []}, {"entities": [entity, entity]})
    assert told["input"] == ("INT64", [2], [1, 1])
    assert told["text"] == ("BYTES", [2], ["b", "b"])


def test_v2_fills_as_many_masks_in_every_text() -> None:
    call = v2.CODEC.parse(v2_body(["[MASK]", "[MASK]"], parameters={"top_k": 1}))
    routes.check_task(call, [Task.FILL_MASK], "m")
    mask = [{"token": 3, "text": "x", "score": 0.5}]
    told = outputs(call, {"masks": [mask]}, {"masks": [mask]})
    assert told["token"] == ("INT64", [2, 1, 1], [3, 3])
    with pytest.raises(ApiError, match="1 and 2 masks"):
        outputs(call, {"masks": [mask]}, {"masks": [mask, mask]})


def test_v2_takes_the_first_task_that_has_tensors() -> None:
    call = v2.CODEC.parse(v2_body(["a"]))
    routes.check_task(call, [Task.RELATION_EXTRACTION, Task.CLASSIFICATION], "m")
    assert call.task == Task.CLASSIFICATION
    with pytest.raises(ApiError, match="no tensors") as caught:
        routes.check_task(v2.CODEC.parse(v2_body(["a"])), [Task.RELATION_EXTRACTION], "m")
    assert caught.value.code == "task_not_supported"


@pytest.mark.parametrize(
    ("inputs", "parameters", "param"),
    [
        ([tensor("query", "a"), tensor("context", "b")], {}, "inputs"),
        ([tensor("query", "a", "b"), tensor("text", "b")], {}, "inputs"),
        ([tensor("question", "a", "b"), tensor("context", "b")], {}, "inputs"),
        ([tensor("question", "a"), tensor("context", "")], {}, "inputs.context"),
        ([tensor("query", "a"), tensor("text", "")], {}, "inputs[1].data"),
        ([tensor("text", ""), tensor("query", "a")], {}, "inputs[0].data"),
        ([tensor("text", "a")], {"task": "rerank"}, "inputs"),
        ([tensor("text", "a")], {"task": "fill-mask", "top_k": 1001}, "parameters.top_k"),
        ([tensor("text", "a")], {"task": "fill-mask", "stride": 1}, "parameters.stride"),
        ([tensor("question", "a"), tensor("context", "b")], {"top_k": 2}, "parameters.top_k"),
        ([], {}, "inputs"),
    ],
)
def test_v2_names_what_does_not_fit_the_task(
    inputs: list[dict[str, Any]], parameters: dict[str, Any], param: str
) -> None:
    with pytest.raises(ApiError) as caught:
        v2.CODEC.parse(body(inputs=inputs, parameters=parameters))
    assert caught.value.param == param


def test_a_task_the_service_does_not_offer_is_refused() -> None:
    asked = embeddings.CODEC.parse(body(input="a"))
    with pytest.raises(ApiError, match="does not do embeddings; it does classification"):
        routes.check_task(asked, [Task.CLASSIFICATION], "m")
    plain = classify.CODEC.parse(body(input="a"))
    with pytest.raises(ApiError, match="labels: required"):
        routes.check_task(plain, [Task.EMBEDDINGS, Task.ZERO_SHOT], "m")


def test_labels_for_a_model_that_has_its_own_are_told_to_be_left_out() -> None:
    call = classify.CODEC.parse(b'{"input":"a","parameters":{"labels":["x"]}}')
    with pytest.raises(ApiError, match=r"labels of its own: leave parameters\.labels out"):
        routes.check_task(call, [Task.CLASSIFICATION], "m")
    with pytest.raises(ApiError, match=r"it does embeddings\.$"):
        routes.check_task(call, [Task.EMBEDDINGS], "m")


@pytest.mark.parametrize("codec", [small.CLASSIFY_TEXT, small.PREDICT])
def test_a_route_without_labels_asks_for_none(codec: Codec) -> None:
    plain = codec.parse(body(text="a"))
    with pytest.raises(ApiError) as caught:
        routes.check_task(plain, [Task.EMBEDDINGS, Task.ZERO_SHOT], "m")
    assert caught.value.code == "task_not_supported"
    assert "use POST /v1/classify with parameters.labels" in caught.value.message


def test_v2_parameters_must_fit_the_task() -> None:
    call: Call = v2.CODEC.parse(v2_body(["a"], parameters={"top_k": 2}))
    with pytest.raises(ApiError, match="top_k: not a parameter of embeddings"):
        routes.check_task(call, [Task.EMBEDDINGS], "m")
    with pytest.raises(ApiError, match="dimensions: got 0, allowed a whole number"):
        v2.CODEC.parse(v2_body(["a"], parameters={"dimensions": 0}))
    call = v2.CODEC.parse(v2_body(["a"], parameters={"dimensions": 2}))
    with pytest.raises(ApiError, match="dimensions: not a parameter of classification"):
        routes.check_task(call, [Task.CLASSIFICATION], "m")


# Lists of inputs, and documents ------------------------------------------------------------------

QUESTION = {"question": "who?", "context": "me"}
MARKED = {"text": "ab", "entities": [{"start": 0, "end": 1}, {"start": 1, "end": 2, "label": "X"}]}


@pytest.mark.parametrize(
    ("codec", "given"),
    [
        (tokens.CODEC, {"input": ["a", "b"], "parameters": {"aggregation": "max", "stride": 3}}),
        (fill_mask.CODEC, {"input": ["a", "b"], "parameters": {"targets": ["y", "x", "y"]}}),
        (questions.CODEC, {"input": [QUESTION, QUESTION], "parameters": {"no_answer": True}}),
        (relations.CODEC, {"input": ["a", {**MARKED, "pairs": [[1, 0]]}]}),
        (relations.CODEC, {"input": [MARKED, "a"], "parameters": {"threshold": 0.5}}),
        (rerank.CODEC, {"query": "q", "documents": ["a", "b"], "top_n": 1, "raw_scores": True}),
    ],
)
def test_some_inputs_are_asked_for_as_the_caller_asked(codec: Codec, given: dict[str, Any]) -> None:
    call = codec.parse(body(model="m", **given))
    again = codec.parse(routes.canonical_body(call, call.inputs[1:]))
    assert again.inputs == call.inputs[1:]
    assert again.canonical_parameters() == call.canonical_parameters()
    assert (again.task, again.model, again.passthrough) == (call.task, "m", True)


def test_neither_order_nor_repetition_of_targets_matters() -> None:
    one, two = (
        fill_mask.CODEC.parse(body(input="a", parameters={"targets": targets}))
        for targets in (["x", "y"], ["y", "x", "y"])
    )
    assert one.canonical_parameters() == two.canonical_parameters()


def test_results_are_read_in_the_order_of_the_documents() -> None:
    items = [listing.item({"relevance_score": score}, 3) for score in (0.25, 0.75, 0.5)]
    call = rerank.CODEC.parse(body(query="q", documents=["a", "b", "c"]))
    answer = rerank.CODEC.render(call, "m", items)
    assert [result["index"] for result in json.loads(answer)["results"]] == [1, 2, 0]
    assert json.loads(answer)["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert call.passthrough
    assert rerank.CODEC.extract(call, answer) == items


@pytest.mark.parametrize("more", [{"top_n": 2}, {"return_documents": True}])
def test_an_answer_that_lacks_something_is_not_passed_on(more: dict[str, Any]) -> None:
    call = rerank.CODEC.parse(body(query="q", documents=["a", "b", "c"], **more))
    assert not call.passthrough
    items = [listing.item({"relevance_score": score}, 3) for score in (0.25, 0.75, 0.5)]
    results = json.loads(rerank.CODEC.render(call, "m", items))["results"]
    assert len(results) == more.get("top_n", 3)
    assert [result.get("document") for result in results][:1] == (
        [{"text": "b"}] if "return_documents" in more else [None]
    )


@pytest.mark.parametrize("results", [[], [0, 0, 1], [0, 1, 3]])
def test_results_that_are_not_the_documents_are_refused(results: list[int]) -> None:
    call = rerank.CODEC.parse(body(query="q", documents=["a", "b", "c"]))
    found = [{"index": index, "relevance_score": 0.5, "tokens": 1} for index in results]
    with pytest.raises(ValueError, match="results for 3 documents"):
        rerank.CODEC.extract(call, body(results=found))


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/classify", "/v1/tokens/classify", "/v1/relations", "/v1/answer"),
        *("/v1/fill-mask", "/v1/translate", "/v1/summarize"),
    ],
)
def test_no_parameters_may_be_said_as_null(path: str) -> None:
    asked = {"question": "a", "context": "b"} if path == "/v1/answer" else "a"
    left_out, null = (
        routes.POST_ROUTES[path].parse(json.dumps({"input": asked, **more}).encode())
        for more in ({}, {"parameters": None})
    )
    assert null == left_out
