"""How many entities that another service found are taken."""

import json

import pytest

from sluice_api.errors import ApiError
from sluice_api.shapes import relations
from sluice_api.shapes.tokens import Entity
from sluice_gateway.composition import Finder, completed

TEXT = "a " * 100


def entities(count: int) -> list[Entity]:
    return [
        Entity(label="X", score=0.9, start=2 * i, end=2 * i + 1, text="a") for i in range(count)
    ]


def test_so_many_are_taken_that_all_their_pairs_can_be_judged() -> None:
    most = relations.MAX_FOUND
    assert most * (most - 1) <= relations.MAX_PAIRS < (most + 1) * most
    call = relations.CODEC.parse(json.dumps({"input": ["b", TEXT]}).encode())
    finder = Finder("ner", None, [0, 1])
    taken = completed(call, finder, [[], entities(most)])
    assert len(json.loads(str(taken.inputs[1]))["entities"]) == most
    with pytest.raises(ApiError, match="found 65 entities in it, at most 64") as caught:
        completed(call, finder, [[], entities(most + 1)])
    assert caught.value.param == "input[1]"
    assert caught.value.code == "too_many_inputs"
