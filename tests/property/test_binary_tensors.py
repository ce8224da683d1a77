"""Tensors as bytes: what is packed is read again, and no bytes at all do harm."""

import json
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api.errors import ApiError
from sluice_api.shapes.v2_binary import Wanted, read, write

TEXTS = st.lists(st.text(max_size=20), max_size=8)
VALUES: dict[str, Any] = {
    "BYTES": TEXTS,
    "INT64": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8),
    "INT32": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=8),
    "UINT8": st.lists(st.integers(0, 255), max_size=8),
    "FP32": st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=8),
    "FP64": st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=8),
}


@given(st.data())
def test_what_is_packed_is_read_again(data: st.DataObject) -> None:
    tensors = [
        {"name": f"t{number}", "datatype": kind, "data": data.draw(VALUES[kind])}
        for number, kind in enumerate(
            data.draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=4))
        )
    ]
    for tensor in tensors:
        tensor["shape"] = [len(tensor["data"])]
    some = {f"t{number}": data.draw(st.booleans()) for number in range(len(tensors))}
    body = msgspec.json.encode({"model_name": "m", "outputs": tensors})
    packed, json_bytes = write(body, Wanted(False, some))
    assert (json_bytes is None) == (not any(some.get(t["name"]) for t in tensors))
    # An answer's outputs are laid out as a request's inputs are.
    text = packed if json_bytes is None else packed[:json_bytes]
    asked = json.loads(text)
    asked["inputs"] = asked.pop("outputs")
    head = msgspec.json.encode(asked)
    back, wanted = read(head + (b"" if json_bytes is None else packed[json_bytes:]), len(head))
    found = json.loads(back)["inputs"]
    assert [tensor["data"] for tensor in found] == [tensor["data"] for tensor in tensors]
    assert not any("parameters" in tensor for tensor in found) and not wanted.any()


@given(
    rest=st.binary(max_size=60),
    size=st.one_of(st.integers(-5, 70), st.booleans(), st.text(max_size=3), st.none()),
    kind=st.sampled_from([*VALUES, "FP16", "BOOL", "", None, 5]),
    shape=st.one_of(st.lists(st.integers(-3, 9), max_size=3), st.just("x")),
    length=st.integers(-3, 3),
)
def test_any_bytes_are_read_or_refused(
    rest: bytes, size: Any, kind: Any, shape: Any, length: int
) -> None:
    tensor = {
        "name": "t",
        "datatype": kind,
        "shape": shape,
        "parameters": {"binary_data_size": size},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    refused = None
    try:
        body, _ = read(head + rest, len(head) + length)
        if length == 0:
            json.loads(body)
    except ApiError as error:
        refused = error
    assert refused is None or (refused.code == "invalid_field" and refused.param)


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=5), st.integers(1, 24))
def test_a_list_of_texts_that_is_cut_is_refused(parts: list[bytes], missing: int) -> None:
    whole = b"".join(struct.pack("<I", len(part)) + part for part in [*parts, b"x" * 20])
    data = whole[: -min(missing, 23)]
    tensor = {"name": "t", "datatype": "BYTES", "shape": [len(parts) + 1]}
    tensor["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(ApiError, match=r"inputs\[0\].data\[\d+\]"):
        read(head + data, len(head))
