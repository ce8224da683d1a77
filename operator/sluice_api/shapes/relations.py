"""``POST /v1/relations``: which relations hold between the entities of a text.

An input is a text, for models that find the entities themselves, or ``{"text", "entities",
"pairs"?}`` for models that classify pairs of given ones: ``entities`` as ``/v1/tokens/classify``
answers them, ``pairs`` the positions [head, tail] in it that are asked
for, all of them where it is left out. The gateway has entities that are not given found by the
service that the request or the relation service itself names. Canonical item::

    {"entities": [{"label": "PER", "score": 0.9?, "start": 0, "end": 4, "text": "Anna"}, …],
     "relations": [{"head": 0, "tail": 1, "label": "born in", "score": 0.8?}, …],
     "skipped": [[0, 7], …]?, "unlocated": [{"head": "Oslo", "tail": …, "label": …, "score": …}]?,
     "finish_reason": "stop"?, "chunks": 2?, "tokens": 40}

``head`` and ``tail`` are positions in ``entities``; relations are sorted by score where there are
scores. ``skipped`` are pairs too far apart for one window of the model; ``unlocated`` are relations
that a model wrote between texts that do not stand in the input, and ``finish_reason`` is
``length`` when it was cut at its maximum. ``chunks`` is how many pairs were read in a window of a
long text, or in how many windows a model that writes read it.
"""

from typing import Annotated, Any

import msgspec

from sluice_api.call import Call, CanonicalCodec, Input, members_of, structured
from sluice_api.decode import shown
from sluice_api.errors import ApiError
from sluice_api.shapes.listing import ListCodec, required
from sluice_api.shapes.tokens import Entity
from sluice_api.tasks import Task

MAX_ENTITIES = 256
MAX_PAIRS = 4096
MAX_FOUND = 64
"""Entities of one text so that all their pairs are within ``MAX_PAIRS``."""

Position = Annotated[int, msgspec.Meta(ge=0)]


class GivenEntity(msgspec.Struct, forbid_unknown_fields=True):
    """Characters ``start`` to ``end`` of the text, half-open; ``label`` is what it is.

    ``text`` must be just that part where it is given; ``score`` is not used.
    """

    start: Position
    end: Position
    label: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    text: str | None = None
    score: float | None = None


class MarkedText(msgspec.Struct, forbid_unknown_fields=True):
    text: str
    entities: Annotated[list[GivenEntity], msgspec.Meta(max_length=MAX_ENTITIES)] | None = None
    pairs: Annotated[list[tuple[Position, Position]], msgspec.Meta(max_length=MAX_PAIRS)] | None = (
        None
    )


class RelationParameters(msgspec.Struct, forbid_unknown_fields=True):
    """``threshold``: relations that score less are left out.

    ``entities_from`` is a service of token classification that finds the entities of the inputs
    that come without; only a gateway can ask it.
    """

    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    entities_from: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None


class RelationRequest(msgspec.Struct, forbid_unknown_fields=True):
    input: str | MarkedText | list[str | MarkedText]
    model: str | None = None
    parameters: RelationParameters | None = None


class RelationEntity(msgspec.Struct):
    label: str | None
    start: int
    end: int
    text: str
    score: float | None = None


class Relation(msgspec.Struct):
    head: int
    tail: int
    label: str
    score: float | None = None


class Unlocated(msgspec.Struct):
    head: str
    tail: str
    label: str
    score: float


class RelationCodec(ListCodec):
    def call_of(self, request: RelationRequest) -> Call:
        call = super().call_of(request)
        if request.parameters is not None:
            call.entities_from = request.parameters.entities_from
        return call

    def canonical(self, parameters: RelationParameters) -> dict[str, Any]:
        """Who finds the entities is not among them: the answer follows from what was found."""
        return {"threshold": parameters.threshold}

    def input_of(self, value: str | MarkedText, where: str) -> Input:
        """``{"text", "entities"?, "pairs"?}`` in one spelling."""
        if isinstance(value, str):
            return structured({"text": required(value, where)})
        members: dict[str, Any] = {"text": required(value.text, f"{where}.text")}
        if value.entities is not None:
            members["entities"] = _entities(value, f"{where}.entities")
        if value.pairs is not None:
            members["pairs"] = _pairs(value, f"{where}.pairs")
        return structured(members)


def text_of(value: Input) -> str:
    """The text of one input."""
    return str(members_of(value)["text"])


def without_entities(call: Call) -> list[int]:
    """The inputs of ``call`` whose entities are not given."""
    return [i for i, value in enumerate(call.inputs) if "entities" not in members_of(value)]


def with_entities(call: Call, found: dict[int, list[Entity]]) -> list[Input]:
    """The inputs of ``call``, with the entities that were ``found`` for some of them."""
    inputs = list(call.inputs)
    for index, entities in found.items():
        members = members_of(inputs[index])
        members["entities"] = [
            {"start": entity.start, "end": entity.end, "label": entity.label} for entity in entities
        ]
        inputs[index] = structured(members)
    return inputs


def check_asked_directly(call: Call) -> None:
    """Refuse what a worker cannot do: it knows no other service. Raises ApiError."""
    if call.entities_from is not None:
        raise ApiError(
            "invalid_field",
            f"parameters.entities_from: got {shown(call.entities_from)}, but a worker that is "
            "asked directly can ask no other service. Ask the gateway, or give the entities.",
            param="parameters.entities_from",
        )


def _entities(value: MarkedText, where: str) -> list[dict[str, Any]]:
    entities = []
    for index, entity in enumerate(value.entities or ()):
        if not entity.start < entity.end <= len(value.text):
            place = f"{where}[{index}]"
            raise ApiError(
                "invalid_field",
                f"{place}: got characters {entity.start} to {entity.end}, needs a part of the "
                f"text, which has {len(value.text)}.",
                param=place,
            )
        found = value.text[entity.start : entity.end]
        if entity.text is not None and entity.text != found:
            place = f"{where}[{index}].text"
            raise ApiError(
                "invalid_field",
                f"{place}: got {shown(entity.text)}, but characters {entity.start} to "
                f"{entity.end} of the text are {shown(found)}.",
                param=place,
            )
        entities.append({"start": entity.start, "end": entity.end, "label": entity.label})
    return entities


def _pairs(value: MarkedText, where: str) -> list[list[int]]:
    if value.entities is None:
        raise ApiError(
            "missing_field",
            f"{where}: the positions of entities, but none are given. Leave pairs out, or give "
            "entities and pairs to a model that takes them.",
            param=where,
        )
    count, seen = len(value.entities), set[tuple[int, int]]()
    for index, (head, tail) in enumerate(value.pairs or ()):
        if head == tail or max(head, tail) >= count:
            place = f"{where}[{index}]"
            raise ApiError(
                "invalid_field",
                f"{place}: got {shown([head, tail])}, needs two different positions in the "
                f"{count} entities.",
                param=place,
            )
        if (head, tail) in seen:
            place = f"{where}[{index}]"
            raise ApiError(
                "invalid_field",
                f"{place}: got {shown([head, tail])} a second time. Ask for each pair once.",
                param=place,
            )
        seen.add((head, tail))
    return [list(pair) for pair in value.pairs or ()]


CODEC: CanonicalCodec = RelationCodec(
    "relations", Task.RELATION_EXTRACTION, RelationRequest, RelationParameters, structured=True
)
