"""``POST /classify`` and ``POST /predict``: the two small APIs of the project's source documents.

Both are views on classification items, so they share cache entries with ``/v1/classify``.
"""

import msgspec

from sluice_api.call import Call, Codec, Item, check_inputs, inputs_of
from sluice_api.decode import decode
from sluice_api.shapes import classify
from sluice_api.tasks import Task

_PARAMETERS = classify.canonical(classify.ClassifyParameters())[1]


class ClassifyTextRequest(msgspec.Struct, forbid_unknown_fields=True):
    text: str
    model: str | None = None


class PredictRequest(msgspec.Struct, forbid_unknown_fields=True):
    text: str | list[str]
    model: str | None = None


_classify_decoder = msgspec.json.Decoder(ClassifyTextRequest)
_predict_decoder = msgspec.json.Decoder(PredictRequest)


def decided(item: classify.ClassifyItem) -> list[int]:
    """1 for each label that holds, in the model's order.

    The best label where exactly one holds, every label of at least one half where each is decided
    by itself.
    """
    flags = [0] * len(item.labels)
    if item.multi_label:
        for scored in item.labels:
            flags[scored.id] = int(scored.score >= 0.5)
    else:
        flags[item.labels[0].id] = 1
    return flags


class ClassifyTextCodec:
    """``{"text"}`` → ``{"text", "prediction": [0 or 1 per label], "label", "score"}``."""

    name = "classify-text"
    field = "text"
    parameters: str | None = None

    def parse(self, body: bytes) -> Call:
        request = decode(_classify_decoder, body)
        return Call(
            codec=self,
            model=request.model,
            task=Task.CLASSIFICATION,
            inputs=check_inputs([request.text], self.field, listed=False),
            parameters=dict(_PARAMETERS),
            passthrough=False,
        )

    def render(self, call: Call, model: str, items: list[Item]) -> bytes:
        item = classify.read_item(items[0].json)
        return msgspec.json.encode(
            {
                "text": call.inputs[0],
                "prediction": decided(item),
                "label": item.label,
                "score": item.score,
            }
        )

    def extract(self, call: Call, body: bytes) -> list[Item]:
        raise ValueError("this shape does not hold whole items")


class PredictCodec:
    """``{"text": one or many}`` → ``{"predictions": [class index], "labels", "scores"}``."""

    name = "predict"
    field = "text"
    parameters: str | None = None

    def parse(self, body: bytes) -> Call:
        request = decode(_predict_decoder, body)
        inputs, listed = inputs_of(request.text, self.field)
        return Call(
            codec=self,
            model=request.model,
            task=Task.CLASSIFICATION,
            inputs=inputs,
            listed=listed,
            parameters=dict(_PARAMETERS),
            passthrough=False,
        )

    def render(self, call: Call, model: str, items: list[Item]) -> bytes:
        read = [classify.read_item(item.json) for item in items]
        return msgspec.json.encode(
            {
                "predictions": [item.labels[0].id for item in read],
                "labels": [item.label for item in read],
                "scores": [item.score for item in read],
            }
        )

    def extract(self, call: Call, body: bytes) -> list[Item]:
        raise ValueError("this shape does not hold whole items")


CLASSIFY_TEXT: Codec = ClassifyTextCodec()
PREDICT: Codec = PredictCodec()
