"""``POST /v1/embeddings``: OpenAI's shape.

The canonical item holds the vector as base64 of little-endian float32, which is what the OpenAI
client asks for and a third of the size of decimal text; lists of numbers are written from it.
"""

import base64
import sys
from array import array
from typing import Annotated, Any, Literal

import msgspec

from sluice_api.call import (
    Call,
    CanonicalCodec,
    GivenInputs,
    Input,
    Item,
    inputs_of,
    split_items,
    write_list,
)
from sluice_api.decode import decode
from sluice_api.tasks import Task

Dimensions = Annotated[int, msgspec.Meta(ge=1, le=65536)]


class EmbeddingsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """``input`` is a text, a list of texts, a list of token ids, or a list of such lists."""

    input: GivenInputs
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Dimensions | None = None
    user: str | None = None
    truncate: bool = False


class _Encoded(msgspec.Struct):
    embedding: str
    tokens: int
    truncated: bool = False


_TASK = Task.EMBEDDINGS
"""Reading it off the class costs as much as a call."""

_decoder = msgspec.json.Decoder(EmbeddingsRequest)
_decode_item = msgspec.json.Decoder(_Encoded).decode


class EmbeddingsCodec:
    name = "embeddings"
    field = "input"
    parameters: str | None = ""

    def parse(self, body: bytes) -> Call:
        request = decode(_decoder, body)
        inputs, listed = inputs_of(request.input, self.field)
        return Call(
            codec=self,
            model=request.model,
            task=_TASK,
            inputs=inputs,
            listed=listed,
            parameters={"dimensions": request.dimensions, "truncate": request.truncate},
            # Only base64 holds the exact bits, so only that answer can be stored as it comes.
            passthrough=request.encoding_format == "base64",
            options=request.encoding_format,
        )

    def render(self, call: Call, model: str, items: list[Item]) -> bytes:
        if call.options != "base64":
            items = [_as_numbers(item) for item in items]
        return write_list(model, items)

    def extract(self, call: Call, body: bytes) -> list[Item]:
        return split_items(body, len(call.inputs))

    def canonical_body(self, call: Call, inputs: list[Input]) -> bytes:
        body: dict[str, Any] = {
            "input": inputs,
            "encoding_format": "base64",
            "truncate": call.parameters["truncate"],
        }
        if call.model is not None:
            body["model"] = call.model
        if call.parameters["dimensions"] is not None:
            body["dimensions"] = call.parameters["dimensions"]
        return msgspec.json.encode(body)


def item(vector: bytes, tokens: int, *, truncated: bool = False) -> Item:
    """The canonical item of one vector, given as little-endian float32 bytes."""
    note = b',"truncated":true' if truncated else b""
    text = base64.b64encode(vector)
    return Item(
        b'{"object":"embedding","embedding":"%b"%b,"tokens":%d}' % (text, note, tokens), tokens
    )


def _as_numbers(encoded: Item) -> Item:
    fields = _decode_item(encoded.json)
    numbers = array("f", base64.b64decode(fields.embedding))
    if sys.byteorder == "big":
        numbers.byteswap()
    note = b',"truncated":true' if fields.truncated else b""
    return Item(
        b'{"object":"embedding","embedding":%b%b,"tokens":%d}'
        % (msgspec.json.encode(numbers.tolist()), note, fields.tokens),
        fields.tokens,
    )


def vector_of(encoded: Item) -> "array[float]":
    """The vector inside a canonical item, as native float32."""
    numbers = array("f", base64.b64decode(_decode_item(encoded.json).embedding))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


CODEC: CanonicalCodec = EmbeddingsCodec()
