"""What a caller is told about a body that does not fit: in plain words, never a library's."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api import routes
from sluice_api.call import MAX_TOKEN_IDS, Codec
from sluice_api.errors import ApiError
from sluice_api.shapes import chat, classify, completions, embeddings, fill_mask, v2
from tests.support.request_bodies import bodies

USER = {"role": "user", "content": "Hi"}
CODECS = [*routes.POST_ROUTES.values(), v2.CODEC]


def refusal(codec: Codec, body: bytes | dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        codec.parse(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


@pytest.mark.parametrize(
    ("codec", "more", "message"),
    [
        (
            embeddings.CODEC,
            {"encoding_format": "int8"},
            'encoding_format: got "int8", allowed "base64" or "float".',
        ),
        (
            embeddings.CODEC,
            {"input": 5},
            "input: got 5, allowed a text or a list of texts, whole numbers or lists of whole"
            " numbers.",
        ),
        (
            embeddings.CODEC,
            {"input": [-1]},
            "input[0]: got -1, allowed a text, a whole number from 0 to 2147483647 or a list of"
            " at most 1048576 whole numbers.",
        ),
        (
            embeddings.CODEC,
            {"dimensions": 1.5},
            "dimensions: got 1.5, allowed a whole number from 1 to 65536.",
        ),
        (embeddings.CODEC, {"truncate": "yes"}, 'truncate: got "yes", allowed true or false.'),
        (embeddings.CODEC, {"user": ["me"]}, 'user: got ["me"], allowed a text.'),
        (
            embeddings.CODEC,
            {"inptu": "x"},
            "inptu: this field is not known; known are input, model, encoding_format, dimensions,"
            " user, truncate.",
        ),
        (classify.CODEC, {"parameters": 5}, "parameters: got 5, allowed an object."),
        (
            fill_mask.CODEC,
            {"parameters": {"targets": []}},
            "parameters.targets: got [], allowed a list of 1 to 1000 texts.",
        ),
        (
            classify.CODEC,
            {"parameters": {"labels": 5}},
            "parameters.labels: got 5, allowed a list of texts or an object.",
        ),
        (
            classify.CODEC,
            {"parameters": {"labels": [""]}},
            'parameters.labels[0]: got "", allowed a text of 1 to 1024 characters.',
        ),
        (
            classify.CODEC,
            {"parameters": {"labels": {"": "x"}}},
            'a name in parameters.labels: got {"":"x"}, allowed a text of 1 to 1024 characters.',
        ),
        (
            classify.CODEC,
            {"parameters": {"labels": {"k": 1}}},
            'parameters.labels["k"]: got 1, allowed a text of 1 to 1024 characters.',
        ),
        (
            classify.CODEC,
            {"parameters": {"hypothesis_template": "t" * 2000}},
            f'parameters.hypothesis_template: got "{"t" * 76}..., allowed a text of at most 1024'
            " characters.",
        ),
    ],
)
def test_a_field_says_what_it_got_and_what_it_takes(
    codec: Codec, more: dict[str, Any], message: str
) -> None:
    assert refusal(codec, {"input": "a"} | more).message == message


@pytest.mark.parametrize(
    ("codec", "body", "message"),
    [
        (
            embeddings.CODEC,
            {"input": [1] * (MAX_TOKEN_IDS + 1)},
            "input: got 1048577 token ids, at most 1048576 are allowed.",
        ),
        (
            completions.CODEC,
            {"prompt": [[1], [1] * (MAX_TOKEN_IDS + 1)]},
            f"prompt[1]: got [{'1,' * 38}..., allowed a text, a whole number from 0 to 2147483647"
            " or a list of at most 1048576 whole numbers.",
        ),
        (
            completions.CODEC,
            {"prompt": "x", "logit_bias": dict.fromkeys(range(1025), 1)},
            "logit_bias: got 1025 tokens, at most 1024 are allowed.",
        ),
        (
            completions.CODEC,
            {"prompt": "x", "logit_bias": {"4": 1, "5": 200}},
            'logit_bias["5"]: got 200, allowed a number from -100 to 100.',
        ),
        *(
            (
                chat.CODEC,
                {"messages": [USER], "chat_template_kwargs": {"a": None, "b": True, "c": value}},
                f'chat_template_kwargs["c"]: got {got}, allowed true or false, a number from'
                " -1000000 to 1000000 or a text of at most 1024 characters.",
            )
            for value, got in (
                ([1], "[1]"),
                ({}, "{}"),
                (1_000_001, "1000001"),
                (-1_000_000.5, "-1000000.5"),
                (10**30, "1" + "0" * 30),
                ("x" * 1025, f'"{"x" * 76}...'),
            )
        ),
        (
            chat.CODEC,
            {"messages": [USER], "chat_template_kwargs": {f"{n:02}": 1 for n in range(17)}},
            'chat_template_kwargs: got {"00":1,"01":1,"02":1,"03":1,"04":1,"05":1,"06":1,"07":1,'
            '"08":1,"09":1,"10":1..., allowed an object of at most 16 members.',
        ),
        (
            chat.CODEC,
            {"messages": [USER], "chat_template_kwargs": {"": 1}},
            'a name in chat_template_kwargs: got {"":1}, allowed a text of 1 to 64 characters.',
        ),
        (
            chat.CODEC,
            {"messages": [USER], "chat_template_kwargs": "enable_thinking"},
            'chat_template_kwargs: got "enable_thinking", allowed an object of at most 16 members.',
        ),
        (
            chat.CODEC,
            {"messages": [USER], "reasoning_effort": "little"},
            'reasoning_effort: got "little", allowed "high", "low", "max", "medium", "minimal",'
            ' "none" or "xhigh".',
        ),
    ],
)
def test_what_is_made_one_by_one_is_bounded(
    codec: Codec, body: dict[str, Any], message: str
) -> None:
    error = refusal(codec, body)
    assert (error.code, error.message) == ("invalid_field", message)


def test_the_bounds_themselves_are_allowed() -> None:
    assert embeddings.CODEC.parse(json.dumps({"input": [1] * MAX_TOKEN_IDS}).encode()).inputs
    most = {"prompt": [[1] * MAX_TOKEN_IDS], "logit_bias": dict.fromkeys(range(1024), 1)}
    assert completions.CODEC.parse(json.dumps(most).encode()).inputs


@pytest.mark.parametrize("member", ["function_call", "audio"])
def test_a_member_that_may_only_be_null(member: str) -> None:
    message = {"role": "user", "content": "x", member: 5}
    error = refusal(chat.CODEC, {"messages": [message]})
    assert error.message == f"messages[0].{member}: got 5, allowed null."


def test_a_task_is_one_of_the_tasks() -> None:
    error = refusal(v2.CODEC, {"inputs": [], "parameters": {"task": "chat"}})
    assert error.message == (
        'parameters.task: got "chat", allowed "classification", "embeddings", "fill-mask", '
        '"question-answering", "rerank", "summarization", "token-classification", "translation" '
        'or "zero-shot".'
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The body is empty."),
        (b" \r\n", "The body is empty."),
        (b"5", "The body must be a JSON object, got 5."),
        (b'{"input": "a', "not valid JSON: it ends before it is complete (byte 12)."),
        (b'{"input": "a"} x', "not valid JSON: trailing characters (byte 16)."),
        (b'{"input": NaN}', "not valid JSON: invalid character (byte 10)."),
        (b'{"input": "\xff"}', "not valid JSON: it is not UTF-8 (byte 11)."),
        (b'{"input": "\\ud800"}', r"\ud800 is half a character (byte 11); write both or none."),
        (b'{"input": "\\uDC00"}', r"\uDC00 is half a character (byte 11); write both or none."),
        (
            b'{"model": "\\\\ud800 \\ud83d\\ude00", "input": "\\ud83d"}',
            r"\ud83d is half a character (byte 44); write both or none.",
        ),
        (b"[" * 9999, "The body nests too deeply."),
        # Both are wrong: the syntax is what to repair first.
        (b'{"input": 5, "model": "\\ud800"}', r"\ud800 is half a character (byte 23)"),
        (b'{"input": 5, oops', "not valid JSON: object keys must be strings (byte 13)."),
    ],
)
def test_what_is_no_json_is_told_with_its_place(body: bytes, message: str) -> None:
    error = refusal(embeddings.CODEC, body)
    assert error.code == "invalid_json"
    assert message in error.message


@pytest.mark.parametrize(
    ("body", "param"), [(b'{"input": 1e999}', "input"), (b'{"input": 5, "x": 1e999}', None)]
)
def test_a_number_that_no_computer_holds(body: bytes, param: str | None) -> None:
    error = refusal(embeddings.CODEC, body)
    assert (error.code, error.param) == ("invalid_field", param)
    assert error.message == f"{param or 'The body'}: holds a number that is out of range."


def test_a_long_name_is_not_repeated_in_full() -> None:
    error = refusal(embeddings.CODEC, {"input": "a", "x" * 9999: 1})
    assert error.code == "unknown_field"
    assert len(error.message) < 300


@given(st.sampled_from(CODECS), st.data())
def test_any_body_is_read_or_refused_from_the_catalogue(codec: Codec, data: st.DataObject) -> None:
    body = data.draw(bodies(codec))
    refused = None
    try:
        codec.parse(body)
    except ApiError as error:
        refused = error
    if refused is not None:
        assert refused.status == 400
        assert "`" not in refused.message or b"`" in body


def test_what_is_always_refused_is_not_offered() -> None:
    known = refusal(completions.CODEC, {"prompt": "a", "sufix": "b"}).message.partition("known")[2]
    assert "max_tokens" in known
    assert not any(name in known for name in ("suffix", "echo", "best_of"))


@pytest.mark.parametrize("codec", [embeddings.CODEC, chat.CODEC])
@pytest.mark.parametrize(
    "second", [b'"model": "b"', rb'"\u006dodel": "b"', rb'"mod\u0065\u006C": "b"']
)
@pytest.mark.parametrize("padding", [b"", b" " * 5000])
@pytest.mark.parametrize("size", [10, 100_000])
def test_a_model_that_is_given_twice_is_found_wherever_it_stands(
    codec: Codec, second: bytes, padding: bytes, size: int
) -> None:
    text = b'"%b"' % (b"x" * size)
    said = (
        b'"messages": [{"role": "user", "content": %b}]' if codec is chat.CODEC else b'"input": %b'
    )
    once = b'{%b"model": "a", %b%b}' % (padding, said % text, padding)
    assert codec.parse(once).model == "a"
    for body in (
        once.replace(b'"a",', b'"a", %b,' % second),
        once[: -len(padding) - 1] + b", " + second + padding + b"}",
    ):
        assert (e := refusal(codec, body)).param == "model"
        assert e.message == "model: given twice; give it once."


def test_escapes_of_letters_are_no_fault() -> None:
    body = rb'{"\u006dodel": "\u0061", "input": "\u006dodel"}'
    call = embeddings.CODEC.parse(body)
    assert (call.model, call.inputs) == ("a", ["model"])
