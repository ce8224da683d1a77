"""Bodies for the inference routes as hypothesis draws them: right, nearly right, and anything."""

import json
from typing import Any

from hypothesis import strategies as st

from sluice_api.call import Codec
from sluice_api.shapes import (
    chat,
    classify,
    completions,
    embeddings,
    fill_mask,
    questions,
    relations,
    rerank,
    small,
    texts,
    tokens,
    v2,
)

_TENSOR: dict[str, Any] = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}
_ENTITIES = [{"start": 0, "end": 1}, {"start": 1, "end": 2}]
_RIGHT: dict[Codec, list[dict[str, Any]]] = {
    embeddings.CODEC: [
        {"input": "a text", "encoding_format": "base64", "dimensions": 2},
        {"input": ["one", "two", "one"], "model": "emb", "user": "me"},
        {"input": [[1, 2], [3]], "truncate": True},
    ],
    classify.CODEC: [
        {"input": "a text", "parameters": {"labels": ["x", "y"], "multi_label": True}},
        {"input": ["one", "two"], "parameters": {"top_k": 1}, "model": "emb"},
    ],
    tokens.CODEC: [
        {"input": "a text", "parameters": {"aggregation": "max", "stride": 3}},
        {"input": ["one", "two"], "parameters": {"ignore_labels": ["O", "X"]}, "model": "emb"},
    ],
    relations.CODEC: [
        {"input": "a text", "model": "emb", "parameters": {"threshold": 0.5}},
        {"input": [{"text": "a text", "entities": [{"start": 0, "end": 1, "label": "X"}]}, "b"]},
        {"input": {"text": "ab", "entities": _ENTITIES, "pairs": [[0, 1]]}},
    ],
    questions.CODEC: [
        {"input": {"question": "who", "context": "me"}, "parameters": {"no_answer": True}},
        {"input": [{"question": "who", "context": "me"}], "parameters": {"top_k": 2, "stride": 1}},
    ],
    fill_mask.CODEC: [
        {"input": "a [MASK]", "parameters": {"top_k": 2, "targets": ["b", "a", "b"]}},
        {"input": ["[MASK]", "[MASK] b"], "model": "emb", "parameters": {"truncate": True}},
    ],
    rerank.CODEC: [
        {"query": "a", "documents": ["b", "c"], "top_n": 1, "model": "emb"},
        {"query": "a", "documents": ["b", {"text": "c", "id": 1}], "return_documents": True},
        {"query": "a", "documents": ["b", "c"], "raw_scores": True},
    ],
    small.CLASSIFY_TEXT: [{"text": "a text", "model": "emb"}],
    small.PREDICT: [{"text": ["one", "two"], "model": "emb"}],
    completions.CODEC: [
        {"prompt": "a text", "model": "emb", "max_tokens": 3, "temperature": 0, "stop": ["x"]},
        {"prompt": ["one", "two"], "n": 2, "seed": 7, "top_p": 0.5, "logit_bias": {"3": 1}},
        {"prompt": [1, 2], "logprobs": 2, "presence_penalty": 1},
    ],
    chat.CODEC: [
        {
            "model": "emb",
            "messages": [{"role": "user", "content": "Hi"}],
            "response_format": {"type": "json_object"},
        },
        {
            "messages": [{"role": "system", "content": [{"type": "text", "text": "a"}]}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "tool_choice": "required",
        },
    ],
    texts.TRANSLATE: [
        {"input": "a text", "model": "emb", "parameters": {"source": "en", "target": "fr"}},
        {"input": ["one", "two"], "parameters": {"num_beams": 2, "length_penalty": 0.5}},
        {"input": "a text", "parameters": {"temperature": 0.5, "top_p": 0.5, "seed": 7}},
    ],
    texts.SUMMARIZE: [
        {"input": "a text", "model": "emb", "parameters": {"min_tokens": 2, "max_tokens": 9}},
        {"input": ["one", "two"], "parameters": {"stride": 8, "truncate": True}},
    ],
    v2.CODEC: [
        {"inputs": [_TENSOR], "parameters": {"task": "zero-shot", "labels": ["x"]}, "id": "7"},
        {"inputs": [_TENSOR], "parameters": {"task": "classification"}},
        {"inputs": [_TENSOR], "outputs": [{"name": "embedding"}]},
        {"inputs": [{**_TENSOR, "name": "question"}, {**_TENSOR, "name": "context"}]},
        {"inputs": [_TENSOR, {**_TENSOR, "name": "query", "shape": [1], "data": ["q"]}]},
        {"inputs": [_TENSOR], "parameters": {"task": "fill-mask", "top_k": 3}},
        {"inputs": [_TENSOR], "parameters": {"task": "token-classification"}},
    ],
}
_NAMES = sorted({name for bodies in _RIGHT.values() for body in bodies for name in body})

_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just("\ud800")
)
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def bodies(draw: st.DrawFn, codec: Codec) -> bytes:
    """What a client may send to the route of ``codec``: JSON mostly, else damaged or anything."""
    right = st.sampled_from(_RIGHT[codec])
    known = st.sampled_from(sorted({name for body in _RIGHT[codec] for name in body}))
    changed = st.builds(_changed, right, known, _texts | _values)
    body = _written(draw(right | changed | _values), draw(st.booleans()))
    place = draw(st.integers(0, len(body)))
    match draw(st.integers(0, 9)):
        case 7:
            return body[:place]
        case 8:
            return body[:place] + draw(st.binary(max_size=4)) + body[place:]
        case 9:
            return draw(st.binary(max_size=40))
        case _:
            return body


_texts = st.text(min_size=1, max_size=8) | st.lists(st.text(min_size=1), min_size=1, max_size=3)


def _changed(right: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    return {**right, name: value}


def _written(value: Any, ascii_only: bool) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only).encode(errors="surrogatepass")
