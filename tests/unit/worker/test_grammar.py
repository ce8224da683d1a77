"""Grammars of JSON schemas: what they let pass, and which schemas are refused."""

import json
from typing import Any

import msgspec
import pytest
import torch

from sluice_api.errors import ApiError
from sluice_api.shapes.generation import Parameters
from sluice_worker.generation import grammar
from sluice_worker.generation.grammar import (
    MOST_CHARACTERS,
    MOST_OBJECTS,
    Schema,
    Vocabulary,
    binds,
    schema_of,
    tools_of,
)
from tests.unit.worker.test_choice import BYTES
from tests.unit.worker.test_prompts import SIZE, TOOL


def vocabulary() -> Vocabulary:
    return Vocabulary(BYTES.to_str(), SIZE, frozenset([0]))


def test_a_grammar_lets_only_what_fits_pass() -> None:
    schema = '{"type":"object","properties":{"a":{"const":"é"}},"required":["a"]}'
    made = vocabulary().grammar(Schema(schema, "here"))
    for token in BYTES.encode('{"a": "é"}').ids:
        row = torch.zeros(SIZE + 20)  # Some models have more logits than tokens.
        made.mask(row[:SIZE])
        assert row[token] == 0
        assert torch.isinf(row[:SIZE]).sum() > SIZE / 2
        made.advance(token)
    assert made.ended or not torch.isinf(_masked(made)[0])
    with pytest.raises(ApiError, match="here"):
        vocabulary().grammar(Schema(schema, "here")).advance(BYTES.encode("x").ids[0])


def test_a_schema_that_no_text_can_begin_with_is_refused_before_any_computing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Matcher:
        """As the library's own is once a limit is met."""

        @staticmethod
        def grammar_from_json_schema(schema: str, **_: Any) -> str:
            return schema

        def __init__(self, *_: Any, **__: Any) -> None:
            self._masked = False

        def compute_bitmask(self) -> bytes:
            self._masked = True
            return bytes(SIZE // 8 + 1)

        def is_error(self) -> bool:
            return self._masked

        def get_error(self) -> str:
            return "Too many items\n<state>\nTokens"

    monkeypatch.setattr(grammar.llguidance, "LLMatcher", Matcher)
    with pytest.raises(ApiError) as caught:
        vocabulary().grammar(Schema('{"type":"object"}', "here"))
    assert caught.value.param == "here"
    assert str(caught.value).endswith("Too many items.")


def test_a_schema_that_is_too_much_later_says_so() -> None:
    made = vocabulary().grammar(Schema(json.dumps(wide(300)), "here"))
    _masked(made)
    with pytest.raises(ApiError, match=r"here: .*max is 2000") as caught:
        made.advance(BYTES.encode("{").ids[0])
    assert (caught.value.code, caught.value.param) == ("invalid_field", "here")


def test_what_only_is_told_is_read_without_the_models_vocabulary() -> None:
    unread = Vocabulary("no tokenizer at all", SIZE, frozenset([0]))
    unread.check(Schema('{"type":"object"}', "here"))
    with pytest.raises(ApiError, match=r"here: .*Invalid type: strnig"):
        unread.check(Schema('{"type":"strnig"}', "here"))


def wide(names: int) -> dict[str, Any]:
    """A schema beyond what the library follows, of this many alternatives."""
    kinds = [{"type": "object", "properties": {f"k{n}": {"type": "string"}}} for n in range(names)]
    return {"anyOf": kinds}


def _masked(made: Any) -> torch.Tensor:
    row = torch.zeros(SIZE)
    made.mask(row)
    return row


def test_copies_go_their_own_ways() -> None:
    made = vocabulary().grammar(Schema('{"enum":["a","b"]}', "here"))
    quote, a, b = BYTES.encode('"ab').ids
    one, other = made.copy(), made.copy()
    one.advance(quote)
    other.advance(quote)
    one.advance(a)
    assert [row.argmax() for row in map(_masked, (made, one, other))] == [quote, quote, a]
    other.advance(b)
    one.advance(quote)
    assert one.ended
    assert not other.ended
    other.advance(quote)
    with pytest.raises(ApiError):
        made.advance(a)


def chain(length: int) -> dict[str, Any]:
    """A schema of this many definitions, each of which refers to the next."""
    links: dict[str, Any] = {f"{n}": {"items": {"$ref": f"#/$defs/{n + 1}"}} for n in range(length)}
    return {"$defs": {**links, f"{length}": {"type": "string"}}, "$ref": "#/$defs/0"}


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (chain(MOST_OBJECTS // 2), f"a schema of 6003 objects, at most {MOST_OBJECTS}"),
        ({"enum": ["x" * MOST_CHARACTERS]}, f"characters, at most {MOST_CHARACTERS}"),
        ({"items": [{"pattern": "a?" * 501}]}, "a pattern of 1002 characters, at most 1000"),
        ({"patternProperties": {"a?" * 501: {}}}, "a pattern of 1002 characters, at most 1000"),
        (
            {"allOf": [{"patternProperties": {f"a{n}{m}": {}}} for n in range(50) for m in "abc"]},
            "150 patternProperties, at most 100",
        ),
    ],
)
def test_a_schema_that_is_too_large_is_not_tried(schema: dict[str, Any], told: str) -> None:
    with pytest.raises(ApiError) as caught:
        vocabulary().grammar(Schema(msgspec.json.encode(schema).decode(), "here"))
    assert (caught.value.code, caught.value.param) == ("invalid_field", "here")
    assert str(caught.value).startswith("here: got ")
    assert str(caught.value).endswith(f"{told}.")


CITY: dict[str, Any] = {"type": "object", "additionalProperties": False, "required": ["city"]}


def placed(city: str, kept: str = "$defs", **more: Any) -> dict[str, Any]:
    """Parameters of a function that takes one city, whose schema is defined beside them."""
    refers = {"properties": {"city": {"$ref": f"#/{kept}/city"}}}
    return {**CITY, **refers, kept: {"city": {"enum": [city]}}, **more}


NESTED = {"type": "object", "properties": {"sub": {"$ref": "#"}}, "additionalProperties": False}
DRAFT = "http://json-schema.org/draft-0{}/schema#"
BELOW: dict[str, Any] = {
    "$schema": DRAFT.format(7),
    "definitions": {"whole": {**NESTED, "properties": {"sub": {"$ref": "#/definitions/whole"}}}},
    "$ref": "#/definitions/whole",
}


@pytest.mark.parametrize(
    ("parameters", "good", "bad"),
    [
        ([placed("Oslo")], {"city": "Oslo"}, {"city": "Bern"}),
        ([placed("Bern"), placed("Oslo")], {"city": "Oslo"}, {"city": "Bern"}),
        ([placed("Oslo", **{"$id": "https://example.com/a"})], {"city": "Oslo"}, {"city": "Bern"}),
        (
            [placed("Oslo", "definitions", **{"$schema": DRAFT.format(4)})],
            {"city": "Oslo"},
            {"city": "Bern"},
        ),
        ([NESTED], {"sub": {"sub": {}}}, {"sub": []}),
        ([BELOW], {"sub": {"sub": {}}}, {"sub": []}),
    ],
)
def test_references_of_a_tool_are_to_its_own_schema(
    parameters: list[dict[str, Any]], good: dict[str, Any], bad: dict[str, Any]
) -> None:
    """Also where its call is one of several that may be made; the last tool is called."""
    tools = [
        {"type": "function", "function": {"name": f"f{place}", "parameters": each}}
        for place, each in enumerate(parameters)
    ]
    schema = schema_of(Parameters(tools=json.dumps(tools), tool_choice="required"))
    name = f"f{len(tools) - 1}"
    assert fits(schema, [{"name": name, "parameters": good}])
    assert not fits(schema, [{"name": name, "parameters": bad}])


def fits(schema: Schema, value: object) -> bool:
    """Whether a model that must keep to ``schema`` can write ``value``."""
    grammar = vocabulary().grammar(schema)
    try:
        for token in BYTES.encode(json.dumps(value, separators=(",", ":"))).ids:
            grammar.advance(token)
    except ApiError:
        return False
    return grammar.ended


def test_a_schema_that_only_refers_to_itself_is_refused_in_plain_words() -> None:
    circle = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
    schema = json.dumps({"$defs": circle, "$ref": "#/$defs/a"})
    with pytest.raises(ApiError, match=r"^here: .*no usable JSON schema: no text fits it\."):
        vocabulary().grammar(Schema(schema, "here"))


def test_a_call_that_is_asked_for_has_a_schema() -> None:
    tools = json.dumps([TOOL, {**TOOL, "function": {"name": "g"}}])
    assert not binds(Parameters(tools=tools))
    assert not binds(Parameters(tools=tools, tool_choice="none"))
    assert binds(Parameters(tools=tools, tool_choice="required"))
    shapes = tools_of(Parameters(tools=tools))
    assert [shape.where for shape in shapes] == [
        "tools[0].function.parameters",
        "tools[1].function.parameters",
    ]
    assert schema_of(Parameters(tools=tools, tool_choice="=f")) == shapes[0]
    assert schema_of(Parameters(tools=tools, tool_choice="=g")) == shapes[1]
    assert json.loads(shapes[1].text) == {"type": "object"}
    single = Parameters(tools=json.dumps([TOOL]), tool_choice="required")
    assert schema_of(single).where == "tools[0].function.parameters"
    required = Parameters(tools=tools, tool_choice="required", parallel_tool_calls=False)
    text, where = schema_of(required)
    assert where == "tools"
    schema = json.loads(text)
    assert (schema["minItems"], schema["maxItems"]) == (1, 1)
    names = [entry["properties"]["name"]["const"] for entry in schema["items"]["anyOf"]]
    assert names == ["f", "g"]
