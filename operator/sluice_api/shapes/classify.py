"""``POST /v1/classify``: classification, and zero-shot classification when labels are given.

Canonical item::

    {"label": "spam", "score": 0.98,
     "labels": [{"label": "spam", "score": 0.98, "id": 1}, …], "multi_label": true?, "tokens": 7}

``labels`` is sorted by score; ``id`` is the position of the label in the model's order (or in the
caller's, for zero-shot), from which the two small APIs write their vectors. ``multi_label`` is
there when each label was decided by itself.
"""

from typing import Annotated, Any

import msgspec

from sluice_api.call import (
    Call,
    CanonicalCodec,
    Input,
    Item,
    inputs_of,
    split_items,
    write_body,
    write_list,
)
from sluice_api.decode import decode
from sluice_api.errors import ApiError
from sluice_api.tasks import Task

DEFAULT_TEMPLATE = "This example is {}."
MAX_LABELS = 256

Label = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class ClassifyParameters(msgspec.Struct, forbid_unknown_fields=True):
    """What a caller may ask of a classification.

    ``labels`` makes it zero-shot: a list of names, or a map from name to description (an embedding
    model compares the text with the description, an NLI model reads it as the hypothesis).
    """

    labels: list[Label] | dict[Label, Label] | None = None
    multi_label: bool | None = None
    top_k: Annotated[int, msgspec.Meta(ge=1, le=MAX_LABELS)] | None = None
    hypothesis_template: Annotated[str, msgspec.Meta(max_length=1024)] | None = None
    truncate: bool = False


class ClassifyRequest(msgspec.Struct, forbid_unknown_fields=True):
    input: str | list[str]
    model: str | None = None
    parameters: ClassifyParameters | None = None


_TASK = Task.CLASSIFICATION
"""Reading it off the class costs as much as a call."""

_decoder = msgspec.json.Decoder(ClassifyRequest)


class ClassifyCodec:
    name = "classify"
    field = "input"
    parameters: str | None = "parameters."

    def parse(self, body: bytes) -> Call:
        request = decode(_decoder, body)
        inputs, listed = inputs_of(request.input, self.field)
        task, parameters = canonical(request.parameters or ClassifyParameters())
        return Call(
            codec=self,
            model=request.model,
            task=task,
            inputs=inputs,
            listed=listed,
            parameters=parameters,
        )

    def render(self, call: Call, model: str, items: list[Item]) -> bytes:
        return write_list(model, items)

    def extract(self, call: Call, body: bytes) -> list[Item]:
        return split_items(body, len(call.inputs))

    def canonical_body(self, call: Call, inputs: list[Input]) -> bytes:
        parameters = dict(call.parameters)
        if "labels" in parameters:
            # A map cannot say "no description", so undescribed labels stay a plain list.
            pairs = parameters["labels"]
            described = any(description is not None for _, description in pairs)
            parameters["labels"] = dict(pairs) if described else [name for name, _ in pairs]
        return write_body(call, inputs, parameters)


def canonical(given: ClassifyParameters) -> tuple[Task, dict[str, Any]]:
    """The task the parameters ask for, and the parameters in canonical form.

    Labels become ``[[name, description], …]``. Raises :class:`ApiError`.
    """
    plain: dict[str, Any] = {
        "multi_label": given.multi_label,
        "top_k": given.top_k,
        "truncate": given.truncate,
    }
    if given.labels is None:
        for name in ("multi_label", "hypothesis_template"):
            if getattr(given, name) is not None:
                raise ApiError(
                    "invalid_field",
                    f"parameters.{name}: only allowed together with parameters.labels.",
                    param=f"parameters.{name}",
                )
        return _TASK, plain
    names = list(given.labels)
    if not names or len(names) > MAX_LABELS:
        raise ApiError(
            "invalid_field",
            f"parameters.labels: got {len(names)} labels, needs 1 to {MAX_LABELS}.",
            param="parameters.labels",
        )
    for index, name in enumerate(names):
        if names.index(name) != index:
            raise ApiError(
                "invalid_field",
                f"parameters.labels: {name!r} is given twice.",
                param="parameters.labels",
            )
    template = given.hypothesis_template or DEFAULT_TEMPLATE
    if template.count("{}") != 1:
        raise ApiError(
            "invalid_field",
            f"parameters.hypothesis_template: got {template!r}, "
            "needs exactly one {} where the label goes.",
            param="parameters.hypothesis_template",
        )
    described = given.labels if isinstance(given.labels, dict) else {}
    plain["labels"] = [[name, described.get(name)] for name in names]
    plain["hypothesis_template"] = template
    plain["multi_label"] = bool(given.multi_label)
    return Task.ZERO_SHOT, plain


def item(
    ranked: list[tuple[str, float, int]],
    tokens: int,
    *,
    multi_label: bool = False,
    truncated: bool = False,
) -> Item:
    """The canonical item of one text.

    Args:
        ranked: (label, score, id), best first.
    """
    notes = (b',"multi_label":true' if multi_label else b"") + (
        b',"truncated":true' if truncated else b""
    )
    best = ranked[0]
    labels = msgspec.json.encode(
        [{"label": label, "score": score, "id": number} for label, score, number in ranked]
    )
    return Item(
        b'{"label":%b,"score":%b,"labels":%b%b,"tokens":%d}'
        % (msgspec.json.encode(best[0]), msgspec.json.encode(best[1]), labels, notes, tokens),
        tokens,
    )


class ScoredLabel(msgspec.Struct):
    label: str
    score: float
    id: int


class ClassifyItem(msgspec.Struct):
    """A canonical item, read back."""

    label: str
    score: float
    labels: list[ScoredLabel]
    tokens: int
    multi_label: bool = False


read_item = msgspec.json.Decoder(ClassifyItem).decode

CODEC: CanonicalCodec = ClassifyCodec()
