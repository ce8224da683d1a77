"""``POST /v1/fill-mask``: which tokens stand behind the masks of a text.

Canonical item::

    {"masks": [[{"token": 2003, "text": "is", "score": 0.9}, …], …], "tokens": 9}

One list for each mask, in the order of the text, each sorted by score.
"""

from typing import Annotated, Any

import msgspec

from sluice_api.call import CanonicalCodec
from sluice_api.shapes.listing import ListCodec
from sluice_api.tasks import Task

MAX_CANDIDATES = 1000

Target = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class FillMaskParameters(msgspec.Struct, forbid_unknown_fields=True):
    """``targets`` are the only tokens to choose from; their scores are not scaled up to one."""

    top_k: Annotated[int, msgspec.Meta(ge=1, le=MAX_CANDIDATES)] = 5
    targets: (
        Annotated[list[Target], msgspec.Meta(min_length=1, max_length=MAX_CANDIDATES)] | None
    ) = None
    truncate: bool = False


class FillMaskRequest(msgspec.Struct, forbid_unknown_fields=True):
    input: str | list[str]
    model: str | None = None
    parameters: FillMaskParameters | None = None


class Candidate(msgspec.Struct):
    """``token`` is its id in the model's vocabulary."""

    token: int
    text: str
    score: float


class FillMaskItem(msgspec.Struct):
    """A canonical item, read back."""

    masks: list[list[Candidate]]
    tokens: int
    truncated: bool = False


read_item = msgspec.json.Decoder(FillMaskItem).decode


class FillMaskCodec(ListCodec):
    def canonical(self, parameters: FillMaskParameters) -> dict[str, Any]:
        return canonical(parameters)


def canonical(parameters: FillMaskParameters) -> dict[str, Any]:
    """The parameters with their defaults, in one spelling."""
    plain = msgspec.structs.asdict(parameters)
    if parameters.targets is not None:  # Neither order nor repetition changes the answer.
        plain["targets"] = sorted(set(parameters.targets))
    return plain


CODEC: CanonicalCodec = FillMaskCodec(
    "fill-mask", Task.FILL_MASK, FillMaskRequest, FillMaskParameters
)
