"""The shape that most tasks share: one input or a list of them in, one object for each out.

``{"input", "model"?, "parameters"?}`` → ``{"object": "list", "model", "data": [...], "usage"}``. A
task's own module says what its inputs and parameters are, and what stands in an object of ``data``.
"""

from typing import Any

import msgspec

from sluice_api.call import (
    Call,
    Input,
    Item,
    check_inputs,
    split_items,
    write_body,
    write_list,
)
from sluice_api.decode import decode
from sluice_api.errors import ApiError
from sluice_api.tasks import Task


class ListCodec:
    """Implements :class:`sluice_api.call.CanonicalCodec`.

    Args:
        request: a struct with the members ``input``, ``model`` and ``parameters``.
        parameters: the struct of the last of them.
        structured: inputs are objects, which a call carries as ``call.structured`` writes them.
    """

    field = "input"
    parameters: str | None = "parameters."

    def __init__(
        self,
        name: str,
        task: Task,
        request: type[msgspec.Struct],
        parameters: type[msgspec.Struct],
        *,
        structured: bool = False,
    ) -> None:
        self.name = name
        self._task = task
        self._structured = structured
        self._defaults = parameters()
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(request)

    def parse(self, body: bytes) -> Call:
        return self.call_of(decode(self._decoder, body))

    def call_of(self, request: Any) -> Call:
        """What a well-formed request asks. Raises ApiError."""
        listed = isinstance(request.input, list)
        given = request.input if listed else [request.input]
        where = [f"input[{index}]" if listed else "input" for index in range(len(given))]
        return Call(
            codec=self,
            model=request.model,
            task=self._task,
            inputs=check_inputs([*map(self.input_of, given, where)], self.field, listed=listed),
            listed=listed,
            parameters=self.canonical(request.parameters or self._defaults),
        )

    def render(self, call: Call, model: str, items: list[Item]) -> bytes:
        return write_list(model, items)

    def extract(self, call: Call, body: bytes) -> list[Item]:
        return split_items(body, len(call.inputs))

    def canonical_body(self, call: Call, inputs: list[Input]) -> bytes:
        written: list[Any] = list(inputs)
        if self._structured:
            written = [msgspec.Raw(value.encode()) for value in inputs if isinstance(value, str)]
        return write_body(call, written, call.parameters)

    def input_of(self, value: Any, where: str) -> Input:
        """One input as the call carries it. Raises ApiError naming ``where``."""
        text: str = value
        return text

    def canonical(self, parameters: Any) -> dict[str, Any]:
        """The parameters with their defaults filled in. Raises ApiError."""
        return msgspec.structs.asdict(parameters)


def required(text: str, where: str) -> str:
    """``text``, which may not be empty."""
    if not text:
        raise ApiError("invalid_field", f"{where}: got an empty text.", param=where)
    return text


def item(answer: dict[str, Any], tokens: int, *, chunks: int = 1, truncated: bool = False) -> Item:
    """A canonical item: the members of ``answer``, and how the input was read.

    Args:
        chunks: in how many windows a long input was computed; said when there are several.
        truncated: only the beginning of the input was used; said when it is so.
    """
    members = dict(answer)
    if chunks > 1:
        members["chunks"] = chunks
    if truncated:
        members["truncated"] = True
    members["tokens"] = tokens
    return Item(msgspec.json.encode(members), tokens)
