"""Fill-mask: what stands behind the masks of a text, by a masked language model.

Only the masked tokens go through the head, whose output is as wide as the vocabulary. Equal to
transformers' FillMaskPipeline.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sluice_api.call import Call, Item, place
from sluice_api.decode import shown
from sluice_api.errors import ApiError
from sluice_api.shapes.listing import item
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array, unit_of
from sluice_worker.models.description import Description
from sluice_worker.models.tokenizer import Encoded, Tokenizer
from sluice_worker.tasks.base import Material, Prepared, TaskModule, encode
from sluice_worker.tasks.ranking import softmax

TASK = Task.FILL_MASK
NEEDS = "a masked language model (config.json: architectures …ForMaskedLM)"

MAX_SCORES = 1 << 26
"""Masks times vocabulary of one request: the numbers that are held until it is answered."""


def offers(description: Description) -> bool:
    return description.head == "mask"


def build(material: Material) -> TaskModule:
    assert material.mask_id is not None, "offers() said so"
    return FillMask(material.tokenizer, material.mask_id, material.description.vocabulary)


class FillMask:
    """Implements :class:`sluice_worker.tasks.base.TaskModule`."""

    task = TASK

    def __init__(self, tokenizer: Tokenizer, mask_id: int, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._mask_id = mask_id
        self._vocabulary = vocabulary

    def prepare(self, call: Call) -> Prepared:
        top = call.parameters["top_k"]
        targets = self._targets(call.parameters["targets"])
        encoded = [self._encode(call, index) for index in range(len(call.inputs))]
        masks = sum(text.ids.count(self._mask_id) for text in encoded)
        if masks * self._vocabulary > MAX_SCORES:
            raise ApiError(
                "too_many_inputs",
                f"{call.codec.field}: got {masks} masks, at most "
                f"{MAX_SCORES // self._vocabulary} are filled in one request.",
                param=call.codec.field,
            )

        def finish(arrays: Sequence[Array]) -> list[Item]:
            return [
                item(
                    {"masks": [self._candidates(row, targets, top) for row in logits]},
                    len(text.ids),
                    truncated=text.truncated,
                )
                for text, logits in zip(encoded, arrays, strict=True)
            ]

        return Prepared([unit_of(text.ids, text.type_ids) for text in encoded], finish)

    def _encode(self, call: Call, index: int) -> Encoded:
        text = encode(self._tokenizer, call, index)
        if self._mask_id not in text.ids:
            where, mask = place(call, index), self._tokenizer.token_of(self._mask_id)
            cut = " in the part that is left of it" if text.truncated else ""
            raise ApiError(
                "invalid_field",
                f"{where}: got a text without a mask{cut}, needs {mask} where a word is to be "
                "filled in.",
                param=where,
            )
        return text

    def _targets(self, given: list[str] | None) -> list[int] | None:
        """Token ids to choose from. Raises ApiError for a target that is not one token."""
        if given is None:
            return None
        ids = set()
        for target in given:
            found = self._tokenizer.id_of(target)
            if found is None:
                pieces = self._tokenizer.locate(target, where="parameters.targets").ids
                if len(pieces) != 1 or pieces[0] == self._tokenizer.unknown_id:
                    raise ApiError(
                        "invalid_field",
                        f"parameters.targets: got {shown(target)}, which is not one token of the "
                        "model's vocabulary. A mask stands for exactly one.",
                        param="parameters.targets",
                    )
                found = pieces[0]
            ids.add(found)
        return sorted(ids)

    def _candidates(
        self, logits: Array, targets: list[int] | None, top: int
    ) -> list[dict[str, Any]]:
        scores = softmax(logits)
        chosen = np.arange(len(scores)) if targets is None else np.array(targets)
        if top < len(chosen):  # Sorting the whole vocabulary would cost more than the answer.
            chosen = chosen[np.argpartition(-scores[chosen], top)[:top]]
        best = chosen[np.argsort(-scores[chosen], kind="stable")]
        return [
            {
                "token": int(token),
                "text": self._tokenizer.text_of([int(token)]),
                "score": float(scores[token]),
            }
            for token in best
        ]
