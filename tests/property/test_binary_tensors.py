"""Tensors as bytes: what is packed is the same data, and no bytes at all do harm."""

import json
import math
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api.call import MAX_INPUTS
from sluice_api.errors import ApiError
from sluice_api.shapes.v2_binary import Wanted, read, write

TEXTS = st.lists(st.text(max_size=20), max_size=8)
VALUES: dict[str, Any] = {
    "BYTES": TEXTS,
    "INT64": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8),
    "FP32": st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=8),
}


@given(st.data())
def test_what_is_packed_is_the_same(data: st.DataObject) -> None:
    tensors = [
        {"name": f"t{number}", "datatype": kind, "data": data.draw(VALUES[kind])}
        for number, kind in enumerate(
            data.draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=4))
        )
    ]
    some = {f"t{number}": data.draw(st.booleans()) for number in range(len(tensors))}
    body = msgspec.json.encode({"model_name": "m", "outputs": tensors})
    packed, json_bytes = write(body, Wanted(False, some))
    assert (json_bytes is None) == (not any(some.values()))
    text, rest = (packed, b"") if json_bytes is None else (packed[:json_bytes], packed[json_bytes:])
    for tensor, given_tensor in zip(json.loads(text)["outputs"], tensors, strict=True):
        if some[tensor["name"]]:
            size = tensor["parameters"]["binary_data_size"]
            assert unpacked(tensor["datatype"], rest[:size]) == given_tensor["data"]
            assert "data" not in tensor
            rest = rest[size:]
        else:
            assert tensor == given_tensor
    assert not rest


def unpacked(datatype: str, data: bytes) -> list[Any]:
    """An output's elements, read as a caller would; texts by the reader of inputs."""
    if datatype != "BYTES":
        code, size = {"FP32": ("f", 4), "INT64": ("q", 8)}[datatype]
        return [*struct.unpack(f"<{len(data) // size}{code}", data)]
    tensor = {"datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    back, wanted = read(head + data, len(head))
    (found,) = json.loads(back)["inputs"]
    assert "parameters" not in found and not wanted.any()
    return found["data"]  # type: ignore[no-any-return]


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


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT64", [1, 2**63]),
        ("INT64", [-(2**63) - 1]),
        ("INT32", [2**31]),
        ("UINT8", [-1]),
        ("INT64", [0.5]),
        ("FP32", [1e39]),
        ("FP64", ["one"]),
        ("BYTES", [5]),
        ("FP16", [1.0]),
        ("INT64", None),
    ],
)
def test_what_a_worker_wrote_and_does_not_fit_is_its_failure(datatype: str, data: Any) -> None:
    output = {"name": "t", "shape": [1], "datatype": datatype, "data": data}
    body = msgspec.json.encode({"model_name": "m", "outputs": [output]})
    assert write(body, Wanted(False, {})) == (body, None)
    with pytest.raises(ApiError) as failed:
        write(body, Wanted(True, {}))
    assert failed.value.code == "upstream_failed"


@pytest.mark.parametrize("body", [b"", b"no JSON", b"{}", b"[]", b'{"outputs":[5]}'])
def test_what_is_no_answer_is_the_failure_of_its_worker(body: bytes) -> None:
    with pytest.raises(ApiError) as failed:
        write(body, Wanted(True, {}))
    assert failed.value.code == "upstream_failed"


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=5), st.integers(1, 24))
def test_a_list_of_texts_that_is_cut_is_refused(parts: list[bytes], missing: int) -> None:
    whole = b"".join(struct.pack("<I", len(part)) + part for part in [*parts, b"x" * 20])
    data = whole[: -min(missing, 23)]
    tensor = {"name": "t", "datatype": "BYTES", "shape": [len(parts) + 1]}
    tensor["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(ApiError, match=r"inputs\[0\].data\[\d+\]"):
        read(head + data, len(head))


@pytest.mark.parametrize(
    ("datatype", "data", "code", "told"),
    [
        ("INT8", b"\x80" * 1000, "invalid_field", 'inputs[0].datatype: got "INT8", allowed BYTES'),
        (
            "BYTES",
            bytes(4 * (MAX_INPUTS + 1)),
            "too_many_inputs",
            "inputs[0].data: got more than the 2048 inputs that are allowed",
        ),
    ],
)
def test_what_nothing_takes_is_refused_before_it_is_unpacked(
    datatype: str, data: bytes, code: str, told: str
) -> None:
    tensor = {"name": "text", "datatype": datatype, "shape": [len(data)]}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}]})
    with pytest.raises(ApiError) as refused:
        read(head.encode() + data, len(head))
    assert refused.value.code == code and told in refused.value.message


def test_a_shape_is_not_multiplied() -> None:
    """The product of a caller's sizes is quadratic in their number: seconds for 20 000 of them."""
    tensor = {"datatype": "BYTES", "shape": [2**63 - 1] * 20_000}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(math, "prod", lambda sizes: pytest.fail("multiplied"))
        head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 0}}]}).encode()
        read(head, None)
        number = json.dumps({"inputs": [json.loads(head)["inputs"][0] | {"datatype": "INT64"}]})
        with pytest.raises(ApiError, match="allowed BYTES"):
            read(number.encode(), None)
