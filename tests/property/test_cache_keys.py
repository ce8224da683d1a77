"""Equal meaning, equal key; different meaning, different key – through the shapes' own parsers."""

import json
import string
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sluice_api.call import Call, Input
from sluice_api.routes import POST_ROUTES, canonical_body
from sluice_api.shapes import classify, embeddings, v2
from sluice_api.tasks import Task
from sluice_gateway.keys import Keyring, TenantScope, item_key, item_keys

RING = Keyring(bytes(range(32)))
ANNA = TenantScope.of("anna")

texts = st.text(min_size=1, max_size=30)
labels = st.lists(st.text(string.ascii_letters, min_size=1, max_size=5), min_size=1, max_size=5)
owner_names = st.text("ab:/1", min_size=1, max_size=3)
scopes = st.builds(TenantScope.of, owner_names) | st.builds(
    TenantScope.service_wide, owner_names, owner_names
)
fields = st.fixed_dictionaries(
    {
        "scope": scopes,
        "revision": st.sampled_from(["0123456789", "1123456789"]),
        "answer_digest": st.sampled_from(["sha256:aa", "sha256:ab"]),
        "task": st.sampled_from(list(Task)),
        "parameters": st.sampled_from([b"{}", b'{"top_k":1}']) | st.binary(max_size=8),
        "item": st.text(max_size=8) | st.lists(st.integers(0, 2**31 - 1), max_size=4),
    }
)


def keys_of(call: Call) -> list[bytes]:
    assert call.task is not None
    return item_keys(
        RING,
        ANNA,
        revision="0123456789",
        answer_digest="sha256:ab",
        task=call.task,
        parameters=call.canonical_parameters(),
        items=call.inputs,
    )


def shuffled(body: Any, data: st.DataObject) -> bytes:
    """``body`` as JSON in another order of members, with other space, escaped or not."""

    def reorder(value: Any, name: str = "") -> Any:
        if isinstance(value, dict) and name != "labels":  # The order of labels is their ids.
            return {
                key: reorder(value[key], key) for key in data.draw(st.permutations(list(value)))
            }
        return value

    return json.dumps(
        reorder(body),
        ensure_ascii=data.draw(st.booleans()),
        indent=data.draw(st.sampled_from([None, 0, 3])),
        separators=data.draw(st.sampled_from([None, (",", ":"), (" , ", " : ")])),
    ).encode()


def with_some(
    body: dict[str, Any], defaults: dict[str, Any], data: st.DataObject
) -> dict[str, Any]:
    """``body`` with some of its defaults spelt out."""
    chosen = data.draw(st.sets(st.sampled_from(sorted(defaults))))
    return {**{name: defaults[name] for name in chosen}, **body}


@given(st.lists(texts, min_size=1, max_size=4), st.none() | st.integers(1, 500), st.data())
def test_embeddings_equal_meaning(
    inputs: list[str], dimensions: int | None, data: st.DataObject
) -> None:
    plain: dict[str, Any] = {"input": inputs}
    if dimensions is not None:
        plain["dimensions"] = dimensions
    # None of these changes the vector: they change how it is written, or who asked.
    defaults = {
        "truncate": False,
        "dimensions": None,
        "user": data.draw(texts),
        "encoding_format": data.draw(st.sampled_from(["float", "base64"])),
        "model": data.draw(st.sampled_from(["minilm", "default/minilm"])),
    }
    varied = with_some(plain, defaults, data)
    if len(inputs) == 1 and data.draw(st.booleans()):
        varied["input"] = inputs[0]
    expected = keys_of(embeddings.CODEC.parse(json.dumps(plain).encode()))
    assert keys_of(embeddings.CODEC.parse(shuffled(varied, data))) == expected


@given(texts, labels, st.booleans(), st.data())
def test_zero_shot_equal_meaning(
    text: str, names: list[str], described: bool, data: st.DataObject
) -> None:
    assume(len(set(names)) == len(names))
    asked: dict[str, Any] = {
        "labels": {name: f"about {name}" for name in names} if described else names
    }
    defaults = {
        "multi_label": data.draw(st.sampled_from([None, False])),
        "top_k": None,
        "truncate": False,
        "hypothesis_template": data.draw(st.sampled_from([None, classify.DEFAULT_TEMPLATE])),
    }
    plain = {"input": text, "parameters": asked}
    varied = {"input": [text], "parameters": with_some(asked, defaults, data), "model": "m"}
    expected = keys_of(classify.CODEC.parse(json.dumps(plain).encode()))
    assert keys_of(classify.CODEC.parse(shuffled(varied, data))) == expected


@given(texts)
def test_every_route_of_a_classifier_shares_its_answers(text: str) -> None:
    bodies = {
        "/v1/classify": {"input": text},
        "/classify": {"text": text},
        "/predict": {"text": [text]},
    }
    calls = [POST_ROUTES[path].parse(json.dumps(body).encode()) for path, body in bodies.items()]
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
    body = json.dumps({"inputs": [tensor], "id": "7"}).encode()
    calls.append(v2.with_task(v2.CODEC.parse(body), Task.CLASSIFICATION))
    assert len({key for call in calls for key in keys_of(call)}) == 1


@given(st.lists(texts, min_size=2, max_size=5))
def test_an_input_has_its_key_alone_and_in_any_list(inputs: list[str]) -> None:
    call = embeddings.CODEC.parse(json.dumps({"input": inputs}).encode())
    alone = [
        keys_of(embeddings.CODEC.parse(json.dumps({"input": text}).encode()))[0] for text in inputs
    ]
    assert keys_of(call) == alone
    asked_again = embeddings.CODEC.parse(canonical_body(call, call.inputs[1:]))
    assert keys_of(asked_again) == alone[1:]


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["b", "a"]},
        {"labels": ["a", "c"]},
        {"labels": {"a": "about a", "b": "about b"}},
        {"multi_label": True},
        {"top_k": 1},
        {"truncate": True},
        {"hypothesis_template": "It is {}."},
    ],
)
def test_zero_shot_different_meaning(change: dict[str, Any]) -> None:
    asked = {"labels": ["a", "b"]}
    bodies = [{"input": "x", "parameters": asked}, {"input": "x", "parameters": asked | change}]
    keys = {keys_of(classify.CODEC.parse(json.dumps(body).encode()))[0] for body in bodies}
    assert len(keys) == 2


@given(texts, texts)
def test_unicode_is_left_alone(one: str, two: str) -> None:
    """Not even canonically equivalent texts share a key: a tokenizer may tell them apart."""
    assume(one != two)
    keys = {
        keys_of(embeddings.CODEC.parse(json.dumps({"input": text}).encode()))[0]
        for text in (one, two)
    }
    assert len(keys) == 2


Owner = tuple[str, ...]
owners = st.tuples(owner_names) | st.tuples(owner_names, owner_names)


@given(owners, owners)
def test_scopes_are_equal_exactly_when_their_owners_are(one: Owner, two: Owner) -> None:
    """A tenant, or a service by namespace and name."""
    scopes = [
        TenantScope.of(*owner) if len(owner) == 1 else TenantScope.service_wide(*owner)
        for owner in (one, two)
    ]
    assert (scopes[0] == scopes[1]) == (one == two)


@given(fields, fields)
def test_keys_are_equal_exactly_when_every_field_is(
    one: dict[str, Any], two: dict[str, Any]
) -> None:
    keys = [item_key(RING, **given_fields) for given_fields in (one, two)]
    same: bool = one == two and _kind(one["item"]) == _kind(two["item"])
    assert (keys[0] == keys[1]) == same


def _kind(item: Input) -> str:
    return "text" if isinstance(item, str) else "tokens"
