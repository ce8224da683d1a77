"""The codecs of generated text: what a body means, plain answers, and streams of the same item."""

import json
from typing import Any

import pytest

from sluice_api.call import Call, Item
from sluice_api.errors import ApiError
from sluice_api.shapes import chat, completions, generated, generation
from sluice_api.shapes.generated import (
    Alternative,
    Choice,
    Delta,
    FunctionCall,
    PromptUsage,
    TokenLogprob,
    ToolCall,
)
from sluice_api.tasks import Task

USER = {"role": "user", "content": "Hi"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "now",
        "parameters": {"type": "object", "properties": {"z": {}, "a": {}}},
    },
}
SCORED = [
    TokenLogprob(Alternative("Hé", -0.5, "Hé".encode()), [Alternative("Ha", -1.5, b"Ha")]),
    TokenLogprob(Alternative("�", -0.1, b"\xe2\x82"), [Alternative("!", -2.5, b"!")]),
]


def asked(codec: Any, **members: Any) -> Call:
    call: Call = codec.CODEC.parse(json.dumps(members).encode())
    return call


def completion(**members: Any) -> Call:
    return asked(completions, **{"prompt": "Once", **members})


def conversation(*messages: dict[str, Any], **members: Any) -> Call:
    return asked(chat, messages=list(messages) or [USER], **members)


def events(stream: bytes) -> list[Any]:
    """The data of each event; a comment line is no event."""
    lines = [line for line in stream.decode().split("\n\n") if line.startswith("data: ")]
    found = [line.removeprefix("data: ") for line in lines]
    return [data if data == "[DONE]" else json.loads(data) for data in found]


# Requests -----------------------------------------------------------------------------------------


def test_a_prompt_is_a_text_a_list_or_tokens() -> None:
    assert completion(prompt="a").inputs == ["a"]
    assert completion(prompt=["a", "b"]).inputs == ["a", "b"]
    assert completion(prompt=[1, 2]).inputs == [[1, 2]]
    assert completion(prompt=[[1, 2], [3]]).inputs == [[1, 2], [3]]
    assert completion().task == Task.TEXT_GENERATION


def test_a_completion_has_sixteen_tokens_and_a_chat_no_bound_of_its_own() -> None:
    assert completion().parameters == {"max_tokens": 16}
    assert conversation().parameters == {}
    assert conversation(max_completion_tokens=3) == conversation(max_tokens=3)


def test_one_conversation_has_one_spelling() -> None:
    parts = [{"type": "text", "text": "Hi"}]
    plain = conversation({"role": "developer", "content": "Be kind"}, USER)
    other = conversation(
        {"role": "system", "content": "Be kind"}, {"content": parts, "role": "user"}
    )
    assert plain.inputs == other.inputs
    assert plain.inputs == [
        '[{"role":"system","content":"Be kind"},{"role":"user","content":"Hi"}]'
    ]
    assert plain.task == Task.CHAT


def test_what_an_openai_client_keeps_of_an_answer_can_be_sent_back() -> None:
    arguments = {"name": "weather", "arguments": '{"city": "Bern"}'}
    call = conversation(
        USER,
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": arguments, "index": 0}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "12 °C"},
    )
    assert json.loads(str(call.inputs[0]))[1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "function": arguments, "type": "function"}],
        },
        {"role": "tool", "content": "12 °C", "tool_call_id": "c1"},
    ]


def test_the_thoughts_before_an_answer_go_to_the_template() -> None:
    thought = {"role": "assistant", "content": "Yes", "reasoning_content": "Say yes."}
    told = json.loads(str(conversation(USER, thought, USER).inputs[0]))
    assert told[1] == thought
    without = conversation(USER, {**thought, "reasoning_content": None}, USER)
    assert json.loads(str(without.inputs[0]))[1] == {"role": "assistant", "content": "Yes"}
    newer = {"role": "assistant", "content": "Yes", "reasoning": "Say yes."}
    assert conversation(USER, newer, USER).inputs == conversation(USER, thought, USER).inputs
    cut_off = {"role": "assistant", "content": None, "reasoning_content": "Say y"}
    assert json.loads(str(conversation(USER, cut_off, USER).inputs[0]))[1] == {
        **cut_off,
        "content": "",
    }


def test_prompts_and_choices_are_bounded_together() -> None:
    assert completion(prompt=["a"] * 32, n=64).parameters["n"] == 64
    with pytest.raises(ApiError) as caught:
        completion(prompt=["a"] * 33, n=64)
    assert (caught.value.code, caught.value.param) == ("too_many_inputs", "n")


def test_a_penalty_too_small_to_divide_by_is_refused() -> None:
    with pytest.raises(ApiError, match=r"0\.01") as caught:
        conversation(repetition_penalty=1e-300)
    assert caught.value.param == "repetition_penalty"


def test_sampling_parameters_do_not_tell_greedy_calls_apart() -> None:
    greedy = completion(temperature=0)
    assert completion(temperature=0.0, seed=3, top_p=0.4, top_k=3, min_p=0.2) == greedy
    assert completion(temperature=1e-38, seed=3) == greedy
    assert conversation(temperature=9e-6) == conversation(temperature=0)
    assert greedy.reusable
    assert completion().reusable  # So far as can be told: the model's defaults decide.


@pytest.mark.parametrize(
    "members",
    [{"temperature": 0.5}, {"seed": 1}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.1}, {"n": 2}],
)
def test_what_asks_for_chance_is_not_reused(members: dict[str, Any]) -> None:
    assert not completion(**members).reusable
    assert not conversation(**members).reusable


def test_the_order_of_a_schema_and_of_tools_is_kept() -> None:
    schema = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "string"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    call = conversation(response_format=wanted, tools=[WEATHER])
    assert list(json.loads(call.parameters["json_schema"])["properties"]) == ["z", "a"]
    kept = json.loads(call.parameters["tools"])[0]["function"]
    assert list(kept["parameters"]["properties"]) == ["z", "a"]
    again = chat.CODEC.parse(chat.CODEC.canonical_body(call, call.inputs))
    assert again.canonical_parameters() == call.canonical_parameters()


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"temperature": 0, "max_tokens": 5, "stop": ["a", "b"], "logit_bias": {"7": -100}},
        {"temperature": 0.7, "top_p": 0.9, "top_k": -1, "min_p": 0.1, "seed": 4, "n": 3},
        {"presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.2, "stop": "x"},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "text"}},
        {"model": "m", "user": "somebody"},
    ],
)
def test_a_canonical_body_asks_the_same(members: dict[str, Any]) -> None:
    call = completion(**members, prompt=["a"], logprobs=2)
    assert completions.CODEC.parse(completions.CODEC.canonical_body(call, call.inputs)) == call
    for call in (
        conversation(**members, logprobs=True, top_logprobs=4),
        conversation(**members, tools=[WEATHER], parallel_tool_calls=False),
    ):
        assert chat.CODEC.parse(chat.CODEC.canonical_body(call, call.inputs)) == call


@pytest.mark.parametrize("choice", ["none", "auto", "required", "weather"])
def test_a_tool_choice_survives(choice: str) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    call = conversation(tools=[WEATHER], tool_choice=named if choice == "weather" else choice)
    assert call.parameters.get("tool_choice", "auto").lstrip("=") == choice
    assert chat.CODEC.parse(chat.CODEC.canonical_body(call, call.inputs)) == call


@pytest.mark.parametrize(
    "variables",
    [
        {"enable_thinking": False},
        {"b": 1, "a": "text", "c": None, "d": 0.5, "e": -1_000_000, "f": "x" * 1024, "g": ""},
        {"n" * 64: True},
        {f"v{number}": number for number in range(16)},
    ],
)
def test_variables_of_the_template_survive(variables: dict[str, Any]) -> None:
    call = conversation(chat_template_kwargs=variables)
    assert generation.parameters_of(call).chat_template_kwargs == variables
    kinds = [type(value) for value in call.parameters["chat_template_kwargs"].values()]
    assert kinds == [type(value) for value in variables.values()]
    assert chat.CODEC.parse(chat.CODEC.canonical_body(call, call.inputs)) == call
    turned = dict(reversed(variables.items()))
    again = conversation(chat_template_kwargs=turned)
    assert again.canonical_parameters() == call.canonical_parameters()


def test_other_variables_are_another_question() -> None:
    asked = [
        conversation(chat_template_kwargs=variables).canonical_parameters()
        for variables in ({}, {"a": True}, {"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": None}, {"b": 1})
    ]
    assert len(set(asked)) == len(asked)
    for nothing in ({"chat_template_kwargs": None}, {"reasoning_effort": None}):
        assert conversation(**nothing) == conversation(chat_template_kwargs={}) == conversation()


def test_effort_is_a_variable_of_the_template() -> None:
    as_variable = conversation(chat_template_kwargs={"reasoning_effort": "low", "a": 1})
    assert conversation(chat_template_kwargs={"a": 1}, reasoning_effort="low") == as_variable
    both = {"chat_template_kwargs": {"reasoning_effort": "low", "a": 1}, "reasoning_effort": "low"}
    assert conversation(**both) == as_variable
    assert chat.CODEC.parse(chat.CODEC.canonical_body(as_variable, as_variable.inputs)) == (
        as_variable
    )


def test_a_stream_is_the_same_call_written_otherwise() -> None:
    plain, streamed = conversation(), conversation(stream=True)
    assert plain.stream is None
    assert streamed.stream is not None
    assert not streamed.stream.include_usage
    assert streamed.canonical_parameters() == plain.canonical_parameters()
    with_usage = conversation(stream=True, stream_options={"include_usage": True})
    assert with_usage.stream is not None
    assert with_usage.stream.include_usage


@pytest.mark.parametrize(
    ("codec", "members", "code", "param", "shown"),
    [
        (completions, {}, "missing_field", "prompt", "required"),
        (completions, {"prompt": ""}, "invalid_field", "prompt", "empty input"),
        (completions, {"prompt": []}, "invalid_field", "prompt", "empty list"),
        (completions, {"prompt": [1, "a"]}, "invalid_field", "prompt[0]", "the number 1"),
        (completions, {"prompt": "a", "echo": True}, "invalid_field", "echo", "not supported"),
        (completions, {"prompt": "a", "suffix": "b"}, "invalid_field", "suffix", 'got "b"'),
        (completions, {"prompt": "a", "best_of": 3}, "invalid_field", "best_of", "got 3"),
        (completions, {"prompt": "a", "logprobs": 21}, "invalid_field", "logprobs", "got 21"),
        (completions, {"prompt": "a", "max_tokens": 0}, "invalid_field", "max_tokens", "got 0"),
        (chat, {"messages": []}, "invalid_field", "messages", "got []"),
        (chat, {"messages": "Hi"}, "invalid_field", "messages", 'got "Hi"'),
        (chat, {"messages": [{"role": "user"}]}, "missing_field", "messages[0].content", ""),
        (
            chat,
            {"messages": [{"role": "king", "content": "x"}]},
            "invalid_field",
            "messages[0].role",
            '"king"',
        ),
        (
            chat,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": ""}]}]},
            "invalid_field",
            "messages[0].content[0].type",
            '"image_url"',
        ),
        (
            chat,
            {"messages": [{"role": "tool", "content": "x"}]},
            "missing_field",
            "messages[0].tool_call_id",
            "",
        ),
        (
            chat,
            {
                "messages": [
                    {**USER, "tool_calls": [{"id": "", "function": {"name": "f", "arguments": ""}}]}
                ]
            },
            "invalid_field",
            "messages[0].tool_calls",
            "user",
        ),
        (
            chat,
            {"messages": [{**USER, "reasoning_content": "x"}]},
            "invalid_field",
            "messages[0].reasoning_content",
            "got user",
        ),
        (chat, {"messages": [USER], "temperature": 3}, "invalid_field", "temperature", "0 to 2"),
        (chat, {"messages": [USER], "top_p": 0}, "invalid_field", "top_p", "got 0"),
        (chat, {"messages": [USER], "n": 65}, "invalid_field", "n", "got 65"),
        (chat, {"messages": [USER], "stop": [""]}, "invalid_field", "stop[0]", 'got ""'),
        (chat, {"messages": [USER], "stop": ["x"] * 17}, "invalid_field", "stop", ""),
        (chat, {"messages": [USER], "top_logprobs": 2}, "invalid_field", "top_logprobs", ""),
        (chat, {"messages": [USER], "functions": []}, "unknown_field", "functions", "not known"),
        (
            chat,
            {"messages": [USER], "max_tokens": 1, "max_completion_tokens": 2},
            "invalid_field",
            "max_tokens",
            "got 1",
        ),
        *(
            (
                chat,
                {"messages": [USER], "chat_template_kwargs": {"a": 1, name: "x"}},
                "invalid_field",
                f'chat_template_kwargs["{name}"]',
                "renderer's own",
            )
            for name in ("messages", "tools", "add_generation_prompt", "bos_token", "namespace")
        ),
        (
            chat,
            {
                "messages": [USER],
                "chat_template_kwargs": {"reasoning_effort": "low"},
                "reasoning_effort": "high",
            },
            "invalid_field",
            "reasoning_effort",
            'got "high" beside "low" in chat_template_kwargs',
        ),
        (
            completions,
            {"prompt": "a", "chat_template_kwargs": {}},
            "unknown_field",
            "chat_template_kwargs",
            "not known",
        ),
        (
            chat,
            {"messages": [USER], "logit_bias": {"a": 1}},
            "invalid_field",
            "logit_bias",
            "whole number",
        ),
        (
            chat,
            {"messages": [USER], "response_format": {"type": "json_schema"}},
            "missing_field",
            "response_format.json_schema",
            "",
        ),
        (
            chat,
            {"messages": [USER], "response_format": {"type": "xml"}},
            "invalid_field",
            "response_format.type",
            '"xml"',
        ),
        (chat, {"messages": [USER], "tool_choice": "required"}, "missing_field", "tools", ""),
        (
            chat,
            {"messages": [USER], "tools": [{"type": "function", "function": {"name": "a b"}}]},
            "invalid_field",
            "tools[0].function.name",
            'got "a b", allowed letters',
        ),
        (
            chat,
            {"messages": [USER], "tools": [WEATHER, WEATHER]},
            "invalid_field",
            "tools[1].function.name",
            "twice",
        ),
        (
            chat,
            {
                "messages": [USER],
                "tools": [WEATHER],
                "tool_choice": {"type": "function", "function": {"name": "stocks"}},
            },
            "invalid_field",
            "tool_choice.function.name",
            '"stocks"',
        ),
        (
            chat,
            {
                "messages": [USER],
                "tools": [WEATHER],
                "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            "invalid_field",
            "response_format",
            "tool_choice",
        ),
        (
            chat,
            {"messages": [USER], "stream_options": {"include_usage": True}},
            "invalid_field",
            "stream_options",
            "stream: true",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    codec: Any, members: dict[str, Any], code: str, param: str, shown: str
) -> None:
    with pytest.raises(ApiError) as caught:
        asked(codec, **members)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert shown in caught.value.message


# Answers ------------------------------------------------------------------------------------------


def answers(codec: Any, *, sampled: bool = False) -> list[Item]:
    choices = [Choice("Hé�", "length", SCORED), Choice(" lived", "stop")]
    return [codec.CODEC.item(choices, 3, 7, sampled=sampled)]


def test_a_completion_is_openais() -> None:
    call = completion(n=2)
    answer = json.loads(completions.CODEC.render(call, "m", answers(completions)))
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "m"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
    assert answer["choices"][0] == {
        "index": 0,
        "text": "Hé�",
        "finish_reason": "length",
        "logprobs": {
            "tokens": ["Hé", "�"],
            "token_logprobs": [-0.5, -0.1],
            "top_logprobs": [{"Ha": -1.5}, {"!": -2.5}],
            "text_offset": [0, 2],
        },
    }
    assert answer["choices"][1]["index"] == 1


def test_a_chat_is_openais() -> None:
    answer = json.loads(chat.CODEC.render(conversation(n=2), "m", answers(chat)))
    assert answer["object"] == "chat.completion"
    first, second = answer["choices"]
    assert first["message"] == {"role": "assistant", "content": "Hé�"}
    assert first["logprobs"]["content"][1] == {
        "token": "�",
        "logprob": -0.1,
        "bytes": [0xE2, 0x82],
        "top_logprobs": [{"token": "!", "logprob": -2.5, "bytes": [33]}],
    }
    assert second == {
        "index": 1,
        "message": {"role": "assistant", "content": " lived"},
        "finish_reason": "stop",
        "logprobs": None,
    }


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("codec", [completions, chat])
def test_an_item_survives_its_answer(codec: Any, sampled: bool) -> None:
    call = completion(n=2) if codec is completions else conversation(n=2)
    items = answers(codec, sampled=sampled)
    assert codec.CODEC.extract(call, codec.CODEC.render(call, "m", items)) == items
    assert generated.is_sampled(items[0]) is sampled
    assert items[0].json.endswith(b'"tokens":10}')
    assert items[0].tokens == 10


def test_several_prompts_have_an_item_each() -> None:
    call = completion(prompt=["a", "b"])
    items = [
        completions.CODEC.item([Choice("x", "stop")], 1, 2),
        completions.CODEC.item([Choice("y", "length")], 3, 4),
    ]
    body = completions.CODEC.render(call, "m", items)
    assert completions.CODEC.extract(call, body) == items
    usage = json.loads(body)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (4, 6)


def test_an_answer_with_its_members_in_another_order_is_read() -> None:
    body = json.dumps(
        {
            "choices": [{"text": "x", "index": 0, "finish_reason": "stop"}],
            "usage": {"completion_tokens": 1, "prompt_tokens": 2},
        }
    ).encode()
    (item,) = completions.CODEC.extract(completion(), body)
    assert json.loads(item.json)["choices"] == [{"text": "x", "finish_reason": "stop"}]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}',
        b'{"choices":[{"index":1}],"usage":{"prompt_tokens":1,"completion_tokens":1}}',
        b'{"choices":[{"index":0}],"usage":{"prompt_tokens":1,"completion_tokens":1,'
        b'"by_prompt":[{"prompt_tokens":1,"completion_tokens":1},'
        b'{"prompt_tokens":1,"completion_tokens":1}]}}',
    ],
)
def test_an_answer_of_another_shape_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        completions.CODEC.extract(completion(), body)


# Streams ------------------------------------------------------------------------------------------


def test_a_chat_is_streamed_in_openais_chunks() -> None:
    writer = chat.CODEC.writer("m", include_usage=True)
    calls = [
        (0, ToolCall("c1", FunctionCall("weather", ""))),
        (0, ToolCall("", FunctionCall("", '{"a":1}'))),
    ]
    stream = b"".join(
        [
            writer.start(0),
            writer.delta(Delta(0, "Hé", SCORED[:1])),
            writer.delta(Delta(0)),
            writer.delta(Delta(0, tool_calls=calls)),
            writer.delta(Delta(0, finish_reason="tool_calls")),
            writer.usage([PromptUsage(3, 4)]),
            generated.DONE,
        ]
    )
    *chunks, last, done = events(stream)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 7
    assert {chunk["id"] for chunk in [*chunks, last]} == {last["id"]}
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hé"},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":1}'}}]},
        {},
    ]
    assert chunks[1]["choices"][0]["logprobs"]["content"][0]["token"] == "Hé"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "tool_calls"]


def test_a_completion_is_streamed_with_offsets_that_go_on() -> None:
    writer = completions.CODEC.writer("m", include_usage=False)
    stream = [writer.start(0), *(writer.delta(Delta(0, s.chosen.text, [s])) for s in SCORED)]
    stream.append(writer.delta(Delta(0, finish_reason="stop")))
    chunks = events(b"".join(stream))
    assert all("usage" not in chunk for chunk in chunks)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hé", "�", ""]
    offsets = [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks[:2]]
    assert offsets == [[0], [2]]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("usage", [False, True])
def test_a_replay_says_what_the_plain_answer_says(usage: bool) -> None:
    options = {"stream": True, "stream_options": {"include_usage": usage}, "n": 2}
    call = completion(**options)
    *chunks, done = events(completions.CODEC.render_stream(call, "m", answers(completions)))
    assert done == "[DONE]"
    assert [chunk["choices"] == [] for chunk in chunks] == [False, False] + [True] * usage
    plain = json.loads(completions.CODEC.render(call, "m", answers(completions)))
    assert [chunk["choices"][0] for chunk in chunks[:2]] == plain["choices"]


def test_a_replayed_message_adds_up_to_the_plain_one() -> None:
    called = Choice("", "tool_calls", None, [ToolCall("c1", FunctionCall("weather", "{}"))])
    item = chat.CODEC.item([called], 1, 2)
    call = conversation(stream=True)
    *chunks, done = events(chat.CODEC.render_stream(call, "m", [item]))
    assert done == "[DONE]"
    merged: dict[str, Any] = {}
    for chunk in chunks:
        merged |= chunk["choices"][0]["delta"]
    assert merged["tool_calls"][0]["function"] == {"name": "weather", "arguments": "{}"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    plain = json.loads(chat.CODEC.render(call, "m", [item]))["choices"][0]["message"]
    assert plain["content"] is None
    assert plain["tool_calls"][0]["id"] == "c1"


def test_an_error_is_an_event_and_an_item_is_a_comment() -> None:
    error = generated.error_event(ApiError("overloaded", "Too much."), "r1")
    (read,) = events(error)
    assert read["error"]["code"] == "overloaded"
    assert read["error"]["request_id"] == "r1"
    (item,) = answers(chat)
    assert generated.item_event(item) == b": item " + item.json + b"\n\n"
    assert events(generated.item_event(item)) == []
