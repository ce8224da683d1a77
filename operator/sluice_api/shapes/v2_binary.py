"""The binary tensor data extension of the Open Inference Protocol, translated to JSON and back.

Tensors may follow the JSON of a body as bytes; Triton's client sends them so unless told otherwise.
The gateway translates such requests before anything else looks at them, and answers after
everything else is done with them, so that codecs, caches and workers know JSON alone.
"""

import math
import struct
import sys
from array import array
from typing import Any, Final, NamedTuple

import msgspec

from sluice_api.body_bounds import check_counts
from sluice_api.call import MAX_INPUTS
from sluice_api.decode import shown
from sluice_api.errors import ApiError

SIZE: Final = "binary_data_size"
"""Parameter of a tensor: so many of the bytes behind the JSON are its data."""
ASKED: Final = "binary_data"
"""Parameter of an output that is asked for: whether it is to come as bytes."""
ASKED_OF_ALL: Final = "binary_data_output"
"""The same as a parameter of the request, for outputs that say nothing themselves."""

_TYPES: Final = {"FP32": "f", "INT64": "q"}
"""Datatype of an output → type code of ``array``; BYTES are texts."""


_NO_TENSORS: Final = (
    *(msgspec.DecodeError, RecursionError),
    *(AttributeError, LookupError, OverflowError, TypeError, ValueError),
)
"""What reading and packing raise where an answer is not made of tensors as their datatypes say."""


class Wanted(NamedTuple):
    """Which outputs are to be bytes."""

    of_all: bool
    by_name: dict[str, bool]

    def any(self) -> bool:
        return self.of_all or any(self.by_name.values())

    def says(self, name: str) -> bool:
        return self.by_name.get(name, self.of_all)


def read(body: bytes, json_bytes: int | None) -> tuple[bytes, Wanted]:
    """The JSON that asks for the same without bytes, and what is to be answered in bytes.

    JSON that is wrong in other ways is given back as it is, to be refused as usual.

    Args:
        json_bytes: how much of the body is JSON; None for all of it.

    Raises:
        ApiError: too many values, sizes that do not add up, bytes that are no data of their tensor.
    """
    if json_bytes is not None and json_bytes > len(body):
        raise _wrong(
            "Inference-Header-Content-Length", f"got {json_bytes}, the body has {len(body)} bytes"
        )
    text, rest = (body, b"") if json_bytes is None else (body[:json_bytes], body[json_bytes:])
    check_counts(text)
    try:
        request: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        request = None
    if not isinstance(request, dict):
        return text, Wanted(False, {})
    position = 0
    for index, tensor in enumerate(_objects(request.get("inputs"))):
        size = _pop(tensor, SIZE)
        if size is None:
            continue
        place = f"inputs[{index}]"
        left = len(rest) - position
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= left:
            raise _wrong(f"{place}.parameters.{SIZE}", f"got {size!r:.40}, {left} bytes are left")
        if "data" in tensor:
            raise _wrong(f"{place}.data", f"got both data and {SIZE}, allowed is one of them")
        tensor["data"] = _unpack(tensor, rest[position : position + size], place)
        position += size
    if position != len(rest):
        raise _wrong("inputs", f"{len(rest) - position} bytes behind the JSON belong to no tensor")
    by_name: dict[str, bool] = {}
    for index, output in enumerate(_objects(request.get("outputs"))):
        asked = _flag(_pop(output, ASKED), f"outputs[{index}].parameters.{ASKED}")
        if asked is not None and isinstance(output.get("name"), str):
            by_name[output["name"]] = asked
    of_all = _flag(_pop(request, ASKED_OF_ALL), f"parameters.{ASKED_OF_ALL}")
    return msgspec.json.encode(request), Wanted(bool(of_all), by_name)


def write(body: bytes, wanted: Wanted) -> tuple[bytes, int | None]:
    """An answer with the outputs that are wanted so as bytes.

    Returns the body and how much of it is JSON, or None where all of it still is.

    Raises:
        ApiError: ``upstream_failed`` where a worker wrote no tensors, or numbers that do not fit.
    """
    parts = []
    try:
        answer: Any = msgspec.json.decode(body)
        for output in answer["outputs"]:
            if wanted.says(output["name"]):
                data = _pack(output["datatype"], output.pop("data"))
                output["parameters"] = {SIZE: len(data)}
                parts.append(data)
    except _NO_TENSORS as error:
        raise ApiError(
            "upstream_failed", f"The worker's outputs cannot be given as bytes: {error!s:.80}."
        ) from None
    if not parts:
        return body, None
    text = msgspec.json.encode(answer)
    return text + b"".join(parts), len(text)


def _unpack(tensor: dict[str, Any], data: bytes, place: str) -> list[str]:
    """The elements of a tensor. Raises ApiError."""
    datatype = tensor.get("datatype")
    if datatype != "BYTES":  # No task takes others; their elements would be made in vain.
        raise _wrong(f"{place}.datatype", f"got {shown(datatype)}, allowed BYTES")
    return _texts(data, place)


def _texts(data: bytes, place: str) -> list[str]:
    """Texts, each behind its length in four bytes; more than can be inputs are not read."""
    found: list[str] = []
    position = 0
    while position < len(data):
        if len(found) == MAX_INPUTS:
            raise ApiError(
                "too_many_inputs",
                f"{place}.data: got more than the {MAX_INPUTS} inputs that are allowed.",
                param=f"{place}.data",
            )
        start = position + 4
        end = start + int.from_bytes(data[position:start], "little")
        if end > len(data):
            raise _wrong(f"{place}.data[{len(found)}]", "its length goes beyond the tensor's bytes")
        try:
            found.append(data[start:end].decode())
        except UnicodeDecodeError:
            raise _wrong(f"{place}.data[{len(found)}]", "is not UTF-8") from None
        position = end
    return found


def _pack(datatype: str, data: list[Any]) -> bytes:
    """The elements as bytes. Raises one of ``_NO_TENSORS``."""
    if datatype == "BYTES":
        encoded = [text.encode() for text in data]
        return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
    # JSON has no name for what is no number; a model that overflows answers null there.
    values = array(_TYPES[datatype], [math.nan if value is None else value for value in data])
    if values.typecode in "fd" and (math.inf in values or -math.inf in values):
        raise OverflowError(f"a number is too large for {datatype}")  # JSON has no infinity.
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _objects(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _pop(holder: dict[str, Any], name: str) -> Any:
    """Take a parameter out; parameters that are empty then are not there."""
    parameters = holder.get("parameters")
    if not isinstance(parameters, dict) or name not in parameters:
        return None
    value = parameters.pop(name)
    if not parameters:
        del holder["parameters"]
    return value


def _flag(value: Any, place: str) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise _wrong(place, f"got {value!r:.40}, allowed true or false")
    return value


def _wrong(place: str, what: str) -> ApiError:
    return ApiError("invalid_field", f"{place}: {what}.", param=place)
