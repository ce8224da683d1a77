"""The two routes that write texts: what is asked, what is canonical, what is refused."""

import json
from typing import Any

import msgspec
import pytest

from sluice_api.call import Item
from sluice_api.errors import ApiError
from sluice_api.routes import canonical_body, canonical_call
from sluice_api.shapes.texts import SUMMARIZE, TRANSLATE, WrittenItem, item
from sluice_api.tasks import Task


def body(**members: Any) -> bytes:
    return json.dumps({"input": "a text", **members}).encode()


def refused(**parameters: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        TRANSLATE.parse(body(parameters=parameters))
    return caught.value


def test_what_is_not_said_is_left_to_the_model() -> None:
    call = TRANSLATE.parse(body(parameters={"target": "fr"}))
    assert call.task is Task.TRANSLATION
    assert call.parameters == {"target": "fr"}
    assert call.reusable
    assert SUMMARIZE.parse(body()).parameters == {}


def test_calls_that_mean_the_same_have_the_same_parameters() -> None:
    plain = SUMMARIZE.parse(body()).canonical_parameters()
    for parameters in (
        {"stride": 0},
        {"truncate": False},
        {"temperature": 0},
        {"temperature": 0.0, "top_p": 0.5, "seed": 4},
        {"temperature": 1e-40, "top_p": 0.5},
        {"num_beams": None},
    ):
        call = SUMMARIZE.parse(body(parameters=parameters))
        assert call.canonical_parameters() == plain
        assert call.reusable
    assert SUMMARIZE.parse(body(parameters={"num_beams": 1})).canonical_parameters() != plain


def test_a_penalty_too_small_to_divide_by_is_refused() -> None:
    error = refused(repetition_penalty=1e-300, temperature=1)
    assert error.param == "parameters.repetition_penalty"
    assert "0.01" in str(error)


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 0.5},
        {"top_p": 0.9},
        {"top_k": 5},
        {"seed": 0},
        {"temperature": 1, "seed": 3},
    ],
)
def test_chance_makes_an_answer_unfit_for_the_cache(parameters: dict[str, Any]) -> None:
    call = TRANSLATE.parse(body(parameters=parameters))
    assert not call.reusable
    assert call.parameters == parameters


def test_beams_and_chance_exclude_each_other() -> None:
    error = refused(num_beams=4, top_p=0.9)
    assert (error.code, error.param) == ("invalid_field", "parameters.num_beams")
    assert "parameters.top_p" in error.message
    assert TRANSLATE.parse(body(parameters={"num_beams": 1, "top_p": 0.9})).sampled
    assert not TRANSLATE.parse(body(parameters={"num_beams": 4, "temperature": 0})).sampled


@pytest.mark.parametrize(
    ("parameters", "code", "param"),
    [
        ({"max_tokens": 0}, "invalid_field", "parameters.max_tokens"),
        ({"max_tokens": "5"}, "invalid_field", "parameters.max_tokens"),
        ({"num_beams": 17}, "invalid_field", "parameters.num_beams"),
        ({"temperature": -1}, "invalid_field", "parameters.temperature"),
        ({"top_p": 0}, "invalid_field", "parameters.top_p"),
        ({"top_k": 0}, "invalid_field", "parameters.top_k"),
        ({"seed": -1}, "invalid_field", "parameters.seed"),
        ({"seed": 2**63}, "invalid_field", "parameters.seed"),
        ({"target": ""}, "invalid_field", "parameters.target"),
        ({"stride": 4}, "unknown_field", "parameters.stride"),
        ({"min_tokens": 4}, "unknown_field", "parameters.min_tokens"),
    ],
)
def test_wrong_parameters_are_named(parameters: dict[str, Any], code: str, param: str) -> None:
    error = refused(**parameters)
    assert (error.code, error.param) == (code, param)


def written(text: str, **members: Any) -> Item:
    return item(WrittenItem(text, "stop", prompt_tokens=5, completion_tokens=3, **members))


def test_items_say_only_what_there_is_to_say() -> None:
    assert json.loads(written("x").json) == {
        "text": "x",
        "finish_reason": "stop",
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "tokens": 8,
    }
    full = written("x", source="en", target="fr", chunks=2, truncated=True)
    assert list(json.loads(full.json)) == [
        "text",
        "finish_reason",
        "source",
        "target",
        "chunks",
        "truncated",
        "prompt_tokens",
        "completion_tokens",
        "tokens",
    ]
    assert full.tokens == 8


def test_an_answer_holds_its_items() -> None:
    call = SUMMARIZE.parse(body(input=["a", "b"]))
    items = [written("x"), written("y", chunks=3)]
    answer = SUMMARIZE.render(call, "m", items)
    assert SUMMARIZE.extract(call, answer) == items
    usage = msgspec.json.decode(answer)["usage"]
    assert usage == {"prompt_tokens": 10, "completion_tokens": 6, "total_tokens": 16}


def test_the_canonical_body_asks_the_same_of_some_inputs() -> None:
    parameters = {"target": "fr", "num_beams": 3, "length_penalty": 0.5}
    call = TRANSLATE.parse(body(model="m", input=["a", "b", "c"], parameters=parameters))
    again = TRANSLATE.parse(canonical_body(call, ["b"]))
    assert again.inputs == ["b"]
    assert again.model == "m"
    assert again.canonical_parameters() == call.canonical_parameters()
    assert canonical_call(call, ["b"]).inputs == ["b"]
