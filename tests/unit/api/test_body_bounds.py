"""Bodies of many small values: refused before they take memory, whatever they would have been."""

import tracemalloc
from typing import Any

import msgspec
import pytest

from sluice_api import routes
from sluice_api.body_bounds import MAX_NESTS, MAX_PARTS, MAX_TEXTS
from sluice_api.errors import ApiError
from sluice_api.shapes import embeddings, v2, v2_binary

MEBIBYTE = 1024 * 1024
BODY_BYTES = 16 * MEBIBYTE
CODECS = [*routes.POST_ROUTES.values(), v2.CODEC]

CROWDS = {
    "lists": b"[]",
    "objects": b"{}",
    "members": b'{"a":0}',
    "nested lists": b"[[[[]]]]",
    "texts": b'""',
    "escaped texts": b'"\\\\"',
    "numbers": b"0",
    "fractions": b"1.5",
}


def tensor(data: bytes) -> bytes:
    head = b'{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":['
    return head + data + b"]}]}"


def crowd(entry: bytes) -> bytes:
    return b",".join([entry] * (BODY_BYTES // (len(entry) + 1) - 30))


def refused(parse: Any, *arguments: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(*arguments)
    return caught.value


@pytest.mark.parametrize("entry", CROWDS.values(), ids=CROWDS)
def test_a_crowd_takes_no_memory(entry: bytes) -> None:
    body = tensor(crowd(entry))
    tracemalloc.start()
    try:
        for read in (v2.CODEC.parse, lambda whole: v2_binary.read(whole, None)):
            error = refused(read, body)
            assert error.code == "too_many_inputs"
            assert "at most" in error.message
        assert tracemalloc.get_traced_memory()[1] < MEBIBYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_every_route_counts_first(codec: Any) -> None:
    error = refused(codec.parse, b'{"x":[' + b"[]," * MAX_NESTS + b"[]]}")
    assert error.message == (
        f"The body: holds {MAX_NESTS + 3} lists and objects, at most {MAX_NESTS} are taken in one"
        " request."
    )


def test_what_is_just_allowed_takes_little_memory() -> None:
    body = tensor(b'{"aa":1.5},' * (MAX_NESTS - 9) + b'"abcd",' * (MAX_NESTS - 9) + b"1.5")
    tracemalloc.start()
    try:
        error = refused(v2.CODEC.parse, body)
        assert error.param == "inputs[0].shape"
        assert tracemalloc.get_traced_memory()[1] < 192 * MEBIBYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox, over [the] lazy dog. " * 350_000,
        '{"a": [1, 2, {"b": [0]}]}, ' * 350_000,
        "[[1,2],[3,4]],\\" * 1_000_000,
    ],
)
def test_texts_of_any_content_are_no_crowd(text: str) -> None:
    assert len(text) > BODY_BYTES / 2
    call = embeddings.CODEC.parse(msgspec.json.encode({"input": text}))
    assert call.inputs == [text]


def test_the_longest_inputs_are_no_crowd() -> None:
    ids = [1] * (MAX_PARTS // 2 - 10)
    call = embeddings.CODEC.parse(msgspec.json.encode({"input": [ids, ids]}))
    assert call.inputs == [ids, ids]
    error = refused(embeddings.CODEC.parse, msgspec.json.encode({"input": [ids, ids, ids]}))
    assert f"values, at most {MAX_PARTS}" in error.message


def test_names_of_members_count() -> None:
    body = b'{"input":[' + b'{"a":"b"},' * (MAX_TEXTS // 2) + b"1]}"
    assert f"texts and names, at most {MAX_TEXTS}" in refused(v2.CODEC.parse, body).message
