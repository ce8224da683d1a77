"""``POST /v1/tokens/classify``: what each token is, and the entities they make (NER).

Canonical item::

    {"entities": [{"label": "PER", "score": 0.99, "start": 0, "end": 4, "text": "Anna"}, …],
     "chunks": 2?, "tokens": 12}

in the order of the text. Offsets are characters of the input (Unicode code points), half-open.
"""

from typing import Annotated, Literal

import msgspec

from sluice_api.call import CanonicalCodec
from sluice_api.shapes.listing import ListCodec
from sluice_api.tasks import Task

Aggregation = Literal["none", "simple", "first", "average", "max"]
Stride = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class TokensParameters(msgspec.Struct, forbid_unknown_fields=True):
    """What a caller may ask of a token classification.

    ``aggregation``: ``none`` answers every token by itself; ``simple`` joins neighbours of one
    label; ``first``, ``average`` and ``max`` decide for whole words before that. ``ignore_labels``
    are left out. ``stride`` is how many tokens the windows of a long text share.
    """

    aggregation: Aggregation = "simple"
    ignore_labels: Annotated[list[str], msgspec.Meta(max_length=256)] = msgspec.field(
        default_factory=lambda: ["O"]
    )
    stride: Stride | None = None


class TokensRequest(msgspec.Struct, forbid_unknown_fields=True):
    input: str | list[str]
    model: str | None = None
    parameters: TokensParameters | None = None


class Entity(msgspec.Struct):
    """``text`` is the input from ``start`` to ``end``."""

    label: str
    score: float
    start: int
    end: int
    text: str


class TokensItem(msgspec.Struct):
    """A canonical item, read back."""

    entities: list[Entity]
    tokens: int
    chunks: int = 1


read_item = msgspec.json.Decoder(TokensItem).decode

CODEC: CanonicalCodec = ListCodec(
    "tokens", Task.TOKEN_CLASSIFICATION, TokensRequest, TokensParameters
)
